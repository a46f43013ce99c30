"""What a turn feeds to a run's code, and what it records of that.

These functions run on an engine thread, one turn of a run at a time. They fill the turn's activation and
touch nothing else. The drive commits the activation and acts on it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_never

from msgspec import Raw
from msgspec.structs import replace

from pyworkflow_ray.actors.activations import Activation, blob_links
from pyworkflow_ray.actors.attempts import Arrived
from pyworkflow_ray.actors.inboxes import InboxEntry, decoded_history, decoded_inbox
from pyworkflow_ray.actors.observers import RunRecovered, RunReplayed, RunTimerFired, of_run
from pyworkflow_ray.actors.services import Services
from pyworkflow_ray.engine.commands import Command, ScheduleStep
from pyworkflow_ray.engine.events import (
    MAX_DURATION,
    CancellationRequested,
    Event,
    HookExpired,
    TimerFired,
    WorkflowCancelled,
    WorkflowFailed,
    WorkflowInterrupted,
    WorkflowStarted,
    failure_fields,
)
from pyworkflow_ray.engine.executions import Execution
from pyworkflow_ray.engine.unseen_events import unseen
from pyworkflow_ray.exceptions import WorkerDiedError, WorkflowError, WorkflowTimeoutError
from pyworkflow_ray.storage.histories import EventRow
from pyworkflow_ray.storage.inboxes import MOVED, InboxRow
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.values.failures import capture


@dataclass(frozen=True, slots=True)
class Incoming:
    """What has come for a run since its last turn.

    Args:
        arrived: Attempts that have ended.
        outcomes: Outcomes that the drive itself has found.
        unread: What lies in the run's inbox.
        expired: Hooks whose rows take no payload any more. Only these may expire in the run.
        had_recoveries: Whether recoveries are counted in the run's row.
        is_again: Whether the run has tried to end, and more had come for it by then.
    """

    arrived: list[Arrived]
    outcomes: list[Event]
    unread: list[InboxRow]
    expired: Set[str]
    had_recoveries: bool
    is_again: bool = False


class Turn:
    """One turn of a run, and the activation that it fills.

    Args:
        run: The run's row.
        execution: The run's code; None if it could not be loaded, and then it is not fed.
        services: What the coordinator lends.
    """

    def __init__(self, run: RunRecord, execution: Execution | None, services: Services) -> None:
        self.activation = Activation(run.run_id)
        self.run = run
        self.now = services.clock.now()
        self.observers = services.observers
        self._execution = execution
        self._payloads = services.payloads

    @property
    def execution(self) -> Execution:
        assert self._execution is not None, "the run's code is not loaded"
        return self._execution

    @property
    def has_code(self) -> bool:
        """Whether the run's code is loaded."""
        return self._execution is not None

    def feed(self, event: Event) -> None:
        """Feed an outcome; it is recorded, and behind it what the code decided then."""
        commands = self.execution.feed(event, self.now)
        self.record(event, self.execution.now)
        self.ask(commands)

    def ask(self, commands: list[Command]) -> None:
        """Record what the code asks for."""
        for command in commands:
            event = command.to_event()
            if event is not None:
                self.record(event, self.execution.now)
        self.activation.commands.extend(commands)

    def record(self, event: Event, at: datetime) -> None:
        """Record an event that is not fed."""
        attributes = {} if self._execution is None else self._execution.attributes
        self.activation.record(event, at, self._payloads, attributes)

    def take_rest(self) -> None:
        """Record before the run's end what lies in its inbox then. The code does not see it."""
        self.activation.rest_with = self._payloads


def started_event(run: RunRecord) -> WorkflowStarted:
    """The event with which the run's history begins."""
    return WorkflowStarted(
        workflow_name=run.workflow_name,
        args=Raw(run.input_args.encode()),
        kwargs=Raw(run.input_kwargs.encode()),
        metadata=Raw((run.metadata or "null").encode()),
    )


def feed_start(turn: Turn, started: WorkflowStarted, known: Sequence[InboxRow], is_again: bool) -> None:
    """Feed the start.

    Args:
        known: What lies in the run's inbox. None of it is a request to cancel.
        is_again: As in `Incoming`.
    """
    turn.feed(started)
    _see_to_rest(turn, known, is_again)


def feed_incoming(turn: Turn, incoming: Incoming) -> None:
    """Feed all that has come, and the timers that are due, until the run ends.

    The inbox comes first: its senders were told that the run will get it, and the rest may end the run.
    """
    _feed_inbox(turn, incoming)
    _feed_arrived(turn, incoming)
    _feed_timers(turn, incoming.expired)
    if incoming.arrived and turn.activation.events and incoming.had_recoveries:
        turn.activation.changes |= {"recovery_attempts": 0, "shared_recoveries": 0}  # the run got further
    _see_to_rest(turn, incoming.unread, incoming.is_again)


