"""Driving one run: outcomes in, a commit, then action.

Theory of operation. A drive holds a run's lease and its execution. Whatever comes for the run (a step's
outcome, a timer that is due) is queued. The loop takes all that is queued, feeds it to the execution on an
engine thread, commits the events in one append, and only then acts on the commands: dispatches steps,
arms retries. While a commit is under way more may arrive, and goes together in the next.

A crash between commit and action is repaired by replay: a step that is scheduled and has no outcome is
dispatched again, as a new attempt. A drive whose append is refused by the fence has been replaced; it
drops the run and touches nothing else of it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from loguru import logger
from msgspec import Raw

from pyworkflow_ray import values
from pyworkflow_ray.actors.codes import CodeLoader, source_changed
from pyworkflow_ray.actors.dispatchers import Dispatcher, Ticket
from pyworkflow_ray.actors.engines import Engine
from pyworkflow_ray.actors.payloads import Payloads
from pyworkflow_ray.actors.runner import KILL_GRACE, Attempt
from pyworkflow_ray.clock import Clock
from pyworkflow_ray.engine.attempts import AttemptFailed, AttemptOutcome
from pyworkflow_ray.engine.commands import CancelStep, Command, ScheduleStep
from pyworkflow_ray.engine.events import (
    AttributesSet,
    Event,
    Recorded,
    StepRetrying,
    TimerFired,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowInterrupted,
    WorkflowStarted,
    decode_history,
    encode_data,
    failure_fields,
    type_of,
)
from pyworkflow_ray.engine.executions import Execution, Limits, PendingStep
from pyworkflow_ray.exceptions import SerializationError, StorageError, WorkerDiedError, WorkflowError
from pyworkflow_ray.failures import Failure, capture
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.codes import load_code
from pyworkflow_ray.storage.histories import Append, EventRow, FencedError, append, read_events
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.storages import Storage

_T = TypeVar("_T")


class RunEnd(msgspec.Struct, frozen=True):
    """How a drive ended: the run's status then, with its result or failure when it has ended for good."""

    run_id: str
    status: str
    result: bytes | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """What a coordinator lends its drives."""

    engine: Engine
    owner: str
    storage: Storage
    dispatcher: Dispatcher
    clock: Clock
    payloads: Payloads
    loader: CodeLoader
    threads: Executor
    on_suspended: Callable[[str, datetime | None], None]


@dataclass(slots=True)
class _Activation:
    """What one turn of the loop brought about."""

    commands: list[Command] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    rows: list[tuple[datetime, str, bytes]] = field(default_factory=list)
    blobs: list[tuple[str, bytes]] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)
    appended: int = 0


