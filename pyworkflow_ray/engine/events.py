"""What has happened to a run: the closed set of events that make up its history.

A *command event* records a decision of the workflow's code (`StepScheduled`, `TimerStarted`, ...); an
*outcome event* records what came of it (`StepCompleted`, `TimerFired`, ...). Outcomes are applied one at
a time in the order of the history, and the command events that one provoked stand right behind it.

Each class is written to the log under the `type` string of its tag; its fields are the log's `data`.
Values of the user's (arguments, results) stay encoded: `Raw` is the JSON text that `values` wrote.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Raw

from pyworkflow_ray.values.failures import Failure

NONE = Raw(b"null")


class Event(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """The base of all events; `type_of(event)` is its name in the log.

    Events hold plain data, never one another in a circle, so the collector need not look at them: it
    would do so again and again while a long history is read.
    """

    @property
    def key(self) -> str:
        """What tells a command event from others of its kind in its run; "" where nothing does."""
        return ""


# --- outcomes: what the run learns ---------------------------------------------------------------


class FailureEvent(Event, frozen=True, kw_only=True):
    """An event that tells an error: readable fields at the top, and what rebuilds the exception below."""

    error: str
    error_type: str
    traceback: str = ""
    is_retryable: bool = True
    exception: bytes | None = None
    python: str = ""
    error_cause: Failure | None = None

    @property
    def failure(self) -> Failure:
        """The error as `failures` tells it."""
        return Failure(
            error=self.error,
            error_type=self.error_type,
            traceback=self.traceback,
            is_retryable=self.is_retryable,
            exception=self.exception,
            python=self.python,
            cause=self.error_cause,
        )


def failure_fields(failure: Failure) -> dict[str, Any]:
    """The fields of a `FailureEvent` that tell this failure."""
    return {
        "error": failure.error,
        "error_type": failure.error_type,
        "traceback": failure.traceback,
        "is_retryable": failure.is_retryable,
        "exception": failure.exception,
        "python": failure.python,
        "error_cause": failure.cause,
    }


class WorkflowStarted(Event, frozen=True, kw_only=True):
    workflow_name: str
    args: Raw
    kwargs: Raw
    metadata: Raw = NONE
    seed: str = ""
    """Of the run's random source; the run's id when it is empty. A fork keeps the seed of its history."""
    counted_from: datetime | None = None
    """From when its `max_duration` counts; from its start by default. A fork's counts from the fork."""


class WorkflowInterrupted(Event, frozen=True, kw_only=True):
    """Written by the coordinator that takes a run over after a crash; attempts in flight count as lost."""

    reason: str
    worker_id: str = ""
    recovery_attempt: int = 0


class StepCompleted(Event, frozen=True, kw_only=True):
    step_id: str
    step_name: str
    result: Raw
    attempt: int
    started_at: datetime | None = None
    node: str = ""
    worker_pid: int = 0


class StepFailed(FailureEvent, frozen=True, kw_only=True):
    """A step has given up: `cause` is "error", "timeout", "worker_died" or "out_of_memory"."""

    step_id: str
    step_name: str
    attempt: int
    cause: str = "error"
    started_at: datetime | None = None
    node: str = ""
    worker_pid: int = 0


class StepRetrying(Event, frozen=True, kw_only=True):
    """An attempt failed and another will follow: `attempt` is the next one's number."""

    step_id: str
    step_name: str
    attempt: int
    retry_at: datetime
    error: str
    error_type: str = ""
    cause: str = "error"
    traceback: str = ""
    node: str = ""
    worker_pid: int = 0


class TimerFired(Event, frozen=True, kw_only=True):
    sleep_id: str


class HookReceived(Event, frozen=True, kw_only=True):
    """A payload came for a hook, or, with `failure`, somebody rejected it."""

    hook_id: str
    payload: Raw = NONE
    failure: Failure | None = None


class HookExpired(Event, frozen=True, kw_only=True):
    hook_id: str


class CancellationRequested(Event, frozen=True, kw_only=True):
    """`requested_by` is who asked; `MAX_DURATION` when nobody did and the run's time is over."""

    reason: str = ""
    requested_by: str = ""


MAX_DURATION = "max_duration"


class ChildCompleted(Event, frozen=True, kw_only=True):
    child_id: str
    child_run_id: str
    child_workflow_name: str
    result: Raw


class ChildFailed(FailureEvent, frozen=True, kw_only=True):
    child_id: str
    child_run_id: str
    child_workflow_name: str


class ChildCancelled(Event, frozen=True, kw_only=True):
    child_id: str
    child_run_id: str
    child_workflow_name: str
    reason: str = ""


class SignalReceived(Event, frozen=True, kw_only=True):
    name: str
    payload: Raw


# --- command events: what the workflow's code decided ----------------------------------------------


class StepScheduled(Event, frozen=True, kw_only=True):
    step_id: str
    step_name: str
    args: Raw
    kwargs: Raw
    attempt: int
    options: dict[str, Any] = {}

    @property
    def key(self) -> str:
        return self.step_id


