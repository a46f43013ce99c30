"""A database of any earlier version opens, and all that waits in it goes on."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import Connection, Inspector

import pyworkflow_ray as pr
from pyworkflow_ray.exceptions import StorageError
from pyworkflow_ray.storage import migrations
from pyworkflow_ray.storage.histories import Append, append, read_events
from pyworkflow_ray.storage.inspections import inspect_database
from pyworkflow_ray.storage.migrations import newest_version
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.statements import Statement
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.testing import replay
from tests.crashes.engines import OneProcess
from tests.storage.builders import accepted
from tests.upgrades.databases import fill, recorded

DATABASES = ("sqlite", "postgresql")
VERSIONS = range(1, newest_version() + 1)
ENDS: dict[str, Any] = {
    "completed": "once",
    "retrying": "once",
    "sleeping": 20,
    "asking": ["nobody came", "yes"],
    "listening": [3, 4, 10],
    "parent": 4 + 12,
    "again": "goodbye",
    "wide": [True, 5, True, [0, 2, 4], "on"],
    "large": 2200,
    "later": 28,
    "astray": 20,
    "cut": 7,
}
"""What the recorded runs return, once they have got what they wait for."""


@pytest.fixture(params=DATABASES)
def make_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes empty databases of each kind, and returns their URLs."""
    numbers = itertools.count()
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path / f'recorded_{next(numbers)}.db'}"
    server = request.getfixturevalue("postgresql_server")

    def make() -> str:
        name = f"upgrade_{secrets.token_hex(4)}"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        return f"{server}&options=-csearch_path%3D{name}"

    return make


@pytest.fixture
def new_url(make_url: Callable[[], str]) -> str:
    """The URL of an empty database of each kind."""
    return make_url()


async def _answer() -> None:
    """Give all runs what they wait for."""
    runs, _ = await pr.list_runs(limit=100)
    (child,) = [run.run_id for run in runs if run.workflow_name == "upgrades_child"] or [None]
    while child is None:
        await asyncio.sleep(0.05)
        runs, _ = await pr.list_runs(limit=100)
        child = next((run.run_id for run in runs if run.workflow_name == "upgrades_child"), None)
    for run_id, name, payload in (
        (child, "go", 10),
        ("listening", "price", 4),
        ("again", "last", "goodbye"),
        ("wide", "go", "on"),
    ):
        await pr.RunHandle(run_id).signal(name, payload, dedup_key="of the test")
    await pr.resume("astray")
    while await pr.get_hook("upgrades-answer") is None:
        await asyncio.sleep(0.05)
    await pr.resume_hook("upgrades-answer", "yes")


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_run_of_an_earlier_version_goes_on_to_its_end(
    new_url: str, version: int, tmp_path: Path
) -> None:
    fill(new_url, version)
    async with asyncio.timeout(100), OneProcess(new_url, tmp_path) as engine:
        assert engine.storage.facts()["schema_version"] == str(newest_version())
        await _answer()
        assert {run_id: await pr.RunHandle(run_id).result() for run_id in ENDS} == ENDS
        with pytest.raises(ValueError, match="always"):
            await pr.RunHandle("failed").result()
        for run_id in ("cancelled", "to_cancel"):
            with pytest.raises(pr.CancellationError):
                await pr.RunHandle(run_id).result()
        for run in (await pr.list_runs(limit=1000))[0]:
            assert run.status.is_terminal, run
            replay(await pr.get_workflow_events(run.run_id))
        cut = [event.type for event in await pr.get_workflow_events("cut")]
        assert cut.count("workflow.interrupted") == 1
        key = await pr.get_workflow_run_by_idempotency_key("wide")
        assert key is not None
        assert (key.metadata, key.attributes) == ({"colour": "red"}, {"colour": "blue"})


@pytest.mark.parametrize("version", VERSIONS)
async def test_schedules_of_an_earlier_version_are_kept_and_fire(
    new_url: str, version: int, tmp_path: Path
) -> None:
    fill(new_url, version)
    async with asyncio.timeout(100), OneProcess(new_url, tmp_path):
        schedules = {each.schedule_id: each for each in (await pr.list_schedules())[0]}
        assert [(key, each.status.value) for key, each in schedules.items()] == [
            ("daily", "active"),
            ("paused", "paused"),
        ]
        assert schedules["daily"].note == "kept"
        await pr.update_schedule("daily", pr.ScheduleSpec(interval="1s"))
        while len(fired := (await pr.list_runs(workflow="upgrades_daily"))[0]) < 3:
            await asyncio.sleep(0.05)
        assert await pr.RunHandle(fired[0].run_id).result() == "fired"


