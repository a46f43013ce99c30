"""Hooks: what a run waits for from outside, each to be delivered once by whoever knows its token.

A hook is pending until it is received, has expired, or is disposed of because its run waits no longer. Each
of these is one conditional UPDATE, so that of two that happen at once one wins. What is delivered goes to
the run's inbox in the same transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.engine import Connection

from pyworkflow_ray.exceptions import HookAlreadyReceivedError, HookExpiredError, HookNotFoundError
from pyworkflow_ray.statuses import HookStatus
from pyworkflow_ray.storage import schema
from pyworkflow_ray.storage.dialects import Statement, decode_time
from pyworkflow_ray.storage.inboxes import post
from pyworkflow_ray.storage.pages import before, cursor_behind


class NewHook(msgspec.Struct, frozen=True, kw_only=True):
    """A hook to create; its representation shows no token.

    Args:
        hook_id: Its id, unique in its run.
        token: What whoever delivers must know; a secret.
        expires_at: When it stops to wait, by the database's clock; None is never.
        payload_schema: The JSON schema that payloads must fit, as JSON text.
        metadata: JSON text.
    """

    hook_id: str
    token: str
    name: str
    expires_at: datetime | None = None
    payload_schema: str | None = None
    schema_hash: str | None = None
    metadata: str | None = None

    def __repr__(self) -> str:
        return f"NewHook(hook_id={self.hook_id!r}, name={self.name!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("hook_id", self.hook_id), ("name", self.name)]


class HookRecord(msgspec.Struct, frozen=True):
    """The row of a hook. Values are the JSON text that is stored; times are aware and in UTC.

    Its representation shows neither token nor payload, which are secrets.
    """

    run_id: str
    hook_id: str
    token: str
    name: str
    status: HookStatus
    created_at: datetime
    received_at: datetime | None
    expires_at: datetime | None
    payload: str | None
    payload_schema: str | None
    schema_hash: str | None
    metadata: str | None

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"HookRecord({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        shown = ("run_id", "hook_id", "name", "status", "created_at", "received_at", "expires_at")
        return [(name, getattr(self, name)) for name in shown]


_FIELDS = HookRecord.__struct_fields__
_COLUMNS = ", ".join(_FIELDS)
_C = schema.hooks.c
_ALL = select(*(_C[name] for name in _FIELDS))

_CREATE = Statement("""
    INSERT INTO hooks (
        run_id, hook_id, token, name, status, created_at,
        expires_at, payload_schema, schema_hash, metadata
    ) VALUES (
        :run_id, :hook_id, :token, :name, 'pending', <now>,
        :expires_at, :payload_schema, :schema_hash, :metadata
    ) ON CONFLICT DO NOTHING
""")
_EXISTS = Statement("SELECT 1 FROM hooks WHERE run_id = :run_id AND hook_id = :hook_id")
_HOLDER = Statement("SELECT run_id, status FROM hooks WHERE token = :token")
# A hook's token after another hook took it over. It tells what it was, for a delivery that is run again.
_FORMER_TOKEN = "CAST(:token AS TEXT) || '#' || run_id || '/' || hook_id"
_FREE_TOKEN = Statement(
    f"UPDATE hooks SET token = {_FORMER_TOKEN} WHERE token = :token AND status <> 'pending'"
)


def _is_open(now: str) -> str:
    return f"""
        status = 'pending' AND (expires_at IS NULL OR expires_at > {now})
        AND EXISTS (SELECT 1 FROM runs WHERE runs.run_id = hooks.run_id AND NOT {schema.HAS_ENDED})
    """


_IS_OURS = f"delivery_key = :delivery_key AND token IN (:token, {_FORMER_TOKEN})"
# Not if this delivery went through already, and the token belongs to another hook by now.
_RECEIVE, _RECEIVE_AT = (
    Statement(f"""
        UPDATE hooks
        SET status = 'received', received_at = {now}, payload = :data, delivery_key = :delivery_key
        WHERE token = :token AND {_is_open(now)}
            AND NOT EXISTS (SELECT 1 FROM hooks AS earlier WHERE {_IS_OURS})
        RETURNING {_COLUMNS}
    """)
    for now in ("<now>", ":now")
)
_RECEIVED = Statement(f"SELECT {_COLUMNS} FROM hooks WHERE {_IS_OURS}")
_LOOK, _LOOK_AT = (
    Statement(
        f"SELECT hook_id, status, CASE WHEN {_is_open(now)} THEN 1 ELSE 0 END FROM hooks WHERE token = :token"
    )
    for now in ("<now>", ":now")
)

_EXPIRE = Statement("""
    UPDATE hooks SET status = 'expired'
    WHERE run_id = :run_id AND hook_id = :hook_id AND status IN ('pending', 'expired')
""")
_DISPOSE = Statement("""
    UPDATE hooks SET status = 'disposed' WHERE run_id = :run_id AND hook_id = :hook_id AND status = 'pending'
