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

from pyworkflow_ray.exceptions import (
    HookAlreadyReceivedError,
    HookExpiredError,
    HookNotFoundError,
    WorkflowError,
)
from pyworkflow_ray.statuses import HookStatus
from pyworkflow_ray.storage import schema
from pyworkflow_ray.storage.dialects import decode_time
from pyworkflow_ray.storage.pages import before, cursor_behind
from pyworkflow_ray.storage.selections import selecting
from pyworkflow_ray.storage.statements import Bound, Statement
from pyworkflow_ray.storage.works import Steps, Work, last, together, work


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


ANY_SCHEMA = "*"
"""What a delivery fits that needs no check, as a rejection."""


class Delivery(msgspec.Struct, frozen=True):
    """What is given to the hook that has a token; its representation shows neither.

    Args:
        key: Tells this delivery from others when it is run again.
        data: The text of a JSON object; its values are passed on to the letter.
        fits: The hash of the schema that the payload was found to fit, or `ANY_SCHEMA`. A hook without a
            schema takes everything; another one takes nothing that was not found to fit its own.
    """

    token: str
    key: str
    data: str
    fits: str | None = None

    def __repr__(self) -> str:
        return f"Delivery(fits={self.fits!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("fits", self.fits)]


class UncheckedError(WorkflowError):
    """A hook takes only what fits its schema, and nobody has looked whether the delivery does."""

    def __init__(self, name: str, schema_hash: str) -> None:
        super().__init__(f"Hook {name!r} takes only payloads that were found to fit its schema.")
        self.name, self.schema_hash = name, schema_hash


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
# Not when the hook that wants it is there already, perhaps received and under another token by now.
_FREE_TOKEN = Statement(f"""
    UPDATE hooks SET token = {_FORMER_TOKEN} WHERE token = :token AND status <> 'pending'
        AND NOT EXISTS (SELECT 1 FROM hooks AS own WHERE own.run_id = :run_id AND own.hook_id = :hook_id)
""")


def _is_open(now: str) -> str:
    return f"""
        status = 'pending' AND (expires_at IS NULL OR expires_at > {now})
        AND EXISTS (SELECT 1 FROM runs WHERE runs.run_id = hooks.run_id AND NOT {schema.HAS_ENDED})
    """


