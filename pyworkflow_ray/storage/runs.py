"""Finding runs: by id, by key, by relation, and page by page."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from itertools import chain

from sqlalchemy import ColumnElement, Select, TextClause, literal, or_, select, tuple_
from sqlalchemy.engine import Connection

from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage import schema
from pyworkflow_ray.storage.blobs import blob_hashes, delete_unused_blobs
from pyworkflow_ray.storage.dialects import Statement, attribute_equals, decode_time, encode_time
from pyworkflow_ray.storage.records import COLUMNS, FIELDS, RunRecord, run_record

_C = schema.runs.c
_ALL = select(*(_C[name] for name in FIELDS))
_GET = Statement(f"SELECT {COLUMNS} FROM runs WHERE run_id = :run_id")
_DELETE = Statement("DELETE FROM runs WHERE run_id = :run_id")

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
    for start in range(0, len(wanted), 500):  # SQLite limits the parameters of a statement.
        for run in _fetch(connection, _ALL.where(_C.run_id.in_(wanted[start : start + 500]))):
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
        conditions.append(_before(cursor))
    newest_first = _ALL.where(*conditions).order_by(_C.created_at.desc(), _C.run_id.desc()).limit(limit + 1)
    if status is None:
        found = _fetch(connection, newest_first)
    else:
        # Each status has its runs in order in an index; all of several at once would have to be sorted.
        wanted = {status} if isinstance(status, RunStatus) else set(status)
        pages = [_fetch(connection, newest_first.where(_C.status == each.value)) for each in wanted]
        found = sorted(chain(*pages), key=lambda run: (run.created_at, run.run_id), reverse=True)
    page = found[:limit]
    return page, _cursor_behind(page[-1]) if page and len(found) > limit else None


def delete_run(connection: Connection, run_id: str) -> bool:
    """Whether there was such a run; it is gone with its history, hooks, inbox and what only it needed."""
    hashes = blob_hashes(connection, run_id)
    was_there = _DELETE.execute(connection, run_id=run_id) == 1
    delete_unused_blobs(connection, hashes)
    return was_there


def _fetch(connection: Connection, query: Select[tuple[object, ...]]) -> list[RunRecord]:
    return [run_record(row) for row in connection.execute(query).fetchall()]


# The cursor is the last row's place in the order. The id is part of it: runs made in the same instant
# would otherwise be cut off at a page's end.
def _cursor_behind(run: RunRecord) -> str:
    return base64.urlsafe_b64encode(f"{encode_time(run.created_at)}|{run.run_id}".encode()).decode()


def _before(cursor: str) -> ColumnElement[bool]:
    try:
        instant, _, run_id = base64.b64decode(cursor, altchars=b"-_", validate=True).decode().partition("|")
        created_at = decode_time(instant)
        if not run_id:
            raise ValueError("no run id")
    except (ValueError, binascii.Error):
        raise ValueError(
            f"{cursor!r} is not a cursor that list_runs gave; leave it out to begin at the newest run."
        ) from None
    return tuple_(_C.created_at, _C.run_id) < tuple_(
        literal(created_at, schema.UTCDateTime()), literal(run_id)
    )