""")
_DISPOSE_ALL = Statement("UPDATE hooks SET status = 'disposed' WHERE run_id = :run_id AND status = 'pending'")
_GET = Statement(f"SELECT {_COLUMNS} FROM hooks WHERE token = :token")


def create_hook(connection: Connection, run_id: str, new: NewHook) -> str | None:
    """None when the run's hook is there now, else the run whose pending hook has the token.

    A token whose hook is no longer pending is taken over; that hook stays, under another token. It is safe to
    run again: the hook that an earlier try created is the one that is wanted, whatever became of it.
    """
    parameters = {name: getattr(new, name) for name in NewHook.__struct_fields__}
    while True:
        if _CREATE.execute(connection, run_id=run_id, **parameters) == 1:
            return None
        if _EXISTS.row(connection, run_id=run_id, hook_id=new.hook_id) is not None:
            return None
        holder = _HOLDER.row(connection, token=new.token)
        if holder is not None and holder[1] == HookStatus.PENDING.value:
            return str(holder[0])
        _FREE_TOKEN.execute(connection, token=new.token)


def deliver(
    connection: Connection, token: str, delivery_key: str, data: str, *, now: datetime | None = None
) -> HookRecord:
    """Give the hook of this token what it waits for, and tell its run.

    After the commit the run will get it, whoever crashes: it is in the run's inbox as an event
    `hook.received`, with `data` and the member `hook_id`. Of two deliveries one wins; a second one with the
    same key gives what the first gave, and has no effect.

    Args:
        delivery_key: Tells this delivery from others when it is run again.
        now: Instead of the database's clock, for a test that owns the time.
        data: The text of a JSON object; its values are passed on to the letter.

    Raises:
        HookNotFoundError: No hook has this token.
        HookAlreadyReceivedError: Another delivery was first.
        HookExpiredError: The hook has expired, or its run waits for it no longer.
    """
    values = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    given = {"token": token, "delivery_key": delivery_key}
    receive, look, at = _RECEIVE, _LOOK, {}
    if now is not None:
        receive, look, at = _RECEIVE_AT, _LOOK_AT, {"now": now}
    while True:
        received = receive.row(connection, data=data, **given, **at)
        if received is not None:
            hook = _record(received)
            entry = msgspec.json.encode({"hook_id": hook.hook_id, **values})
            post(connection, hook.run_id, f"hook:{hook.hook_id}", "hook.received", entry)
            return hook
        earlier = _RECEIVED.row(connection, **given)
        if earlier is not None:
            return _record(earlier)
        row = look.row(connection, token=token, **at)
        if row is None:
            raise HookNotFoundError(token)
        hook_id, status, is_open = row
        if status == HookStatus.RECEIVED.value:
            raise HookAlreadyReceivedError(hook_id)
        if not is_open:
            raise HookExpiredError(hook_id)
        # The token was taken over between two of the statements; the new hook may have it.


def expire_hook(connection: Connection, run_id: str, hook_id: str) -> bool:
    """Whether the hook has expired, now or before; False when it was received or disposed of."""
    return _EXPIRE.execute(connection, run_id=run_id, hook_id=hook_id) == 1


def dispose_hooks(connection: Connection, run_id: str, hook_ids: Sequence[str]) -> None:
    """Let those of the run's hooks that are pending wait no longer."""
    _DISPOSE.execute_many(connection, [{"run_id": run_id, "hook_id": hook_id} for hook_id in hook_ids])


def dispose_pending_hooks(connection: Connection, run_id: str) -> None:
    """Let none of the run's hooks wait any longer."""
    _DISPOSE_ALL.execute(connection, run_id=run_id)


def get_hook(connection: Connection, token: str) -> HookRecord | None:
    """The hook that has this token, or None."""
    row = _GET.row(connection, token=token)
    return None if row is None else _record(row)


def list_hooks(
    connection: Connection,
    *,
    run_id: str | None = None,
    status: HookStatus | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> tuple[list[HookRecord], str | None]:
    """A page of hooks, newest first, and the cursor of the next page (None behind the last).

    Raises:
        ValueError: The cursor is not one that a page gave.
    """
    order = (_C.created_at, _C.run_id, _C.hook_id)
    query = _ALL.order_by(*(column.desc() for column in order)).limit(limit + 1)
    if run_id is not None:
        query = query.where(_C.run_id == run_id)
    if status is not None:
        query = query.where(_C.status == status.value)
    if cursor is not None:
        query = query.where(before(cursor, *order))
    found = [_record(row) for row in connection.execute(query).fetchall()]
    page = found[:limit]
    if not page or len(found) <= limit:
        return page, None
    return page, cursor_behind(page[-1].created_at, page[-1].run_id, page[-1].hook_id)


_STATUS = _FIELDS.index("status")
_TIMES = tuple(index for index, name in enumerate(_FIELDS) if name.endswith("_at"))


def _record(row: Any) -> HookRecord:
    values = list(row)
    values[_STATUS] = HookStatus(values[_STATUS])
    for index in _TIMES:
        if values[index] is not None:
            values[index] = decode_time(values[index])
    return HookRecord(*values)
