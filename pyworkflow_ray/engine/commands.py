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
    ChildStarted,
    Event,
    HookCreated,
    HookDisposed,
    PatchApplied,
    SideEffectRecorded,
    StepCancelled,
    StepScheduled,
    TimerStarted,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowContinuedAsNew,
    WorkflowFailed,
    failure_fields,
)
from pyworkflow_ray.engine.options import StepOptions
from pyworkflow_ray.values.failures import Failure


class Command(msgspec.Struct, frozen=True, gc=False):
    """The base of all commands."""

    def to_event(self) -> Event | None:
        """The event that records this command; None for one whose loss a replay repairs by asking again."""
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
    """`on_cancel` says what becomes of an attempt that is under way: see `step`."""

    step_id: str
    step_name: str
    reason: str
    on_cancel: str = "wait"

    def to_event(self) -> StepCancelled:
        return StepCancelled(step_id=self.step_id, step_name=self.step_name, reason=self.reason)


class StartTimer(Command, frozen=True):
    sleep_id: str
    resume_at: datetime
    name: str

    def to_event(self) -> TimerStarted:
        return TimerStarted(sleep_id=self.sleep_id, resume_at=self.resume_at, name=self.name)


class CreateHook(Command, frozen=True):
    hook_id: str
    name: str
    token: str
    expires_at: datetime | None
    schema: Any
    metadata: Raw

    def to_event(self) -> HookCreated:
        return HookCreated(hook_id=self.hook_id, token=self.token, name=self.name, expires_at=self.expires_at)


class DisposeHook(Command, frozen=True):
    hook_id: str

    def to_event(self) -> HookDisposed:
        return HookDisposed(hook_id=self.hook_id)


class StartChild(Command, frozen=True):
    child_id: str
    child_run_id: str
    definition: Any
    args: Raw
    kwargs: Raw
    parent_close: str

    def to_event(self) -> ChildStarted:
        return ChildStarted(
            child_id=self.child_id,
            child_run_id=self.child_run_id,
            child_workflow_name=self.definition.name,
            args=self.args,
            kwargs=self.kwargs,
            parent_close=self.parent_close,
        )


class CancelChild(Command, frozen=True):
    """Ask a child to cancel; asked again in each replay, which has no effect."""

    child_run_id: str
    reason: str

    def to_event(self) -> None:
        return None


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


class CancelRun(Command, frozen=True):
    reason: str

    def to_event(self) -> WorkflowCancelled:
        return WorkflowCancelled(reason=self.reason)


class ContinueRun(Command, frozen=True):
    new_run_id: str
    args: Raw
    kwargs: Raw
    signals: tuple[tuple[str, Raw], ...] = ()
    """Signals that the run has received and not read: its successor gets them."""

    def to_event(self) -> WorkflowContinuedAsNew:
        return WorkflowContinuedAsNew(new_run_id=self.new_run_id, args=self.args, kwargs=self.kwargs)
