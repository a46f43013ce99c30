"""Wherever a process is killed that commits or sends something, the next one goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crashes.deaths import AFTER, BEFORE, Death
from tests.crashes.places import all_places, places_in
from tests.crashes.processes import passed, result_of

WHERE = {
    "actors.attempts.Attempts.dispatch": "an_order",
    "actors.commits.HistoryWriter._decide_and_post": "an_order",
    "actors.commits.HistoryWriter._hold_again": "a_lease_taken_by_a_sweep",
    "actors.coordinator.Coordinator._claim": "an_order",
    "actors.coordinator.Coordinator._give_up": "a_drive_that_fails",
    "actors.coordinator.Coordinator._open": "an_order",
    "actors.coordinator.Coordinator._regain": "a_long_step",
    "actors.coordinator.Coordinator._take_over": "runs_together",
    "actors.hook_registry.HookRegistry._deliver": "an_order",
    "actors.hook_registry.HookRegistry._deliver 2": "refused_answers",
    "actors.hook_rows.expire_hooks": "an_order",
    "actors.hook_rows.make_hooks": "an_order",
    "actors.nudges._located": "an_order",
    "actors.renewals.Renewals._renew": "a_long_step",
    "actors.schedulers._written": "fires",
    "actors.timer.Timer._look": "a_damaged_run",
    "client.declarations._declare": "a_declaration",
    "client.forks.fork": "forks",
    "client.forks.rerun": "forks",
    "client.inboxes.send": "an_order",
    "client.manual_fires._note": "manual_fires",
    "client.manual_fires.backfill_schedule": "manual_fires",
    "client.manual_fires.trigger_schedule": "manual_fires",
    "client.new_schedules._create": "a_schedule",
    "client.runs.delete_run": "deletions",
    "client.runs.purge": "deletions",
    "client.schedule_changes._change": "a_schedule",
    "client.schedule_changes.delete_schedule": "a_schedule",
    "client.shipments._store": "a_bundle",
    "client.starts.hand_over": "a_refused_hand_over",
    "client.starts.start_run": "an_order",
    "client.starts.start_run 2": "a_run_that_could_not_begin",
}
"""Each place at which an engine in one process commits or dispatches, and a scenario that comes by."""
ON_RAY = {"client.runtimes.RayRuntime._open"}
"""Those that only an engine on Ray has. `tests/ray` kills its actors."""
DATABASE_OF = {"refused_answers": "postgresql", "a_damaged_run": "sqlite"}
"""What only one database refuses, or takes."""
LATER = {
    "actors.attempts.Attempts.dispatch": [1],
    "actors.commits.HistoryWriter._decide_and_post": list(range(1, 8)),
    "client.manual_fires._note": [1],
    "client.schedule_changes._change": [1],
}
"""Where a process is also killed when it comes by for another time: other things are done there then."""
ON_POSTGRESQL = {
    "actors.attempts.Attempts.dispatch",
    "actors.commits.HistoryWriter._decide_and_post",
    "actors.coordinator.Coordinator._open",
    "actors.hook_registry.HookRegistry._deliver 2",
    "actors.renewals.Renewals._renew",
    "actors.schedulers._written",
    "client.inboxes.send",
    "client.starts.start_run",
}
"""Where PostgreSQL is tried, too: the others commit through the same few functions."""
TOGETHER = Death("actors.attempts.Attempts.dispatch", AFTER, 1)
"""A process dies that has two runs: nobody knows which of them it was."""

SHORT, CHILD, ORDER = (
    ["crashes_short", "completed"],
    ["crashes_child", "completed"],
    ["crashes_order", "completed"],
)
ANSWERED = ["first", 5, "yes", "child", "nobody came"]
EXPECTED: dict[str, Any] = {
    "an_order": [ANSWERED, [1, 1, 1], [CHILD, ORDER]],
    "a_long_step": ["slow", [["crashes_long", "completed"], ["crashes_order", "cancelled"]]],
    "a_lease_taken_by_a_sweep": ["went on", [["crashes_held_up", "completed"]]],
    "a_drive_that_fails": ["short", [SHORT]],
    "runs_together": [["went on"] * 2, [["crashes_held_up", "completed"]] * 2],
    "refused_answers": [ANSWERED, [CHILD, ORDER]],
    "a_refused_hand_over": [],
    "a_bundle": [1],
    "a_run_that_could_not_begin": "short",
    "forks": [
        {"rerun": "kept", "fork": "kept"},
        [*[["crashes_failing", "completed"]] * 2, ["crashes_failing", "failed"]],
    ],
    "deletions": [[], [0]],
    "a_damaged_run": "short",
    "a_schedule": [None, 1],
    "fires": [SHORT],
    "manual_fires": [SHORT] * 6,
    "a_declaration": ["crashes_declared"],
}
"""What each scenario comes to, whoever dies."""


def _deaths() -> Iterator[Any]:
    for place, scenario in WHERE.items():
        for skip in (0, *LATER.get(place, ())):
            for when in (BEFORE, AFTER):
                for database in ("sqlite", "postgresql") if place in ON_POSTGRESQL else ("sqlite",):
                    if DATABASE_OF.get(scenario, database) == database:
                        name = f"{place.rpartition('.')[2]}-{skip}-{when}-{database}"
                        yield pytest.param(scenario, database, Death(place, when, skip), id=name)


def test_every_place_where_something_is_committed_or_sent_has_its_death() -> None:
    found = {place.name for place in all_places().values() if place.kind != "message"}
    assert found == {*WHERE, *ON_RAY}


def test_a_place_is_found_however_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text(
        "class Some:\n"
        "    async def work(self):\n"
        "        await self._services.storage.write(one())\n"
        "        tasks = [of.storage.write(each) for each in works]\n"
        "        self.print.write('no place')\n"
    )
    assert [place.name for place in places_in(tmp_path / "new.py", "new")] == [
        "new.Some.work",
        "new.Some.work 2",
    ]


@pytest.mark.parametrize(("scenario", "database", "death"), list(_deaths()))
def test_a_death_changes_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, scenario: str, database: str, death: Death
) -> None:
    """1. A process is killed at the place. 2. Another one opens the database, and finishes the work."""
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    if database == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    before = [TOGETHER, TOGETHER] if death.place.endswith("_take_over") else []
    assert result_of(scenario, url, tmp_path, [*before, death]) == EXPECTED[scenario]
    assert death.place in passed(tmp_path)