class StepCancelled(Event, frozen=True, kw_only=True):
    step_id: str
    step_name: str
    reason: str = ""

    @property
    def key(self) -> str:
        return self.step_id


class TimerStarted(Event, frozen=True, kw_only=True):
    sleep_id: str
    resume_at: datetime
    name: str = ""

    @property
    def key(self) -> str:
        return self.sleep_id


class HookCreated(Event, frozen=True, kw_only=True):
    hook_id: str
    token: str
    name: str
    expires_at: datetime | None = None

    @property
    def key(self) -> str:
        return self.hook_id


class HookDisposed(Event, frozen=True, kw_only=True):
    """The code no longer waits for this hook."""

    hook_id: str

    @property
    def key(self) -> str:
        return self.hook_id


class ChildStarted(Event, frozen=True, kw_only=True):
    child_id: str
    child_run_id: str
    child_workflow_name: str
    args: Raw
    kwargs: Raw
    parent_close: str = "cancel"

    @property
    def key(self) -> str:
        return self.child_id


class SideEffectRecorded(Event, frozen=True, kw_only=True):
    name: str
    value: Raw
    failure: Failure | None = None

    @property
    def key(self) -> str:
        return self.name


class PatchApplied(Event, frozen=True, kw_only=True):
    patch_id: str

    @property
    def key(self) -> str:
        return self.patch_id


class AttributesSet(Event, frozen=True, kw_only=True):
    attributes: Raw


class WorkflowCompleted(Event, frozen=True, kw_only=True):
    result: Raw


class WorkflowFailed(FailureEvent, frozen=True, kw_only=True):
    """The workflow's function raised."""


class WorkflowCancelled(Event, frozen=True, kw_only=True):
    reason: str = ""


class WorkflowContinuedAsNew(Event, frozen=True, kw_only=True):
    new_run_id: str
    args: Raw
    kwargs: Raw


TYPES: dict[type[Event], str] = {
    WorkflowStarted: "workflow.started",
    WorkflowInterrupted: "workflow.interrupted",
    WorkflowCompleted: "workflow.completed",
    WorkflowFailed: "workflow.failed",
    WorkflowCancelled: "workflow.cancelled",
    WorkflowContinuedAsNew: "workflow.continued_as_new",
    StepScheduled: "step.started",
    StepCompleted: "step.completed",
    StepFailed: "step.failed",
    StepRetrying: "step.retrying",
    StepCancelled: "step.cancelled",
    TimerStarted: "sleep.started",
    TimerFired: "sleep.completed",
    HookCreated: "hook.created",
    HookReceived: "hook.received",
    HookExpired: "hook.expired",
    HookDisposed: "hook.disposed",
    CancellationRequested: "cancellation.requested",
    ChildStarted: "child_workflow.started",
    ChildCompleted: "child_workflow.completed",
    ChildFailed: "child_workflow.failed",
    ChildCancelled: "child_workflow.cancelled",
    SignalReceived: "signal.received",
    SideEffectRecorded: "side_effect.recorded",
    PatchApplied: "patch.applied",
    AttributesSet: "attributes.set",
}
"""The name of each event in the log."""

OUTCOMES: tuple[type[Event], ...] = (
    WorkflowStarted,
    WorkflowInterrupted,
    StepCompleted,
    StepFailed,
    StepRetrying,
    TimerFired,
    HookReceived,
    HookExpired,
    CancellationRequested,
    ChildCompleted,
    ChildFailed,
    ChildCancelled,
    SignalReceived,
)
ENDINGS: tuple[type[Event], ...] = (
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowCancelled,
    WorkflowContinuedAsNew,
)


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """An event with its place in a history."""

    position: int
    timestamp: datetime
    event: Event


_encoder = msgspec.json.Encoder()
_decoders = {name: msgspec.json.Decoder(cls) for cls, name in TYPES.items()}


def type_of(event: Event) -> str:
    """The event's name in the log, such as ``step.completed``."""
    return TYPES[type(event)]


def encode_data(event: Event) -> bytes:
    """The event's data as the JSON object that the log holds."""
    return _encoder.encode(event)


def decode_event(type_: str, data: bytes | str) -> Event:
    """The event that the log's `type` and `data` say.

    Raises:
        ValueError: The type is unknown (a newer version wrote it), or the data does not fit it.
    """
    decoder = _decoders.get(type_)
    if decoder is None:
        known = ", ".join(sorted(_decoders))
        raise ValueError(f"Unknown event type {type_!r}; this version knows {known}.")
    try:
        event: Event = decoder.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"The data of an event of type {type_!r} is not readable: {error}") from error
    return event


def decode_history(rows: Iterable[tuple[int, datetime, str, bytes | str]]) -> list[Recorded]:
    """The events of `(position, timestamp, type, data)` rows, in their order."""
    return [
        Recorded(position, timestamp, decode_event(type_, data)) for position, timestamp, type_, data in rows
    ]
