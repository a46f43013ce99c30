"""`pyworkflow-ray schedules`, and `replay`."""

from __future__ import annotations

from pathlib import Path

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.testing import save_history
from tests.cli import flows
from tests.cli.conftest import Call

DOUBLES = ("cli_doubles", "--module", "tests.cli.flows", "-a", "numbers=[1]")


@pytest.fixture(autouse=True)
def tests_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


def test_a_schedule_is_made_shown_changed_and_deleted(cli: Call, local: Path) -> None:
    made = cli("schedules", "create", *DOUBLES, "--id", "hourly", "--interval", "1h", "--output", "json")
    assert made.code == 0, made.err
    assert (made.json["schedule_id"], made.json["spec"], made.json["args"]) == (
        "hourly",
        {"interval": "1h"},
        [[1]],
    )
    changed = cli("schedules", "update", "hourly", "--cron", "0 9 * * *", "--timezone", "Europe/Berlin")
    assert "cron 0 9 * * * in Europe/Berlin" in changed.out
    cli("schedules", "update", "hourly", "--jitter", "5m", "--overlap", "buffer_one")
    shown = cli("schedules", "show", "hourly", "--output", "json").json
    assert shown["spec"] == {"cron": "0 9 * * *", "timezone": "Europe/Berlin", "jitter": "5m"}
    assert shown["overlap_policy"] == "buffer_one"
    assert [event["type"] for event in shown["events"]] == [
        "schedule.created",
        *["schedule.updated"] * 2,
    ]
    assert cli("schedules", "delete", "hourly").code == 2, "nobody is there to be asked"
    assert cli("schedules", "delete", "hourly", "--yes").out == "hourly is deleted\n"
    assert cli("schedules", "list", "--output", "json").json == []


def test_a_paused_schedule_says_so_and_why(cli: Call, local: Path) -> None:
    cli("schedules", "create", *DOUBLES, "--id", "hourly", "--interval", "1h")
    cli("schedules", "pause", "hourly", "--note", "holidays")
    (answer,) = cli("schedules", "list", "--status", "paused", "--output", "json").json
    assert (answer["status"], answer["note"], answer["next_run_time"]) == ("paused", "holidays", None)
    assert "paused" in cli("schedules", "show", "hourly").out
    cli("schedules", "resume", "hourly")
    assert cli("schedules", "list", "--output", "plain").lines[0].split("\t")[2] == "active"


def test_a_schedule_is_triggered_and_backfilled_by_hand(cli: Call, local: Path) -> None:
    cli("schedules", "create", *DOUBLES, "--id", "hourly", "--interval", "1h")
    run_id = cli("schedules", "trigger", "hourly").out.strip()
    assert run_id.startswith("run_")
    span = ("--start", "2024-01-01T00:00+00:00", "--end", "2024-01-01T03:00+00:00")
    made = cli("schedules", "backfill", "hourly", *span, "--output", "json").json
    assert len(made["run_ids"]) == 3
    assert cli("schedules", "backfill", "hourly", *span, "--output", "json").json["run_ids"] == []
    assert cli("schedules", "show", "hourly", "--output", "json").json["total_runs"] == 4


@pytest.mark.parametrize(
    ("command", "code", "answer"),
    [
        (("show", "nightly"), 1, "no schedule 'nightly'"),
        (("trigger", "nightly"), 1, "no schedule 'nightly'"),
        (("delete", "nightly", "--yes"), 1, "no schedule 'nightly'"),
        (("create", *DOUBLES), 2, "--cron, --interval, --calendar"),
        (("create", *DOUBLES, "--cron", "0 25 * * *"), 1, "'25' is no hour"),
        (("create", *DOUBLES, "--interval", "1h", "--timezone", "Europe/Berln"), 1, "Europe/Berlin"),
        (("create", *DOUBLES, "--interval", "1h", "--start-at", "soon"), 2, "'soon' is not a time"),
        (("create", *DOUBLES, "--calendar", "{"), 2, "not JSON"),
    ],
)
def test_what_is_wrong_is_reported(
    cli: Call, local: Path, command: tuple[str, ...], code: int, answer: str
) -> None:
    done = cli("schedules", *command)
    assert (done.code, done.out) == (code, "")
    assert answer in " ".join(done.err.split())


def test_schedules_can_be_made_while_ray_is_away(cli: Call, tmp_path: Path, no_cluster: None) -> None:
    storage = ("--storage", str(tmp_path / "away.db"))
    made = cli("schedules", "create", *DOUBLES, "--id", "hourly", "--interval", "1h", *storage)
    assert made.code == 0, made.err
    assert "once an engine is up" in made.err
    assert [each["schedule_id"] for each in cli("schedules", "list", "--output", "json", *storage).json] == [
        "hourly"
    ]


def test_what_decorators_declare_is_activated(cli: Call, local: Path) -> None:
    answer = cli("schedules", "activate", "--module", "tests.cli.flows", "--output", "json").json
    assert "cli_every_morning" in answer
    assert "in Europe/Berlin" in cli("schedules", "show", "cli_every_morning").out


def test_recorded_histories_are_replayed(cli: Call, local: Path, tmp_path: Path) -> None:
    run = pr.start_sync(flows.cli_doubles, [1, 2])
    (tmp_path / "histories").mkdir()
    save_history(run, tmp_path / "histories" / "doubles.json")
    answer = cli("replay", str(tmp_path / "histories"), "--module", "tests.cli.flows", "--output", "json")
    assert (answer.code, [each["status"] for each in answer.json]) == (0, ["ok"])
    text = (tmp_path / "histories" / "doubles.json").read_text()
    (tmp_path / "histories" / "doubles.json").write_text(text.replace("cli_double#2", "cli_triple#1"))
    answer = cli("replay", str(tmp_path / "histories"), "--module", "tests.cli.flows")
    assert answer.code == 1
    assert "cli_triple#1" in answer.err
    assert cli("replay", str(tmp_path / "nothing")).code == 2