def _see_to_rest(turn: Turn, known: Sequence[InboxRow], is_again: bool) -> None:
    """If the run ends now: see to it that the end leaves nothing in its inbox.

    What its code can still be fed is fed to it: the end is refused if more has come than is known. What it
    cannot be fed is recorded before the end.
    """
    activation = turn.activation
    if activation.end is None:
        return
    counted = [row.id for row in known if not (activation.end.continued_to and row.kind in MOVED)]
    if is_again or not set(counted) <= set(activation.read_inbox):
        turn.take_rest()
    else:
        activation.known_unread = len(counted)


def _feed_arrived(turn: Turn, incoming: Incoming) -> None:
    execution = turn.execution
    for step_id, attempt, outcome in incoming.arrived:
        if execution.is_finished:
            return
        concluded = execution.conclude(step_id, attempt, outcome, turn.now)
        if concluded is not None:
            turn.feed(concluded)


def _feed_inbox(turn: Turn, incoming: Incoming) -> None:
    execution, activation = turn.execution, turn.activation
    read, unread = decoded_inbox(execution.run_id, incoming.unread)
    for row, outcome in (*((None, each) for each in incoming.outcomes), *zip(read, unread, strict=True)):
        if execution.is_finished:
            return
        activation.read_inbox.extend([] if row is None else [row])
        turn.feed(outcome)
        activation.blobs.extend(blob_links(outcome))


def _feed_timers(turn: Turn, expired: Set[str]) -> None:
    execution = turn.execution
    while not execution.is_finished:
        timer = execution.next_timer()
        if timer is None or timer[0] > turn.now:
            return
        event = execution.due_event(timer[1])
        if isinstance(event, HookExpired) and event.hook_id not in expired:
            return  # its time ended this very moment: the next turn asks the hook's row first
        turn.feed(event)
        if isinstance(event, TimerFired) and turn.observers.wants(RunTimerFired):
            late = turn.now - timer[0]
            turn.activation.moments.append(RunTimerFired(**of_run(turn.run), late=late))


def reopen(
    turn: Turn,
    history: list[EventRow],
    recovery: WorkflowInterrupted | WorkerDiedError | None,
    counts: dict[str, int],
) -> None:
    """Replay the history, record what the code asks for beyond it, and record the recovery.

    Nothing that is due is fed here. An interruption must be committed first: code that ends its process would
    otherwise be recovered for ever, without a trace of it.

    Args:
        counts: The columns that count takeovers, with this one.
    """
    begun_at = time.monotonic()
    beyond = turn.execution.replay(decoded_history(turn.execution.run_id, history))
    turn.ask(beyond)
    duration = timedelta(seconds=time.monotonic() - begun_at)
    turn.activation.moments.append(RunReplayed(**of_run(turn.run), events=len(history), duration=duration))
    if turn.activation.end is not None:
        turn.take_rest()
        return
    match recovery:
        case None:
            pass
        case WorkflowInterrupted():
            not_begun = [command.step_id for command in beyond if isinstance(command, ScheduleStep)]
            turn.feed(replace(recovery, not_begun=not_begun))
            turn.activation.changes |= counts
            attempt = recovery.recovery_attempt
            turn.activation.moments.append(RunRecovered(**of_run(turn.run), recovery_attempt=attempt))
        case WorkerDiedError():
            end_failed(turn, recovery)
        case _:
            assert_never(recovery)


def end_failed(turn: Turn, error: WorkflowError, *before: Event) -> None:
    """End the run as failed, without asking its code."""
    if turn.has_code:
        turn.execution.children.close()
        turn.activation.commands.extend(turn.execution.take_commands())
    _end(turn, before, WorkflowFailed(**failure_fields(capture(error)), is_without_code=True))


def end_cancelled(
    turn: Turn, request: CancellationRequested, outgoing: Sequence[InboxEntry], *before: Event
) -> None:
    """End the run without asking its code: as cancelled, or as failed if its time is over.

    Args:
        request: Why. It lies in the inbox, or is in the history or in `before`.
        outgoing: Requests to the run's children.
        before: Events that the history lacks.
    """
    turn.activation.outgoing.extend(outgoing)
    ending: Event = WorkflowCancelled(reason=request.reason, is_without_code=True)
    if request.requested_by == MAX_DURATION:
        error = WorkflowTimeoutError(turn.run.run_id, timedelta(seconds=turn.run.max_duration or 0))
        ending = WorkflowFailed(**failure_fields(capture(error)), is_without_code=True)
    _end(turn, before, ending)


def _end(turn: Turn, before: Sequence[Event], ending: Event) -> None:
    for event in (*map(unseen, before), ending):
        turn.record(event, turn.now)
    turn.take_rest()
