"""Finding runs: by id, by key, by relation, and page by page."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import chain, islice
from typing import Any

from sqlalchemy import ColumnElement, Select, TextClause, func, or_, select

from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage import schema
from pyworkflow_ray.storage.blobs import deleting_unused_blobs, finding_blobs
from pyworkflow_ray.storage.damages import NEVER
from pyworkflow_ray.storage.dialects import attribute_equals
from pyworkflow_ray.storage.pages import before, cursor_behind
from pyworkflow_ray.storage.records import COLUMNS, FIELDS, RunRecord, run_record, shown_record
from pyworkflow_ray.storage.selections import Selection, selecting
from pyworkflow_ray.storage.statements import Bound, Statement
from pyworkflow_ray.storage.works import Steps, ask, last, work

_C = schema.runs.c
_ALL = select(*(_C[name] for name in FIELDS))
_CREATED_AT = FIELDS.index("created_at")
_GET = Statement(f"SELECT {COLUMNS} FROM runs WHERE run_id = :run_id")
_DELETE = Statement("DELETE FROM runs WHERE run_id = :run_id")
_RELEASE_KEY = Statement("UPDATE runs SET idempotency_key = NULL WHERE run_id = :run_id")
# Two halves: the first uses the primary key, the second an index.
_TREE = Statement(f"""
    SELECT {COLUMNS} FROM runs WHERE run_id = :run_id
    UNION ALL
    SELECT {COLUMNS} FROM runs WHERE root_run_id = :run_id AND root_run_id <> run_id AND run_id <> :run_id
""")

# Back to the first run of the chain and on to its last. Each step uses the primary key.
_CHAIN = Statement(f"""
    WITH RECURSIVE earlier(id, link, place) AS (
        SELECT run_id, continued_from_run_id, 0 FROM runs WHERE run_id = :run_id
        UNION ALL
        SELECT runs.run_id, runs.continued_from_run_id, place - 1 FROM earlier JOIN runs ON runs.run_id = link
        WHERE place > -1000000
    ), later(id, link, place) AS (
        SELECT run_id, continued_to_run_id, 0 FROM runs WHERE run_id = :run_id
        UNION ALL
        SELECT runs.run_id, runs.continued_to_run_id, place + 1 FROM later JOIN runs ON runs.run_id = link
        WHERE place < 1000000
    )
    SELECT {COLUMNS} FROM (
        SELECT id, place FROM earlier UNION SELECT id, place FROM later
    ) AS chain JOIN runs ON runs.run_id = id ORDER BY place
""")


_LATEST_OF_CHAIN = Statement(f"""
    WITH RECURSIVE later(id, link, place) AS (
        SELECT run_id, continued_to_run_id, 0 FROM runs WHERE run_id = :run_id
        UNION ALL
        SELECT runs.run_id, runs.continued_to_run_id, place + 1 FROM later JOIN runs ON runs.run_id = link
        WHERE place < 1000000
    )
    SELECT {COLUMNS} FROM runs
    WHERE run_id = (SELECT id FROM later ORDER BY place DESC LIMIT 1)
