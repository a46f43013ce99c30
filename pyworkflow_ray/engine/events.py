"""What has happened to a run: the closed set of events that make up its history.

A *command event* records a decision of the workflow's code (`StepScheduled`, `TimerStarted`, ...). An
*outcome* records what came of it (`StepCompleted`, `TimerFired`, ...). Outcomes are applied one at a
time, in the order of the history. The command events that an outcome causes stand right behind it.

Each class says its `type`, which is its name in the log, and whether it is an outcome. Its fields are the
log's `data`. The user's values (arguments, results) stay encoded: `Raw` is the JSON text that the codec
wrote. Outcomes with `is_unseen` came for a run that ended before its code saw them, and stand before its end.
`Event` is the union of all classes, and every table at the end of this file is derived from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, ClassVar, TypeGuard, get_args

import msgspec
from msgspec import Raw

from pyworkflow_ray.values.failures import Details, Failure

NONE = Raw(b"null")


class EventBase(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """What all events have.

    Events hold plain data and never refer to one another in a circle. So the garbage collector need not
    visit them, which it would do again and again while a long history is read.
    """

    type: ClassVar[str] = ""
    """The event's name in the log, such as ``step.completed``."""
    is_outcome: ClassVar[bool] = False
    """Whether the run learns something by it. Every other event records a command."""
    is_ending: ClassVar[bool] = False
    """Whether it is the last event of its history. Such an event records a command."""

    @property
    def key(self) -> str:
        """What distinguishes a command event from others of its class in its run; "" where nothing does."""
        return ""


# --- outcomes -------------------------------------------------------------------------------------


class FailureEvent(EventBase, frozen=True, kw_only=True):
    """An event that holds an error: first the readable fields, then what rebuilds the exception."""

    error: str
    error_type: str
    traceback: str = ""
    is_retryable: bool = True
    exception: bytes | None = None
    python: str = ""
    error_cause: Failure | None = None
    error_details: Details | None = None

    @property
    def failure(self) -> Failure:
        """The error as data."""
        return Failure(
            error=self.error,
            error_type=self.error_type,
            traceback=self.traceback,
            is_retryable=self.is_retryable,
            exception=self.exception,
            python=self.python,
            cause=self.error_cause,
            details=self.error_details,
        )


def failure_fields(failure: Failure) -> dict[str, Any]:
    """The fields of a `FailureEvent` that hold this failure."""
    return {
        "error": failure.error,
        "error_type": failure.error_type,
        "traceback": failure.traceback,
        "is_retryable": failure.is_retryable,
        "exception": failure.exception,
        "python": failure.python,
        "error_cause": failure.cause,
        "error_details": failure.details,
    }


class WorkflowStarted(EventBase, frozen=True, kw_only=True):
    type = "workflow.started"
    is_outcome = True

    workflow_name: str
    args: Raw
    kwargs: Raw
    metadata: Raw = NONE
    seed: str = ""
    """The seed of the run's random source. Empty means the run's id. A fork keeps the seed of its origin."""
    counted_from: datetime | None = None
    """When `max_duration` begins to count. None means the run's start. A fork counts from the fork."""
    is_unseen: bool = False
    """Whether none of the code has run: the run was ended before."""


class WorkflowInterrupted(EventBase, frozen=True, kw_only=True):
    """Whoever takes a run over writes it. Attempts in flight are lost, and further ones have new numbers."""

    type = "workflow.interrupted"
    is_outcome = True

    reason: str
    worker_id: str = ""
    recovery_attempt: int = 0
    not_begun: list[str] = []
    """Steps without a first attempt so far: the code of today asks for them beyond its history."""


class StepCompleted(EventBase, frozen=True, kw_only=True):
    type = "step.completed"
    is_outcome = True

    step_id: str
    step_name: str
    result: Raw
    attempt: int
    started_at: datetime | None = None
    node: str = ""
    worker_pid: int = 0


class StepFailed(FailureEvent, frozen=True, kw_only=True):
    """A step has given up: `cause` is "error", "timeout", "worker_died" or "out_of_memory"."""

    type = "step.failed"
    is_outcome = True

    step_id: str
    step_name: str
    attempt: int
    cause: str = "error"
    started_at: datetime | None = None
    node: str = ""
    worker_pid: int = 0


