"""What a workflow's code asks for: the closed set of commands, and the event that records each.

Only the coordinator turns a command into an event. It commits the event before it acts on the command.
Cancelling a timer is no command: it leaves no event, and the code does it again in a replay.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, get_args

import msgspec
from msgspec import Raw

from pyworkflow_ray.engine.events import (
    AttributesSet,
    ChildStarted,
    CommandEvent,
    EventBase,
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


class CommandBase(msgspec.Struct, frozen=True, gc=False):
    """What all commands have."""

    event_class: ClassVar[type[CommandEvent] | None]
    """The class of the event that records the command. None: the command leaves no event, and a replay asks
    for it again."""

    def to_event(self) -> CommandEvent | None:
        """The event that records this command, of the class `event_class`; None where that is None."""
        raise NotImplementedError


class ScheduleStep(CommandBase, frozen=True):
    event_class = StepScheduled

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


class CancelStep(CommandBase, frozen=True):
    """`on_cancel` says what happens to an attempt in flight; see the option of `step`."""

    event_class = StepCancelled

    step_id: str
    step_name: str
    reason: str
    on_cancel: str = "wait"

    def to_event(self) -> StepCancelled:
        return StepCancelled(step_id=self.step_id, step_name=self.step_name, reason=self.reason)


class StartTimer(CommandBase, frozen=True):
    event_class = TimerStarted

    sleep_id: str
    resume_at: datetime
    name: str

    def to_event(self) -> TimerStarted:
        return TimerStarted(sleep_id=self.sleep_id, resume_at=self.resume_at, name=self.name)


class CreateHook(CommandBase, frozen=True):
    event_class = HookCreated

    hook_id: str
    name: str
    token: str
    expires_at: datetime | None
    schema: Any
    metadata: Raw

    def to_event(self) -> HookCreated:
        return HookCreated(hook_id=self.hook_id, token=self.token, name=self.name, expires_at=self.expires_at)

    def __repr__(self) -> str:
        """The command without its token, which is a secret."""
        return f"CreateHook(hook_id={self.hook_id!r}, name={self.name!r}, expires_at={self.expires_at!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("hook_id", self.hook_id), ("name", self.name), ("expires_at", self.expires_at)]


class DisposeHook(CommandBase, frozen=True):
    event_class = HookDisposed

    hook_id: str

    def to_event(self) -> HookDisposed:
        return HookDisposed(hook_id=self.hook_id)


class StartChild(CommandBase, frozen=True):
    event_class = ChildStarted

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


class CancelChild(CommandBase, frozen=True):
    """Ask a child to cancel. A replay asks again, which has no effect."""

    event_class = None

    child_run_id: str
    reason: str

    def to_event(self) -> None:
        return None


class RecordSideEffect(CommandBase, frozen=True):
    event_class = SideEffectRecorded

    name: str
    value: Raw
    failure: Failure | None = None

    def to_event(self) -> SideEffectRecorded:
        return SideEffectRecorded(name=self.name, value=self.value, failure=self.failure)


class ApplyPatch(CommandBase, frozen=True):
    event_class = PatchApplied

    patch_id: str

    def to_event(self) -> PatchApplied:
        return PatchApplied(patch_id=self.patch_id)


class SetAttributes(CommandBase, frozen=True):
    event_class = AttributesSet

    attributes: Raw

    def to_event(self) -> AttributesSet:
        return AttributesSet(attributes=self.attributes)


class CompleteRun(CommandBase, frozen=True):
    event_class = WorkflowCompleted

    result: Raw

    def to_event(self) -> WorkflowCompleted:
        return WorkflowCompleted(result=self.result)


class FailRun(CommandBase, frozen=True):
    event_class = WorkflowFailed

    failure: Failure

    def to_event(self) -> WorkflowFailed:
        return WorkflowFailed(**failure_fields(self.failure))


class CancelRun(CommandBase, frozen=True):
    event_class = WorkflowCancelled

    reason: str

    def to_event(self) -> WorkflowCancelled:
        return WorkflowCancelled(reason=self.reason)


class ContinueRun(CommandBase, frozen=True):
    event_class = WorkflowContinuedAsNew

    new_run_id: str
    args: Raw
    kwargs: Raw
    signals: tuple[tuple[str, Raw], ...] = ()
    """The signals that the run has received and not read. The new run gets them."""

    def to_event(self) -> WorkflowContinuedAsNew:
        return WorkflowContinuedAsNew(new_run_id=self.new_run_id, args=self.args, kwargs=self.kwargs)


Command = (
    ScheduleStep
    | CancelStep
    | StartTimer
    | CreateHook
    | DisposeHook
    | StartChild
    | CancelChild
    | RecordSideEffect
    | ApplyPatch
    | SetAttributes
    | CompleteRun
    | FailRun
    | CancelRun
    | ContinueRun
)
"""Every command."""

COMMANDS: tuple[type[Command], ...] = get_args(Command)


def command_of(kind: type[EventBase]) -> type[Command] | None:
    """The class of the commands that events of this class record; None of an outcome."""
    return next((command for command in COMMANDS if command.event_class is kind), None)
