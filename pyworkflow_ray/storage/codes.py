"""The code of runs, stored by its hash."""

from __future__ import annotations

import msgspec

from pyworkflow_ray.storage.damages import unreadable
from pyworkflow_ray.storage.statements import Bound, Statement
from pyworkflow_ray.storage.works import Steps, last, work


class Code(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow's code: where to import it from (`kind` "reference"), or its pickled value ("value").

    Args:
        reference: ``module:qualname``. For code by value it names where the code came from.
        source_hash: Hash of the source text. It shows whether an imported module has changed.
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


def saving_code(code: Code | None) -> list[Bound]:
    """The statement that stores the code; code that is stored already is a success. Empty for None."""
    if code is None:
        return []
    return [_SAVE.change(**{name: getattr(code, name) for name in Code.__struct_fields__})]


@work
def load_code(hash_: str) -> Steps[Code | None]:
    """The code of this hash, or None.

    Raises:
        UnreadableRowError: Its row cannot be read.
    """
    (row,) = yield last(_LOAD.find(hash=hash_))
    if row is None:
        return None
    code = Code(**dict(zip(Code.__struct_fields__, row, strict=True)))
    for name in ("kind", "python", "reference", "source_hash"):
        if not isinstance(getattr(code, name), str | None):
            raise unreadable("code", f"code {hash_!r}", name, "it is no text")
    if not isinstance(code.data, bytes | memoryview | None):
        raise unreadable("code", f"code {hash_!r}", "data", "it is no binary value")
    return code if code.data is None else msgspec.structs.replace(code, data=bytes(code.data))
