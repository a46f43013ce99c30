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
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime
from typing import Any, TypeVar

from loguru import logger
from msgspec import Raw

from pyworkflow_ray.actors.activations import (
    Activation,
    Incoming,
    RunEnd,
    blob_links,
    end_of,
)
from pyworkflow_ray.actors.attempts import Attempts
from pyworkflow_ray.actors.hook_rows import expire_hooks, make_hooks, refusal
from pyworkflow_ray.actors.inboxes import decoded_history, decoded_inbox, requests_to_children
from pyworkflow_ray.actors.queries import answer
from pyworkflow_ray.actors.services import Services, execution_of, load_definition
from pyworkflow_ray.engine.attempts import AttemptOutcome
from pyworkflow_ray.engine.commands import CancelStep, Command, ScheduleStep
from pyworkflow_ray.engine.events import (
    CancellationRequested,
    Event,
    HookExpired,
    StepRetrying,
    WorkflowCancelled,
    WorkflowFailed,
    WorkflowInterrupted,
    WorkflowStarted,
    failure_fields,
)
from pyworkflow_ray.engine.executions import Execution
from pyworkflow_ray.exceptions import (
    EventLimitExceededError,
    SerializationError,
    StorageError,
    WorkerDiedError,
    WorkflowError,
)
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.histories import Append, FencedError, read_events
from pyworkflow_ray.storage.inboxes import InboxRow, unread
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.values import codec
from pyworkflow_ray.values.failures import capture

_T = TypeVar("_T")


