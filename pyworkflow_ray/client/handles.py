"""A run as the one who started it holds it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import Any, Generic, TypeVar

from pyworkflow_ray import exceptions
from pyworkflow_ray.actors.activations import RunEnd
from pyworkflow_ray.client.event_loops import run_sync
from pyworkflow_ray.client.records import Event, WorkflowRun
from pyworkflow_ray.client.sessions import Session, session
from pyworkflow_ray.engine.events import FailureEvent, decode_event
from pyworkflow_ray.engine.executions import current
from pyworkflow_ray.exceptions import (
    CancellationError,
    FatalError,
    WorkflowError,
    WorkflowFailedError,
    WorkflowNotFoundError,
)
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.blobs import load_blob
from pyworkflow_ray.storage.histories import latest_event, read_events
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.values import codec
from pyworkflow_ray.values.failures import Failure, capture, restore

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Seconds between looks at the row of a run that nobody drives now, such as a sleeping one."""


class RunHandle(str, Generic[T]):
    """A run: the run id itself, with what one does with a run.

    `await run` gives the result. Handles of the same run are equal to each other and to the id.
    """

    _session: Session
    _accepted: RunRecord | None

    def __new__(
        cls, run_id: str, of: Session | None = None, accepted: RunRecord | None = None
    ) -> RunHandle[T]:
        handle = super().__new__(cls, run_id)
        handle._session = of or session()
        handle._accepted = accepted
        return handle

    @property
    def run_id(self) -> str:
        """The id as a plain text."""
        return str(self)

    def __await__(self) -> Generator[Any, None, T]:
        return self.result().__await__()

    async def result(self, timeout: float | None = None) -> T:
        """What the workflow returned, waiting for it if need be; of a run that continued, its last one's.

        Args:
            timeout: Seconds to wait at most; the run goes on when they are over.

        Raises:
            Exception: What the workflow raised.
            CancellationError: The run was cancelled.
            TimeoutError: The run has not ended in time.
            WorkflowNotFoundError: There is no such run.
        """
        refuse_in_workflow("result")
        try:
            async with asyncio.timeout(timeout) as limit:
                # A run that was just accepted is with its coordinator: its row need not be asked first.
                accepted, self._accepted = self._accepted, None
                end = await wait_for_end(self._session, str(self), accepted)
        except TimeoutError:
            if limit.expired():
                raise TimeoutError(
                    f"Run {str(self)!r} has not ended after {timeout} s; it goes on."
                ) from None
            raise
        value: T = await _value_of(self._session, end)
        return value

    def wait(self, timeout: float | None = None) -> T:
        """The result, blocking; see `result`."""
        return run_sync(self.result(timeout))

    async def refresh(self) -> WorkflowRun:
        """The run as its row is now.

        Raises:
            WorkflowNotFoundError: There is no such run.
        """
        return WorkflowRun.of(await read_record(self._session, str(self)))

    async def status(self) -> RunStatus:
        """The run's status now."""
        return (await self.refresh()).status

    def status_sync(self) -> RunStatus:
        """The run's status now, blocking."""
        return run_sync(self.status())

    async def cancel(
        self, reason: str | None = None, wait: bool = False, timeout: float | None = None
    ) -> bool:
        """Ask the run to cancel; see `cancel_workflow`."""
        from pyworkflow_ray.client.runs import cancel_run

        return await cancel_run(self._session, str(self), reason, wait, timeout)

    async def signal(self, name: str, payload: Any = None, dedup_key: str | None = None) -> None:
        """Send the run a signal; see `signal`."""
        from pyworkflow_ray.client.runs import signal_run

        await signal_run(self._session, str(self), name, payload, dedup_key)

    async def query(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Ask the run; see `query`."""
        from pyworkflow_ray.client.runs import query_run

        return await query_run(self._session, str(self), name, args, kwargs)

    async def events(self) -> list[Event]:
        """The run's history so far, oldest first."""
        run_id = str(self)
        rows = await asyncio.to_thread(self._session.storage.read, read_events(run_id))
        return [Event.of(run_id, row) for row in rows]

    def events_sync(self) -> list[Event]:
        """The run's history so far, blocking."""
        return run_sync(self.events())

    def __repr__(self) -> str:
        return f"RunHandle({str(self)!r})"

    def _repr_html_(self) -> str:
        from html import escape

        try:
            run = WorkflowRun.of(_require(str(self), self._session.storage.read(get_run(str(self)))))
        except WorkflowError as error:
            return f"<code>{escape(str(self))}</code> {escape(str(error))}"
        rows = [
            ("workflow", run.workflow_name),
            ("status", run.status.value),
            ("created", str(run.created_at)),
        ]
        if run.error:
            rows.append(("error", run.error))
        cells = "".join(f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in rows)
        return f"<table><caption><code>{escape(str(self))}</code></caption>{cells}</table>"

    def __reduce__(self) -> tuple[Any, ...]:
        return RunHandle, (str(self),)


def refuse_in_workflow(name: str) -> None:
    """Keep client functions out of workflow code, where they would not be replayed."""
    if current.get() is not None:
        raise WorkflowError(
            f"{name}() cannot be called in the code of a workflow: it is neither recorded nor replayed. "
            "Call it in a step, or start a child workflow."
        )


async def wait_for_end(of: Session, run_id: str, record: RunRecord | None = None) -> RunEnd:
    """How the run ended; waits at its coordinator, or by looking at the row with growing pauses."""
    pause = FIRST_PAUSE
    while True:
        record = record or await read_record(of, run_id)
        if record.status is RunStatus.CONTINUED_AS_NEW and record.continued_to_run_id is not None:
            run_id, record, pause = record.continued_to_run_id, None, FIRST_PAUSE
            continue
        if record.status.is_terminal or record.status is RunStatus.INTERRUPTED:
            return await _end_of(of, record)
        if record.coordinator is not None and record.status is not RunStatus.SUSPENDED:
            asked_at = time.monotonic()
            await of.runtime.open()
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
        pause = min(pause * 1.5, LONGEST_PAUSE)


async def _end_of(of: Session, record: RunRecord) -> RunEnd:
    """The end as the row and the last event tell it."""
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
            failure = _told_failure(record)
    return RunEnd(record.run_id, record.status.value, result, failure)


def _told_failure(record: RunRecord) -> Failure:
    """The failure of a run that was set aside; its row tells the type and the text of an error of ours."""
    error = record.error or f"The run is {record.status.value}."
    own = getattr(exceptions, (record.error_type or "").rpartition(".")[2], None)
    if isinstance(own, type) and issubclass(own, FatalError):
        return capture(own(error))
    return Failure(error=error, error_type=record.error_type or "WorkflowError")


async def _value_of(of: Session, end: RunEnd) -> Any:
    if end.status == RunStatus.CANCELLED.value:
        cancelled = CancellationError(reason=end.reason or None)
        cancelled.run_id = end.run_id  # type: ignore[attr-defined]
        raise cancelled
    if end.failure is not None:
        error = restore(end.failure, fallback=WorkflowFailedError)
        error.run_id = end.run_id  # type: ignore[attr-defined]
        error.add_note(f"Run {end.run_id} ended as {end.status}.")
        raise error
    data = end.result or b"null"
    digest = codec.blob_reference(data)
    if digest is not None:
        found = digest
        data = await asyncio.to_thread(of.storage.read, load_blob(found))
    return of.values.decode(data)


async def read_record(of: Session, run_id: str) -> RunRecord:
    """The run's row, or a WorkflowNotFoundError."""
    record = await asyncio.to_thread(of.storage.read, get_run(run_id))
    return _require(run_id, record)


def _require(run_id: str, record: RunRecord | None) -> RunRecord:
    if record is None:
        raise WorkflowNotFoundError(run_id)
    return record
