"""`pyworkflow-ray workflows`: what modules define, and runs of it to their end."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.cli.arguments import typed
from tests.cli import flows
from tests.cli.conftest import Call

FLOWS = "tests.cli.flows"


def run_flow(cli: Call, name: str, *options: str) -> Any:
    return cli("workflows", "run", name, "--module", FLOWS, *options)


def test_workflows_of_a_module_are_listed_and_described(cli: Call, local: Path) -> None:
    listed = cli("workflows", "list", "--module", FLOWS, "--output", "json").json
    assert {"cli_doubles", "cli_asks"} <= {each["name"] for each in listed}
    answer = cli("workflows", "info", "cli_doubles", "--module", FLOWS, "--output", "json").json
    assert [each["name"] for each in answer["parameters"]] == ["numbers", "name"]
    assert answer["parameters"][1] == {
        "name": "name",
        "type": "str",
        "is_required": False,
        "default": "'nobody'",
    }
    assert answer["options"] == {"max_duration": 3600.0, "tags": ["numbers"]}
    text = cli("workflows", "info", "cli_doubles").out
    assert "Double every number." in text
    assert f"{Path(flows.__file__)}:" in text


def test_a_module_is_found_by_its_file_and_what_it_prints_is_no_answer(cli: Call, tmp_path: Path) -> None:
    (tmp_path / "cli_shop.py").write_text(
        "import pyworkflow_ray\nprint('imported')\n"
        "@pyworkflow_ray.workflow\nasync def cli_sells() -> None: ...\n"
    )
    answer = cli("workflows", "list", "--module", "cli_shop.py", "--output", "json")
    assert "cli_sells" in {each["name"] for each in answer.json}
    assert answer.err == "imported\n"


def test_a_module_that_cannot_be_imported_is_told_with_its_place(cli: Call, tmp_path: Path) -> None:
    (tmp_path / "cli_broken.py").write_text("\n1 / 0\n")
    answer = cli("workflows", "list", "--module", "cli_broken")
    assert answer.code == 1
    assert "ZeroDivisionError" in answer.err
    assert "cli_broken.py:2" in answer.err
    assert "Traceback" not in answer.err


def test_an_unknown_workflow_is_told_with_the_nearest(cli: Call, local: Path) -> None:
    answer = run_flow(cli, "cli_double")
    assert answer.code == 1
    assert "Did you mean 'cli_doubles'" in answer.err
    assert "Next: pyworkflow-ray workflows list" in answer.err


def test_a_run_is_shown_to_its_end_and_its_result_is_the_answer(cli: Call, local: Path) -> None:
    answer = run_flow(cli, "cli_doubles", "--arg", "numbers=[1, 2]", "--arg", "name=42")
    assert (answer.code, answer.out) == (0, "42 has [2, 4]\n")
    assert [line.split()[1:3] for line in answer.err.splitlines() if line[:2].isdigit()] == [
        ["▶", "cli_doubles"],
        ["✓", "cli_double#1"],
        ["✓", "cli_double#2"],
        ["■", "completed"],
    ]
    assert "doubling 2" in answer.err, "what steps print is no answer"


def test_under_json_the_answer_is_the_run(cli: Call, local: Path) -> None:
    answer = run_flow(cli, "cli_doubles", "--args-json", '[[3], "Ada"]', "--output", "json").json
    assert (answer["status"], answer["result"], answer["input_args"]) == (
        "completed",
        "Ada has [6]",
        [[3], "Ada"],
    )
    named = run_flow(
        cli, "cli_doubles", "--args-json", '{"numbers": [3]}', "--arg", "name=Bo", "--output", "plain"
    )
    assert named.out == '"Bo has [6]"\n'


def test_a_run_that_fails_makes_the_exit_code_1(cli: Call, local: Path) -> None:
    answer = run_flow(cli, "cli_fails", "--arg", "text=no paper")
    assert (answer.code, answer.out) == (1, "")
    (run,), _ = pr.run_sync(pr.list_runs(workflow="cli_fails"))
    assert f"Error: Run {run.run_id} has failed: ValueError: no paper" in answer.err
    assert f"Next: pyworkflow-ray runs status {run.run_id}" in answer.err
    assert "Traceback" not in answer.err
    answer = run_flow(cli, "cli_fails", "--arg", "text=no paper", "--output", "json")
    assert (answer.code, answer.json["status"], answer.json["error"]) == (1, "failed", "no paper")


def test_a_run_is_followed_to_the_end_of_its_chain(cli: Call, local: Path) -> None:
    answer = run_flow(cli, "cli_counts")
    assert (answer.code, answer.out) == (0, "3\n")
    assert answer.err.count("continued as") == 2


def test_a_large_result_is_shown_whole(cli: Call, local: Path) -> None:
    pr.configure(blob_threshold=1024)
    answer = run_flow(cli, "cli_doubles", "--arg", "numbers=[1]", "--arg", f"name={'x' * 5000}")
    assert answer.out == f"{'x' * 5000} has [2]\n"


def test_a_run_that_waits_in_process_tells_how_it_goes_on(cli: Call, local: Path) -> None:
    answer = run_flow(cli, "cli_asks")
    (run,), _ = pr.run_sync(pr.list_runs())
    (hook,), _ = pr.run_sync(pr.list_hooks())
    assert (answer.code, answer.out) == (0, "")
    assert f"pyworkflow-ray hooks resume {hook.token}" in answer.err
    assert f"pyworkflow-ray runs resume {run.run_id}" in answer.err


def test_a_key_gives_the_run_that_has_it(cli: Call, local: Path) -> None:
    first, second = (
        run_flow(cli, "cli_doubles", "-a", "numbers=[1]", "--idempotency-key", "k", "--output", "json").json
        for _ in range(2)
    )
    assert first["run_id"] == second["run_id"]
    answer = run_flow(cli, "cli_doubles", "-a", "numbers=[2]", "--idempotency-key", "k")
    assert answer.code == 1
    assert "other arguments" in answer.err


@pytest.mark.parametrize(
    "options",
    [
        ("--arg", "numbers"),
        ("--arg", "=1"),
        ("--args-json", "{no"),
        ("--args-json", "7"),
        ("-a", "n=1", "-a", "n=2"),
    ],
)
def test_arguments_of_another_form_are_a_usage_error(
    cli: Call, local: Path, options: tuple[str, ...]
) -> None:
    answer = run_flow(cli, "cli_doubles", *options)
    assert (answer.code, answer.out) == (2, "")


def test_arguments_that_do_not_fit_are_told_before_a_run_is_there(cli: Call, local: Path) -> None:
    for given in ("numbers=[1, 2.5]", "color=red"):
        answer = run_flow(cli, "cli_doubles", "--arg", given)
        assert answer.code == 1
        assert "workflow 'cli_doubles'" in answer.err
    assert cli("runs", "list", "--output", "json").json == []


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("1234", str, "1234"),
        ("1234", int, 1234),
        ("1234", Any, 1234),
        ("A-17", Any, "A-17"),
        ("true", bool, True),
        ("null", str | None, None),
        ("12", str | None, "12"),
        ("12", int | None, 12),
        ("2026-11-22", date, "2026-11-22"),
        ("12.5", Decimal, 12.5),
        ("[1]", list[int], [1]),
        ("[1", list[int], "[1"),
        ("7", list[int], 7),
    ],
)
def test_a_typed_argument_is_json_unless_the_parameter_is_a_text(
    text: str, annotation: Any, value: Any
) -> None:
    found = typed(text, annotation)
    assert (found, type(found)) == (value, type(value))


def test_without_modules_the_list_tells_how_to_name_some(cli: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyworkflow_ray.cli.workflows.list_workflows", dict)
    answer = cli("workflows", "list", "--output", "json")
    assert json.loads(answer.out) == []
    assert "--module" in cli("workflows", "list").err