class Drive:
    """One run in a coordinator's memory, from claim to end, suspension or loss.

    Args:
        services: What the coordinator lends.
        run: The run's row, as it was claimed.
    """

    def __init__(self, services: Services, run: RunRecord) -> None:
        self.run = run
        self.run_id = run.run_id
        self.began_at = time.monotonic()
        self.feeding: tuple[float, int] | None = None
        """Since when, and in which thread, the workflow's code is running; None while it waits."""
        self._services = services
        self._position = run.position
        self._execution: Execution | None = None
        self._one_at_a_time = threading.Lock()
        self._wake = asyncio.Event()
        self._outcomes: list[Event] = []
        self._expired: set[str] = set()
        self._warn_at = 0
        # A run that is still held as it was born was sent nothing yet, or whoever sent it something tells.
        self._has_unread = run.epoch != 1 or run.owner != run.coordinator or run.position > 0
        self._is_open = False
        self.opened = asyncio.Event()
        """Set once the run can be asked, or will not be for a while."""
        self.is_cancelled = False
        """Whether the run was asked to cancel."""
        self._attempts = Attempts(services, run, self._wake.set)
        self._recovery_attempts = run.recovery_attempts
        self._end: RunEnd | None = None

    @property
    def in_flight(self) -> int:
        """How many step attempts are under way, or have ended and are not fed yet."""
        return self._attempts.under_way + self._attempts.arrived + self._has_unread

    @property
    def is_suspended(self) -> bool:
        """Whether the drive has ended because the run had nothing to do."""
        return self._end is not None and self._end.status == RunStatus.SUSPENDED.value

    @property
    def has_unread(self) -> bool:
        """Whether something lies in the run's inbox, as far as this drive was told."""
        return self._has_unread

    @property
    def execution(self) -> Execution | None:
        """The run's code, to ask it something; feeding it is the drive's alone."""
        return self._execution if self._is_open else None

    def notice(self) -> None:
        """Something lies in the run's inbox."""
        self._has_unread = True
        self._wake.set()

    async def drive(self) -> RunEnd:
        """Drive the run until it ends, is suspended, or is lost to another coordinator."""
        try:
            try:
                await self._open()
                self._is_open = True
                self.opened.set()
                while self._end is None:
                    if await self._rest():
                        await self._turn([])
                return self._end
            except StorageError:
                raise  # the run is as good as its history; it goes on when the database does
            except WorkflowError as error:
                return await self._interrupt(error)
        except FencedError:
            logger.info("Run {} is driven elsewhere now; dropped here", self.run_id)
            return RunEnd(self.run_id, "lost")
        finally:
            self.opened.set()
            self._drop()

    # --- opening ------------------------------------------------------------------------------

    async def _open(self) -> None:
        """Load the code, replay the history, and go on from there."""
        definition = await self._in_thread(lambda: load_definition(self._services, self.run))
        execution = execution_of(self._services, self.run, definition)
        if self.run.attributes is not None:
            execution.attributes.update(codec.decode(self.run.attributes))  # what it was started with
        self._execution = execution
        if self._position == 0 and (self.run.durable or self.run.started_at is None):
            await self._start()
            return
        history = await asyncio.to_thread(
            self._services.storage.read, lambda connection: read_events(connection, self.run_id)
        )
        commands = await self._in_thread(lambda: execution.replay(decoded_history(self.run_id, history)))
        if commands:
            # Not acted on yet: an interruption gives all attempts new numbers, and all are dispatched below.
            await self._commit(self._record(Activation(), commands))
        if self._end is None and self.run.was_interrupted:
            await self._recover()
        self.is_cancelled = execution.cancellation.is_requested
        if self._end is None:
            for pending in list(execution.steps.values()):
                await self._attempts.resume(pending)
            await self._resume_hooks()

    def _started(self) -> WorkflowStarted:
        return WorkflowStarted(
            workflow_name=self.run.workflow_name,
            args=Raw(self.run.input_args.encode()),
            kwargs=Raw(self.run.input_kwargs.encode()),
            metadata=Raw((self.run.metadata or "null").encode()),
        )

    async def _start(self) -> None:
        previous = self.run.previous_owner
        if previous is not None and previous != self.run.coordinator and not self._is_early():
            # A process held it and nothing is recorded: perhaps its first lines end the process. A run that
            # is still held by its coordinator's name was born so, and nobody has come for it yet.
            self._recovery_attempts += 1
            changes = {"recovery_attempts": self._recovery_attempts}
            await self._append(Activation(changes=changes), release=False)
            if self._recovery_attempts > self._allowed_recoveries() + 1:
                await self._give_up([self._started()])
                return
        was_sent_more = False
        while True:
            if self._has_unread:
                if await self._is_cancelled_at_once(self._started()):
                    return
                was_sent_more = True
            if not self._is_early():
                break
            self.opened.set()
            await self._services.clock.wait(self._wake, self.run.start_at)
            self._wake.clear()
        self._has_unread = self._has_unread or was_sent_more
        await self._turn([self._started()])

    def _is_early(self) -> bool:
        """Whether the run is to start later."""
        return self.run.start_at is not None and self.run.start_at > self._services.clock.now()

    async def _is_cancelled_at_once(self, *started: WorkflowStarted) -> bool:
        """Whether a run that has run no code, or can run none, was asked to cancel; it ends here then."""
        _, unread = decoded_inbox(self.run_id, await self._read_inbox())
        request = next((event for event in unread if isinstance(event, CancellationRequested)), None)
        if request is None:
            return False
        activation = Activation()
        if not started:
            activation.outgoing = await requests_to_children(self._services, self.run_id)
        for event in (*started, request, WorkflowCancelled(reason=request.reason)):
            self._record_event(activation, event, self._services.clock.now())
        await self._commit(activation)
        return True

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
                worker_id=self._services.owner,
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
        await self._fail(events, error)

    async def _fail(self, events: list[Event], error: WorkflowError) -> None:
        """End the run without asking its code."""
        activation = Activation()
        if self._execution is not None:
            self._execution.children.close()
            activation.commands = self._execution.take_commands()
        for event in (*events, WorkflowFailed(**failure_fields(capture(error)))):
            self._record_event(activation, event, self._services.clock.now())
        await self._commit(activation)

    async def _resume_hooks(self) -> None:
        """Make the rows of pending hooks that are not there: those of a fork are not."""
        commands = [pending.command for pending in self._running().hooks.pending.values()]
        if commands:
            self._refuse_hooks(await make_hooks(self._services, self.run_id, commands))

    def _refuse_hooks(self, conflicts: dict[str, str]) -> None:
        for hook_id, holder in conflicts.items():
            self._outcomes.append(refusal(hook_id, holder))
            self._wake.set()

    # --- turning ------------------------------------------------------------------------------

    async def _turn(self, outcomes: list[Event]) -> None:
        """Feed what has come, commit it, act on it."""
        self._wake.clear()
        if not outcomes:
            if await self._is_at_limit():
                return
            await self._expire_hooks()
        unread = await self._read_inbox() if self._has_unread and not outcomes else []
        arrived = self._attempts.take_arrived()
        own, self._outcomes = ([], self._outcomes) if outcomes else (self._outcomes, [])
        incoming = Incoming(outcomes, own, arrived, unread)
        loop = asyncio.get_running_loop()
        committed: asyncio.Future[Activation] = loop.create_future()
        self._services.threads.submit(self._feed_and_post, incoming, committed, loop)
        activation = await committed
        self._position += activation.appended
        self._end = end_of(self.run_id, activation.events)
        await self._act(activation)

    def _feed_and_post(
        self, incoming: Incoming, committed: asyncio.Future[Activation], loop: asyncio.AbstractEventLoop
    ) -> None:
        """On an engine thread: feed, and hand the append straight to the writer, who answers the loop."""
        try:
            activation = self._noted(lambda: self._feed(incoming))
            activation.prepare(self.run, self._services.settings, self._services.pack)
            new = self._append_of(activation, release=end_of(self.run_id, activation.events) is not None)
        except BaseException as error:
            loop.call_soon_threadsafe(_answer, committed, None, error)
            return
        if new is None:
            loop.call_soon_threadsafe(_answer, committed, activation, None)
            return
        activation.appended = len(new.events)

        def write(connection: Any) -> Activation:
            activation.write(connection, new)
            return activation

        try:
            self._services.storage.writer.write_here(write, committed, loop)
        except StorageError as error:  # it was closed
            loop.call_soon_threadsafe(_answer, committed, None, error)

    def _feed(self, incoming: Incoming) -> Activation:
        """Feed outcomes, one at a time; runs on an engine thread."""
        execution = self._running()
        now = self._services.clock.now()
        activation = Activation()
        for outcome in incoming.alone:
            self._feed_one(activation, outcome, now)
        if incoming.alone:
            # A start or an interruption is committed by itself: were it fed with what is due, code that
            # ends its process would never leave a trace of having been recovered.
            return activation
        for step_id, attempt, attempt_outcome in incoming.arrived:
            if execution.is_finished:
                break
            concluded = execution.conclude(step_id, attempt, attempt_outcome, now)
            if concluded is not None:
                self._feed_one(activation, concluded, now)
        read, unread = decoded_inbox(self.run_id, incoming.unread)
        for row, outcome in (*((None, each) for each in incoming.outcomes), *zip(read, unread, strict=True)):
            if execution.is_finished:
                break  # what it has not come to stays unread, for the run that continues this one
            activation.read_inbox.extend([] if row is None else [row])
            if isinstance(outcome, CancellationRequested) and execution.cancellation.is_requested:
                continue
            self._feed_one(activation, outcome, now)
            activation.blobs.extend(blob_links(outcome))
        while not execution.is_finished and (timer := execution.next_timer()) is not None and timer[0] <= now:
            event = execution.due_event(timer[1])
            if isinstance(event, HookExpired) and event.hook_id not in self._expired:
                self._wake.set()  # it has become due this moment; the next turn asks first
                break
            self._feed_one(activation, event, now)
        self.is_cancelled = execution.cancellation.is_requested
        if incoming.arrived and activation.events and self._recovery_attempts:
            self._recovery_attempts = 0  # it got further
            activation.changes["recovery_attempts"] = 0
        return activation

    # --- the inbox --------------------------------------------------------------------------------

    async def _read_inbox(self) -> list[InboxRow]:
        while True:
            self._has_unread = False
            try:
                return await asyncio.to_thread(self._services.storage.read, lambda c: unread(c, self.run_id))
            except StorageError as error:
                # As for a commit: what runs is not given up because the database is away.
                logger.warning("The inbox of run {} cannot be read now: {}", self.run_id, error)
            await asyncio.sleep(1.0)

    async def _expire_hooks(self) -> None:
        """Ask the rows of hooks whose time is over: a payload that was accepted in time comes first."""
        execution, now = self._running(), self._services.clock.now()
        due = [
            pending.command.hook_id
            for pending in execution.hooks.pending.values()
            if pending.command.expires_at is not None and pending.command.expires_at <= now
        ]
        if not due:
            return

        if not await expire_hooks(self._services, self.run_id, due):
            self._has_unread = True
        self._expired.update(due)

    async def _is_at_limit(self) -> bool:
        """Whether the history has become too long; the run ends here then."""
        settings = self._services.settings
        if self._position < min(settings.event_soft_limit, settings.event_hard_limit):
            return False
        if self._warn_at <= self._position < settings.event_hard_limit:
            self._warn_at = self._position + settings.event_warning_interval
            logger.warning(
                "Run {} has {} events; it fails at {} (event_hard_limit). Use continue_as_new() or children.",
                *(self.run_id, self._position, settings.event_hard_limit),
            )
        if self._position < settings.event_hard_limit:
            return False
        await self._fail([], EventLimitExceededError(self.run_id, self._position, settings.event_hard_limit))
        return True

    def _feed_one(self, activation: Activation, event: Event, now: datetime) -> None:
        execution = self._running()
        commands = execution.feed(event, now)
        self._record_event(activation, event, execution.now)
        self._record(activation, commands)

    def _record(self, activation: Activation, commands: list[Command]) -> Activation:
        execution = self._running()
        for command in commands:
            event = command.to_event()
            if event is not None:
                self._record_event(activation, event, execution.now)
        activation.commands.extend(commands)
        return activation

    def _record_event(self, activation: Activation, event: Event, at: datetime) -> None:
        attributes = {} if self._execution is None else self._execution.attributes
        activation.record(event, at, self._services.payloads, attributes)

    async def _commit(self, activation: Activation) -> None:
        end = end_of(self.run_id, activation.events)
        activation.prepare(self.run, self._services.settings, self._services.pack)
        await self._append(activation, release=end is not None)
        self._end = end
        self._hand_over(activation)

    def _append_of(self, activation: Activation, *, release: bool) -> Append | None:
        """What the activation writes; None when that is nothing."""
        durable = self.run.durable
        if not (activation.rows or activation.changes or activation.read_inbox or activation.outgoing):
            return None
        if (
            not durable
            and not release
            and not activation.read_inbox
            and "started_at" not in activation.changes
        ):
            return None
        return Append(
            run_id=self.run_id,
            epoch=self.run.epoch,
            position=self._position,
            events=activation.rows if durable else (),
            changes=activation.changes,
            release=release,
            blobs=activation.blobs,
            read_inbox=activation.read_inbox,
            hooks_disposed=activation.disposed,
            schedule_id=self.run.schedule_id,
        )

    async def _append(self, activation: Activation, *, release: bool) -> bool:
        new = self._append_of(activation, release=release)
        if new is None:
            return False
        is_unread = await self._services.storage.write(lambda connection: activation.write(connection, new))
        self._position += len(new.events)
        return is_unread

    async def _act(self, activation: Activation) -> None:
        """Do what the committed commands ask."""
        execution = self._running()
        self._hand_over(activation)
        for event in activation.events:
            if isinstance(event, StepRetrying) and event.step_id in execution.steps:
                self._attempts.retry_at(event.step_id, event.retry_at)
        for command in activation.commands:
            match command:
                case ScheduleStep(step_id=step_id) if step_id in execution.steps:
                    await self._attempts.dispatch(execution.steps[step_id])
                case CancelStep(step_id=step_id, on_cancel=on_cancel):
                    self._attempts.cancel(step_id, on_cancel)
                case _:
                    pass  # timers are read off the execution; the rest is history

    def _hand_over(self, activation: Activation) -> None:
        """Have other runs go on that the commit has made, or written to."""
        for run in activation.begun:
            self._services.begin(run)
        for run_id in dict.fromkeys(activation.told):
            self._services.deliver(run_id)
        self._refuse_hooks(activation.conflicts)
        if self.run.schedule_id is not None and self._end is not None and self._end.is_final:
            self._services.on_due(
                self._services.clock.now()
            )  # another fire of the schedule may have waited for this

    # --- waiting ----------------------------------------------------------------------------------

    async def _rest(self) -> bool:
        """Wait until something has come or is due; False when the run was suspended instead."""
        clock = self._services.clock
        if self._attempts.arrived or self._outcomes or self._has_unread:
            return True
        due_at = self._due_at()
        now = clock.now()
        if due_at is not None and due_at <= now:
            await self._retry_due(now)
            return True
        linger = self._services.settings.suspend_after
        may_leave = not self._attempts.under_way and self.run.durable and not self._has_child_here()
        if may_leave and linger is not None and (due_at is None or due_at - now > linger):
            if await clock.wait(self._wake, now + linger):
                return True
            await self._suspend(due_at)
            return False
        await clock.wait(self._wake, due_at)
        await self._retry_due(clock.now())
        return True

    def _has_child_here(self) -> bool:
        children = self._running().children.open.values()
        return any(self._services.is_here(child.command.child_run_id) for child in children)

    def _due_at(self) -> datetime | None:
        timer = self._running().next_timer()
        dues = self._attempts.dues()
        if timer is not None:
            dues.append(timer[0])
        return min(dues, default=None)

    async def _retry_due(self, now: datetime) -> None:
        for step_id in self._attempts.take_due(now):
            pending = self._running().steps.get(step_id)
            if pending is not None:
                await self._attempts.dispatch(pending)

    async def _suspend(self, due_at: datetime | None) -> None:
        """Let go of the run until something wakes it."""
        changes = {"status": RunStatus.SUSPENDED, "wake_at": due_at}
        is_unread = await self._append(Activation(changes=changes), release=True)
        self._end = RunEnd(self.run_id, RunStatus.SUSPENDED.value)
        self._has_unread = (
            self._has_unread or is_unread
        )  # it came meanwhile: the coordinator wakes the run again
        if due_at is not None:
            self._services.on_due(due_at)

    async def _interrupt(self, error: WorkflowError) -> RunEnd:
        """Set the run aside: its code cannot go on over its history here. `resume` tries again.

        It can be cancelled all the same; its code does not see it then.
        """
        with contextlib.suppress(SerializationError):  # what it was sent cannot be read, either
            if await self._is_cancelled_at_once() and self._end is not None:
                return self._end
        logger.error("Run {} is interrupted: {}", self.run_id, error)
        failure = capture(error)
        changes = {
            "status": RunStatus.INTERRUPTED,
            "error": failure.error,
            "error_type": failure.error_type,
            "wake_at": None,
        }
        await self._append(Activation(changes=changes), release=True)
        return RunEnd(self.run_id, RunStatus.INTERRUPTED.value, failure=failure)

    def _drop(self) -> None:
        self._attempts.drop()
        if self._execution is not None:
            self._execution.drop()
            self._execution = None

    def _running(self) -> Execution:
        assert self._execution is not None, "the run is not open"
        return self._execution

    async def ask(self, name: str, args: bytes, kwargs: bytes) -> AttemptOutcome:
        """What the run's query function returns or raises."""
        execution = self._running()
        outcome: AttemptOutcome = await self._in_thread(
            lambda: answer(self._services, execution, name, args, kwargs)
        )
        return outcome

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        """Run workflow code on an engine thread."""
        future: Future[Any] = self._services.threads.submit(self._noted, work)
        return await asyncio.wrap_future(future)

    def _noted(self, work: Callable[[], _T]) -> _T:
        """Run workflow code, and note that it runs, for the watchdog."""
        with self._one_at_a_time:
            self.feeding = (time.monotonic(), threading.get_ident())
            try:
                return work()
            finally:
                self.feeding = None


def _answer(
    future: asyncio.Future[Activation], activation: Activation | None, error: BaseException | None
) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    elif activation is not None:
        future.set_result(activation)
