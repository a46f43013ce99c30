"""The schema's version, and the migrations from older versions to the newest one.

A new database gets the newest tables at once. An older database runs the migrations that it lacks, in order,
in one transaction under a lock. If ten processes open it together, one migrates, and nine find it done. A
crash in between leaves the old version unchanged.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from sqlalchemy import inspect
from sqlalchemy.engine import Connection

from pyworkflow_ray.exceptions import StorageError
from pyworkflow_ray.storage.dialects import lock_schema
from pyworkflow_ray.storage.schema import metadata
from pyworkflow_ray.storage.statements import Statement


def _count_shared_recoveries(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE runs ADD COLUMN shared_recoveries INTEGER NOT NULL DEFAULT 0")


def _keep_bundles(connection: Connection) -> None:
    binary, time, name = "BLOB", "TEXT", "TEXT"
    if connection.dialect.name == "postgresql":
        binary, time, name = "BYTEA", "TIMESTAMP WITH TIME ZONE", 'TEXT COLLATE "C"'
    connection.exec_driver_sql("ALTER TABLE code ADD COLUMN bundle TEXT")
    connection.exec_driver_sql(
        f"CREATE TABLE bundles (hash {name} NOT NULL, data {binary} NOT NULL, created_at {time} NOT NULL, "
        "PRIMARY KEY (hash))"
    )


MIGRATIONS: list[Callable[[Connection], None]] = [_count_shared_recoveries, _keep_bundles]
"""`MIGRATIONS[n]` brings a database of version n + 1 to version n + 2. Append only."""

_FACTS = Statement("SELECT key, value FROM engine")
_STATE = Statement(
    "INSERT INTO engine (key, value) VALUES (:key, :value) "
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)


def newest_version() -> int:
    """The version that this code reads and writes."""
    return len(MIGRATIONS) + 1


def read_facts(connection: Connection) -> dict[str, str]:
    """The database's facts, `schema_version` and `storage_id`; empty for a database without tables."""
    if not inspect(connection).has_table("engine"):
        return {}
    return {str(key): str(value) for key, value in _FACTS.find_all().on(connection)}


def current_version(connection: Connection) -> int:
    """The version of the database's tables; 0 when it has none.

    Raises:
        StorageError: The tables are newer than this code.
    """
    version = int(read_facts(connection).get("schema_version", "0"))
    if version > newest_version():
        raise StorageError(
            f"The database's tables are of version {version}, and this pyworkflow_ray knows versions up to "
            f"{newest_version()}: a newer release has migrated it. Upgrade pyworkflow_ray here too."
        )
    return version


def migrate(connection: Connection) -> None:
    """Bring the tables to the newest version, in the caller's transaction: all of it or nothing."""
    lock_schema(connection)
    # Another process may have migrated while we waited for the lock.
    version = current_version(connection)
    if version == newest_version():
        return
    if version == 0:
        metadata.create_all(connection)
        _STATE.change(key="storage_id", value=secrets.token_hex(16)).on(connection)
    else:
        for migration in MIGRATIONS[version - 1 :]:
            migration(connection)
    _STATE.change(key="schema_version", value=str(newest_version())).on(connection)
