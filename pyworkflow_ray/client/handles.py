"""Handles: a run as the process holds it that has started it or knows its id."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, Generic, TypeVar

from pyworkflow_ray.client.event_loops import run_sync
from pyworkflow_ray.client.guards import refuse_in_workflow
from pyworkflow_ray.client.lookups import read_events_after, read_record, require_record
from pyworkflow_ray.client.messages import cancel_run, query_run, signal_run
from pyworkflow_ray.client.records import Event, WorkflowRun
from pyworkflow_ray.client.results import error_of, value_of, wait_for_end
from pyworkflow_ray.client.sessions import Session, session
from pyworkflow_ray.exceptions import WorkflowError
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.runs import get_run

T = TypeVar("T")


class RunHandle(str, Generic[T]):
    """A run: the run id itself, with methods for what one does with a run.

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
        """What the workflow returned. This waits until the run ends.

        If the run continues as a new run, the result is that of the last run.

        Args:
            timeout: How many seconds to wait at most. The run goes on after that time.

        Raises:
            Exception: What the workflow raised.
            CancellationError: The run was cancelled.
            TimeoutError: The run has not ended in time.
            WorkflowNotFoundError: There is no such run.
        """
        refuse_in_workflow("result")
        try:
            async with asyncio.timeout(timeout) as limit:
                # A run that was just accepted is with its coordinator: its row need not be read first.
                accepted, self._accepted = self._accepted, None
                end = await wait_for_end(self._session, str(self), accepted)
        except TimeoutError:
            if limit.expired():
                raise TimeoutError(
                    f"Run {str(self)!r} has not ended after {timeout} s; it goes on."
                ) from None
            raise
        error = error_of(end)
        if error is not None:
            raise error
        value: T = await value_of(self._session, end)
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
        return await cancel_run(self._session, str(self), reason, wait, timeout)

    async def signal(self, name: str, payload: Any = None, dedup_key: str | None = None) -> None:
        """Send the run a signal; see the function `signal`."""
        await signal_run(self._session, str(self), name, payload, dedup_key)

    async def query(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Ask the run a query; see the function `query`."""
        return await query_run(self._session, str(self), name, args, kwargs)

    async def events(self) -> list[Event]:
        """The run's history so far, oldest first."""
        return await read_events_after(self._session, str(self), -1)

    def events_sync(self) -> list[Event]:
        """The run's history so far, blocking."""
        return run_sync(self.events())

    def __repr__(self) -> str:
        return f"RunHandle({str(self)!r})"

    def _repr_html_(self) -> str:
        from html import escape

        try:
            record = self._session.storage.read(get_run(str(self)))
            run = WorkflowRun.of(require_record(str(self), record))
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
