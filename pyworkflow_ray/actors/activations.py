"""What a drive decides in one turn, and the one transaction that writes all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, assert_never

import msgspec
from msgspec import Raw

from pyworkflow_ray.actors.inboxes import InboxEntry, unseen_in
from pyworkflow_ray.actors.new_runs import child_of, label, successor_of
from pyworkflow_ray.actors.observers import Moment
from pyworkflow_ray.actors.payloads import Payloads
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.engine.commands import (
    ApplyPatch,
    CancelChild,
    CancelRun,
    CancelStep,
    Command,
    CompleteRun,
    ContinueRun,
    CreateHook,
    DisposeHook,
    FailRun,
    RecordSideEffect,
    ScheduleStep,
    SetAttributes,
    StartChild,
    StartTimer,
)
from pyworkflow_ray.engine.events import (
    AttributesSet,
    CancellationRequested,
    ChildCancelled,
    ChildCompleted,
    ChildFailed,
    ChildStarted,
    Event,
    HookCreated,
    HookDisposed,
    HookExpired,
    HookReceived,
    PatchApplied,
    SideEffectRecorded,
    SignalReceived,
    StepCancelled,
    StepCompleted,
    StepFailed,
    StepRetrying,
    StepScheduled,
    TimerFired,
    TimerStarted,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowContinuedAsNew,
    WorkflowFailed,
    WorkflowInterrupted,
    WorkflowStarted,
    encode_data,
    failure_fields,
    type_of,
)
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.acceptances import NewRun, accept
from pyworkflow_ray.storage.codes import Code, saving_code
from pyworkflow_ray.storage.histories import Append, appending, confirm_append, is_still_unread, locks_of
from pyworkflow_ray.storage.hooks import NewHook, creating_hook, disposing_hooks, holder_of
from pyworkflow_ray.storage.inboxes import CANCEL_KEY, MOVED, move_unread, readable_unread
from pyworkflow_ray.storage.locks import Locks, Strength, merged
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.runs import get_run, latest_of_chain, releasing_key
from pyworkflow_ray.storage.statements import Bound, RefusedError
from pyworkflow_ray.storage.works import Steps, ask, last, locking, together, work
from pyworkflow_ray.values import codec
from pyworkflow_ray.values.failures import Failure
from pyworkflow_ray.values.schemas import schema_text

_FINAL = {status.value for status in RunStatus if status.is_terminal}


class RunEnd(msgspec.Struct, frozen=True):
    """How a drive ended: the run's status then, with its result or failure when it has ended for good."""

    run_id: str
    status: str
    result: bytes | None = None
    failure: Failure | None = None
    reason: str = ""
    continued_to: str = ""

    @property
    def is_final(self) -> bool:
        """Whether the run has ended for good."""
        return self.status in _FINAL


