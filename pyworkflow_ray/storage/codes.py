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
        source_hash: Hash of the source text. It shows whether an installed module has changed.
        data: The pickle.
        python: The Python version that wrote it. Only a pickle depends on it.
        bundle: The hash of the bundle with the local files that this code needs.
    """

    hash: str
    kind: str
    python: str
    reference: str | None = None
    source_hash: str | None = None
    data: bytes | None = None
    bundle: str | None = None


_SAVE = Statement(
    "INSERT INTO code (hash, kind, reference, source_hash, data, python, bundle, created_at) "
    "VALUES (:hash, :kind, :reference, :source_hash, :data, :python, :bundle, <now>) ON CONFLICT DO NOTHING"
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
    for name in ("kind", "python", "reference", "source_hash", "bundle"):
        if not isinstance(getattr(code, name), str | None):
            raise unreadable("code", f"code {hash_!r}", name, "it is no text")
    if not isinstance(code.data, bytes | memoryview | None):
        raise unreadable("code", f"code {hash_!r}", "data", "it is no binary value")
    return code if code.data is None else msgspec.structs.replace(code, data=bytes(code.data))


_SAVE_BUNDLE = Statement(
    "INSERT INTO bundles (hash, data, created_at) VALUES (:hash, :data, <now>) ON CONFLICT DO NOTHING"
)
_LOAD_BUNDLE = Statement("SELECT data FROM bundles WHERE hash = :hash")
_HAS_BUNDLE = Statement("SELECT 1 FROM bundles WHERE hash = :hash")


@work
def has_bundle(hash_: str) -> Steps[bool]:
    """Whether the bundle is stored."""
    (row,) = yield last(_HAS_BUNDLE.find(hash=hash_))
    return row is not None


@work
def save_bundle(hash_: str, data: bytes) -> Steps[None]:
    """Store a bundle of local files. One that is stored already is a success."""
    yield last(_SAVE_BUNDLE.change(hash=hash_, data=data))


@work
def load_bundle(hash_: str) -> Steps[bytes | None]:
    """The archive of this hash, or None."""
    (row,) = yield last(_LOAD_BUNDLE.find(hash=hash_))
    return None if row is None else bytes(row[0])
