"""The `runtime_env`s that runs live in, by their hash: whoever makes a run's coordinator needs it whole."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from pyworkflow_ray.storage.dialects import Statement

_SAVE = Statement("INSERT INTO environments (hash, data) VALUES (:hash, :data) ON CONFLICT DO NOTHING")
_LOAD = Statement("SELECT data FROM environments WHERE hash = :hash")


def save_environment(connection: Connection, hash_: str, data: str) -> None:
    """Keep a `runtime_env`, as JSON text; that it is there already is a success."""
    _SAVE.execute(connection, hash=hash_, data=data)


def load_environment(connection: Connection, hash_: str) -> str | None:
    """The JSON text of the `runtime_env` of this hash, or None."""
    row = _LOAD.row(connection, hash=hash_)
    return None if row is None else str(row[0])
