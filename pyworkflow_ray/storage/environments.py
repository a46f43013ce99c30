"""The `runtime_env`s of runs, stored by their hash. Making a coordinator takes the whole text."""

from __future__ import annotations

from pyworkflow_ray.storage.statements import Statement
from pyworkflow_ray.storage.works import Steps, last, work

_SAVE = Statement("INSERT INTO environments (hash, data) VALUES (:hash, :data) ON CONFLICT DO NOTHING")
_LOAD = Statement("SELECT data FROM environments WHERE hash = :hash")


@work
def save_environment(hash_: str, data: str) -> Steps[None]:
    """Store a `runtime_env`, as JSON text. One that is stored already is a success."""
    yield last(_SAVE.change(hash=hash_, data=data))


@work
def load_environment(hash_: str) -> Steps[str | None]:
    """The JSON text of the `runtime_env` of this hash, or None."""
    (row,) = yield last(_LOAD.find(hash=hash_))
    return None if row is None else str(row[0])
