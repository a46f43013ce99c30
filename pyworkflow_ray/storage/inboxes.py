"""What came from outside for a run, and waits for its coordinator to write it into the history.

Anybody may post; only the run's coordinator reads, in the append that records what it read. A read row
keeps its dedup key, so that a sender who never got his answer may post again with no effect.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import msgspec

from pyworkflow_ray.storage.dialects import decode_time
from pyworkflow_ray.storage.schema import HAS_ENDED
from pyworkflow_ray.storage.statements import Bound, Statement
from pyworkflow_ray.storage.works import Steps, ask, last, work

_POST = Statement(f"""
    INSERT INTO inbox (run_id, dedup_key, kind, data, created_at)
    SELECT run_id, :dedup_key, :kind, :data, <now> FROM runs WHERE run_id = :run_id AND NOT {HAS_ENDED}
    <for key share> ON CONFLICT (run_id, dedup_key) DO NOTHING
""")
_UNREAD = Statement(
    "SELECT id, run_id, dedup_key, kind, data, created_at FROM inbox "
    "WHERE run_id = :run_id AND read_position IS NULL ORDER BY id"
)
# From the few unread rows to their runs, as the sweep does.
_WITH_UNREAD = Statement(f"""
    SELECT runs.run_id
    FROM (SELECT DISTINCT run_id FROM inbox WHERE read_position IS NULL) AS unread CROSS JOIN runs
    WHERE runs.run_id = unread.run_id AND NOT {HAS_ENDED}
    LIMIT :limit
""")
# Whoever posts meanwhile waits for this lock, and finds that the run has ended.
_LOCK_RUN = Statement("SELECT 1 FROM runs WHERE run_id = :run_id <for update>")
# What came for a hook or from a child stays: their ids mean others in another run.
_MOVED = ("signal.received", "cancellation.requested")
_WAS_POSTED = Statement("SELECT 1 FROM inbox WHERE run_id = :run_id AND dedup_key = :dedup_key")
_WAS_POSTED_TO_CHAIN = Statement("""
    WITH RECURSIVE chain(id, earlier) AS (
        SELECT run_id, continued_from_run_id FROM runs WHERE run_id = :run_id
        UNION ALL
        SELECT runs.run_id, runs.continued_from_run_id FROM chain JOIN runs ON runs.run_id = earlier
    )
    SELECT 1 FROM chain JOIN inbox ON inbox.run_id = chain.id AND dedup_key = :dedup_key LIMIT 1
""")


class InboxRow(msgspec.Struct, frozen=True):
    """Something that came for a run: `kind` says what, `data` is its JSON text."""

    id: int
    run_id: str
    dedup_key: str
    kind: str
    data: str
    created_at: datetime


def posting(run_id: str, dedup_key: str, kind: str, data: str | bytes) -> Bound:
    """What puts something into a run's inbox. It changes a row if it was not there yet; see `post`."""
    text = data if isinstance(data, str) else bytes(data).decode()
    return _POST.change(run_id=run_id, dedup_key=dedup_key, kind=kind, data=text)


@work
def post(run_id: str, dedup_key: str, kind: str, data: str | bytes) -> Steps[bool]:
    """Put something into a run's inbox; whether it was not there yet.

    After the commit it will reach the run, whoever crashes: the sweep finds what nobody has read. False says
    that this key was posted before, that there is no such run, or that the run has ended.
    """
    (changed,) = yield last(posting(run_id, dedup_key, kind, data))
    return bool(changed == 1)


@work
def unread(run_id: str) -> Steps[list[InboxRow]]:
    """What waits in a run's inbox, in the order of arrival."""
    (rows,) = yield last(_UNREAD.find_all(run_id=run_id))
    return [
        InboxRow(id_, run, key, kind, data, decode_time(created_at))
        for id_, run, key, kind, data, created_at in rows
    ]


@work
def runs_with_unread(limit: int = 1000) -> Steps[list[str]]:
    """The runs that have not ended and have something unread, in no order."""
    (rows,) = yield last(_WITH_UNREAD.find_all(limit=limit))
    return [run_id for (run_id,) in rows]


def finding_posted(run_id: str, dedup_key: str, *, over_chain: bool = False) -> Bound:
    """What finds a row if the run (or, `over_chain`, one that it continues) was ever sent something under
    this key."""
    statement = _WAS_POSTED_TO_CHAIN if over_chain else _WAS_POSTED
    return statement.find(run_id=run_id, dedup_key=dedup_key)


@work
def was_posted(run_id: str, dedup_key: str) -> Steps[bool]:
    """Whether the run was ever sent something under this key."""
    (row,) = yield last(finding_posted(run_id, dedup_key))
    return row is not None


@work
def move_unread(run_id: str, to_run_id: str, but: Collection[int] = ()) -> Steps[None]:
    """What waits in a run's inbox waits in its successor's from now on, behind what is there.

    Call it between the acceptance of the successor and the append that ends the run (which marks all that
    is left as read), in the same transaction. Then nothing that others post meanwhile is lost between the
    two. What came for a hook or from a child is left behind, and so is what the successor was sent under the
    same key.

    Args:
        but: Rows that the append records.
    """
    yield ask(_LOCK_RUN.find(run_id=run_id))
    rows = yield from unread(run_id)
    moved = [row for row in rows if row.kind in _MOVED and row.id not in but]
    if moved:
        yield ask(*(posting(to_run_id, row.dedup_key, row.kind, row.data) for row in moved))
