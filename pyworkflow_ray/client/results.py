"""How a run ends: waiting for the end, and the value or the error in it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from loguru import logger

from pyworkflow_ray import exceptions
from pyworkflow_ray.actors.activations import RunEnd
from pyworkflow_ray.client.lookups import read_record
from pyworkflow_ray.client.sessions import Session
from pyworkflow_ray.engine.events import FailureEvent, decode_event
from pyworkflow_ray.exceptions import CancellationError, FatalError, StorageError, WorkflowFailedError
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.blobs import load_blob
from pyworkflow_ray.storage.histories import latest_event
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.values import codec
from pyworkflow_ray.values.error_pickles import add_note, tried
from pyworkflow_ray.values.failures import Failure, capture, restore

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Seconds between two looks at the row of a run that no coordinator drives now, such as a sleeping run."""

LOOK_AFTER = 5.0
"""Seconds between two looks after the timer, while a run is waited for that may be asleep."""


async def wait_for_end(of: Session, run_id: str, record: RunRecord | None = None) -> RunEnd:
    """How the run ended.

    This waits at the run's coordinator. Without one it looks at the row, with growing pauses. A run that
    continues as a new run ends as the new run ends.

    Args:
        record: The run's row, if the caller has just read or written it.

    Raises:
        NoAnswerError: The run was in a cluster of this process's own, and the cluster has been shut down.
    """
    pause, has_opened, looked_at = FIRST_PAUSE, False, time.monotonic()
    record = record or await read_record(of, run_id)
    while True:
        record = record or await _record_after_outages(of, run_id)
        if record.status is RunStatus.CONTINUED_AS_NEW and record.continued_to_run_id is not None:
            run_id, record, pause = record.continued_to_run_id, None, FIRST_PAUSE
            continue
        if record.status.is_terminal or record.status is RunStatus.INTERRUPTED:
            return await _read_end(of, record)
        if record.coordinator is not None and record.status is not RunStatus.SUSPENDED:
            asked_at = time.monotonic()
            if not has_opened:
                # Only once: later it would join a cluster anew, or start one, which this process has left.
                await of.runtime.open()
                has_opened = True
            end = await of.runtime.wait(record)
            if end is not None and end.continued_to:
                run_id, record, pause = end.continued_to, None, FIRST_PAUSE
                continue
            if end is not None and end.is_final:
                return end
            if time.monotonic() - asked_at > LONGEST_PAUSE:
                pause = FIRST_PAUSE
        record = None
        await asyncio.sleep(pause)
        if time.monotonic() - looked_at > LOOK_AFTER:
            looked_at = time.monotonic()
            await of.runtime.look_after(run_id)
        pause = min(pause * 1.5, LONGEST_PAUSE)


async def _record_after_outages(of: Session, run_id: str) -> RunRecord:
    """The run's row. If the database is away, this waits for it, as the run does."""
    while True:
        try:
            return await read_record(of, run_id)
        except StorageError as error:
            if not error.is_outage:
                raise
            logger.warning("Waiting for run {}, whose database is away: {}", run_id, error)
        await asyncio.sleep(LONGEST_PAUSE)


async def _read_end(of: Session, record: RunRecord) -> RunEnd:
    """The end of a run, from its row and its last event."""
    failure = None
    if record.status is RunStatus.CANCELLED:
        return RunEnd(record.run_id, record.status.value, reason=record.error or "")
    result = None if record.result is None else record.result.encode()
    if record.status is not RunStatus.COMPLETED:
        last = await asyncio.to_thread(of.storage.read, latest_event(record.run_id))
        event = decode_event(last[2], last[3]) if last is not None else None
        if isinstance(event, FailureEvent) and record.status is RunStatus.FAILED:
            failure = event.failure
        else:
            failure = _failure_in(record)
    return RunEnd(record.run_id, record.status.value, result, failure)


def _failure_in(record: RunRecord) -> Failure:
    """The failure of a run that was set aside. Its row has the error's type and text."""
    error = record.error or f"The run is {record.status.value}."
    own = getattr(exceptions, (record.error_type or "").rpartition(".")[2], None)
    if isinstance(own, type) and issubclass(own, FatalError):
        return capture(own(error))
    return Failure(error=error, error_type=record.error_type or "WorkflowError")


def error_of(end: RunEnd) -> BaseException | None:
    """What the workflow raised, or a `CancellationError` if the run was cancelled; None if it returned.

    Whoever calls this raises it: each frame between here and the user's code is one more that the user reads.
    """
    if end.status == RunStatus.CANCELLED.value:
        cancelled = CancellationError(reason=end.reason or None)
        cancelled.run_id = end.run_id  # type: ignore[attr-defined]
        return cancelled
    if end.failure is None:
        return None
    error = restore(end.failure, fallback=WorkflowFailedError)
    tried(None, lambda: setattr(error, "run_id", end.run_id))  # a class may let nobody set an attribute
    add_note(error, f"Run {end.run_id} ended as {end.status}.")
    return error


async def value_of(of: Session, end: RunEnd) -> Any:
    """What a run returned that has returned."""
    data = end.result or b"null"
    digest = codec.blob_reference(data)
    if digest is not None:
        found = digest
        data = await asyncio.to_thread(of.storage.read, load_blob(found))
    return of.values.decode(data)