@dataclass(slots=True)
class Activation:
    """A decision about one run: its events, all that is written with them, and the commands to act on.

    It is filled on an engine thread, then written by `write`, then acted on: never by two threads at once.
    """

    run_id: str
    commands: list[Command] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    rows: list[tuple[datetime, str, bytes]] = field(default_factory=list)
    blobs: list[tuple[str, bytes | None]] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)
    read_inbox: list[int] = field(default_factory=list)
    known_unread: int | None = None
    """If this ends the run: how many unread rows the turn knows of. With more than these it does not end."""
    rest_with: Payloads | None = None
    """If this ends the run whatever has come: what stores the values of that, which is recorded with it."""
    hooks: list[tuple[NewHook, Code | None]] = field(default_factory=list)
    disposed: list[str] = field(default_factory=list)
    new_runs: list[NewRun] = field(default_factory=list)
    successor: NewRun | None = None
    unread: list[InboxEntry] = field(default_factory=list)
    """For the successor: signals that this run has received and its code has not read."""
    outgoing: list[InboxEntry] = field(default_factory=list)
    end: RunEnd | None = None
    """How the drive ends with this: the lease is released in the same commit. None goes on."""
    leaves_attempts: bool = False
    """With an `end` that is not final: whether attempts may be under way whose outcome nobody records."""
    moments: list[Moment] = field(default_factory=list)
    """What observers are to see once this is committed."""
    appended: int = 0
    """Once handed to the writer: how many events it adds to the history."""
    posted_at: float = 0.0
    """When it was handed to the writer, by the monotonic clock."""
    is_unread: bool = False
    """After a commit that releases the lease: whether something has come into the inbox meanwhile."""
    begun: list[RunRecord] = field(default_factory=list)
    """After the commit: the runs that it has made."""
    to_nudge: list[str] = field(default_factory=list)
    """After the commit: the runs that have something new in their inboxes."""
    conflicts: dict[str, str] = field(default_factory=dict)
    """After the commit: hooks whose token is another run's, and that run."""
    _sent: Append | None = None
    """The append with the rest of the inbox, as it was sent last."""

    def record(self, event: Event, at: datetime, payloads: Payloads, attributes: dict[str, Any]) -> None:
        """Add an event, with what it changes in the run's row."""
        stored, blobs = payloads.split(event)
        self.events.append(event)
        self.blobs.extend(blobs)
        self.rows.append((at, type_of(stored), encode_data(stored)))
        match event:
            case (
                StepScheduled()
                | StepCompleted()
                | StepFailed()
                | StepRetrying()
                | StepCancelled()
                | TimerStarted()
                | TimerFired()
                | HookCreated()
                | HookReceived()
                | HookExpired()
                | CancellationRequested()
                | ChildStarted()
                | ChildCompleted()
                | ChildFailed()
                | ChildCancelled()
                | SignalReceived()
                | SideEffectRecorded()
                | PatchApplied()
            ):
                pass  # the row does not change with these
            case WorkflowStarted():
                self.changes |= {"status": RunStatus.RUNNING, "started_at": at, "wake_at": None}
            case WorkflowInterrupted():
                self.changes["status"] = RunStatus.RUNNING
            case WorkflowCompleted(result=result):
                assert isinstance(stored, WorkflowCompleted)
                nothing = {"error": None, "error_type": None}
                self._ended(RunStatus.COMPLETED, at, result=bytes(stored.result), **nothing)
                self.end = RunEnd(self.run_id, RunStatus.COMPLETED.value, bytes(result))
            case WorkflowFailed(error=error, error_type=error_type):
                self._ended(RunStatus.FAILED, at, error=error, error_type=error_type)
                self.end = RunEnd(self.run_id, RunStatus.FAILED.value, failure=event.failure)
            case WorkflowCancelled(reason=reason):
                self._ended(RunStatus.CANCELLED, at, error=reason or None, error_type="CancellationError")
                self.end = RunEnd(self.run_id, RunStatus.CANCELLED.value, reason=reason)
            case WorkflowContinuedAsNew(new_run_id=following):
                self._ended(RunStatus.CONTINUED_AS_NEW, at, continued_to_run_id=following)
                self.end = RunEnd(self.run_id, RunStatus.CONTINUED_AS_NEW.value, continued_to=following)
            case AttributesSet():
                self.changes["attributes"] = label(attributes)
            case HookDisposed(hook_id=hook_id):
                self.disposed.append(hook_id)
            case _:
                assert_never(event)

    def _ended(self, status: RunStatus, at: datetime, **changes: Any) -> None:
        self.changes |= {"status": status, "completed_at": at, "wake_at": None, **changes}

    def prepare(self, run: RunRecord, settings: EngineSettings, pack: Callable[[Any, str], Code]) -> None:
        """Work out what the commit writes for the commands, besides the history."""
        for command in self.commands:
            match command:
                case CreateHook():
                    self.hooks.append(new_hook(command, pack))
                case StartChild(child_id=child_id, child_run_id=run_id, definition=definition):
                    code = pack(definition, f"child workflow {definition.name!r}")
                    args, kwargs = bytes(command.args), bytes(command.kwargs)
                    self.new_runs.append(
                        child_of(run, settings, definition, code, child_id, run_id, args, kwargs)
                    )
                case CancelChild(child_run_id=run_id, reason=reason):
                    request = CancellationRequested(reason=reason, requested_by=run.run_id)
                    self.outgoing.append(InboxEntry(run_id, CANCEL_KEY, request))
                case ContinueRun(new_run_id=run_id):
                    args, kwargs = bytes(command.args), bytes(command.kwargs)
                    self.successor = successor_of(run, settings, run_id, args, kwargs)
                    for number, (name, payload) in enumerate(command.signals):
                        unread = SignalReceived(name=name, payload=payload)
                        self.unread.append(InboxEntry(run_id, f"unread:{number}", unread))
                case (
                    ScheduleStep()
                    | CancelStep()
                    | StartTimer()
                    | DisposeHook()
                    | RecordSideEffect()
                    | ApplyPatch()
                    | SetAttributes()
                    | CompleteRun()
                    | FailRun()
                    | CancelRun()
                ):
                    pass  # the event that records it says all
                case _:
                    assert_never(command)
        if self.end is not None and self.end.is_final and run.parent_run_id and run.child_id:
            outcome = _outcome_of(run, run.child_id, self.end)
            if outcome is not None:
                self.outgoing.append(InboxEntry(run.parent_run_id, f"child:{run.child_id}", outcome))

    def locks(self, new: Append) -> Locks:
        """The rows that `write` locks."""
        posted = Locks(runs={entry.run_id: Strength.POSTS for entry in self.outgoing})
        return merged((locks_of(new), posted))

    @locking(locks)
    @work
    def write(self, new: Append) -> Steps[bool]:
        """Write all of it; the result is `append`'s.

        Raises:
            FencedError, UnreadError: As `append` does.
        """
        self.begun = []
        to_nudge: list[str] = []
        if self.successor is not None:
            self.begun.append((yield from self._continue(new, self.successor)))
            to_nudge.append(self.begun[0].run_id)
        if self.rest_with is not None and new.events:
            new = yield from self._with_rest(new, self.rest_with)
        outgoing: list[Bound] = []
        to_new: list[Bound] = []
        made = {run.run_id for run in self.new_runs}
        for entry in self.outgoing:
            # A request follows a child into the run in which it goes on. An outcome is for the parent alone.
            is_request = isinstance(entry.event, CancellationRequested) and entry.run_id not in made
            to = (yield from latest_of_chain(entry.run_id)) if is_request else entry.run_id
            (to_new if to in made else outgoing).append(entry.posting(to))
            to_nudge.append(to)
        # A token may pass from a hook that the code has let go to one that it has made after that. The append
        # disposes once more: of those that were made and let go just now.
        before = disposing_hooks(new.run_id, self.disposed) if self.hooks else []
        hooks = [*before, *creating_hooks(new.run_id, self.hooks)]
        appended = appending(new, behind_fence=hooks)
        rest = together(_append_and_post(new, appended, outgoing), *(accept(run) for run in self.new_runs))
        try:
            (answers, *accepted) = yield from (rest if to_new else rest.at_end())
        except RefusedError:
            is_unread = yield from confirm_append(new)
            # This very append went through before, and all that belongs to it. Find it there.
            again = together(_post_again(hooks, outgoing), *(accept(run) for run in self.new_runs))
            (answers, *accepted) = yield from (again if to_new else again.at_end())
        else:
            is_unread = is_still_unread(new, answers[: len(appended)])
        if to_new:  # a run that was not there takes no post
            yield last(*to_new)
        self.conflicts = conflicts_of(self.hooks, answers[1 + len(before) :])
        self.begun += [each.run for each in accepted]
        self.to_nudge = to_nudge
        return is_unread

    @locking(locks)
    @work
    def written(self, new: Append) -> Steps[Activation]:
        """As `write`; the result is the activation itself."""
        self.is_unread = yield from self.write(new).at_end()
        return self

    @work
    def _with_rest(self, new: Append, payloads: Payloads) -> Steps[Append]:
        """The append with what lies in the run's inbox, as events before the end that its code does not see.

        Nothing is posted between this and the end: the run is locked.
        """
        moved = () if self.successor is None else MOVED
        rows = yield from readable_unread(new.run_id)
        rows = [row for row in rows if row.id not in new.read_inbox and row.kind not in moved]
        if not rows and self._sent is not None and self._sent.epoch == new.epoch:
            return self._sent  # this is run again, and what was recorded then is no longer unread
        *events, end = new.events
        blobs = list(new.blobs)
        for event in unseen_in(new.run_id, rows):
            stored, large = payloads.split(event)
            events.append((end[0], type_of(stored), encode_data(stored)))
            blobs += [*large, *blob_links(event)]
        read = [*new.read_inbox, *(row.id for row in rows)]
        self._sent = msgspec.structs.replace(new, events=[*events, end], blobs=blobs, read_inbox=read)
        self.appended = len(self._sent.events)
        return self._sent

    @work
    def _continue(self, new: Append, successor: NewRun) -> Steps[RunRecord]:
        """Accept the run in which this one goes on, and give it the key and what was not read."""
        run = yield from get_run(new.run_id)
        key = None if run is None else run.idempotency_key  # not what the row held when it was claimed
        yield ask(releasing_key(new.run_id))
        accepted = (yield from accept(msgspec.structs.replace(successor, idempotency_key=key))).run
        if self.unread:
            # What was received and not read comes before what was not received.
            yield ask(*(entry.posting() for entry in self.unread))
        yield from move_unread(new.run_id, accepted.run_id, but=new.read_inbox)
        return accepted


