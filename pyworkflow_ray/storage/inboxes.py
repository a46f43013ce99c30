"""Inboxes: what came from outside for a run. The run's coordinator writes it into the history.

Any process may post. Only the run's coordinator marks rows as read, in the append that records them. A row
that was read keeps its dedup key. So a sender that got no answer may post again with no effect.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import msgspec

from pyworkflow_ray.storage.damages import Reader
from pyworkflow_ray.storage.locks import Locks, Strength
from pyworkflow_ray.storage.schema import HAS_ENDED
from pyworkflow_ray.storage.statements import Bound, Statement
from pyworkflow_ray.storage.works import Steps, ask, last, locking, work

_POST = Statement(f"""
    INSERT INTO inbox (run_id, dedup_key, kind, data, created_at)
    SELECT run_id, :dedup_key, :kind, :data, <now> FROM runs WHERE run_id = :run_id AND NOT {HAS_ENDED}
    <for key share> ON CONFLICT (run_id, dedup_key) DO NOTHING
""")
_UNREAD = Statement(
    "SELECT id, run_id, dedup_key, kind, data, created_at FROM inbox "
    "WHERE run_id = :run_id AND read_position IS NULL ORDER BY id"
)
# The query goes from the few unread rows to their runs, as the sweep's query does.
_WITH_UNREAD = Statement(f"""
    SELECT runs.run_id
    FROM (SELECT DISTINCT run_id FROM inbox WHERE read_position IS NULL) AS unread CROSS JOIN runs
    WHERE runs.run_id = unread.run_id AND NOT {HAS_ENDED}
    LIMIT :limit
""")
# A process that posts meanwhile waits for this lock. Then it finds that the run has ended.
_LOCK_RUN = Statement("SELECT 1 FROM runs WHERE run_id = :run_id <for update>")
# What came for a hook or from a child is not moved: in another run, its ids name other hooks and children.
MOVED = ("signal.received", "cancellation.requested")
"""The kinds of rows that follow a run into its successor."""

CANCEL_KEY = "cancel"
"""The key of a request to cancel: one counts in each run, until the run is set aside."""

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
    """One thing that came for a run: `kind` is its kind, `data` is its JSON text."""

    id: int
    run_id: str
    dedup_key: str
    kind: str
    data: str
    created_at: datetime


_inbox_row = Reader("inbox", InboxRow, {"run_id": "run", "id": "row"})


def posting(run_id: str, dedup_key: str, kind: str, data: str | bytes) -> Bound:
    """The statement of `post`. It changes one row if the key was not in the inbox yet."""
    text = data if isinstance(data, str) else bytes(data).decode()
    return _POST.change(run_id=run_id, dedup_key=dedup_key, kind=kind, data=text)


@locking(lambda run_id, *_: Locks(runs={run_id: Strength.POSTS}))
@work
def post(run_id: str, dedup_key: str, kind: str, data: str | bytes) -> Steps[bool]:
    """Put something into a run's inbox; whether it is new there.

    After the commit it will reach the run, whichever process crashes: the sweep finds unread rows. False
    means that this key was posted before, that there is no such run, or that the run has ended.
    """
    (changed,) = yield last(posting(run_id, dedup_key, kind, data))
    return bool(changed == 1)


@work
def unread(run_id: str) -> Steps[list[InboxRow]]:
    """The unread rows of a run's inbox, in the order of arrival.

    Raises:
        UnreadableRowError: A row has a cell that cannot be read.
    """
    (rows,) = yield last(_UNREAD.find_all(run_id=run_id))
    return list(map(_inbox_row, rows))


@work
def readable_unread(run_id: str) -> Steps[list[InboxRow]]:
    """As `unread`, without the rows that cannot be read."""
    (rows,) = yield last(_UNREAD.find_all(run_id=run_id))
    return _inbox_row.readable(rows)


@work
def runs_with_unread(limit: int = 1000) -> Steps[list[str]]:
    """The runs that have not ended and have unread rows, in no order."""
    (rows,) = yield last(_WITH_UNREAD.find_all(limit=limit))
    return [run_id for (run_id,) in rows]


def finding_posted(run_id: str, dedup_key: str, *, over_chain: bool = False) -> Bound:
    """The query that finds a row if something was ever posted to the run under this key.

    With `over_chain`, posts to the runs that it continues count too.
    """
    statement = _WAS_POSTED_TO_CHAIN if over_chain else _WAS_POSTED
    return statement.find(run_id=run_id, dedup_key=dedup_key)


@work
def was_posted(run_id: str, dedup_key: str) -> Steps[bool]:
    """Whether something was ever posted to the run under this key."""
    (row,) = yield last(finding_posted(run_id, dedup_key))
    return row is not None


@work
def move_unread(run_id: str, to_run_id: str, but: Collection[int] = ()) -> Steps[None]:
    """Move the unread rows of a run's inbox to its successor's inbox, after the rows that are there.

    Call this after the successor is accepted and before the append that ends the run, in the same
    transaction. (That append marks all rows that are left as read.) Then nothing that is posted meanwhile is
    lost. Rows for a hook or from a child are not moved, and neither are rows whose key was already posted to
    the successor.

    Args:
        but: Ids of the rows that the append records.
    """
    yield ask(_LOCK_RUN.find(run_id=run_id))
    rows = yield from unread(run_id)
    moved = [row for row in rows if row.kind in MOVED and row.id not in but]
    if moved:
        yield ask(*(posting(to_run_id, row.dedup_key, row.kind, row.data) for row in moved))