class StepRetrying(EventBase, frozen=True, kw_only=True):
    """An attempt failed and another will follow: `attempt` is the next one's number."""

    type = "step.retrying"
    is_outcome = True

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


class TimerFired(EventBase, frozen=True, kw_only=True):
    type = "sleep.completed"
    is_outcome = True

    sleep_id: str


class HookReceived(EventBase, frozen=True, kw_only=True):
    """A payload came for a hook. If `failure` is set, somebody rejected the hook instead."""

    type = "hook.received"
    is_outcome = True

    hook_id: str
    payload: Raw = NONE
    failure: Failure | None = None
    is_unseen: bool = False


class HookExpired(EventBase, frozen=True, kw_only=True):
    type = "hook.expired"
    is_outcome = True

    hook_id: str


class CancellationRequested(EventBase, frozen=True, kw_only=True):
    """`requested_by` says who asked. It is `MAX_DURATION` when nobody did and the run's time is over."""

    type = "cancellation.requested"
    is_outcome = True

    reason: str = ""
    requested_by: str = ""
    is_unseen: bool = False


MAX_DURATION = "max_duration"


class ChildCompleted(EventBase, frozen=True, kw_only=True):
    type = "child_workflow.completed"
    is_outcome = True

    child_id: str
    child_run_id: str
    child_workflow_name: str
    result: Raw
    is_unseen: bool = False


class ChildFailed(FailureEvent, frozen=True, kw_only=True):
    type = "child_workflow.failed"
    is_outcome = True

    child_id: str
    child_run_id: str
    child_workflow_name: str
    is_unseen: bool = False


class ChildCancelled(EventBase, frozen=True, kw_only=True):
    type = "child_workflow.cancelled"
    is_outcome = True

    child_id: str
    child_run_id: str
    child_workflow_name: str
    reason: str = ""
    is_unseen: bool = False


class SignalReceived(EventBase, frozen=True, kw_only=True):
    type = "signal.received"
    is_outcome = True

    name: str
    payload: Raw
    is_unseen: bool = False


# --- command events -------------------------------------------------------------------------------


class StepScheduled(EventBase, frozen=True, kw_only=True):
    type = "step.started"

    step_id: str
    step_name: str
    args: Raw
    kwargs: Raw
    attempt: int
    options: dict[str, Any] = {}

    @property
    def key(self) -> str:
        return self.step_id


class StepCancelled(EventBase, frozen=True, kw_only=True):
    type = "step.cancelled"

    step_id: str
    step_name: str
    reason: str = ""

    @property
    def key(self) -> str:
        return self.step_id


class TimerStarted(EventBase, frozen=True, kw_only=True):
    type = "sleep.started"

    sleep_id: str
    resume_at: datetime
    name: str = ""

    @property
    def key(self) -> str:
        return self.sleep_id


class HookCreated(EventBase, frozen=True, kw_only=True):
    type = "hook.created"

    hook_id: str
    token: str
    name: str
    expires_at: datetime | None = None

    @property
    def key(self) -> str:
        return self.hook_id

    def __repr__(self) -> str:
        """The event without its token, which is a secret."""
        return f"HookCreated(hook_id={self.hook_id!r}, name={self.name!r}, expires_at={self.expires_at!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("hook_id", self.hook_id), ("name", self.name), ("expires_at", self.expires_at)]


class HookDisposed(EventBase, frozen=True, kw_only=True):
    """The code no longer waits for this hook."""

    type = "hook.disposed"

    hook_id: str

    @property
    def key(self) -> str:
        return self.hook_id


class ChildStarted(EventBase, frozen=True, kw_only=True):
    type = "child_workflow.started"

    child_id: str
    child_run_id: str
    child_workflow_name: str
    args: Raw
    kwargs: Raw
    parent_close: str = "cancel"

    @property
    def key(self) -> str:
        return self.child_id


class SideEffectRecorded(EventBase, frozen=True, kw_only=True):
    type = "side_effect.recorded"

    name: str
    value: Raw
    failure: Failure | None = None

    @property
    def key(self) -> str:
        return self.name


