"""As `test_damages`, on PostgreSQL, whose columns have types: what its cells can hold all the same."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from loguru import logger

from pyworkflow_ray.exceptions import UnreadableRowError
from pyworkflow_ray.storage.hooks import list_hooks
from pyworkflow_ray.storage.runs import get_run, list_runs
from pyworkflow_ray.storage.schedules import list_schedules
from tests.local.test_damages import HARMLESS, OTHER, UNSTEADY, VICTIM, Engine, _made


class Database:
    """A database with two sleeping runs that are due, and two schedules that are due."""

    def __init__(self, url: str) -> None:
        self.url = url
        asyncio.run(_made(url))
        self.execute("UPDATE schedules SET look_at = '2020-01-01'")

    def execute(self, sql: str) -> list[Any]:
        with psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else [(cursor.rowcount,)]

    def damage(self, table: str, column: str, value: str, where: str) -> None:
        ((changed,),) = self.execute(f"UPDATE {table} SET {column} = '{value}' WHERE {where}")
        assert changed >= 1

    def state(self, run_id: str) -> tuple[str, int, str]:
        (state,) = self.execute(f"SELECT status, epoch, error FROM runs WHERE run_id = '{run_id}'")
        return state


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """What the log says."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="ERROR")
    yield lines
    logger.remove(sink)


@pytest.fixture
def whole(postgresql_url: str) -> Database:
    return Database(postgresql_url)


async def _stops_its_run_alone(database: Database) -> tuple[str, str]:
    """Have the engine look until nothing changes any more; the victim's state and error."""
    engine = Engine(database.url)
    try:
        await engine.coordinator.open()
        while database.state(OTHER)[0] != "completed" or database.state(VICTIM)[0] in UNSTEADY:
            await engine.look()
        before = database.state(VICTIM)
        for _ in range(5):
            await engine.look()
        assert database.state(VICTIM) == before, "it is claimed without end"
        page, _ = engine.storage.read(list_runs())
        assert {VICTIM, OTHER} <= {run.run_id for run in page}
        with contextlib.suppress(UnreadableRowError):
            engine.storage.read(get_run(VICTIM))
        return before[0], before[2] or ""
    finally:
        await engine.close()


@pytest.mark.parametrize("value", ["infinity", "-infinity", "20000-01-01"])
@pytest.mark.parametrize("column", ["wake_at", "created_at", "started_at", "lease_expires_at"])
async def test_a_run_with_a_time_that_is_none_is_set_aside_alone(
    whole: Database, column: str, value: str
) -> None:
    whole.damage("runs", column, value, f"run_id = '{VICTIM}'")
    status, error = await _stops_its_run_alone(whole)
    if status == "completed":
        assert column in HARMLESS | {"wake_at"}
        return
    assert f"The cell {column!r} of" in error
    assert VICTIM in error


@pytest.mark.parametrize(("column", "value"), [("timestamp", "infinity"), ("data", '{"a":'), ("type", "no")])
async def test_a_run_with_a_damaged_history_is_set_aside_alone(
    whole: Database, column: str, value: str
) -> None:
    whole.damage("events", column, value, f"run_id = '{VICTIM}' AND position = 2")
    status, error = await _stops_its_run_alone(whole)
    assert status == "interrupted"
    assert f"The cell {column!r} of event 2" in error


@pytest.mark.parametrize(("column", "value"), [("created_at", "infinity"), ("data", '{"a":')])
async def test_a_run_with_a_damaged_inbox_is_set_aside_alone(
    whole: Database, column: str, value: str
) -> None:
    whole.damage("inbox", column, value, f"run_id = '{VICTIM}'")
    status, error = await _stops_its_run_alone(whole)
    assert status == "interrupted"
    assert f"The cell {column!r} of" in error


async def test_a_run_whose_blob_is_missing_is_set_aside_alone(whole: Database) -> None:
    whole.execute("ALTER TABLE run_blobs DROP CONSTRAINT run_blobs_hash_fkey")
    whole.execute("DELETE FROM blobs")
    status, error = await _stops_its_run_alone(whole)
    assert status == "interrupted"
    assert "the row is missing" in error


async def test_hooks_and_schedules_with_times_that_are_none_are_left_out_of_lists(
    whole: Database, errors: list[str]
) -> None:
    whole.damage("hooks", "created_at", "infinity", f"run_id = '{VICTIM}'")
    whole.damage("schedules", "next_fire_at", "infinity", f"schedule_id = 's-{VICTIM}'")
    engine = Engine(whole.url)
    try:
        page, _ = engine.storage.read(list_hooks())
        assert [hook.run_id for hook in page] == [OTHER]
        shown = [each.schedule_id for each in engine.storage.read(list_schedules())]
        assert f"s-{OTHER}" in shown
    finally:
        await engine.close()
    assert [VICTIM in said for said in errors] == [True] * len(errors)
    assert len(errors) in (1, 2)
