"""What a client sends to a run: a request to cancel, a signal, a query."""

from __future__ import annotations

import asyncio
import os
import platform
import uuid
from collections.abc import Mapping
from typing import Any

from msgspec import Raw

from pyworkflow_ray.client.guards import refuse_in_workflow
from pyworkflow_ray.client.inboxes import send
from pyworkflow_ray.client.lookups import latest_of_chain
from pyworkflow_ray.client.results import wait_for_end
from pyworkflow_ray.client.sessions import Session
from pyworkflow_ray.engine.attempts import AttemptFailed, decode_outcome
from pyworkflow_ray.engine.events import CancellationRequested, SignalReceived
from pyworkflow_ray.exceptions import WorkflowError, WorkflowFailedError
from pyworkflow_ray.ids import checked_text, storable
from pyworkflow_ray.storage.inboxes import CANCEL_KEY
from pyworkflow_ray.values.failures import restore


async def cancel_run(of: Session, run_id: str, reason: str | None, wait: bool, timeout: float | None) -> bool:
    """Ask a run to cancel; see `cancel_workflow`."""
    refuse_in_workflow("cancel")
    request = CancellationRequested(
        reason=storable(reason or ""), requested_by=f"pid {os.getpid()} on {platform.node()}"
    )
    record = await send(of, run_id, CANCEL_KEY, request)
    if record is not None and wait:
        async with asyncio.timeout(timeout):
            await wait_for_end(of, record.run_id)
    return record is not None


async def signal_run(of: Session, run_id: str, name: str, payload: Any, dedup_key: str | None) -> None:
    """Send a run a signal; see the function `signal`."""
    refuse_in_workflow("signal")
    checked_text(name, "The signal's name")
    if dedup_key is not None:
        checked_text(dedup_key, "The signal's dedup_key")
    data = Raw(of.values.encode(payload, f"the payload of signal {name!r}"))
    key = f"signal:{dedup_key or uuid.uuid4().hex}"
    event = SignalReceived(name=name, payload=data)
    if await send(of, run_id, key, event, once_in_chain=dedup_key is not None) is None:
        raise WorkflowError(f"Run {run_id!r} has ended: nobody reads signal {name!r} any more.")


async def query_run(
    of: Session, run_id: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """What a run answers to a query; see the function `query`."""
    refuse_in_workflow("query")
    record = await latest_of_chain(of, run_id)
    await of.runtime.open()
    what = f"the arguments of query {name!r}"
    data = await of.runtime.query(
        record, name, of.values.encode(list(args), what), of.values.encode(dict(kwargs), what)
    )
    outcome = decode_outcome(data)
    if isinstance(outcome, AttemptFailed):
        raise restore(outcome.failure, fallback=WorkflowFailedError)
    return of.values.decode(outcome.result)