class PatchApplied(EventBase, frozen=True, kw_only=True):
    type = "patch.applied"

    patch_id: str

    @property
    def key(self) -> str:
        return self.patch_id


class AttributesSet(EventBase, frozen=True, kw_only=True):
    type = "attributes.set"

    attributes: Raw


class WorkflowCompleted(EventBase, frozen=True, kw_only=True):
    type = "workflow.completed"
    is_ending = True

    result: Raw


class WorkflowFailed(FailureEvent, frozen=True, kw_only=True):
    """The workflow's function raised; or, with `is_without_code`, the run was ended without asking it."""

    type = "workflow.failed"
    is_ending = True

    is_without_code: bool = False


class WorkflowCancelled(EventBase, frozen=True, kw_only=True):
    type = "workflow.cancelled"
    is_ending = True

    reason: str = ""
    is_without_code: bool = False


class WorkflowContinuedAsNew(EventBase, frozen=True, kw_only=True):
    type = "workflow.continued_as_new"
    is_ending = True

    new_run_id: str
    args: Raw
    kwargs: Raw


# --- the closed sets ------------------------------------------------------------------------------

Outcome = (
    WorkflowStarted
    | WorkflowInterrupted
    | StepCompleted
    | StepFailed
    | StepRetrying
    | TimerFired
    | HookReceived
    | HookExpired
    | CancellationRequested
    | ChildCompleted
    | ChildFailed
    | ChildCancelled
    | SignalReceived
)
"""What the run learns. These are the classes whose `is_outcome` is True."""

Ending = WorkflowCompleted | WorkflowFailed | WorkflowCancelled | WorkflowContinuedAsNew
"""How a history ends. These are the classes whose `is_ending` is True."""

CommandEvent = (
    StepScheduled
    | StepCancelled
    | TimerStarted
    | HookCreated
    | HookDisposed
    | ChildStarted
    | SideEffectRecorded
    | PatchApplied
    | AttributesSet
    | Ending
)
"""What records a command of the workflow's code."""

Event = Outcome | CommandEvent
"""Every event of a run."""
EVENTS: tuple[type[Event], ...] = get_args(Event)
TYPES: dict[type[Event], str] = {cls: cls.type for cls in EVENTS}
"""The name of each event in the log."""
OUTCOMES: tuple[type[Event], ...] = tuple(cls for cls in EVENTS if cls.is_outcome)
ENDINGS: tuple[type[Event], ...] = tuple(cls for cls in EVENTS if cls.is_ending)


def is_outcome(event: Event) -> TypeGuard[Outcome]:
    """Whether the run learns something by this event."""
    return event.is_outcome


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """An event with its place in a history."""

    position: int
    timestamp: datetime
    event: Event


_encoder = msgspec.json.Encoder()
_decoders = {name: msgspec.json.Decoder(cls) for cls, name in TYPES.items()}


def type_of(event: Event) -> str:
    """The event's name in the log, such as ``step.completed``."""
    return event.type


def encode_data(event: Event) -> bytes:
    """The event's data as the JSON object that the log holds."""
    return _encoder.encode(event)


def is_known_type(type_: object) -> bool:
    """Whether this version knows events of this type."""
    return type_ in _decoders


def decode_event(type_: str, data: bytes | str) -> Event:
    """The event of this `type` and `data` of the log.

    Raises:
        ValueError: The type is unknown (a newer version wrote it), or the data does not fit the type.
    """
    decoder = _decoders.get(type_)
    if decoder is None:
        known = ", ".join(sorted(_decoders))
        raise ValueError(f"Unknown event type {type_!r}; this version knows {known}.")
    try:
        event: Event = decoder.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"The data of an event of type {type_!r} cannot be read: {error}") from error
    return event


def decode_history(rows: Iterable[tuple[int, datetime, str, bytes | str]]) -> list[Recorded]:
    """The events of `(position, timestamp, type, data)` rows, in their order."""
    return [
        Recorded(position, timestamp, decode_event(type_, data)) for position, timestamp, type_, data in rows
    ]
