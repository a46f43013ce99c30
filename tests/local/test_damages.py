"""What damaged rows promise: each stops its own run and no other, and says which cell it is."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

import pyworkflow_ray as pr
from pyworkflow_ray.actors.codes import pack
from pyworkflow_ray.actors.coordinator import Coordinator
from pyworkflow_ray.actors.new_runs import new_run
from pyworkflow_ray.actors.nudges import Group
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.actors.timer import Timer
from pyworkflow_ray.client.records import WorkflowRun
from pyworkflow_ray.exceptions import UnreadableRowError
from pyworkflow_ray.recurrences.specs import ScheduleSpec
from pyworkflow_ray.statuses import OverlapPolicy
from pyworkflow_ray.storage.acceptances import accept
from pyworkflow_ray.storage.hooks import NewHook, create_hook, list_hooks
from pyworkflow_ray.storage.inboxes import post
from pyworkflow_ray.storage.runs import get_run, list_runs
from pyworkflow_ray.storage.schedules import create_schedule, list_schedules, schedule_events
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.values import codec
from pyworkflow_ray.values.modules import names_nothing, naming

VICTIM, OTHER = "run_1_victim", "run_2_other"
UNSTEADY = ("pending", "running", "suspended")
TIME, LATE_TIME, NUMBER, CUT = "2020-13-45 00:00:00.000000", "zzz", "abc", '{"a":'
BYTES, NOT_UTF8 = b"\xff\x00", "CAST(x'ff' AS TEXT)"


@pr.step(local=True)
async def damages_one() -> int:
    return 1


@pr.workflow
async def damages_sleeps(size: str) -> int:
    total = await damages_one()
    await pr.sleep(0.05)
    return total + await damages_one() + len(size) * 0


def _settings(path: Path | str) -> EngineSettings:
    return EngineSettings(
        str(path),
        suspend_after=timedelta(milliseconds=1),
        sweep_interval=timedelta(milliseconds=1),
        slots=1,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with two sleeping runs that are due, and two schedules that are due."""
    path = tmp_path_factory.mktemp("whole") / "whole.db"
    asyncio.run(_made(path))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE schedules SET look_at = '2020-01-01 00:00:00.000000'")
    return path


async def _made(path: Path | str) -> None:
    settings = _settings(path)
    with Storage(path) as storage:
        coordinator = Coordinator("coordinator-0", settings, storage=storage)
        await coordinator.open()
        with naming(names_nothing):  # by value, so that there is something to damage
            code = pack(damages_sleeps, "the workflow")
        for run_id in (VICTIM, OTHER):
            size = "x" * (settings.blob_threshold + 10 if run_id == VICTIM else 1)
            args = codec.encode([size])
            new = new_run(settings, damages_sleeps, code, run_id, args, b"{}", coordinator="coordinator-0")
            await coordinator.accept_runs([(await storage.write(accept(new))).run])
            await coordinator.end_of(run_id)
            await storage.write(create_hook(run_id, NewHook(hook_id="h#1", token=f"t-{run_id}", name="h")))
            model = new_run(settings, damages_sleeps, code, "", codec.encode(["x"]), b"{}")
            spec = ScheduleSpec(interval=timedelta(days=1))
            await storage.write(
                create_schedule(f"s-{run_id}", model, spec, OverlapPolicy.SKIP, 60.0, code=code)
            )
        signal = '{"name":"item","payload":1}'
        await storage.write(post(VICTIM, "signal:1", "signal.received", signal))
        await coordinator.close()


class Engine:
    """A timer and a coordinator on a database, with the timer's looks made by hand."""

    def __init__(self, path: Path | str) -> None:
        self.storage = Storage(path)
        self.coordinator = Coordinator("coordinator-0", _settings(path), storage=self.storage)
        self._timer = Timer(_settings(path), self._nudge, lambda environment: None)
        self._tasks: set[asyncio.Task[Any]] = set()

    def _nudge(self, group: Group) -> None:
        self._tasks.add(asyncio.get_running_loop().create_task(self.coordinator.wake(group.run_ids)))

    async def look(self) -> None:
        await self._timer._look()
        await asyncio.gather(*self._tasks)
        self._tasks.clear()
        for drive in self.coordinator.drives:
            await self.coordinator.end_of(drive.run_id)
        await asyncio.sleep(0.005)

    async def close(self) -> None:
        await self.coordinator.close()
        self.storage.close()
        if self._timer._storage is not None:
            self._timer._storage.close()


