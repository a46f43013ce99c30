"""Hooks: answering and listing them, from any process."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from pyworkflow_ray.actors.hook_registry import HookAnswer
from pyworkflow_ray.client.event_loops import run_sync
from pyworkflow_ray.client.guards import refuse_in_workflow
from pyworkflow_ray.client.sessions import Session, session
from pyworkflow_ray.exceptions import HookRejectedError, InvalidTokenError
from pyworkflow_ray.ids import checked_text, is_storable
from pyworkflow_ray.statuses import HookStatus
from pyworkflow_ray.storage import hooks
from pyworkflow_ray.storage.hooks import HookRecord
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.values import codec
from pyworkflow_ray.values.failures import capture


@dataclass(frozen=True, slots=True)
class ResumeResult:
    """An accepted payload. No crash can lose it any more."""

    run_id: str
    hook_id: str
    status: str = "resumed"


@dataclass(frozen=True, slots=True)
class Hook:
    """A hook, from its row. `payload` and `metadata` hold plain JSON values; nothing is unpickled."""

    hook_id: str
    run_id: str
    token: str = field(repr=False)
    status: HookStatus
    created_at: datetime
    name: str
    received_at: datetime | None = None
    expires_at: datetime | None = None
    payload: Any = field(default=None, repr=False)
    payload_schema: dict[str, Any] | None = field(default=None, repr=False)
    metadata: dict[str, Any] = field(default_factory=dict)
    url: str | None = None

    @classmethod
    def of(cls, record: HookRecord) -> Hook:
        """The hook of a row."""
        answer = {} if record.payload is None else codec.describe(record.payload)
        return cls(
            hook_id=record.hook_id,
            run_id=record.run_id,
            token=record.token,
            status=record.status,
            created_at=record.created_at,
            name=record.name,
            received_at=record.received_at,
            expires_at=record.expires_at,
            payload=answer.get("payload") if isinstance(answer, dict) else None,
            payload_schema=None
            if record.payload_schema is None
            else msgspec.json.decode(record.payload_schema),
            metadata={} if record.metadata is None else codec.describe(record.metadata),
        )


async def resume_hook(
    token: str, payload: Any = None, dedup_key: str | None = None, *, storage: Any = None
) -> ResumeResult:
    """Give a payload to the run that waits for this hook. Once this has returned, no crash can lose it.

    Args:
        token: The hook's token.
        payload: Any value. If the hook has a schema, the payload must fit it.
        dedup_key: A second delivery with the same key is accepted and has no effect.
        storage: Another storage than that of the settings, as in `start`.

    Raises:
        HookNotFoundError: No hook has this token.
        HookAlreadyReceivedError: The hook already has its payload.
        HookExpiredError: The hook's time is over, or its run no longer waits for it.
        HookValidationError: The payload does not fit; nothing was accepted.
    """
    refuse_in_workflow("resume_hook")
    of = session(storage=storage)
    data = of.values.encode(payload, "the payload")
    return await _answer(of, token, dedup_key, payload=data)


async def reject_hook(
    token: str, error: BaseException | str, dedup_key: str | None = None, *, storage: Any = None
) -> ResumeResult:
    """Raise an error in the run that waits for this hook, at the hook. The rest is as in `resume_hook`.

    Args:
        error: An exception. A text becomes a `HookRejectedError`.
    """
    refuse_in_workflow("reject_hook")
    raised = error if isinstance(error, BaseException) else HookRejectedError(error)
    of = session(storage=storage)
    return await _answer(of, token, dedup_key, rejection=capture(raised))


async def _answer(of: Session, token: str, dedup_key: str | None, **given: Any) -> ResumeResult:
    _check(token)
    if dedup_key is not None:
        checked_text(dedup_key, "The dedup_key")
    await of.runtime.open()
    # Each call has a key, so that it can be repeated after the registry has died without an answer.
    key = dedup_key or f"delivery:{uuid.uuid4().hex}"
    run_id, hook_id = await of.runtime.answer_hook(HookAnswer(token, key, **given))
    return ResumeResult(run_id, hook_id)


def _check(token: Any) -> None:
    if not isinstance(token, str) or not token or not is_storable(token):
        raise InvalidTokenError("")


def resume_hook_sync(token: str, payload: Any = None, dedup_key: str | None = None) -> ResumeResult:
    """As `resume_hook`, blocking."""
    return run_sync(resume_hook(token, payload, dedup_key))


async def get_hook(token: str) -> Hook | None:
    """The hook of this token, or None. Needs no Ray.

    Raises:
        InvalidTokenError: It is a text that cannot be a token.
    """
    refuse_in_workflow("get_hook")
    _check(token)
    record = await asyncio.to_thread(session().storage.read, hooks.get_hook(token))
    return None if record is None else Hook.of(record)


async def list_hooks(
    run_id: str | None = None,
    status: HookStatus | str | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> tuple[list[Hook], str | None]:
    """A page of hooks, newest first, and the cursor of the next page (None after the last). Needs no Ray.

    Args:
        run_id: Only hooks of this run.
        status: "pending", "received", "expired" or "disposed".
        limit: The most hooks in the page.
        cursor: The cursor that came with the page before.
    """
    refuse_in_workflow("list_hooks")
    return await page_of_hooks(session().storage, run_id=run_id, status=status, limit=limit, cursor=cursor)


async def page_of_hooks(
    storage: Storage, *, run_id: str | None, status: HookStatus | str | None, limit: int, cursor: str | None
) -> tuple[list[Hook], str | None]:
    """See `list_hooks`."""
    wanted = None if status is None else HookStatus(status)
    of_run = None if run_id is None else str(run_id)
    found, following = await asyncio.to_thread(
        storage.read,
        hooks.list_hooks(run_id=of_run, status=wanted, limit=limit, cursor=cursor),
    )
    return [Hook.of(record) for record in found], following
