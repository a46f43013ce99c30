"""Payloads that are too large for an event, stored by the hash of their content."""

from __future__ import annotations

from collections.abc import Sequence

from pyworkflow_ray.exceptions import UnreadableRowError
from pyworkflow_ray.storage.damages import unreadable
from pyworkflow_ray.storage.statements import Bound, Statement
from pyworkflow_ray.storage.works import Steps, last, work

_SAVE = Statement(
    "INSERT INTO blobs (hash, data, size, created_at) VALUES (:hash, :data, :size, <now>) "
    "ON CONFLICT DO NOTHING"
)
_LINK = Statement("INSERT INTO run_blobs (run_id, hash) VALUES (:run_id, :hash) ON CONFLICT DO NOTHING")
_OF_RUN = Statement("SELECT hash FROM run_blobs WHERE run_id = :run_id")
_LOAD = Statement("SELECT data, size FROM blobs WHERE hash = :hash")
_DAMAGED = Statement(
    "SELECT run_blobs.hash, size FROM run_blobs LEFT JOIN blobs ON blobs.hash = run_blobs.hash "
    "WHERE run_id = :run_id AND (blobs.hash IS NULL OR length(data) <> size) LIMIT 1"
)
_DELETE_UNUSED = Statement(
    "DELETE FROM blobs WHERE hash = :hash "
    "AND NOT EXISTS (SELECT 1 FROM run_blobs WHERE run_blobs.hash = :hash)"
)


def saving_blobs(run_id: str, blobs: Sequence[tuple[str, bytes | None]]) -> list[Bound]:
    """The statements that keep the blobs as long as the run exists. Equal blobs are kept once for all runs.

    None instead of bytes links the run to a blob that another run has stored already. The run must exist.
    """
    if not blobs:
        return []
    # In one order: two transactions that insert the same blobs wait for each other.
    blobs = sorted(blobs, key=lambda blob: blob[0])
    new = [{"hash": hash_, "data": data, "size": len(data)} for hash_, data in blobs if data is not None]
    return [
        _SAVE.change_each(new),
        _LINK.change_each([{"run_id": run_id, "hash": hash_} for hash_, _ in blobs]),
    ]


@work
def load_blob(hash_: str) -> Steps[bytes]:
    """The blob's bytes.

    Raises:
        UnreadableRowError: It is not what was stored, or not there.
    """
    (row,) = yield last(_LOAD.find(hash=hash_))
    if row is None:
        raise _unreadable(hash_, None)
    data, size = row
    if not isinstance(data, bytes | memoryview) or len(data) != size:
        raise _unreadable(hash_, size)
    return bytes(data)


@work
def require_blobs(run_id: str) -> Steps[None]:
    """Do nothing if the run's blobs are what was stored.

    Raises:
        UnreadableRowError: One of them is not, or is not there.
    """
    (row,) = yield last(_DAMAGED.find(run_id=run_id))
    if row is not None:
        hash_, size = row
        raise _unreadable(hash_, size, run_id)


def _unreadable(hash_: str, size: object, run_id: str | None = None) -> UnreadableRowError:
    problem = f"it has not the {str(size)[:20]} bytes that its 'size' says"
    if size is None:
        problem = (
            "the row is missing, although an event refers to it. The run that stored it was deleted, or the "
            "database was restored without its table 'blobs'"
        )
    return unreadable("blobs", f"blob {hash_!r}", "data", problem, run_id)


def finding_blobs(run_id: str) -> Bound:
    """What finds the hashes of the blobs that a run needs, one a row."""
    return _OF_RUN.find_all(run_id=run_id)


def deleting_unused_blobs(hashes: Sequence[str]) -> Bound:
    """What deletes those of the blobs that no run needs."""
    return _DELETE_UNUSED.change_each([{"hash": hash_} for hash_ in hashes])