@work
def _append_and_post(new: Append, appended: Sequence[Bound], outgoing: Sequence[Bound]) -> Steps[list[Any]]:
    return (yield last(*appended, *outgoing))


@work
def _post_again(hooks: Sequence[Bound], outgoing: Sequence[Bound]) -> Steps[list[Any]]:
    answers = yield last(*hooks, *outgoing)
    return [None, *answers]  # in the place of the fence's


def creating_hooks(run_id: str, hooks: Sequence[tuple[NewHook, Code | None]]) -> list[Bound]:
    """What makes those of a run's hooks that are not there; its answers are for `conflicts_of`."""
    codes = [statement for _, code in hooks for statement in saving_code(code)]
    return [*(each for hook, _ in hooks for each in creating_hook(run_id, hook)), *codes]


def conflicts_of(hooks: Sequence[tuple[NewHook, Code | None]], answers: Sequence[Any]) -> dict[str, str]:
    """The hooks whose token is another run's, and that run."""
    conflicts = {}
    for number, (hook, _) in enumerate(hooks):
        size = len(creating_hook("", hook))
        holder = holder_of(answers[number * size : (number + 1) * size])
        if holder is not None:
            conflicts[hook.hook_id] = holder
    return conflicts


@work
def write_hooks(run_id: str, hooks: Sequence[tuple[NewHook, Code | None]]) -> Steps[dict[str, str]]:
    """Make those of a run's hooks that are not there; the ones whose token is another run's, and that run."""
    answers = yield last(*creating_hooks(run_id, hooks))
    return conflicts_of(hooks, answers)


