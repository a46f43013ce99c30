"""The code that runs carry, by its hash."""

from __future__ import annotations

import msgspec
from sqlalchemy.engine import Connection

from pyworkflow_ray.storage.dialects import Statement


class Code(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow's code: where to import it from (`kind` "reference"), or its pickled value ("value").

    Args:
        reference: ``module:qualname``; for code by value it tells where it came from.
        source_hash: Of the source text, to notice that an imported module is not what it was.
        data: The cloudpickle of the function.
        python: The Python version that pickled it.
    """

    hash: str
    kind: str
    python: str
    reference: str | None = None
    source_hash: str | None = None
    data: bytes | None = None


_SAVE = Statement(
    "INSERT INTO code (hash, kind, reference, source_hash, data, python, created_at) "
    "VALUES (:hash, :kind, :reference, :source_hash, :data, :python, <now>) ON CONFLICT DO NOTHING"
)
_LOAD = Statement(f"SELECT {', '.join(Code.__struct_fields__)} FROM code WHERE hash = :hash")


def save_code(connection: Connection, code: Code) -> None:
    """Keep the code; that it is there already is a success."""
    _SAVE.execute(connection, **{name: getattr(code, name) for name in Code.__struct_fields__})


def load_code(connection: Connection, hash_: str) -> Code | None:
    """The code of this hash, or None."""
    row = _LOAD.row(connection, hash=hash_)
    if row is None:
        return None
    code = Code(**dict(zip(Code.__struct_fields__, row, strict=True)))
    return code if code.data is None else msgspec.structs.replace(code, data=bytes(code.data))
