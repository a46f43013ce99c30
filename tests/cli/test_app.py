"""What all commands have in common: options, errors, exit codes, completion."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.cli.app import hoisted
from tests.cli import flows
from tests.cli.conftest import Call


def test_the_version_is_reported(cli: Call) -> None:
    assert cli("--version").out == f"pyworkflow-ray {pr.__version__}\n"


def test_help_is_an_answer_of_every_group(cli: Call) -> None:
    for group in ((), ("runs",), ("workflows",), ("hooks",), ("db",), ("runs", "list")):
        answer = cli(*group, "--help")
        assert (answer.code, answer.err) == (0, ""), group
        assert "Usage: pyworkflow-ray" in answer.out


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["runs", "list", "--output", "json"], ["--output", "json", "runs", "list"]),
        (["runs", "list", "--output=json"], ["--output=json", "runs", "list"]),
        (
            ["--storage", "a", "runs", "--debug", "list", "--module", "x", "--module", "y"],
            ["--storage", "a", "--debug", "--module", "x", "--module", "y", "runs", "list"],
        ),
        (["runs", "logs", "--", "--output", "x"], ["runs", "logs", "--", "--output", "x"]),
        (["runs", "list", "--output"], ["runs", "list", "--output"]),
    ],
)
def test_global_options_may_stand_anywhere(typed: list[str], meant: list[str]) -> None:
    assert hoisted(typed) == meant


def test_options_win_over_the_environment_and_that_over_the_file(cli: Call, local: Path) -> None:
    run = pr.start_sync(flows.cli_counts, 3)
    pr.reset_config()
    assert (
        cli("runs", "list", "--output", "json", PYWORKFLOW_STORAGE=str(local / "cli.db")).json[0]["run_id"]
        == run
    )
    pr.reset_config()
    (local / "pyworkflow.config.yaml").write_text(f"storage: {local / 'cli.db'}\n")
    assert len(cli("runs", "list", "--output", "json").json) == 1
    assert cli("runs", "list", "--output", "json", "--storage", "memory").json == []


def test_an_unreachable_database_is_one_message_without_a_password(cli: Call) -> None:
    url = "postgresql://user:s3cret@127.0.0.1:1/nothing?connect_timeout=1"
    answer = cli("--storage", url, "runs", "list")
    assert (answer.code, answer.out) == (1, "")
    assert "s3cret" not in answer.err
    assert "Traceback" not in answer.err
    assert answer.err.startswith("Error: The database postgresql")
    assert answer.err.endswith("Next: pyworkflow-ray doctor\n")


def test_broken_settings_are_told_with_their_place(cli: Call, tmp_path: Path) -> None:
    (tmp_path / "pyworkflow.config.yaml").write_text("storag: here.db\n")
    answer = cli("runs", "list")
    assert answer.code == 1
    assert "'storage'" in answer.err
    assert "Traceback" not in answer.err


def test_a_traceback_is_shown_when_it_is_asked_for(cli: Call, local: Path) -> None:
    with pytest.raises(pr.WorkflowNotFoundError):
        cli("runs", "status", "run_x", "--debug")
    with pytest.raises(pr.WorkflowNotFoundError):
        cli("runs", "status", "run_x", PYWORKFLOW_DEBUG="1")


def test_what_is_no_command_is_a_usage_error(cli: Call) -> None:
    answer = cli("runs", "lst")
    assert (answer.code, answer.out) == (2, "")
    assert "lst" in answer.err


def test_an_error_nobody_expected_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    script = (
        "import sys; from pyworkflow_ray.cli import app, runs\n"
        "def fail(*args): raise LookupError('oh')\n"
        "runs.begin_reading = fail\n"
        "sys.argv = ['pyworkflow-ray', 'runs', 'list']\n"
        "app.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0] == "Error: LookupError: oh"
    assert "--debug" in done.stderr


def completed(cli: Call, *words: str) -> list[str]:
    """What the shell offers for the last of these words."""
    line = ["pyworkflow-ray", *words]
    answer = cli(
        _PYWORKFLOW_RAY_COMPLETE="complete_bash",
        COMP_WORDS=" ".join(line),
        COMP_CWORD=str(len(line) - 1),
    )
    return [offer for offer in answer.lines if offer]


def test_states_workflows_and_runs_are_completed(cli: Call, local: Path) -> None:
    run = pr.start_sync(flows.cli_counts, 3)
    assert completed(cli, "runs", "list", "--status", "comp") == ["completed"]
    assert completed(cli, "runs", "purge", "--status", "c") == ["completed", "cancelled", "continued_as_new"]
    assert completed(cli, "runs", "list", "--workflow", "cli_c") == ["cli_counts"]
    assert completed(cli, "workflows", "run", "--module", "tests.cli.flows", "cli_dou") == ["cli_doubles"]
    assert completed(cli, "runs", "status", run[:8]) == [run]


def test_a_completion_that_cannot_look_offers_nothing(cli: Call, tmp_path: Path) -> None:
    (tmp_path / "pyworkflow.config.yaml").write_text("storag: here.db\n")
    assert completed(cli, "runs", "status", "run_") == []
    (tmp_path / "pyworkflow.config.yaml").unlink()
    pr.reset_config()
    assert completed(cli, "runs", "list", "--workflow", "") == []
    assert completed(cli, "workflows", "run", "--module", "cli_not_there", "x") == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["up", "down"])
def test_an_engine_is_not_looked_for_in_clusters_that_others_have_for_themselves(
    cli: Call, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("pyworkflow_ray.client.engine_actors.address_of_local_cluster", lambda: None)
    answer = cli(command)
    assert (answer.code, answer.out) == (1, "")
    assert "ray start --head" in answer.err