class Drive:
    """One run in a coordinator's memory, from claim to end, suspension or loss.

    Args:
        host: What the coordinator lends.
        run: The run's row, as it was claimed.
    """

    def __init__(self, host: Host, run: RunRecord) -> None:
        self.run = run
        self.run_id = run.run_id
        self.began_at = time.monotonic()
        self.feeding: tuple[float, int] | None = None
        """Since when, and in which thread, the workflow's code is running; None while it waits."""
        self._host = host
        self._position = run.position
        self._execution: Execution | None = None
        self._arrived: list[tuple[str, int, AttemptOutcome]] = []
        self._wake = asyncio.Event()
        self._tickets: dict[str, Ticket] = {}
        self._retries: dict[str, datetime] = {}
        self._recovery_attempts = run.recovery_attempts
        self._end: RunEnd | None = None

    @property
    def in_flight(self) -> int:
        """How many step attempts are under way, or have ended and are not fed yet."""
        return len(self._tickets) + len(self._arrived)

    async def drive(self) -> RunEnd:
        """Drive the run until it ends, is suspended, or is lost to another coordinator."""
        try:
            await self._open()
            while self._end is None:
                if await self._rest():
                    await self._turn([])
            return self._end
        except FencedError:
            logger.info("Run {} is driven elsewhere now; dropped here", self.run_id)
            return RunEnd(self.run_id, "lost")
        except StorageError:
            raise  # the run is as good as its history; it goes on when the database does
        except WorkflowError as error:
            return await self._interrupt(error)
        finally:
            self._drop()

    # --- opening ------------------------------------------------------------------------------

    async def _open(self) -> None:
        """Load the code, replay the history, and go on from there."""
        function = await self._load_function()
        limits = Limits(
            default_retries=self._host.engine.default_retries,
            max_losses=self.run.max_recovery_attempts if self.run.recover_on_worker_loss else 0,
        )
        execution = Execution(self.run_id, function, self._host.payloads, limits)
        execution.is_durable = self.run.durable
        if self.run.attributes is not None:
            execution.attributes.update(values.decode(self.run.attributes))  # what it was started with
        self._execution = execution
        if self._position == 0 and (self.run.durable or self.run.started_at is None):
            await self._start()
            return
        history = await asyncio.to_thread(
            self._host.storage.read, lambda connection: read_events(connection, self.run_id)
        )
        commands = await self._in_thread(lambda: execution.replay(_decoded(self.run_id, history)))
        if commands:
            # Not acted on yet: an interruption gives all attempts new numbers, and all are dispatched below.
            await self._commit(self._record(_Activation(), commands))
        if self._end is None and self.run.was_interrupted:
            await self._recover()
        if self._end is None:
            for pending in list(execution.steps.values()):
                await self._resume_step(pending)

    async def _load_function(self) -> Callable[..., Any]:
        code_hash = self.run.code_hash or ""
        definition = self._host.loader.get(code_hash)
        if definition is None:
            code = await asyncio.to_thread(
                self._host.storage.read, lambda connection: load_code(connection, code_hash)
            )
            if code is None:
                raise WorkflowError(
                    f"The code of run {self.run_id!r} is not in the storage (hash {code_hash!r})."
                )
            definition = await self._in_thread(lambda: self._host.loader.load(code))
            if source_changed(code, definition):
                logger.warning(
                    "Run {} goes on with code of {} that is not what it was when the run started",
                    self.run_id,
                    code.reference,
                )
        function: Callable[..., Any] = getattr(definition, "fn", definition)
        return function

    def _started(self) -> WorkflowStarted:
        return WorkflowStarted(
            workflow_name=self.run.workflow_name,
            args=Raw(self.run.input_args.encode()),
            kwargs=Raw(self.run.input_kwargs.encode()),
        )

    async def _start(self) -> None:
        previous = self.run.previous_owner
        if previous is not None and previous != self.run.coordinator:
            # A process held it and nothing is recorded: perhaps its first lines end the process. A run that
            # is still held by its coordinator's name was born so, and nobody has come for it yet.
            self._recovery_attempts += 1
            changes = {"recovery_attempts": self._recovery_attempts}
            await self._append(_Activation(changes=changes), release=False)
            if self._recovery_attempts > self._allowed_recoveries() + 1:
                await self._give_up([self._started()])
                return
        await self._turn([self._started()])

    def _allowed_recoveries(self) -> int:
        run = self.run
        return run.max_recovery_attempts if run.recover_on_worker_loss and run.durable else 0

    async def _recover(self) -> None:
        """Record that the run was taken over after a crash, or end it when that has happened too often."""
        self._recovery_attempts += 1
        run = self.run
        if self._recovery_attempts <= self._allowed_recoveries():
            interrupted = WorkflowInterrupted(
                reason=f"its coordinator {run.previous_owner} went away",
                worker_id=self._host.owner,
                recovery_attempt=self._recovery_attempts,
            )
            await self._turn([interrupted])
            return
        await self._give_up([])

    async def _give_up(self, events: list[Event]) -> None:
        error = WorkerDiedError(
            f"The coordinator of run {self.run_id!r} went away {self._recovery_attempts} time(s) in a row "
            f"without the run getting further, and {self._allowed_recoveries()} recoveries are allowed "
            "(recover_on_worker_loss, max_recovery_attempts)."
        )
        activation = _Activation()
        for event in (*events, WorkflowFailed(**failure_fields(capture(error)))):
            self._record_event(activation, event, self._host.clock.now())
        await self._commit(activation)

    async def _resume_step(self, pending: PendingStep) -> None:
        step_id = pending.command.step_id
        if step_id in self._tickets or step_id in self._retries:
            return  # dispatched in the turn that recorded the interruption
        if pending.is_lost:
            error = WorkerDiedError(
                f"The coordinator of run {self.run_id!r} went away while step {step_id!r} ran, and the step "
                "is not idempotent: it is not run again."
            )
            lost = AttemptFailed(failure=capture(error), cause="worker_died")
            self._arrive(step_id, pending.attempt, lost)
        elif pending.retry_at is not None and pending.retry_at > self._host.clock.now():
            self._retries[step_id] = pending.retry_at
        else:
            await self._dispatch(pending)

    # --- turning ------------------------------------------------------------------------------

    async def _turn(self, outcomes: list[Event]) -> None:
        """Feed what has come, commit it, act on it."""
        self._wake.clear()
        arrived, self._arrived = self._arrived, []
        loop = asyncio.get_running_loop()
        committed: asyncio.Future[_Activation] = loop.create_future()
        self._host.threads.submit(self._feed_and_post, outcomes, arrived, committed, loop)
        activation = await committed
        self._position += activation.appended
        self._end = _end_of(self.run_id, activation.events)
        await self._act(activation)

    def _feed_and_post(
        self,
        outcomes: list[Event],
        arrived: list[tuple[str, int, AttemptOutcome]],
        committed: asyncio.Future[_Activation],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """On an engine thread: feed, and hand the append straight to the writer, who answers the loop."""
        try:
            activation = self._noted(lambda: self._feed(outcomes, arrived))
            new = self._append_of(activation, release=_end_of(self.run_id, activation.events) is not None)
        except BaseException as error:
            loop.call_soon_threadsafe(_answer, committed, None, error)
            return
        if new is None:
            loop.call_soon_threadsafe(_answer, committed, activation, None)
            return
        activation.appended = len(new.events)

        def write(connection: Any) -> _Activation:
            append(connection, new)
            return activation

        try:
            self._host.storage.writer.write_here(write, committed, loop)
        except StorageError as error:  # it was closed
            loop.call_soon_threadsafe(_answer, committed, None, error)

    def _feed(self, outcomes: list[Event], arrived: list[tuple[str, int, AttemptOutcome]]) -> _Activation:
        """Feed outcomes, one at a time; runs on an engine thread."""
        execution = self._running()
        now = self._host.clock.now()
        activation = _Activation()
        for outcome in outcomes:
            self._feed_one(activation, outcome, now)
        if outcomes:
            # A start or an interruption is committed by itself: were it fed with what is due, code that
            # ends its process would never leave a trace of having been recovered.
            return activation
        for step_id, attempt, attempt_outcome in arrived:
            if execution.is_finished:
                break
            event = execution.conclude(step_id, attempt, attempt_outcome, now)
            if event is not None:
                self._feed_one(activation, event, now)
        while not execution.is_finished and (timer := execution.next_timer()) is not None and timer[0] <= now:
            self._feed_one(activation, TimerFired(sleep_id=timer[1]), now)
        if arrived and activation.events and self._recovery_attempts:
            self._recovery_attempts = 0  # it got further
            activation.changes["recovery_attempts"] = 0
        return activation

    def _feed_one(self, activation: _Activation, event: Event, now: datetime) -> None:
        execution = self._running()
        commands = execution.feed(event, now)
        self._record_event(activation, event, execution.now)
        self._record(activation, commands)

    def _record(self, activation: _Activation, commands: list[Command]) -> _Activation:
        execution = self._running()
        for command in commands:
            self._record_event(activation, command.to_event(), execution.now)
        activation.commands.extend(commands)
        return activation

    def _record_event(self, activation: _Activation, event: Event, at: datetime) -> None:
        stored, blobs = self._host.payloads.split(event)
        activation.events.append(event)
        activation.blobs.extend(blobs)
        activation.rows.append((at, type_of(stored), encode_data(stored)))
        match stored:
            case WorkflowStarted():
                activation.changes |= {"status": RunStatus.RUNNING, "started_at": at, "wake_at": None}
            case WorkflowInterrupted(recovery_attempt=attempt):
                activation.changes |= {"status": RunStatus.RUNNING, "recovery_attempts": attempt}
            case WorkflowCompleted(result=result):
                activation.changes |= {
                    "status": RunStatus.COMPLETED,
                    "result": bytes(result),
                    "error": None,
                    "error_type": None,
                    "completed_at": at,
                }
            case WorkflowFailed(error=error, error_type=error_type):
                activation.changes |= {
                    "status": RunStatus.FAILED,
                    "error": error,
                    "error_type": error_type,
                    "completed_at": at,
                }
            case AttributesSet():
                # Not sealed: attributes are there to be shown and searched for.
                activation.changes["attributes"] = values.encode(self._running().attributes)

    async def _commit(self, activation: _Activation) -> None:
        end = _end_of(self.run_id, activation.events)
        await self._append(activation, release=end is not None)
        self._end = end

    def _append_of(self, activation: _Activation, *, release: bool) -> Append | None:
        """What the activation writes; None when that is nothing."""
        durable = self.run.durable
        if not (activation.rows or activation.changes):
            return None
        if not durable and not release and "started_at" not in activation.changes:
            return None
        return Append(
            run_id=self.run_id,
            epoch=self.run.epoch,
            position=self._position,
            events=activation.rows if durable else (),
            changes=activation.changes,
            release=release,
            blobs=activation.blobs,
        )

    async def _append(self, activation: _Activation, *, release: bool) -> bool:
        new = self._append_of(activation, release=release)
        if new is None:
            return False
        unread = await self._host.storage.write(lambda connection: append(connection, new))
        self._position += len(new.events)
        return unread

    async def _act(self, activation: _Activation) -> None:
        """Do what the committed commands ask."""
        execution = self._running()
        for event in activation.events:
            if isinstance(event, StepRetrying) and event.step_id in execution.steps:
                self._retries[event.step_id] = event.retry_at
        for command in activation.commands:
            match command:
                case ScheduleStep(step_id=step_id) if step_id in execution.steps:
                    await self._dispatch(execution.steps[step_id])
                case CancelStep(step_id=step_id):
                    self._cancel(step_id)
                case _:
                    pass  # timers are read off the execution; the rest is history

    # --- steps ------------------------------------------------------------------------------------

    async def _dispatch(self, pending: PendingStep) -> None:
        command = pending.command
        options = command.options
        attempt = Attempt(
            run_id=self.run_id,
            workflow_name=self.run.workflow_name,
            step_id=command.step_id,
            step_name=command.step_name,
            attempt=pending.attempt,
            args=await self._resolve(command.args),
            kwargs=await self._resolve(command.kwargs),
            timeout=None if options.timeout is None else options.timeout.total_seconds(),
            payload_limit=self._host.engine.payload_limit,
            payload_codec=self._host.engine.payload_codec,
            worker_ttl=self._host.engine.worker_ttl.total_seconds(),
        )
        self._retries.pop(command.step_id, None)
        self._tickets[command.step_id] = self._host.dispatcher.dispatch(
            attempt,
            command.function,
            options,
            lambda outcome: self._arrive(attempt.step_id, attempt.attempt, outcome),
        )

    async def _resolve(self, value: Raw) -> bytes:
        data = bytes(value)
        if values.blob_reference(data) is None:
            return data
        return await asyncio.to_thread(self._host.payloads.resolve, data)

    def _arrive(self, step_id: str, attempt: int, outcome: AttemptOutcome) -> None:
        self._tickets.pop(step_id, None)
        self._arrived.append((step_id, attempt, outcome))
        self._wake.set()

    def _cancel(self, step_id: str) -> None:
        self._retries.pop(step_id, None)
        ticket = self._tickets.pop(step_id, None)
        if ticket is not None:
            ticket.cancel()
            asyncio.get_running_loop().call_later(KILL_GRACE, ticket.cancel, True)

    # --- waiting ----------------------------------------------------------------------------------

    async def _rest(self) -> bool:
        """Wait until something has come or is due; False when the run was suspended instead."""
        clock = self._host.clock
        if self._arrived:
            return True
        due_at = self._due_at()
        now = clock.now()
        if due_at is not None and due_at <= now:
            await self._retry_due(now)
            return True
        linger = self._host.engine.suspend_after
        may_leave = not self._tickets and self.run.durable
        if may_leave and linger is not None and (due_at is None or due_at - now > linger):
            if await clock.wait(self._wake, now + linger):
                return True
            await self._suspend(due_at)
            return False
        await clock.wait(self._wake, due_at)
        await self._retry_due(clock.now())
        return True

    def _due_at(self) -> datetime | None:
        timer = self._running().next_timer()
        dues = list(self._retries.values())
        if timer is not None:
            dues.append(timer[0])
        return min(dues, default=None)

    async def _retry_due(self, now: datetime) -> None:
        for step_id in [step_id for step_id, due_at in self._retries.items() if due_at <= now]:
            del self._retries[step_id]
            pending = self._running().steps.get(step_id)
            if pending is not None:
                await self._dispatch(pending)

    async def _suspend(self, due_at: datetime | None) -> None:
        """Let go of the run until something wakes it."""
        changes = {"status": RunStatus.SUSPENDED, "wake_at": due_at}
        is_unread = await self._append(_Activation(changes=changes), release=True)
        self._end = RunEnd(self.run_id, RunStatus.SUSPENDED.value)
        # Something came from outside in the meantime: have the timer look at once.
        self._host.on_suspended(self.run_id, self._host.clock.now() if is_unread else due_at)

    async def _interrupt(self, error: WorkflowError) -> RunEnd:
        """Set the run aside: its code cannot go on over its history here. `resume` tries again."""
        logger.error("Run {} is interrupted: {}", self.run_id, error)
        failure = capture(error)
        changes = {
            "status": RunStatus.INTERRUPTED,
            "error": failure.error,
            "error_type": failure.error_type,
            "wake_at": None,
        }
        try:
            await self._append(_Activation(changes=changes), release=True)
        except FencedError:
            return RunEnd(self.run_id, "lost")
        return RunEnd(self.run_id, RunStatus.INTERRUPTED.value, failure=failure)

    def _drop(self) -> None:
        for ticket in self._tickets.values():
            ticket.cancel()
        self._tickets.clear()
        if self._execution is not None:
            self._execution.drop()
            self._execution = None

    def _running(self) -> Execution:
        assert self._execution is not None, "the run is not open"
        return self._execution

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        """Run workflow code on an engine thread."""
        future: Future[Any] = self._host.threads.submit(self._noted, work)
        return await asyncio.wrap_future(future)

    def _noted(self, work: Callable[[], _T]) -> _T:
        """Run workflow code, and note that it runs, for the watchdog."""
        self.feeding = (time.monotonic(), threading.get_ident())
        try:
            return work()
        finally:
            self.feeding = None


def _answer(
    future: asyncio.Future[_Activation], activation: _Activation | None, error: BaseException | None
) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    elif activation is not None:
        future.set_result(activation)


def _decoded(run_id: str, rows: list[EventRow]) -> list[Recorded]:
    try:
        return decode_history(rows)
    except ValueError as error:
        raise SerializationError(f"The history of run {run_id!r} cannot be read: {error}") from error


def _end_of(run_id: str, events: list[Event]) -> RunEnd | None:
    match events[-1] if events else None:
        case WorkflowCompleted(result=result):
            return RunEnd(run_id, RunStatus.COMPLETED.value, bytes(result))
        case WorkflowFailed() as failed:
            return RunEnd(run_id, RunStatus.FAILED.value, failure=failed.failure)
        case _:
            return None
