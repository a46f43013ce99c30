"""Looks at a database as it is, for tools. Nothing is created, and nothing is migrated."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
from sqlalchemy import Engine
from sqlalchemy.engine import Connection, make_url

from pyworkflow_ray.exceptions import StorageError
from pyworkflow_ray.storage.databases import Database
from pyworkflow_ray.storage.dialects import (
    decode_time,
    is_database_error,
    postgresql_engine,
    sqlite_reader,
    summary,
)
from pyworkflow_ray.storage.migrations import newest_version, read_facts
from pyworkflow_ray.storage.statements import Statement
from pyworkflow_ray.storage.works import Steps, last, work

_CLOCK = Statement("SELECT <now>")
_ID_RANGE = Statement(
    "SELECT run_id FROM runs WHERE run_id >= :first AND run_id < :last ORDER BY run_id LIMIT :limit"
)
# The index finds each name in one step from the name before, however many runs the name has.
_WORKFLOW_NAMES = Statement("""
    WITH RECURSIVE names(name) AS (
        SELECT min(workflow_name) FROM runs
        UNION ALL
        SELECT (SELECT min(workflow_name) FROM runs WHERE workflow_name > name)
        FROM names WHERE name IS NOT NULL
    )
    SELECT name FROM names WHERE name IS NOT NULL LIMIT :limit
""")


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a database.

    Args:
        url: Its URL, without a password.
        exists: False for an SQLite file that is missing.
        schema_version: The version of its tables; 0 if it has none.
        newest_version: The version that this code reads and writes.
        mode: For SQLite, the journal mode; for PostgreSQL, the server's version.
        clock_ahead: Seconds that the database's clock is ahead of this host's.
    """

    url: str
    exists: bool = True
    schema_version: int = 0
    newest_version: int
    storage_id: str | None = None
    mode: str = ""
    clock_ahead: float = 0.0


def inspect_database(url: str) -> Inspection:
    """The database at a URL, or the file at a path.

    Raises:
        StorageError: It cannot be reached, or it is not a database.
    """
    database = Database(url, create=False)
    path = database.path
    if database.is_memory or (path is not None and not path.exists()):
        return Inspection(url=database.url, exists=False, newest_version=newest_version())
    engine = _engine(database, path)
    try:
        with engine.connect() as connection:
            return _inspect(connection, database.url)
    except Exception as error:
        if not is_database_error(error):
            raise
        raise StorageError(f"The database {database.url} cannot be read: {summary(error)}.") from error
    finally:
        engine.dispose()


def _engine(database: Database, path: Path | None) -> Engine:
    if path is not None:
        return sqlite_reader(path, "FULL")
    try:
        return postgresql_engine(make_url(database.secret_url))
    except ImportError as error:
        raise StorageError(
            f"PostgreSQL needs the driver psycopg: pip install 'pyworkflow-ray[postgres]' ({error})."
        ) from error


def _inspect(connection: Connection, url: str) -> Inspection:
    facts = read_facts(connection)
    is_file = connection.dialect.name == "sqlite"
    mode = connection.exec_driver_sql("PRAGMA journal_mode" if is_file else "SHOW server_version").scalar()
    before = datetime.now(UTC)
    row = _CLOCK.find().on(connection)
    assert row is not None
    middle = before + (datetime.now(UTC) - before) / 2
    return Inspection(
        url=url,
        schema_version=int(facts.get("schema_version", "0")),
        newest_version=newest_version(),
        storage_id=facts.get("storage_id"),
        mode=str(mode),
        clock_ahead=(decode_time(row[0]) - middle).total_seconds(),
    )


@work
def ids_that_begin(prefix: str, limit: int = 5) -> Steps[list[str]]:
    """The ids of runs that begin with this text, in order."""
    # The largest character sorts after every other.
    (rows,) = yield last(_ID_RANGE.find_all(first=prefix, last=prefix + chr(0x10FFFF), limit=limit))
    return [str(run_id) for (run_id,) in rows]


@work
def workflow_names(limit: int = 200) -> Steps[list[str]]:
    """The names of the workflows that have runs, in order."""
    (rows,) = yield last(_WORKFLOW_NAMES.find_all(limit=limit))
    return [str(name) for (name,) in rows]