""")


@work
def get_run(run_id: str) -> Steps[RunRecord | None]:
    """The run of this id, or None."""
    (row,) = yield last(_GET.find(run_id=run_id))
    return None if row is None else run_record(row)


@work
def get_latest_of_chain(run_id: str) -> Steps[RunRecord | None]:
    """The last run of the chain that continues this one: itself if none does; None for an unknown id."""
    (row,) = yield last(finding_latest_of_chain(run_id))
    return None if row is None else run_record(row)


def finding_latest_of_chain(run_id: str) -> Bound:
    """The query of `get_latest_of_chain`. Its row is for `run_record`."""
    return _LATEST_OF_CHAIN.find(run_id=run_id)


@work
def get_runs(run_ids: Iterable[str]) -> Steps[dict[str, RunRecord]]:
    """The runs of these ids that exist, by their ids."""
    rows = yield last(*(_GET.find(run_id=run_id) for run_id in dict.fromkeys(run_ids)))
    return {run.run_id: run for run in (shown_record(row) for row in rows if row is not None)}


@work
def get_by_idempotency_key(key: str, workflow: str | None = None) -> Steps[RunRecord | None]:
    """The run that holds the key. Without a workflow, several runs may hold it: then the newest of them."""
    query = _ALL.where(_C.idempotency_key == key)
    if workflow is not None:
        query = query.where(_C.workflow_name == workflow)
    (rows,) = yield last(selecting(query.order_by(_C.created_at.desc()).limit(1)))
    return run_record(rows[0]) if rows else None


@work
def get_parent(run_id: str) -> Steps[RunRecord | None]:
    """The run that started this one as its child, or None."""
    run = yield from get_run(run_id)
    if run is None or run.parent_run_id is None:
        return None
    return (yield from get_run(run.parent_run_id).at_end())


@work
def get_children(run_id: str) -> Steps[list[RunRecord]]:
    """The child runs of a run, oldest first."""
    query = _ALL.where(_C.parent_run_id == run_id).order_by(_C.created_at, _C.run_id)
    (rows,) = yield last(selecting(query))
    return list(map(shown_record, rows))


@work
def get_tree(root_run_id: str) -> Steps[list[RunRecord]]:
    """A run and all its descendants, oldest first; empty for an unknown id."""
    (rows,) = yield last(_TREE.find_all(run_id=root_run_id))
    tree = [shown_record(row) for row in rows]
    return sorted(tree, key=lambda run: (run.created_at, run.nesting_depth, run.run_id))


@work
def get_chain(run_id: str) -> Steps[list[RunRecord]]:
    """All runs of the chain in which this run is, oldest first; empty for an unknown id."""
    (rows,) = yield last(_CHAIN.find_all(run_id=run_id))
    return [shown_record(row) for row in rows]


@work
def list_runs(
    *,
    query: str | None = None,
    status: RunStatus | Collection[RunStatus] | None = None,
    workflow: str | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    attributes: Mapping[str, str] | None = None,
    parent: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> Steps[tuple[list[RunRecord], str | None]]:
    """A page of runs, newest first, and the cursor of the next page (None after the last page).

    Runs that are created or deleted between two pages make no other run appear twice or get left out.

    Args:
        query: Part of a run id, workflow name or idempotency key; case does not matter.
        start_time, end_time: `created_at` is at `start_time` or later, and before `end_time`.
        attributes: Top-level keys and the JSON text that each must equal.

    Raises:
        ValueError: The cursor did not come from a page.
    """
    conditions: list[ColumnElement[bool] | TextClause] = []
    if query:
        columns = (_C.run_id, _C.workflow_name, _C.idempotency_key)
        conditions.append(or_(*(column.icontains(query, autoescape=True) for column in columns)))
    if workflow is not None:
        conditions.append(_C.workflow_name == workflow)
    if start_time is not None:
        conditions.append(_C.created_at >= start_time)
    if end_time is not None:
        conditions.append(_C.created_at < end_time)
    if parent is not None:
        conditions.append(_C.parent_run_id == parent)
    if cursor is not None:
        conditions.append(before(cursor, _C.created_at, _C.run_id))

    def newest_first(more: list[ColumnElement[bool]], dialect: str) -> Select[Any]:
        equal = [attribute_equals(dialect, key, value) for key, value in (attributes or {}).items()]
        query = _ALL.where(*conditions, *equal, *more)
        return query.order_by(_C.created_at.desc(), _C.run_id.desc()).limit(limit + 1)

    # For each status an index holds the runs in order. One query for several statuses would have to sort all
    # of them.
    wanted = {status} if isinstance(status, RunStatus) else set(status or ())
    parts = [[_C.status == each.value] for each in wanted] if status is not None else [[]]
    pages = yield last(*(Selection(partial(newest_first, part)) for part in parts))
    # In the order of the stored times: of those that cannot be read, too.
    rows = pages[0] if len(pages) == 1 else sorted(chain(*pages), key=_place, reverse=True)
    page = [shown_record(row) for row in rows[:limit]]
    readable = [run for run in page if run.created_at is not NEVER]
    if len(rows) <= limit or not readable:
        return page, None
    return page, cursor_behind(readable[-1].created_at, readable[-1].run_id)


def _place(row: Any) -> tuple[str, str]:
    return str(row[_CREATED_AT]), str(row[0])


@work
def delete_run(run_id: str) -> Steps[bool]:
    """Whether there was such a run; it is gone with its history, hooks, inbox and what only it needed."""
    return (yield from _delete([run_id]).at_end()) == 1


@work
def purge(*, older_than: datetime, statuses: Collection[RunStatus], limit: int = 500) -> Steps[int]:
    """Delete runs of these statuses that ended before `older_than`, as `delete_run` does; how many.

    One call deletes at most `limit` runs, so that no other write waits for long. Call it until it deletes
    none.

    Raises:
        ValueError: One of the statuses is not terminal.
    """
    living = sorted(status.value for status in statuses if not status.is_terminal)
    if living:
        raise ValueError(f"Runs that are {', '.join(living)} have not ended; only ended ones can be purged.")
    ended_at = func.coalesce(_C.completed_at, _C.updated_at)
    queries = []
    for status in set(statuses):
        # No run ends before it is created. So the condition on `created_at` limits how much of the index is
        # read.
        query = select(_C.run_id).where(
            _C.status == status.value, _C.created_at < older_than, ended_at < older_than
        )
        queries.append(selecting(query.order_by(_C.created_at, _C.run_id).limit(limit)))
    found = chain(*(yield ask(*queries)))
    return (yield from _delete([run_id for (run_id,) in islice(found, limit)]).at_end())


@work
def latest_of_chain(run_id: str) -> Steps[str]:
    """The id of the last run of the chain that continues this one; its own id if none does."""
    run = yield from get_latest_of_chain(run_id).at_end()
    return run_id if run is None else run.run_id


def releasing_key(run_id: str) -> Bound:
    """The statement that takes a run's idempotency key from it, so that another run may have it."""
    return _RELEASE_KEY.change(run_id=run_id)


@work
def _delete(found: Sequence[str]) -> Steps[int]:
    run_ids = sorted(found)  # All transactions lock rows in this order.
    linked = yield ask(*map(finding_blobs, run_ids))
    hashes = {hash_ for (hash_,) in chain(*linked)}
    deleting = [_DELETE.change(run_id=run_id) for run_id in run_ids]
    changed = yield last(*deleting, deleting_unused_blobs(sorted(hashes)))
    return sum(changed[: len(run_ids)])