def test_each_version_has_its_recorded_database() -> None:
    """A migration comes with a database of the version before it: `tests/upgrades/record.py` writes it."""
    missing = [
        recorded(version, database).name
        for version in VERSIONS
        for database in DATABASES
        if not recorded(version, database).exists()
    ]
    assert not missing


def _shape(url: str) -> dict[str, Any]:
    """The tables of a database, with all that belongs to them. Columns are known by their names."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        looked = inspect(engine)
        return {table: _parts(looked, table) for table in looked.get_table_names()}
    finally:
        engine.dispose()


def _parts(looked: Inspector, table: str) -> dict[str, Any]:
    lists = (
        looked.get_foreign_keys,
        looked.get_unique_constraints,
        looked.get_check_constraints,
        looked.get_indexes,
    )
    parts: dict[str, Any] = {each.__name__: sorted(map(_text, each(table))) for each in lists}
    for column in looked.get_columns(table):
        # SQLite shows a default as it was written, and of a number '0' and 0 are the same.
        parts[column["name"]] = _text({**column, "default": _text(column["default"]).strip("'")})
    parts["primary key"] = _text(looked.get_pk_constraint(table))
    return parts


def _text(part: Any) -> str:
    if isinstance(part, dict):
        return str(sorted((key, _text(value)) for key, value in part.items()))
    return str(part)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_upgraded_database_has_the_tables_of_a_new_one(make_url: Callable[[], str], version: int) -> None:
    upgraded, new = make_url(), make_url()
    fill(upgraded, version)
    for url in (upgraded, new):
        with Storage(url) as storage:
            assert storage.facts()["schema_version"] == str(newest_version())
    assert _shape(upgraded) == _shape(new)


def test_the_comparison_sees_what_differs(make_url: Callable[[], str]) -> None:
    changed, new = make_url(), make_url()
    for url in (changed, new):
        Storage(url).facts()
    before = _shape(new)
    assert before == _shape(changed)
    for change in ("DROP INDEX ix_runs_status", "ALTER TABLE runs ADD COLUMN added INTEGER"):
        with Storage(changed) as storage:
            storage.submit(lambda connection, change=change: connection.exec_driver_sql(change)).result()
        after = _shape(changed)
        assert after != before
        before = after


def test_an_upgrade_that_is_cut_off_changes_nothing(new_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A process has made the new column, and dies before its commit. 2. Another one opens the database."""
    fill(new_url, 1)
    migrate = migrations.MIGRATIONS[-1]

    def cut_off(connection: Connection) -> None:
        migrate(connection)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS[:-1], cut_off])
        with pytest.raises(KeyboardInterrupt):
            Storage(new_url).facts()
    assert inspect_database(new_url.removeprefix("sqlite:///")).schema_version == 1
    with Storage(new_url) as storage:
        assert storage.facts()["schema_version"] == str(newest_version())


def test_of_many_processes_that_open_an_old_database_one_upgrades_it(new_url: str) -> None:
    fill(new_url, 1)
    storages = [Storage(new_url) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda storage: storage.facts()["schema_version"], storages))
    assert versions == [str(newest_version())] * 8
    for storage in storages:
        storage.close()


def test_a_process_that_has_the_database_open_goes_on_after_an_upgrade(new_url: str) -> None:
    """1. A coordinator has the database open. 2. A newer release adds something. 3. The first one writes."""

    def add(connection: Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE runs ADD COLUMN added INTEGER NOT NULL DEFAULT 0")
        connection.exec_driver_sql("ALTER TABLE events ADD COLUMN added TEXT")

    with Storage(new_url) as old, pytest.MonkeyPatch.context() as patch:
        before = accepted(old, run_id="run-before")
        patch.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, add])
        with Storage(new_url) as newer:
            assert newer.facts()["schema_version"] == str(newest_version())
        patch.undo()
        started = [(datetime.now(UTC), "workflow.started", "{}")]
        change = Append(run_id=before.run_id, epoch=before.epoch, position=0, events=started)
        old.submit(append(change)).result()
        after = accepted(old, run_id="run-after")
        assert old.read(get_run(after.run_id)) == after
        assert [row[2] for row in old.read(read_events(before.run_id))] == ["workflow.started"]
        with pytest.raises(StorageError, match="Upgrade pyworkflow_ray here too"):
            Storage(new_url).facts()


def test_a_newer_database_refuses_this_code_and_says_what_to_do(new_url: str) -> None:
    with Storage(new_url) as storage:
        newer = Statement("UPDATE engine SET value = '99' WHERE key = 'schema_version'")
        storage.submit(newer.change().on).result()
    with pytest.raises(StorageError, match=r"version 99.*Upgrade pyworkflow_ray here too"):
        Storage(new_url).facts()