_FITS = "(schema_hash IS NULL OR CAST(:fits AS TEXT) IN (schema_hash, '*'))"
_IS_OURS = f"delivery_key = :delivery_key AND token IN (:token, {_FORMER_TOKEN})"
# Not if this delivery went through already, and the token belongs to another hook by now. What the payload
# must fit is part of the condition: the hook that has the token may be another one than the one that was
# looked at before.
_RECEIVE, _RECEIVE_AT = (
    Statement(f"""
        UPDATE hooks
        SET status = 'received', received_at = {now}, payload = :data, delivery_key = :delivery_key
        WHERE token = :token AND {_is_open(now)} AND {_FITS}
            AND NOT EXISTS (SELECT 1 FROM hooks AS earlier WHERE {_IS_OURS})
    """)
    for now in ("<now>", ":now")
)
# Conditional on what the statement before it has done, so that both travel together. A delivery that is run
# again meets its own row, whose key is in the inbox.
_POST = Statement(f"""
    INSERT INTO inbox (run_id, dedup_key, kind, data, created_at)
    SELECT received.owner, 'hook:' || received.hook_id, 'hook.received',
        '{{"hook_id":' || <json received.hook_id> || CAST(:values AS TEXT), <now>
    FROM (SELECT run_id AS owner, hook_id FROM hooks WHERE {_IS_OURS}) AS received
    JOIN runs ON runs.run_id = received.owner
    WHERE NOT runs.{schema.HAS_ENDED}
    <for key share of runs> ON CONFLICT (run_id, dedup_key) DO NOTHING
""")
# The hook that this delivery was given to, now or when it was run before; and the hook that has the token, if
# it is another one, or has not taken it.
_LOOK, _LOOK_AT = (
    Statement(f"""
        SELECT {_COLUMNS}, 1, 1 FROM hooks WHERE {_IS_OURS}
        UNION ALL
        SELECT {_COLUMNS}, 0, CASE WHEN {_is_open(now)} THEN 1 ELSE 0 END
        FROM hooks WHERE token = :token AND (delivery_key IS NULL OR delivery_key <> :delivery_key)
    """)
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


def creating_hook(run_id: str, new: NewHook) -> list[Bound]:
    """What makes a hook, if its token is free; see `create_hook`. The answers are for `holder_of`."""
    own = {"run_id": run_id, "hook_id": new.hook_id}
    parameters = {name: getattr(new, name) for name in NewHook.__struct_fields__}
    return [
        _FREE_TOKEN.change(token=new.token, **own),
        _CREATE.change(**{**parameters, **own}),
        _EXISTS.find(**own),
        _HOLDER.find(token=new.token),
    ]


def holder_of(answers: Sequence[Any]) -> str | None:
    """None when the hook is there; or else the run whose pending hook has its token."""
    _, _, own, holder = answers
    return None if own is not None or holder is None else str(holder[0])


@work
def create_hook(run_id: str, new: NewHook) -> Steps[str | None]:
    """None when the run's hook is there now, else the run whose pending hook has the token.

    A token whose hook is no longer pending is taken over; that hook stays, under another token. It is safe to
    run again: the hook that an earlier try created is the one that is wanted, whatever became of it.
    """
    return holder_of((yield last(*creating_hook(run_id, new))))


@work
def deliver(
    token: str, delivery_key: str, data: str, *, fits: str | None = None, now: datetime | None = None
) -> Steps[HookRecord]:
    """Give the hook of this token what it waits for, and put it into its run's inbox.

    After the commit the run will get it, whoever crashes: it is in the run's inbox as an event
    `hook.received`, with `data` and the member `hook_id`. Of two deliveries one wins; a second one with the
    same key gives what the first gave, and has no effect.

    Args:
        delivery_key, data, fits: See `Delivery`.
        now: Instead of the database's clock, for a test that owns the time.

    Raises:
        HookNotFoundError: No hook has this token.
        HookAlreadyReceivedError: Another delivery was first.
        HookExpiredError: The hook has expired, or its run waits for it no longer.
        UncheckedError: The hook waits, and has a schema that is not the one that the payload fits.
    """
    members = msgspec.json.encode(msgspec.json.decode(data, type=dict[str, msgspec.Raw])).decode()
    values = "," + members[1:] if len(members) > 2 else "}"
    given = {"token": token, "delivery_key": delivery_key}
    receive, look, at = _RECEIVE, _LOOK, {}
    if now is not None:
        receive, look, at = _RECEIVE_AT, _LOOK_AT, {"now": now}
    while True:
        _, _, found = yield last(
            receive.change(data=data, fits=fits, **given, **at),
            _POST.change(values=values, **given),
            look.find_all(**given, **at),
        )
        if not found:
            raise HookNotFoundError(token)
        *row, is_ours, is_open = max(found, key=lambda each: each[-2])
        hook = _record(row)
        if is_ours:
            return hook
        if hook.status is HookStatus.RECEIVED:
            raise HookAlreadyReceivedError(hook.hook_id)
        if not is_open:
            raise HookExpiredError(hook.hook_id)
        if hook.schema_hash is not None and fits not in (hook.schema_hash, ANY_SCHEMA):
            raise UncheckedError(hook.name, hook.schema_hash)
        # The token was taken over between two of the statements; the new hook may have it.


@work
def deliver_all(
    deliveries: Sequence[Delivery], *, now: datetime | None = None
) -> Steps[list[HookRecord | WorkflowError]]:
    """What each delivery gives, or the error that it raises; see `deliver`.

    They go together: one transaction, one round trip. One that a hook does not take harms no other. One that
    the database itself refuses does: then nothing of any of them is kept.
    """
    each_alone = (deliver(one.token, one.key, one.data, fits=one.fits, now=now) for one in deliveries)
    return (yield from together(*(_or_error(each) for each in each_alone)).at_end())


@work
def _or_error(one: Work[HookRecord]) -> Steps[HookRecord | WorkflowError]:
    try:
        return (yield from one.at_end())
    except WorkflowError as error:
        return error


@work
def expire_hooks(run_id: str, hook_ids: Sequence[str]) -> Steps[bool]:
    """Whether all these hooks have expired, now or before; False when one was received or disposed of."""
    changed = yield last(*(_EXPIRE.change(run_id=run_id, hook_id=hook_id) for hook_id in hook_ids))
    return all(count == 1 for count in changed)


def disposing_hooks(run_id: str, hook_ids: Sequence[str]) -> list[Bound]:
    """What lets those of the run's hooks that are pending wait no longer."""
    return [_DISPOSE.change(run_id=run_id, hook_id=hook_id) for hook_id in hook_ids]


def disposing_pending_hooks(run_id: str) -> Bound:
    """What lets none of the run's hooks wait any longer."""
    return _DISPOSE_ALL.change(run_id=run_id)


@work
def get_hook(token: str) -> Steps[HookRecord | None]:
    """The hook that has this token, or None."""
    (row,) = yield last(_GET.find(token=token))
    return None if row is None else _record(row)


@work
def list_hooks(
    *,
    run_id: str | None = None,
    status: HookStatus | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> Steps[tuple[list[HookRecord], str | None]]:
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
    (rows,) = yield last(selecting(query))
    found = list(map(_record, rows))
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