def _rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytes
        return connection.execute(query).fetchall()


def _state(path: Path, run_id: str) -> tuple[str, Any]:
    ((status, epoch),) = _rows(path, f"SELECT status, epoch FROM runs WHERE run_id = '{run_id}'")
    return status.decode(errors="replace"), epoch


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """What the log says."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="ERROR")
    yield lines
    logger.remove(sink)


def _damage(path: Path, table: str, column: str, value: Any, where: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        text = value if value == NOT_UTF8 else "?"
        given = [] if value == NOT_UTF8 else [value]
        changed = connection.execute(f"UPDATE {table} SET {column} = {text} WHERE {where}", given).rowcount
        assert changed >= 1


RUNS = [
    *((name, TIME) for name in ("wake_at", "start_at", "lease_expires_at", "created_at", "updated_at")),
    *((name, TIME) for name in ("started_at", "completed_at", "scheduled_at")),
    *((name, LATE_TIME) for name in ("wake_at", "created_at", "lease_expires_at")),
    ("created_at", BYTES),
    ("status", "bogus"),
    ("status", BYTES),
    *((name, NUMBER) for name in ("epoch", "position", "nesting_depth", "recovery_attempts")),
    *((name, NUMBER) for name in ("max_recovery_attempts", "max_duration")),
    *((name, 7) for name in ("durable", "recover_on_worker_loss", "position")),
    ("position", 0),
    ("position", -1),
    *((name, BYTES) for name in ("workflow_name", "code_hash", "environment", "coordinator", "owner")),
    *((name, BYTES) for name in ("previous_owner", "parent_run_id", "root_run_id", "child_id")),
    *((name, BYTES) for name in ("continued_from_run_id", "continued_to_run_id", "idempotency_key")),
    *((name, BYTES) for name in ("schedule_id", "input_hash", "error", "error_type", "result")),
    *((name, NOT_UTF8) for name in ("workflow_name", "input_args", "metadata")),
    *((name, CUT) for name in ("input_args", "input_kwargs", "metadata", "attributes", "tags")),
    ("code_hash", "gone"),
]
EVENTS = [
    ("timestamp", TIME),
    ("timestamp", BYTES),
    ("type", "no.such"),
    ("type", BYTES),
    ("data", CUT),
    ("data", "[]"),
    ("data", NOT_UTF8),
    ("position", 99),
]
INBOX = [
    ("created_at", TIME),
    ("kind", "no.such"),
    ("kind", BYTES),
    ("data", CUT),
    ("data", BYTES),
    ("dedup_key", BYTES),
]


async def _stops_its_run_alone(path: Path) -> tuple[str, str]:
    """Have the engine look until nothing changes any more; the victim's state and error."""
    engine = Engine(path)
    try:
        await engine.coordinator.open()
        while _state(path, OTHER)[0] != "completed" or _state(path, VICTIM)[0] in UNSTEADY:
            await engine.look()
        before = _state(path, VICTIM)
        for _ in range(5):
            await engine.look()
        assert _state(path, VICTIM) == before, "it is claimed without end"
        page, _ = engine.storage.read(list_runs())
        assert {VICTIM, OTHER} <= {run.run_id for run in page}
        (run,) = (each for each in page if each.run_id == VICTIM)
        assert WorkflowRun.of(run).run_id == VICTIM
        error = run.error or ""
        assert _refusal(engine.storage) in (None, error)
        return before[0], error
    finally:
        await engine.close()


def _refusal(storage: Storage) -> str | None:
    """What somebody is told who wants the victim's row."""
    try:
        storage.read(get_run(VICTIM))
    except UnreadableRowError as error:
        return str(error)
    return None


def _names(error: str, column: str) -> bool:
    return f"The cell {column!r} of" in error and VICTIM in error


HARMLESS = {"updated_at", "lease_expires_at", "epoch", "owner", "previous_owner", "coordinator", "error"}
"""Cells that a claim or an end writes anew."""


