"""Tools that only look run nothing that a row holds, in whichever table it is.

Each stored value is replaced by a pickle that betrays itself: loaded, it creates a file.
"""

from __future__ import annotations

import base64
import contextlib
import json
import pickle
import re
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.actors.hook_registry import HookRegistry
from pyworkflow_ray.actors.schedulers import fire_due
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.client.sessions import close_sessions, session
from pyworkflow_ray.storage.schema import metadata
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.values.codec import encode
from tests.cli.conftest import Call

VALUE = "the-value-that-is-replaced"
LARGE = VALUE + "." * 200_000


class Betrayal:
    """Loaded, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


class Broken(Exception):
    pass


@pr.step(local=True, max_retries=0)
async def looking_step(value: Any) -> Any:
    return value


@pr.step(local=True, max_retries=0)
async def looking_break(value: Any) -> None:
    raise Broken(value)


@pr.workflow
async def looking_child(value: Any) -> Any:
    return value


@pr.workflow
async def looking_flow(value: Any, large: Any) -> Any:
    pr.set_attributes(kind=value)
    await looking_step(value)
    await looking_step(large)
    pr.side_effect(lambda: value)
    await pr.start_child_workflow(looking_child, value)
    with contextlib.suppress(Broken):
        await looking_break(value)
    await pr.hook("looking", metadata={"note": value})
    await pr.receive("never")
    return value


@pr.workflow
async def looking_failure(value: Any) -> Any:
    raise Broken(value)


async def _populate() -> str:
    run = await pr.start.options(metadata={"note": VALUE}, idempotency_key="looking")(
        looking_flow, VALUE, LARGE
    )
    with contextlib.suppress(Broken):
        await pr.start(looking_failure, VALUE)
    await pr.start(looking_child, VALUE)

    @pr.workflow
    async def looking_nested() -> None:  # its code is a pickle
        pass

    await pr.start(looking_nested)
    await run.signal("other", VALUE)
    await pr.create_schedule(looking_child, pr.ScheduleSpec(interval="1s"), VALUE, schedule_id="looking")
    return str(run)


def _post(path: Path, run: str) -> None:
    """Leave something in the run's inbox that nobody has read."""
    with sqlite3.connect(path) as database:
        database.execute(
            "INSERT INTO inbox (run_id, dedup_key, kind, data, created_at) "
            "SELECT ?, 'left', 'signal.received', ?, created_at FROM runs WHERE run_id = ?",
            [run, json.dumps({"name": "left", "payload": VALUE}), run],
        )
    database.close()


def _plant(path: Path, table: str, trap: Path) -> int:
    """Replace the values in a table; how many fields were changed."""
    loaded = pickle.dumps(Betrayal(trap))
    value = encode(Betrayal(trap)).decode()
    changed = 0
    with sqlite3.connect(path) as database:
        columns = [column.name for column in metadata.tables[table].columns]
        keys = [key.name for key in metadata.tables[table].primary_key]
        where = " AND ".join(f"{key} = ?" for key in keys)
        for row in database.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall():
            fields = dict(zip(columns, row, strict=True))
            for column, old in fields.items():
                new = _replaced(old, value, loaded, is_code=(table, column) == ("code", "data"))
                if new != old:
                    changed += 1
                    given = [new, *(fields[key] for key in keys)]
                    database.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", given)
    database.close()
    return changed


def _replaced(old: Any, value: str, loaded: bytes, *, is_code: bool) -> Any:
    if is_code and old is not None:
        return loaded
    if isinstance(old, bytes):
        return _replaced(old.decode(errors="surrogateescape"), value, loaded, is_code=False).encode(
            errors="surrogateescape"
        )
    if not isinstance(old, str):
        return old
    new = re.sub(f'"{VALUE}[.]*"', lambda _: value, old)
    inner = json.dumps(value)[1:-1]  # a text of JSON within JSON
    new = re.sub(rf'\\"{VALUE}[.]*\\"', lambda _: inner, new)
    text = base64.b64encode(loaded).decode()
    return re.sub(r'"exception":"[^"]*"', lambda _: f'"exception":"{text}"', new)


async def _look(run: str) -> None:
    """Everything that lists or shows rows to a program."""
    backend = pr.get_storage()
    runs, _ = await pr.list_runs()
    found: list[Any] = [*runs, *(await backend.list_runs())[0]]
    for each in runs:
        handle = pr.RunHandle[Any](each.run_id)
        found += [handle, await handle.refresh(), await pr.get_workflow_run(each.run_id)]
        found += await pr.get_workflow_events(each.run_id)
        found += await backend.list_steps(each.run_id)
        found += await backend.get_events(each.run_id)
        found += await pr.get_workflow_chain(each.run_id)
        found += await pr.get_children(each.run_id)
    hooks, _ = await pr.list_hooks()
    found += [*hooks, *[await pr.get_hook(hook.token) for hook in hooks]]
    schedules, _ = await pr.list_schedules()
    found += [*schedules, await pr.get_schedule("looking"), *await pr.get_schedule_events("looking")]
    found.append(await pr.get_workflow_run_by_idempotency_key("looking"))
    assert all(repr(each) and str(each) for each in found)


COMMANDS = [
    "runs list",
    "runs list --status failed",
    "runs list --query looking",
    "runs status {run}",
    "runs logs {run}",
    "runs children {run}",
    "runs chain {run}",
    "hooks list",
    "hooks info {token}",
    "schedules list",
    "schedules show looking",
    "workflows list",
    "db current",
]


@pytest.mark.parametrize("table", sorted(metadata.tables))
def test_nothing_that_a_row_holds_is_run_by_those_who_only_look(table: str, cli: Call, local: Path) -> None:
    run = pr.run_sync(_populate())
    (hook,), _ = pr.run_sync(pr.list_hooks())
    close_sessions()
    _post(local / "cli.db", run)
    trap = local / "betrayed"
    changed = _plant(local / "cli.db", table, trap)
    assert bool(changed) == (table in {"runs", "events", "inbox", "hooks", "schedules", "code", "blobs"})

    for command in COMMANDS:
        for output in ("table", "json") if " " in command.replace(" list", "") else ("table",):
            words = command.format(run=run, token=hook.token).split()
            answer = cli("--output", output, *words)
            assert answer.code == 0, answer.err
            assert not trap.exists(), command
    pr.run_sync(_look(run))
    assert not trap.exists()

    async def serve() -> None:
        with Storage(local / "cli.db") as storage:
            looked = await fire_due(storage, "", 60.0, lambda: datetime.now(UTC) + timedelta(seconds=5))
            assert looked.runs
            registry = HookRegistry(EngineSettings(""), lambda run_ids: None, storage)
            repr(registry)
            await registry.status()

    pr.run_sync(serve())
    assert not trap.exists()
    session()


def test_the_planted_value_does_betray_itself(tmp_path: Path) -> None:
    from pyworkflow_ray.values.codec import decode

    decode(encode(Betrayal(tmp_path / "betrayed"))).close()
    assert (tmp_path / "betrayed").exists()
    assert json.loads(encode(Betrayal(tmp_path / "x")))["$"] == "pickle"
