"""Progress lines: what a run does, for a person who waits for it at a terminal."""

from __future__ import annotations

import asyncio
import sys
from types import TracebackType
from typing import Any, Self, TextIO, assert_never

from pyworkflow_ray.client.lookups import read_events_after
from pyworkflow_ray.client.records import Event
from pyworkflow_ray.client.sessions import Session
from pyworkflow_ray.event_types import EventType

INTERVAL = 0.25


class Progress:
    """Prints a run's events while its block lasts. It also prints those of the runs as which it continues.

    Args:
        of: The session that reads the run.
        run_id: The run. The attribute may be set until the block begins.
        stream: Where to print; standard error by default.
        always: Whether to print to a file or a pipe, too, and not only to a terminal.
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
            if not isinstance(error, asyncio.CancelledError):  # nobody watches any more
                await self._take_new()

    async def _follow(self) -> None:
        while True:
            await self._take_new()
            await asyncio.sleep(INTERVAL)

    async def _take_new(self) -> None:
        run_id = None
        while run_id != self.run_id:  # once more after it has continued as a new run
            run_id, seen = self.run_id, self._seen
            for event in await read_events_after(self._session, run_id, seen):
                self._seen = event.sequence
                self.take(event)
                if event.type is EventType.WORKFLOW_CONTINUED_AS_NEW:
                    self.run_id, self._seen = event.data["new_run_id"], -1

    def take(self, event: Event) -> None:
        """Take the next event of the run."""
        line = self.line(event)
        if line:
            safe = "".join(
                each if each.isprintable() else " " for each in line
            )  # an error's text may be anything
            print(f"{event.timestamp.astimezone():%H:%M:%S}  {safe}", file=self._stream, flush=True)

    def line(self, event: Event) -> str | None:
        """The line for an event; None for an event that is not worth a line."""
        if not event.type.is_known:  # only a later version knows it
            return None
        line = self._line(event)
        if line and event.data.get("is_unseen") and event.type is not EventType.WORKFLOW_STARTED:
            return f"{line}  (the run ended before its code saw it)"
        return line

    def _line(self, event: Event) -> str | None:
        data = event.data
        step = data.get("step_id", "")
        match event.type:
            case EventType.WORKFLOW_STARTED:
                return f"▶ {data['workflow_name']}  {self.run_id}"
            case EventType.WORKFLOW_INTERRUPTED:
                return f"⚡ {data['reason']}; going on (recovery {data['recovery_attempt']})"
            case EventType.WORKFLOW_COMPLETED:
                return "■ completed"
            case EventType.WORKFLOW_FAILED:
                return f"■ failed  {data['error_type']}: {data['error']}"
            case EventType.WORKFLOW_CANCELLED:
                return f"■ cancelled  {data.get('reason', '')}".rstrip()
            case EventType.WORKFLOW_CONTINUED_AS_NEW:
                return f"■ continued as {data['new_run_id']}"
            case EventType.STEP_STARTED:
                self._started[step] = event.timestamp
                return None  # the line of its outcome says how long it took
            case EventType.STEP_COMPLETED:
                took = (event.timestamp - self._started.get(step, event.timestamp)).total_seconds()
                again = f", attempt {data['attempt']}" if data["attempt"] > 1 else ""
                return f"✓ {step}  {took:.2f} s{again}"
            case EventType.STEP_RETRYING:
                return f"↻ {step}  {data['error_type']}: {data['error']}; attempt {data['attempt']} follows"
            case EventType.STEP_FAILED:
                return f"✗ {step}  {data['error_type']}: {data['error']}"
            case EventType.SLEEP_STARTED:
                return f"… {data['sleep_id']} until {data['resume_at']}"
            case EventType.HOOK_CREATED:
                until = f" until {data['expires_at']}" if data.get("expires_at") else ""
                return f"… {data['hook_id']} waits for an answer{until}"
            case EventType.HOOK_RECEIVED if data.get("failure"):
                return f"✗ {data['hook_id']} rejected"
            case EventType.HOOK_RECEIVED:
                return f"✓ {data['hook_id']} answered"
            case EventType.HOOK_EXPIRED:
                return f"✗ {data['hook_id']} expired"
            case EventType.CHILD_WORKFLOW_STARTED:
                return f"▷ {data['child_id']}  {data['child_run_id']}"
            case EventType.CHILD_WORKFLOW_COMPLETED:
                return f"✓ {data['child_id']}"
            case EventType.CHILD_WORKFLOW_FAILED:
                return f"✗ {data['child_id']}  {data['error_type']}: {data['error']}"
            case EventType.CHILD_WORKFLOW_CANCELLED:
                return f"✗ {data['child_id']}  cancelled"
            case EventType.SIGNAL_RECEIVED:
                return f"✉ {data['name']}"
            case EventType.CANCELLATION_REQUESTED:
                return f"✋ asked to cancel  {data.get('reason', '')}".rstrip()
            case EventType.STEP_CANCELLED | EventType.SLEEP_COMPLETED | EventType.HOOK_DISPOSED:
                return None  # what the code does next shows it
            case EventType.SIDE_EFFECT_RECORDED | EventType.PATCH_APPLIED | EventType.ATTRIBUTES_SET:
                return None  # of interest to those who write the code
            case (
                EventType.SCHEDULE_CREATED
                | EventType.SCHEDULE_UPDATED
                | EventType.SCHEDULE_PAUSED
                | EventType.SCHEDULE_RESUMED
                | EventType.SCHEDULE_DELETED
                | EventType.SCHEDULE_TRIGGERED
                | EventType.SCHEDULE_SKIPPED
                | EventType.SCHEDULE_BACKFILL_STARTED
                | EventType.SCHEDULE_BACKFILL_COMPLETED
            ):
                return None  # events of schedules stand in no run's history
            case _:
                assert_never(event.type)
