"""Finding runs: by id, by key, by relation, and page by page."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import chain

from sqlalchemy import ColumnElement, Select, TextClause, delete, func, or_, select
from sqlalchemy.engine import Connection

from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage import schema
from pyworkflow_ray.storage.blobs import blob_hashes, delete_unused_blobs
from pyworkflow_ray.storage.dialects import Statement, attribute_equals
from pyworkflow_ray.storage.pages import before, cursor_behind
from pyworkflow_ray.storage.records import COLUMNS, FIELDS, RunRecord, run_record

_C = schema.runs.c
_ALL = select(*(_C[name] for name in FIELDS))
_MOST_IDS = 500  # SQLite limits the parameters of a statement.
_CONTINUED_TO = Statement("SELECT continued_to_run_id FROM runs WHERE run_id = :run_id")
_GET = Statement(f"SELECT {COLUMNS} FROM runs WHERE run_id = :run_id")
_RELEASE_KEY = Statement("UPDATE runs SET idempotency_key = NULL WHERE run_id = :run_id")
# Two halves, for the second of which there is an index.
_TREE = Statement(f"""
    SELECT {COLUMNS} FROM runs WHERE run_id = :run_id
    UNION ALL
    SELECT {COLUMNS} FROM runs WHERE root_run_id = :run_id AND root_run_id <> run_id AND run_id <> :run_id
""")

# Back to the first of the chain and on to its last, each step by primary key.
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


def get_run(connection: Connection, run_id: str) -> RunRecord | None:
    """The run of this id, or None."""
    row = _GET.row(connection, run_id=run_id)
    return None if row is None else run_record(row)


def get_runs(connection: Connection, run_ids: Iterable[str]) -> dict[str, RunRecord]:
    """The runs of these ids that exist, by their ids."""
    wanted = list(dict.fromkeys(run_ids))
    found = {}
    for start in range(0, len(wanted), _MOST_IDS):
        for run in _fetch(connection, _ALL.where(_C.run_id.in_(wanted[start : start + _MOST_IDS]))):
            found[run.run_id] = run
    return found


def get_by_idempotency_key(connection: Connection, key: str, workflow: str | None = None) -> RunRecord | None:
    """The run that holds the key; the newest of them when several workflows have one and none is named."""
    query = _ALL.where(_C.idempotency_key == key)
    if workflow is not None:
        query = query.where(_C.workflow_name == workflow)
    runs = _fetch(connection, query.order_by(_C.created_at.desc()).limit(1))
    return runs[0] if runs else None


def get_children(connection: Connection, run_id: str) -> list[RunRecord]:
    """The child runs of a run, oldest first."""
    return _fetch(connection, _ALL.where(_C.parent_run_id == run_id).order_by(_C.created_at, _C.run_id))


def get_tree(connection: Connection, root_run_id: str) -> list[RunRecord]:
    """A run and all its descendants, oldest first; empty for an unknown id."""
    tree = [run_record(row) for row in _TREE.rows(connection, run_id=root_run_id)]
    return sorted(tree, key=lambda run: (run.created_at, run.nesting_depth, run.run_id))


def get_chain(connection: Connection, run_id: str) -> list[RunRecord]:
    """All runs that continued each other, oldest first, from any one of them; empty for an unknown id."""
    return [run_record(row) for row in _CHAIN.rows(connection, run_id=run_id)]


def list_runs(
    connection: Connection,
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
) -> tuple[list[RunRecord], str | None]:
    """A page of runs, newest first, and the cursor of the next page (None behind the last).

    Runs that come and go between two pages neither repeat nor hide others.

    Args:
        query: Part of a run id, workflow name or idempotency key; case does not matter.
        start_time, end_time: Bounds on `created_at`: from the first on, and before the second.
        attributes: Top-level keys and the JSON text that each must equal.

    Raises:
        ValueError: The cursor is not one that a page gave.
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
    dialect = connection.dialect.name
    conditions += [attribute_equals(dialect, key, value) for key, value in (attributes or {}).items()]
    if cursor is not None:
        conditions.append(before(cursor, _C.created_at, _C.run_id))
    newest_first = _ALL.where(*conditions).order_by(_C.created_at.desc(), _C.run_id.desc()).limit(limit + 1)
    if status is None:
        found = _fetch(connection, newest_first)
    else:
        # Each status has its runs in order in an index; all of several at once would have to be sorted.
        wanted = {status} if isinstance(status, RunStatus) else set(status)
        pages = [_fetch(connection, newest_first.where(_C.status == each.value)) for each in wanted]
        found = sorted(chain(*pages), key=lambda run: (run.created_at, run.run_id), reverse=True)
    page = found[:limit]
    is_last = not page or len(found) <= limit
    return page, None if is_last else cursor_behind(page[-1].created_at, page[-1].run_id)


def delete_run(connection: Connection, run_id: str) -> bool:
    """Whether there was such a run; it is gone with its history, hooks, inbox and what only it needed."""
    return _delete(connection, [run_id]) == 1


def purge(
    connection: Connection, *, older_than: datetime, statuses: Collection[RunStatus], limit: int = 500
) -> int:
    """Delete runs of these statuses that ended before `older_than`, as `delete_run` does; how many.

    At most `limit` in one call, so that nobody waits for long: call it until it deletes none.

    Raises:
        ValueError: One of the statuses is of runs that have not ended.
    """
    living = sorted(status.value for status in statuses if not status.is_terminal)
    if living:
        raise ValueError(f"Runs that are {', '.join(living)} have not ended; only ended ones can be purged.")
    ended_at = func.coalesce(_C.completed_at, _C.updated_at)
    found: list[str] = []
    for status in set(statuses):
        # Nothing ends before it is created; that bounds how much of the index of a status is looked through.
        query = select(_C.run_id).where(
            _C.status == status.value, _C.created_at < older_than, ended_at < older_than
        )
        oldest_first = query.order_by(_C.created_at, _C.run_id).limit(limit - len(found))
        found += connection.scalars(oldest_first)
    return _delete(connection, found)


def latest_of_chain(connection: Connection, run_id: str) -> str:
    """The id of the run in which this one goes on at last; its own, if it does not."""
    while (row := _CONTINUED_TO.row(connection, run_id=run_id)) is not None and row[0] is not None:
        run_id = str(row[0])
    return run_id


def release_key(connection: Connection, run_id: str) -> bool:
    """Whether there is such a run; it holds no idempotency key any more, and another may have it."""
    return _RELEASE_KEY.execute(connection, run_id=run_id) == 1


def _delete(connection: Connection, run_ids: Sequence[str]) -> int:
    deleted = 0
    for start in range(0, len(run_ids), _MOST_IDS):
        some = run_ids[start : start + _MOST_IDS]
        hashes = blob_hashes(connection, some)
        deleted += connection.execute(delete(schema.runs).where(_C.run_id.in_(some))).rowcount
        delete_unused_blobs(connection, hashes)
    return deleted


def _fetch(connection: Connection, query: Select[tuple[object, ...]]) -> list[RunRecord]:
    return [run_record(row) for row in connection.execute(query).fetchall()]