@pytest.mark.parametrize(("column", "value"), RUNS, ids=lambda each: repr(each)[:20])
async def test_a_damaged_run_is_set_aside_alone(whole: Path, tmp_path: Path, column: str, value: Any) -> None:
    path = tmp_path / "runs.db"
    shutil.copy(whole, path)
    _damage(path, "runs", column, value, f"run_id = '{VICTIM}'")
    status, error = await _stops_its_run_alone(path)
    if status == "completed":
        assert column in HARMLESS | {"error_type", "result"}
    elif column == "code_hash" and value == "gone":
        assert "is not in the storage" in error
    else:
        # A claim has moved the owner.
        assert _names(error, "previous_owner" if column == "owner" else column), (status, error)


@pytest.mark.parametrize(("column", "value"), EVENTS, ids=lambda each: repr(each)[:20])
async def test_a_run_with_a_damaged_history_is_set_aside_alone(
    whole: Path, tmp_path: Path, column: str, value: Any
) -> None:
    path = tmp_path / "events.db"
    shutil.copy(whole, path)
    _damage(path, "events", column, value, f"run_id = '{VICTIM}' AND position = 2")
    status, error = await _stops_its_run_alone(path)
    assert status == "interrupted"
    assert _names(error, column), error
    assert "event 2" in error or column == "position"


