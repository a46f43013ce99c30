"""`pyworkflow-ray runs`, on a database alone."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import pyworkflow_ray as pr
from tests.cli import flows
from tests.cli.conftest import Call


@pytest.fixture
def failed(local: Path) -> str:
    """A run that has failed."""
    with pytest.raises(ValueError, match="no space") as caught:
        pr.start_sync(flows.cli_fails, "no space left")
    return str(caught.value.run_id)  # type: ignore[attr-defined]


# --- a first look ---------------------------------------------------------------------------------


def test_a_default_install_lists_no_runs_and_makes_no_database(cli: Call, tmp_path: Path) -> None:
    answer = cli("runs", "list")
    assert (answer.code, answer.out) == (0, "")
    assert str(tmp_path / ".pyworkflow" / "pyworkflow.db") in answer.err
    assert "quickstart" in answer.err
    assert cli("runs", "list", "--output", "json").json == []
    assert cli("hooks", "list", "--output", "json").json == []
    assert list(tmp_path.iterdir()) == []


def test_every_look_at_a_run_is_json_alone(cli: Call, local: Path) -> None:
    run = pr.start_sync(flows.cli_has_children)
    for command in (
        ("list",),
        ("status", run),
        ("logs", run),
        ("children", run),
        ("chain", run),
    ):
        answer = cli("runs", *command, "--output", "json")
        assert answer.code == 0
        assert answer.json, command
        assert answer.err == ""


# --- list -----------------------------------------------------------------------------------------


def test_runs_are_found_by_state_workflow_text_and_age(cli: Call, failed: str) -> None:
    done = pr.start_sync(flows.cli_doubles, [1])
    waiting = pr.start_sync(flows.cli_sleeps)

    def found(*options: str) -> list[str]:
        answer = cli("runs", "list", *options, "--output", "plain")
        return [line.split("\t")[0] for line in answer.lines]

    assert found() == [waiting, done, failed]
    assert found("--status", "failed", "--status", "suspended") == [waiting, failed]
    assert found("--workflow", "cli_doubles") == [done]
    assert found("-q", failed[6:]) == [failed]
    assert found("--since", "1h") == [waiting, done, failed]
    assert found("--since", "2131-01-01") == []
    assert found("--limit", "1") == [waiting]
    assert "--limit 5" in cli("runs", "list", "--limit", "1").err


def test_plain_times_are_in_iso_form_and_a_tables_are_relative(cli: Call, failed: str) -> None:
    run = pr.run_sync(pr.get_workflow_run(failed))
    assert run is not None
    (line,) = cli("runs", "list", "--output", "plain").lines
    assert line.split("\t")[:4] == [failed, "cli_fails", "failed", run.created_at.isoformat()]
    table = cli("runs", "list").out  # one look: a second one may come when "now" has become "1 s ago"
    assert " ago" in table or " now" in table


@pytest.mark.parametrize(
    "option", [("--status", "sleepy"), ("--since", "soon"), ("--limit", "0"), ("--wat",)]
)
def test_an_option_that_cannot_be_read_is_a_usage_error(
    cli: Call, local: Path, option: tuple[str, ...]
) -> None:
    answer = cli("runs", "list", *option)
    assert (answer.code, answer.out) == (2, "")
    assert option[0] in answer.err


# --- ids ------------------------------------------------------------------------------------------


def test_an_id_may_be_shortened_to_what_tells_it(cli: Call, failed: str) -> None:
    for short in (failed, failed[:12], failed[4:10]):
        assert cli("runs", "status", short, "--output", "json").json["run_id"] == failed


def test_a_beginning_of_several_ids_is_refused_with_them(cli: Call, local: Path) -> None:
    for run_id in ("order-1", "order-2"):
        pr.run_sync(pr.start.options(run_id=run_id)(flows.cli_counts, 3))
    answer = cli("runs", "status", "order")
    assert answer.code == 1
    assert "order-1, order-2" in answer.err
    assert cli("runs", "status", "order-1").code == 0


def test_an_unknown_run_is_told_with_what_to_type_next(cli: Call, local: Path) -> None:
    pr.start_sync(flows.cli_counts, 3)
    answer = cli("runs", "status", "run_nothing")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == (
        "Error: There is no run 'run_nothing' in this storage.\nNext: pyworkflow-ray runs list\n"
    )


# --- status ---------------------------------------------------------------------------------------


def test_a_failed_run_is_told_with_its_steps_its_error_and_the_way_on(cli: Call, failed: str) -> None:
    answer = cli("runs", "status", failed)
    assert "ValueError: no space left" in answer.out
    assert "raise ValueError(text)" in answer.out
    rows = [line.split() for line in answer.lines if line.startswith("cli_")]
    assert [row[:2] for row in rows] == [["cli_double#1", "completed"], ["cli_break#1", "failed"]]
    assert f"runs fork {failed} --code current" in answer.err


def test_a_run_that_waits_tells_for_what_and_what_to_type(cli: Call, local: Path) -> None:
    asks, sleeps = pr.start_sync(flows.cli_asks), pr.start_sync(flows.cli_sleeps)
    hooks, _ = pr.run_sync(pr.list_hooks(asks))
    answer = cli("runs", "status", asks)
    assert "cli_approval#1 until" in answer.out
    assert f"pyworkflow-ray hooks resume {hooks[0].token}" in answer.out
    assert "nap#1 until" in cli("runs", "status", sleeps).out
    (wait,) = cli("runs", "status", sleeps, "--output", "json").json["waits_for"]
    assert (wait["kind"], wait["id"]) == ("sleep", "nap#1")


def test_many_steps_of_one_name_are_one_row_for_each_state(cli: Call, local: Path) -> None:
    run = pr.start_sync(flows.cli_many, 20)
    rows = [line for line in cli("runs", "status", run).lines if line.startswith("cli_double")]
    assert len(rows) == 1
    assert rows[0].startswith("cli_double ×20")
    assert len(cli("runs", "status", run, "--output", "json").json["steps"]) == 20


def test_looking_unpickles_nothing(cli: Call, local: Path) -> None:
    mark = local / "unpickled"
    run = pr.start_sync(flows.cli_takes, flows.Trap(str(mark)))
    mark.unlink(missing_ok=True)  # the run itself has unpickled it
    for command in ("status", "logs", "children", "chain"):
        for form in ("json", "table"):
            assert cli("runs", command, run, "--output", form).code == 0
    assert cli("runs", "list").code == 0
    assert not mark.exists()


# --- logs -----------------------------------------------------------------------------------------


def test_the_history_is_shown_whole_or_by_type(cli: Call, failed: str) -> None:
    every = [event["type"] for event in cli("runs", "logs", failed, "--output", "json").json]
    assert every == [event.type for event in pr.run_sync(pr.get_workflow_events(failed))]
    some = cli("runs", "logs", failed, "--filter", "step.failed", "--filter", "workflow", "--output", "plain")
    assert [line.split("\t")[2] for line in some.lines] == [
        "workflow.started",
        "step.failed",
        "workflow.failed",
    ]


def test_a_history_shows_no_token(cli: Call, local: Path) -> None:
    run = pr.start_sync(flows.cli_asks)
    hooks, _ = pr.run_sync(pr.list_hooks(run))
    for form in ("table", "plain"):
        answer = cli("runs", "logs", run, "--output", form)
        assert "hook.created" in answer.out
        assert hooks[0].token not in answer.out


@pytest.mark.parametrize("form", ["json", "plain", "table"])
def test_following_goes_on_through_the_chain_to_its_end(cli: Call, local: Path, form: str) -> None:
    run = pr.start_sync(flows.cli_counts, 1)
    lines = cli("runs", "logs", run, "--follow", "--filter", "workflow", "--output", form).lines
    if form == "json":
        answer = [json.loads(line) for line in lines]
        assert len({event["run_id"] for event in answer}) == 3
    assert [word for line in lines for word in ("continued_as_new", "completed") if word in line] == [
        "continued_as_new",
        "continued_as_new",
        "completed",
    ]


def test_a_chain_and_children_are_listed_oldest_first(cli: Call, local: Path) -> None:
    chain = pr.run_sync(pr.get_workflow_chain(pr.start_sync(flows.cli_counts, 1)))
    answer = cli("runs", "chain", chain[1].run_id, "--output", "json").json
    assert [run["run_id"] for run in answer] == [run.run_id for run in chain]
    parent = pr.start_sync(flows.cli_has_children)
    (child,) = cli("runs", "children", parent, "--output", "json").json
    assert child["parent_run_id"] == parent
    assert cli("runs", "children", child["run_id"], "--output", "json").json == []


# --- telling runs something -----------------------------------------------------------------------


def test_a_run_is_cancelled_with_a_reason_and_once(cli: Call, local: Path) -> None:
    run = pr.start_sync(flows.cli_sleeps)
    answer = cli("runs", "cancel", run, "--reason", "too late", "--wait", "--output", "json")
    assert (answer.code, answer.json) == (0, {"run_id": run, "initiated": True, "status": "cancelled"})
    assert "too late" in cli("runs", "status", run).out
    again = cli("runs", "cancel", run)
    assert again.code == 1
    assert "nothing to cancel" in again.err


def test_a_run_that_takes_its_time_to_end_is_reported(
    cli: Call, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pr.start_sync(flows.cli_sleeps)

    async def cancel(*args: object, **options: object) -> bool:
        raise TimeoutError

    monkeypatch.setattr("pyworkflow_ray.client.runs.cancel_workflow", cancel)
    answer = cli("runs", "cancel", run, "--wait", "--timeout", "5")
    assert (answer.code, answer.out) == (1, "")
    assert "has not ended after 5.0 s" in answer.err


def test_a_request_is_stored_where_no_cluster_runs(cli: Call, local: Path, no_cluster: None) -> None:
    run = pr.start_sync(flows.cli_sleeps)
    pr.configure(default_runtime="ray")
    answer = cli("runs", "cancel", run)
    assert answer.code == 0
    assert "is stored" in answer.err
    assert run.status_sync() is pr.RunStatus.SUSPENDED
    assert cli("runs", "cancel", run, "--wait").code == 2
    pr.configure(default_runtime="local")
    pr.run_sync(pr.resume(run))
    assert run.status_sync() is pr.RunStatus.CANCELLED


@pytest.mark.parametrize("command", ["resume", "rerun", "fork"])
def test_what_needs_a_cluster_says_so(cli: Call, local: Path, no_cluster: None, command: str) -> None:
    run = pr.start_sync(flows.cli_sleeps)
    pr.configure(default_runtime="ray")
    answer = cli("runs", command, run)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith("Error: The Ray cluster at this machine cannot be joined")


def test_a_run_is_run_again_and_shown(cli: Call, failed: str) -> None:
    answer = cli("runs", "rerun", failed)
    assert (answer.code, answer.out.startswith("run_")) == (0, True)
    answer = cli("runs", "rerun", failed, "--wait")
    assert (answer.code, answer.out) == (1, "")
    assert "has failed: ValueError: no space left" in answer.err
    done = pr.start_sync(flows.cli_doubles, [4])
    answer = cli("runs", "rerun", done, "--wait")
    assert (answer.code, answer.out) == (0, "nobody has [8]\n")
    assert "✓ cli_double#1" in answer.err


def test_a_fork_goes_on_from_a_step(cli: Call, local: Path) -> None:
    done = pr.start_sync(flows.cli_doubles, [4, 5])
    answer = cli("runs", "fork", done, "--from-step", "cli_double#2", "--wait", "--output", "json")
    assert answer.json["result"] == "nobody has [8, 10]"
    assert answer.json["run_id"] != done
    assert cli("runs", "fork", done, "--from-step", "cli_double#9").code == 1
    assert cli("runs", "fork", done, "--from-step", "x", "--from-position", "2").code == 2
    assert cli("runs", "fork", done, "--code", "newest").code == 2


def test_deleting_asks_and_without_a_terminal_wants_yes(cli: Call, failed: str) -> None:
    assert cli("runs", "delete", failed).code == 2
    assert cli("runs", "purge", "--older-than", "0s").code == 2
    assert cli("runs", "delete", failed, "--yes", "--output", "json").json == {
        "run_id": failed,
        "deleted": True,
    }
    assert cli("runs", "status", failed).code == 1


def test_a_run_that_goes_on_is_not_deleted(cli: Call, local: Path) -> None:
    run = pr.start_sync(flows.cli_sleeps)
    answer = cli("runs", "delete", run, "--yes")
    assert answer.code == 1
    assert "cancel it" in answer.err


def test_old_runs_are_purged_by_how_they_ended(cli: Call, failed: str) -> None:
    done = pr.start_sync(flows.cli_doubles, [1])
    assert cli("runs", "purge", "--older-than", "30d", "--yes").out == "0 runs are deleted\n"
    answer = cli("runs", "purge", "--older-than", "0s", "--status", "failed", "--yes", "--output", "json")
    assert answer.json["deleted"] == 1
    assert cli("runs", "list", "--output", "plain").lines[0].startswith(done)
    assert cli("runs", "purge", "--older-than", "0s", "--status", "running", "--yes").code == 2


def test_a_damaged_run_is_listed_and_told_and_can_be_deleted(cli: Call, failed: str, local: Path) -> None:
    other = pr.start_sync(flows.cli_doubles, [1])
    with closing(sqlite3.connect(local / "cli.db")) as connection, connection:
        connection.execute("UPDATE runs SET created_at = 'long ago' WHERE run_id = ?", [failed])
    listed = cli("runs", "list", "--output", "json").json
    assert {run["run_id"] for run in listed} == {failed, other}
    told = cli("runs", "status", failed)
    assert told.code == 1
    assert f"'created_at' of run '{failed}'" in told.err
    assert "'long ago' is no time" in told.err
    assert cli("runs", "status", other).code == 0
    assert cli("runs", "delete", failed, "--yes").code == 0
    assert [run["run_id"] for run in cli("runs", "list", "--output", "json").json] == [other]
