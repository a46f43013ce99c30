"""What a workflow's code asks for: the closed set of commands, and the event that records each.

Only the coordinator turns a command into an event, in the commit that comes before it acts on it.
Cancelling a timer is no command: it leaves no event, and the code will do it again in a replay.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from msgspec import Raw

from pyworkflow_ray.engine.events import (
    AttributesSet,
    Event,
    PatchApplied,
    SideEffectRecorded,
    StepCancelled,
    StepScheduled,
    TimerStarted,
    WorkflowCompleted,
    WorkflowFailed,
    failure_fields,
)
from pyworkflow_ray.engine.options import StepOptions
from pyworkflow_ray.failures import Failure


class Command(msgspec.Struct, frozen=True, gc=False):
    """The base of all commands."""

    def to_event(self) -> Event:
        """The event that records this command."""
        raise NotImplementedError


class ScheduleStep(Command, frozen=True):
    step_id: str
    step_name: str
    function: Any
    args: Raw
    kwargs: Raw
    options: StepOptions

    def to_event(self) -> StepScheduled:
        return StepScheduled(
            step_id=self.step_id,
            step_name=self.step_name,
            args=self.args,
            kwargs=self.kwargs,
            attempt=1,
            options=self.options.summary(),
        )


class CancelStep(Command, frozen=True):
    step_id: str
    step_name: str
    reason: str

    def to_event(self) -> StepCancelled:
        return StepCancelled(step_id=self.step_id, step_name=self.step_name, reason=self.reason)


class StartTimer(Command, frozen=True):
    sleep_id: str
    resume_at: datetime
    name: str

    def to_event(self) -> TimerStarted:
        return TimerStarted(sleep_id=self.sleep_id, resume_at=self.resume_at, name=self.name)


class RecordSideEffect(Command, frozen=True):
    name: str
    value: Raw
    failure: Failure | None = None

    def to_event(self) -> SideEffectRecorded:
        return SideEffectRecorded(name=self.name, value=self.value, failure=self.failure)


class ApplyPatch(Command, frozen=True):
    patch_id: str

    def to_event(self) -> PatchApplied:
        return PatchApplied(patch_id=self.patch_id)


class SetAttributes(Command, frozen=True):
    attributes: Raw

    def to_event(self) -> AttributesSet:
        return AttributesSet(attributes=self.attributes)


class CompleteRun(Command, frozen=True):
    result: Raw

    def to_event(self) -> WorkflowCompleted:
        return WorkflowCompleted(result=self.result)


class FailRun(Command, frozen=True):
    failure: Failure

    def to_event(self) -> WorkflowFailed:
        return WorkflowFailed(**failure_fields(self.failure))