async def test_a_run_whose_history_has_a_gap_is_set_aside_alone(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "gap.db"
    shutil.copy(whole, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"DELETE FROM events WHERE run_id = '{VICTIM}' AND position = 1")
    status, error = await _stops_its_run_alone(path)
    assert status == "interrupted"
    assert _names(error, "position")
    assert "number 1 is missing" in error


@pytest.mark.parametrize(("column", "value"), INBOX, ids=lambda each: repr(each)[:20])
async def test_a_run_with_a_damaged_inbox_is_set_aside_alone(
    whole: Path, tmp_path: Path, column: str, value: Any
) -> None:
    path = tmp_path / "inbox.db"
    shutil.copy(whole, path)
    _damage(path, "inbox", column, value, f"run_id = '{VICTIM}'")
    status, error = await _stops_its_run_alone(path)
    assert status == "interrupted"
    assert _names(error, column), error


async def test_a_run_with_a_damaged_inbox_can_be_cancelled(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "cancel.db"
    shutil.copy(whole, path)
    _damage(path, "inbox", "data", CUT, f"run_id = '{VICTIM}'")
    engine = Engine(path)
    await engine.coordinator.open()
    while _state(path, VICTIM)[0] != "interrupted":
        await engine.look()
    await engine.storage.write(post(VICTIM, "cancel", "cancellation.requested", '{"reason":"enough"}'))
    while _state(path, VICTIM)[0] != "cancelled":
        await engine.look()
    await engine.close()


CODE = [("data", "text"), ("data", b"garbage"), ("python", "2.7"), ("python", BYTES), ("reference", BYTES)]


@pytest.mark.parametrize(("column", "value"), CODE, ids=lambda each: repr(each)[:20])
async def test_a_run_whose_code_is_damaged_is_set_aside_alone(
    whole: Path, tmp_path: Path, column: str, value: Any
) -> None:
    path = tmp_path / "code.db"
    shutil.copy(whole, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        (names,) = [", ".join(row[1] for row in connection.execute("PRAGMA table_info(code)"))]
        rest = names.replace("hash", "'another'", 1)
        connection.execute(f"INSERT INTO code ({names}) SELECT {rest} FROM code")
        connection.execute(f"UPDATE runs SET code_hash = 'another' WHERE run_id = '{VICTIM}'")
    _damage(path, "code", column, value, "hash = 'another'")
    status, error = await _stops_its_run_alone(path)
    assert status == "interrupted"
    assert "code" in error


@pytest.mark.parametrize(("column", "value"), [("data", b"cut"), ("size", 7)])
async def test_a_run_whose_blob_is_damaged_ends_with_an_error_alone(
    whole: Path, tmp_path: Path, column: str, value: Any
) -> None:
    path = tmp_path / "blob.db"
    shutil.copy(whole, path)
    _damage(path, "blobs", column, value, "1 = 1")
    status, error = await _stops_its_run_alone(path)
    assert status in ("interrupted", "failed")
    assert "blob" in error


async def test_a_run_whose_blob_is_missing_is_set_aside_alone(
    whole: Path, tmp_path: Path, errors: list[str]
) -> None:
    path = tmp_path / "missing.db"
    shutil.copy(whole, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM blobs")
    status, error = await _stops_its_run_alone(path)
    assert status == "interrupted"
    assert "'blobs'" in error
    assert "the row is missing" in error
    assert VICTIM in error
    assert len([line for line in errors if VICTIM in line]) == 1


@pr.step(local=True, max_retries=3, retry_delay="500ms")
async def damages_fails_once(size: str) -> None:
    raise ValueError("not yet")


@pr.workflow
async def damages_retries() -> None:
    await damages_fails_once("x" * 2000)


async def test_a_run_whose_blob_is_missing_as_a_step_is_tried_again_is_set_aside(
    tmp_path: Path, errors: list[str]
) -> None:
    path = tmp_path / "missing.db"
    pr.configure(default_runtime="local", storage=path, suspend_after="1ms", blob_threshold=1024)
    run = await pr.start(damages_retries)
    while await run.status() is not pr.RunStatus.SUSPENDED:
        await asyncio.sleep(0.01)
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute("DELETE FROM blobs").rowcount == 1
    while await run.status() is not pr.RunStatus.INTERRUPTED:
        await pr.resume(run)
        await asyncio.sleep(0.05)
    record = await pr.get_workflow_run(run)
    assert record is not None
    assert "the row is missing" in (record.error or "")
    assert len(errors) == 1


SCHEDULES = [
    *((name, TIME) for name in ("anchor_at", "next_fire_at", "look_at", "created_at", "updated_at")),
    *((name, TIME) for name in ("last_fire_at", "last_run_at")),
    *((name, BYTES) for name in ("workflow_name", "declared", "note", "last_run_id", "overlap_policy")),
    *((name, CUT) for name in ("spec", "run", "buffered")),
    *((name, NUMBER) for name in ("catchup_window", "version", "total_runs", "successful_runs")),
    *((name, NUMBER) for name in ("failed_runs", "skipped_runs")),
    ("overlap_policy", "bogus"),
]


@pytest.mark.parametrize(("column", "value"), SCHEDULES, ids=lambda each: repr(each)[:20])
async def test_a_damaged_schedule_does_not_fire_and_others_do(
    whole: Path, tmp_path: Path, errors: list[str], column: str, value: Any
) -> None:
    path = tmp_path / "schedules.db"
    shutil.copy(whole, path)
    _damage(path, "schedules", column, value, f"schedule_id = 's-{VICTIM}'")
    engine = Engine(path)
    try:
        await engine.coordinator.open()
        look = f"SELECT 1 FROM schedules WHERE schedule_id = 's-{OTHER}' AND look_at > '2021'"
        while not _rows(path, look):
            await engine.look()
        for _ in range(3):
            await engine.look()
        assert f"s-{OTHER}" in [each.schedule_id for each in engine.storage.read(list_schedules())]
        assert engine.storage.read(schedule_events(f"s-{OTHER}"))
    finally:
        await engine.close()
    (said,) = [line for line in errors if f"s-{VICTIM}" in line]
    assert f"The cell {column!r}" in said


HOOKS = [
    *((name, TIME) for name in ("created_at", "received_at", "expires_at")),
    *((name, BYTES) for name in ("token", "name", "payload", "payload_schema", "schema_hash", "metadata")),
    ("status", "bogus"),
]


@pytest.mark.parametrize(("column", "value"), HOOKS, ids=lambda each: repr(each)[:20])
def test_a_damaged_hook_is_left_out_of_lists(
    whole: Path, tmp_path: Path, errors: list[str], column: str, value: Any
) -> None:
    path = tmp_path / "hooks.db"
    shutil.copy(whole, path)
    _damage(path, "hooks", column, value, f"run_id = '{VICTIM}'")
    with Storage(path) as storage:
        page, _ = storage.read(list_hooks())
        storage.read(list_hooks())
    assert [hook.run_id for hook in page] == [OTHER]
    (said,) = errors
    assert _names(said, column)
