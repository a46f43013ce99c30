"""What a run does, line by line, for whoever waits for it at a terminal."""

from __future__ import annotations

import asyncio
import sys
from types import TracebackType
from typing import Any, Self, TextIO

from pyworkflow_ray.client.records import Event
from pyworkflow_ray.client.sessions import Session
from pyworkflow_ray.storage.histories import read_events

INTERVAL = 0.25


class Progress:
    """Prints a run's events while its block lasts, and those of the runs in which it continues.

    Args:
        of: Where the run is.
        run_id: The run; may be set until the block begins.
        stream: Where to print; standard error by default.
        always: Whether to print where nobody watches, too: to a file or a pipe.
    """

    def __init__(
        self, of: Session, run_id: str, stream: TextIO | None = None, *, always: bool = False
    ) -> None:
        self._session, self.run_id = of, run_id
        self._stream = stream or sys.stderr
        self._always = always
        self._task: asyncio.Task[None] | None = None
        self._seen = -1
        self._started: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        if self._always or self._stream.isatty():
            self._task = asyncio.get_running_loop().create_task(self._follow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            if not isinstance(error, asyncio.CancelledError):  # else nobody looks any more
                await self._take_new()

    async def _follow(self) -> None:
        while True:
            await self._take_new()
            await asyncio.sleep(INTERVAL)

    async def _take_new(self) -> None:
        run_id = None
        while run_id != self.run_id:  # more than once when it has continued as another
            run_id, seen = self.run_id, self._seen
            for event in await read_new_events(self._session, run_id, seen):
                self._seen = event.sequence
                self.take(event)
                if event.type == "workflow.continued_as_new":
                    self.run_id, self._seen = event.data["new_run_id"], -1

    def take(self, event: Event) -> None:
        """Take note of an event, which is the next of its run."""
        line = self.line(event)
        if line:
            safe = "".join(
                each if each.isprintable() else " " for each in line
            )  # an error's text may be anything
            print(f"{event.timestamp.astimezone():%H:%M:%S}  {safe}", file=self._stream, flush=True)

    def line(self, event: Event) -> str | None:
        """What is printed of an event; None for those that are not worth a line."""
        data = event.data
        step = data.get("step_id", "")
        match event.type:
            case "workflow.started":
                return f"▶ {data['workflow_name']}  {self.run_id}"
            case "step.started":
                self._started[step] = event.timestamp
                return None
            case "step.completed":
                took = (event.timestamp - self._started.get(step, event.timestamp)).total_seconds()
                again = f", attempt {data['attempt']}" if data["attempt"] > 1 else ""
                return f"✓ {step}  {took:.2f} s{again}"
            case "step.retrying":
                return f"↻ {step}  {data['error_type']}: {data['error']}; attempt {data['attempt']} follows"
            case "step.failed":
                return f"✗ {step}  {data['error_type']}: {data['error']}"
            case "sleep.started":
                return f"… {data['sleep_id']} until {data['resume_at']}"
            case "hook.created":
                until = f" until {data['expires_at']}" if data.get("expires_at") else ""
                return f"… {data['hook_id']} waits for an answer{until}"
            case "hook.received":
                return (
                    f"✗ {data['hook_id']} rejected"
                    if data.get("failure")
                    else f"✓ {data['hook_id']} answered"
                )
            case "hook.expired":
                return f"✗ {data['hook_id']} expired"
            case "child_workflow.started":
                return f"▷ {data['child_id']}  {data['child_run_id']}"
            case "child_workflow.completed":
                return f"✓ {data['child_id']}"
            case "child_workflow.failed":
                return f"✗ {data['child_id']}  {data['error_type']}: {data['error']}"
            case "child_workflow.cancelled":
                return f"✗ {data['child_id']}  cancelled"
            case "signal.received":
                return f"✉ {data['name']}"
            case "cancellation.requested":
                return f"✋ asked to cancel  {data.get('reason', '')}".rstrip()
            case "workflow.interrupted":
                return f"⚡ {data['reason']}; going on (recovery {data['recovery_attempt']})"
            case "workflow.completed":
                return "■ completed"
            case "workflow.cancelled":
                return f"■ cancelled  {data.get('reason', '')}".rstrip()
            case "workflow.continued_as_new":
                return f"■ continued as {data['new_run_id']}"
            case "workflow.failed":
                return f"■ failed  {data['error_type']}: {data['error']}"
            case _:
                return None


async def read_new_events(of: Session, run_id: str, last_position: int) -> list[Event]:
    """The events of a run behind a position (-1: from its first on), oldest first."""
    rows = await asyncio.to_thread(of.storage.read, read_events(run_id, after=last_position))
    return [Event.of(run_id, row) for row in rows]