def new_hook(command: CreateHook, pack: Callable[[Any, str], Code]) -> tuple[NewHook, Code | None]:
    """The hook's row, and the code of its schema."""
    code = None if command.schema is None else pack(command.schema, f"the schema of hook {command.name!r}")
    hook = NewHook(
        hook_id=command.hook_id,
        token=command.token,
        name=command.name,
        expires_at=command.expires_at,
        payload_schema=schema_text(command.schema),
        schema_hash=None if code is None else code.hash,
        metadata=None if bytes(command.metadata) == b"null" else bytes(command.metadata).decode(),
    )
    return hook, code


def _outcome_of(run: RunRecord, child_id: str, end: RunEnd) -> Event | None:
    """The outcome that the parent gets; None if the run goes on in another one."""
    child: dict[str, Any] = {
        "child_id": child_id,
        "child_run_id": run.run_id,
        "child_workflow_name": run.workflow_name,
    }
    if end.status == RunStatus.COMPLETED.value:
        return ChildCompleted(**child, result=Raw(end.result or b"null"))
    if end.status == RunStatus.CANCELLED.value:
        return ChildCancelled(**child, reason=end.reason)
    if end.failure is not None:
        return ChildFailed(**child, **failure_fields(end.failure))
    return None


def blob_links(event: Event) -> list[tuple[str, None]]:
    """The blobs that this event refers to: another run has stored them, and this history needs them too."""
    names = ("args", "kwargs", "result", "value", "payload")
    values_of_event = (getattr(event, name, None) for name in names)
    return links_to(*(bytes(value) for value in values_of_event if isinstance(value, Raw)))


def links_to(*texts: bytes) -> list[tuple[str, None]]:
    """The blobs that these encoded values refer to."""
    digests = (codec.blob_reference(text) for text in texts)
    return [(digest, None) for digest in digests if digest is not None]
