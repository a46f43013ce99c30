"""The floor under a remote step: what Ray and the disk cost without the engine.

The floor of one remote step is one Ray task with the same options, awaited in an async actor, and one commit
of the same rows with the same durability.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workloads import ARGUMENT, PAUSE


def make_floor(namespace: str) -> Any:
    """A plain async actor that runs bare tasks.

    It is detached, as coordinators are: Ray keeps separate workers for each detached actor.
    """
    import ray

    @ray.remote(num_cpus=0)
    class Floor:
        def __init__(self) -> None:
            def length(text: str) -> int:
                return len(text)

            def pause(number: int) -> int:
                time.sleep(PAUSE)
                return number

            task = ray.remote(max_retries=0, num_cpus=1)
            self._task = task(length).options(name="bare")
            self._pause = task(pause).options(name="bare")

        async def one_by_one(self, count: int, text: str) -> tuple[float, int]:
            """Seconds for tasks awaited one after another, and the sum of their results."""
            started, total = time.perf_counter(), 0
            for _ in range(count):
                total += await self._task.remote(text)
            return time.perf_counter() - started, total

        async def all_at_once(self, count: int, text: str) -> tuple[float, int]:
            """Seconds for tasks gathered, and the sum of their results."""
            started = time.perf_counter()
            results = await asyncio.gather(*(self._task.remote(text) for _ in range(count)))
            return time.perf_counter() - started, sum(results)

        async def lengths_at_once(self, count: int) -> tuple[float, int]:
            """As `all_at_once`, with the steps' argument."""
            return await self.all_at_once(count, ARGUMENT)

        async def pauses_at_once(self, count: int) -> tuple[float, int]:
            """As `all_at_once`, with tasks that take a millisecond and return their numbers."""
            started = time.perf_counter()
            results = await asyncio.gather(*(self._pause.remote(number) for number in range(count)))
            return time.perf_counter() - started, sum(results)

    return Floor.options(name="floor", namespace=namespace, lifetime="detached").remote()  # type: ignore[attr-defined]


_TABLES = """
    CREATE TABLE runs (
        run_id TEXT PRIMARY KEY, epoch INTEGER, position INTEGER, status TEXT, updated_at TEXT
    );
    CREATE TABLE events (
        run_id TEXT NOT NULL, position INTEGER NOT NULL, type TEXT NOT NULL, timestamp TEXT NOT NULL,
        data TEXT NOT NULL, PRIMARY KEY (run_id, position)
    ) WITHOUT ROWID;
    INSERT INTO runs VALUES ('run', 1, 0, 'running', '');
"""
_FENCE = "UPDATE runs SET position = ?, updated_at = ? WHERE run_id = 'run' AND epoch = 1 AND position = ?"
_APPEND = "INSERT INTO events VALUES ('run', ?, ?, ?, ?)"


def seconds_of_commits(path: Path, count: int) -> float:
    """Seconds for bare commits of the rows of a step's outcome and the next step's schedule."""
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(_TABLES)
        completed, scheduled = event_texts()
        started = time.perf_counter()
        for number in range(count):
            now = str(datetime.now(UTC))[:26]
            position = 2 * number
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_FENCE, (position + 2, now, position))
            rows = [
                (position, "step.completed", now, completed),
                (position + 1, "step.started", now, scheduled),
            ]
            connection.executemany(_APPEND, rows)
            connection.execute("COMMIT")
        return time.perf_counter() - started
    finally:
        connection.close()


def event_texts() -> tuple[str, str]:
    """The data of a step's outcome and of the next step's schedule, as they are recorded."""
    completed = {
        "step_id": "remote_length#100",
        "step_name": "remote_length",
        "result": 200,
        "attempt": 1,
        "started_at": str(datetime.now(UTC)),
        "node": "0" * 56,
        "worker_pid": 10_000,
    }
    scheduled = {
        "step_id": "remote_length#101",
        "step_name": "remote_length",
        "args": [ARGUMENT],
        "kwargs": {},
    }
    return json.dumps(completed), json.dumps(scheduled)
