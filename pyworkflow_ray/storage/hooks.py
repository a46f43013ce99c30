"""Hooks: what a run waits for from outside. A caller that knows a hook's token can deliver to it, once.

A hook is pending until it is received, has expired, or is disposed of because its run waits no longer. Each
of these changes is one conditional UPDATE, so if two happen at once, one wins. A delivery is put into the
run's inbox in the same transaction.
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
from pyworkflow_ray.storage.damages import Reader
from pyworkflow_ray.storage.locks import Locks
from pyworkflow_ray.storage.pages import before, cursor_behind
from pyworkflow_ray.storage.selections import selecting
from pyworkflow_ray.storage.statements import Bound, Statement
from pyworkflow_ray.storage.works import Steps, Work, last, locking, together, work


class NewHook(msgspec.Struct, frozen=True, kw_only=True):
    """A hook to create. Its `repr` does not show the token.

    Args:
        hook_id: The hook's id, unique in its run.
        token: The secret that a caller must know to deliver.
        expires_at: When the hook stops waiting, by the database's clock; None means never.
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

    Its `repr` shows neither token nor payload, which are secrets.
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
"""The value of `fits` for a delivery that needs no check, such as a rejection."""


class Delivery(msgspec.Struct, frozen=True):
    """A delivery to the hook that has `token`. Its `repr` shows neither token nor data.

    Args:
        key: Identifies this delivery when it is run again.
        data: The text of a JSON object. Its values are passed on unchanged.
        fits: The hash of the schema that the payload was found to fit, or `ANY_SCHEMA`. A hook without a
            schema takes every payload. A hook with a schema takes only payloads that were found to fit it.
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
    """A hook takes only payloads that fit its schema, and this delivery was not checked against it."""

    def __init__(self, run_id: str, name: str, schema_hash: str) -> None:
        super().__init__(f"Hook {name!r} takes only payloads that were found to fit its schema.")
        self.run_id, self.name, self.schema_hash = run_id, name, schema_hash


_record = Reader("hooks", HookRecord, {"run_id": "run", "hook_id": "hook"})
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
# A hook's token after another hook has taken the token over. It contains the old token, so that a delivery
# that is run again finds the hook.
_FORMER_TOKEN = "CAST(:token AS TEXT) || '#' || run_id || '/' || hook_id"
# Not if the hook that wants the token exists already. By now it may be received and have another token.
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
# Not if this delivery went through already: by now the token may belong to another hook. The schema is part
# of the condition, since the hook that has the token may not be the one that the payload was checked for.
_RECEIVE, _RECEIVE_AT = (
    Statement(f"""
        UPDATE hooks
        SET status = 'received', received_at = {now}, payload = :data, delivery_key = :delivery_key
        WHERE token = :token AND {_is_open(now)} AND {_FITS}
            AND NOT EXISTS (SELECT 1 FROM hooks AS earlier WHERE {_IS_OURS})
    """)
    for now in ("<now>", ":now")
)
# It depends on what the statement before it has done, so both are sent together. A delivery that is run again
# finds its own row, whose key is in the inbox.
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
    """The statements that create a hook if its token is free; see `create_hook`.

    Their answers are for `holder_of`.
    """
    own = {"run_id": run_id, "hook_id": new.hook_id}
    parameters = {name: getattr(new, name) for name in NewHook.__struct_fields__}
    return [
        _FREE_TOKEN.change(token=new.token, **own),
        _CREATE.change(**{**parameters, **own}),
        _EXISTS.find(**own),
        _HOLDER.find(token=new.token),
    ]


def holder_of(answers: Sequence[Any]) -> str | None:
    """None if the hook exists; otherwise the run whose pending hook has its token."""
    _, _, own, holder = answers
    return None if own is not None or holder is None else str(holder[0])


@work
def create_hook(run_id: str, new: NewHook) -> Steps[str | None]:
    """None if the run's hook exists now, otherwise the run whose pending hook has the token.

    If the token's hook is no longer pending, the token is taken over. The old hook stays, with another token.
    This is safe to run again: a hook that an earlier try created counts, whatever its status is now.
    """
    return holder_of((yield last(*creating_hook(run_id, new))))


# The run comes before its hook, as in the end of a run, which lets go of its hooks.
@locking(lambda token, *_, **__: Locks(tokens=(token,)))
@work
def deliver(
    token: str, delivery_key: str, data: str, *, fits: str | None = None, now: datetime | None = None
) -> Steps[HookRecord]:
    """Deliver to the hook of this token, and put the delivery into its run's inbox.

    After the commit the run will get it, whichever process crashes: it is in the run's inbox as an event
    `hook.received`, with `data` and the member `hook_id`. If there are two deliveries, one wins. A second
    delivery with the same key returns what the first returned, and has no effect.

    Args:
        delivery_key, data, fits: See `Delivery`.
        now: Used instead of the database's clock, for a test with its own clock.

    Raises:
        HookNotFoundError: No hook has this token.
        HookAlreadyReceivedError: Another delivery was first.
        HookExpiredError: The hook has expired, or its run waits for it no longer.
        UncheckedError: The hook waits, and its schema is not the one that the payload was found to fit.
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
            raise UncheckedError(hook.run_id, hook.name, hook.schema_hash)
        # The token was taken over between two of the statements; the new hook may have it.


@locking(lambda deliveries, *_, **__: Locks(tokens=[each.token for each in deliveries]))
@work
def deliver_all(
    deliveries: Sequence[Delivery], *, now: datetime | None = None
) -> Steps[list[HookRecord | WorkflowError]]:
    """The result of each delivery, or the error that it raises; see `deliver`.

    All of them are one transaction and one round trip. A delivery that its hook does not take does not affect
    the others. If the database itself refuses one, none of them is kept.
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
    """Let these hooks expire; whether all have, now or before. False if one was received or disposed of."""
    changed = yield last(*(_EXPIRE.change(run_id=run_id, hook_id=hook_id) for hook_id in hook_ids))
    return all(count == 1 for count in changed)


def disposing_hooks(run_id: str, hook_ids: Sequence[str]) -> list[Bound]:
    """The statements that dispose of the run's hooks of these ids that are pending."""
    return [_DISPOSE.change(run_id=run_id, hook_id=hook_id) for hook_id in hook_ids]


def disposing_pending_hooks(run_id: str) -> Bound:
    """The statement that disposes of all the run's pending hooks."""
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
    """A page of hooks, newest first, and the cursor of the next page (None after the last page).

    Hooks whose rows cannot be read are left out, and reported in the log.

    Raises:
        ValueError: The cursor did not come from a page.
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
    page = _record.readable(rows[:limit])
    if not page or len(rows) <= limit:
        return page, None
    return page, cursor_behind(page[-1].created_at, page[-1].run_id, page[-1].hook_id)
