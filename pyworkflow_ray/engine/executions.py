"""One run's code, driven over its history.

Theory of operation. An `Execution` is fed outcomes, one at a time and in the order of the history.
Feeding one resolves what it answers, runs the workflow's code until all of it waits, and returns the
commands that came out. In a replay the same happens, but each command is held against the event that
was recorded at that place: the recorded one counts (its timer's due time, its side effect's value), and
a command of another kind or name is a `NonDeterminismError`. So live and replay are the same code, and
an execution after a replay is in the state in which the crash left it.

No I/O, no clock, no threads: whoever owns an execution calls it from one thread at a time.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context, ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, Protocol, TypeVar

from loguru import logger
from msgspec import Raw

from pyworkflow_ray.engine.attempts import AttemptFailed, AttemptOutcome
from pyworkflow_ray.engine.commands import (
    ApplyPatch,
    CancelStep,
    Command,
    CompleteRun,
    FailRun,
    RecordSideEffect,
    ScheduleStep,
    SetAttributes,
    StartTimer,
)
from pyworkflow_ray.engine.divergences import divergence
from pyworkflow_ray.engine.drops import drop_suspended
from pyworkflow_ray.engine.events import (
    NONE,
    OUTCOMES,
    AttributesSet,
    Event,
    PatchApplied,
    Recorded,
    SideEffectRecorded,
    StepCancelled,
    StepCompleted,
    StepFailed,
    StepRetrying,
    StepScheduled,
    TimerFired,
    TimerStarted,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowInterrupted,
    WorkflowStarted,
    failure_fields,
)
from pyworkflow_ray.engine.loop import LoopTimer, RunLoop, RunTask
from pyworkflow_ray.engine.options import StepOptions
from pyworkflow_ray.engine.retries import WORKER_LOSS, Attempts, next_attempt_at
from pyworkflow_ray.exceptions import NonDeterminismError, StepFailedError
from pyworkflow_ray.failures import Failure, capture, restore
from pyworkflow_ray.ids import Ordinals

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Event)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

current: ContextVar[Execution | None] = ContextVar("pyworkflow_ray_execution", default=None)
"""The execution whose code is running; None in steps and outside of runs."""


class Codec(Protocol):
    """How values get into the history and out of it."""

    def encode(self, value: Any, what: str) -> bytes:
        """The value as JSON text; `what` names it in errors."""
        ...

    def decode(self, data: Raw) -> Any:
        """The value that the text holds."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds within which a run's steps are tried again.

    Args:
        default_retries: `max_retries` of steps that say nothing.
        max_losses: Workers that may die under one step before it fails; 0 fails it at the first.
    """

    default_retries: int = 3
    max_losses: int = 3


@dataclass(slots=True)
class PendingStep:
    """A step that was scheduled and has no outcome yet."""

    command: ScheduleStep
    future: asyncio.Future[StepCompleted | StepFailed]
    scheduled_at: datetime
    attempt: int = 1
    failures: int = 0
    losses: int = 0
    retry_at: datetime | None = None


class _Halt(BaseException):
    """Unwinds the workflow's code after a divergence; nothing of it runs any more."""


class Execution:
    """A run's code and where it stands.

    Args:
        run_id: Also the seed of the run's random source.
        function: The workflow's function.
        codec: Turns values into text and back.
        limits: Bounds on retries.
    """

    def __init__(
        self, run_id: str, function: Callable[..., Awaitable[Any]], codec: Codec, limits: Limits | None = None
    ) -> None:
        self.run_id = run_id
        self.workflow_name = ""
        self.is_durable = True
        self.is_replaying = False
        self.is_finished = False
        self.steps: dict[str, PendingStep] = {}
        self.attributes: dict[str, Any] = {}
        self.random = random.Random(f"pyworkflow-ray:{run_id}")
        self._function = function
        self._codec = codec
        self._limits = limits or Limits()
        self._loop = RunLoop(self)  # type: ignore[abstract]  # what it lacks, it refuses
        self._loop.on_callback_error = self._report_callback
        self._now = _EPOCH
        self._ordinals = Ordinals()
        self._step_ids: set[str] = set()
        self._timers: dict[str, LoopTimer | asyncio.Future[None]] = {}
        self._due: list[tuple[datetime, int, str]] = []
        self._timer_count = 0
        self._history: Sequence[Recorded] = ()
        self._cursor = 0
        self._commands: list[Command] = []
        self._divergence: NonDeterminismError | None = None
        self._main: RunTask[Any] | None = None

    # --- feeding ----------------------------------------------------------------------------------

    def replay(self, history: Sequence[Recorded]) -> list[Command]:
        """Bring a fresh execution to where its history ends.

        Returns:
            Commands beyond the history: none when it holds whole activations, as every commit does.

        Raises:
            NonDeterminismError: The code does not ask for what the history records.
        """
        self._history, self._cursor = history, 0
        try:
            while self._cursor < len(history):
                recorded = history[self._cursor]
                if not isinstance(recorded.event, OUTCOMES):
                    raise divergence(self.run_id, recorded, None)
                self._cursor += 1
                self.is_replaying = True
                self._apply(recorded.event, recorded.timestamp)
        finally:
            self.is_replaying = False
            self._history, self._cursor = (), 0
        return self._take_commands()

    def feed(self, event: Event, at: datetime) -> list[Command]:
        """Apply one outcome that is not recorded yet, and return the commands that it provoked.

        Raises:
            NonDeterminismError: The outcome answers nothing that the code has asked for.
        """
        self._apply(event, at)
        return self._take_commands()

    def _take_commands(self) -> list[Command]:
        commands, self._commands = self._commands, []
        return commands

    def _apply(self, event: Event, at: datetime) -> None:
        if self.is_finished:
            raise NonDeterminismError(f"Run {self.run_id!r} has ended, yet its history goes on with {event!r}.")
        self._now = max(at, self._now)
        self._loop.set_time((self._now - _EPOCH) / timedelta(seconds=1))
        match event:
            case WorkflowStarted():
                self._start(event)
            case StepCompleted() | StepFailed():
                self._pending(event).future.set_result(event)
                del self.steps[event.step_id]
            case StepRetrying():
                self._retry(event)
            case TimerFired():
                self._fire(event)
            case WorkflowInterrupted():
                self._lose_attempts()
            case _:
                raise NonDeterminismError(f"Run {self.run_id!r}: {event!r} is not an outcome.")
        self._loop.run_until_idle()
        if self._divergence is None and self._main is not None and self._main.done():
            self._finish(self._main)
        if self._divergence is not None:
            raise self._divergence

    def _start(self, event: WorkflowStarted) -> None:
        self.workflow_name = event.workflow_name
        context = Context()
        context.run(current.set, self)
        self._main = self._loop.create_task(self._call(event), name=self.run_id, context=context)

    async def _call(self, event: WorkflowStarted) -> Any:
        args = self._codec.decode(event.args)
        kwargs = self._codec.decode(event.kwargs)
        return await self._function(*args, **kwargs)

    def _pending(self, event: StepCompleted | StepFailed | StepRetrying) -> PendingStep:
        pending = self.steps.get(event.step_id)
        if pending is None:
            raise NonDeterminismError(
                f"Run {self.run_id!r}: its history tells an outcome of step {event.step_id!r}, "
                "which the code has not called, or waits for no more."
            )
        return pending

    def _retry(self, event: StepRetrying) -> None:
        pending = self._pending(event)
        pending.attempt, pending.retry_at = event.attempt, event.retry_at
        if event.cause in WORKER_LOSS:
            pending.losses += 1
        else:
            pending.failures += 1

    def _fire(self, event: TimerFired) -> None:
        waiting = self._timers.pop(event.sleep_id, None)
        match waiting:
            case None:
                raise NonDeterminismError(
                    f"Run {self.run_id!r}: its history says that timer {event.sleep_id!r} fired, "
                    "which the code has not started, or waits for no more."
                )
            case LoopTimer():
                self._loop.fire(waiting)
            case _:
                waiting.set_result(None)

    def _lose_attempts(self) -> None:
        for pending in self.steps.values():
            if pending.retry_at is None or pending.retry_at <= self._now:
                pending.attempt += 1
                pending.retry_at = None

    def _finish(self, main: RunTask[Any]) -> None:
        for pending in list(self.steps.values()):
            self._cancel_step(pending, "the workflow ended")
        self._timers.clear()
        try:
            if main.cancelled():
                raise asyncio.CancelledError("The workflow's function was cancelled from within.")
            result = main.result()
            if self._recorded(WorkflowCompleted, "") is None:
                self._commands.append(CompleteRun(Raw(self._codec.encode(result, "the workflow's result"))))
        except _Halt:
            return
        except BaseException as error:
            self._fail(error)
        self.is_finished = self._divergence is None

    def _fail(self, error: BaseException) -> None:
        try:
            if self._recorded(WorkflowFailed, "") is None:
                self._commands.append(FailRun(capture(error)))
        except _Halt:
            pass

    def _report_callback(self, context: dict[str, Any]) -> None:
        if not self.is_replaying:
            error = context.get("exception")
            logger.bind(run_id=self.run_id).opt(exception=error).warning(
                "In workflow code of run {}: {}", self.run_id, context.get("message", "")
            )

    def drop(self) -> None:
        """Let go of the run's code where it stands; nothing of it runs any more, not even `finally`."""
        self._loop.close()
        tasks = list(self._loop.tasks)
        drop_suspended([*(task.get_coro() for task in tasks), *self._loop.async_generators])
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._loop.tasks.clear()
        self.steps.clear()
        self._timers.clear()
        self._main = None

    # --- recorded or new -----------------------------------------------------------------------

    def _recorded(self, kind: type[_E], key: str) -> _E | None:
        """The event recorded for the decision that the code makes now; None when it is a new one."""
        if self._divergence is not None:
            raise _Halt
        if self._cursor >= len(self._history):
            return None
        recorded = self._history[self._cursor]
        event = recorded.event
        if type(event) is kind and _key_of(event) == key:
            self._cursor += 1
            return event
        self._divergence = divergence(self.run_id, recorded, (kind, key))
        self._loop.stop()
        raise _Halt

    @property
    def _is_beyond_history(self) -> bool:
        return self._cursor >= len(self._history)

    # --- steps --------------------------------------------------------------------------------------

    async def call_step(
        self, function: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: StepOptions
    ) -> Any:
        """Schedule a step and wait for its result; raises what the step gave up with."""
        step_id = options.step_id or self._ordinals.next(name)
        if step_id in self._step_ids:
            raise ValueError(f"Step id {step_id!r} is used twice in run {self.run_id!r}: ids are unique in a run.")
        self._step_ids.add(step_id)
        pending = self._schedule(function, step_id, name, args, kwargs, options)
        try:
            event = await pending.future
        except asyncio.CancelledError:
            if step_id in self.steps:
                self._cancel_step(pending, "the workflow waits for it no more")
            raise
        if isinstance(event, StepCompleted):
            return self._codec.decode(event.result)
        raise _step_error(event)

    def _schedule(
        self,
        function: Any,
        step_id: str,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: StepOptions,
    ) -> PendingStep:
        what = f"step {step_id!r}"
        recorded = self._peek(StepScheduled, step_id)
        if recorded is None:
            raw_args = Raw(self._codec.encode(list(args), f"the arguments of {what}"))
            raw_kwargs = Raw(self._codec.encode(dict(kwargs), f"the keyword arguments of {what}"))
            self._recorded(StepScheduled, step_id)  # a divergence, if anything else is recorded here
            command = ScheduleStep(step_id, name, function, raw_args, raw_kwargs, options)
            self._commands.append(command)
        else:
            self._cursor += 1
            command = ScheduleStep(step_id, name, function, recorded.args, recorded.kwargs, options)
        pending = PendingStep(command, self._loop.create_future(), self._now)
        self.steps[step_id] = pending
        return pending

    def _peek(self, kind: type[_E], key: str) -> _E | None:
        if self._divergence is None and self._cursor < len(self._history):
            event = self._history[self._cursor].event
            if type(event) is kind and _key_of(event) == key:
                return event
        return None

    def _cancel_step(self, pending: PendingStep, reason: str) -> None:
        command = pending.command
        del self.steps[command.step_id]
        try:
            if self._recorded(StepCancelled, command.step_id) is None:
                self._commands.append(CancelStep(command.step_id, command.step_name, reason))
        except _Halt:
            pass

    def conclude(self, step_id: str, attempt: int, outcome: AttemptOutcome, now: datetime) -> Event | None:
        """The event that an attempt's outcome makes: completed, retrying or failed.

        Returns:
            None when the run no longer waits for this attempt: the outcome is not recorded.
        """
        pending = self.steps.get(step_id)
        if pending is None or pending.attempt != attempt:
            return None
        name = pending.command.step_name
        if not isinstance(outcome, AttemptFailed):
            return StepCompleted(
                step_id=step_id,
                step_name=name,
                result=Raw(outcome.result),
                attempt=attempt,
                started_at=outcome.started_at,
                node=outcome.node,
                worker_pid=outcome.worker_pid,
            )
        retry_at = self._retry_at(pending, outcome, now)
        if retry_at is None:
            return StepFailed(
                step_id=step_id,
                step_name=name,
                attempt=attempt,
                cause=outcome.cause,
                started_at=outcome.started_at,
                node=outcome.node,
                worker_pid=outcome.worker_pid,
                **failure_fields(outcome.failure),
            )
        return StepRetrying(
            step_id=step_id,
            step_name=name,
            attempt=attempt + 1,
            retry_at=retry_at,
            error=outcome.failure.error,
            error_type=outcome.failure.error_type,
            traceback=outcome.failure.traceback,
            cause=outcome.cause,
            node=outcome.node,
            worker_pid=outcome.worker_pid,
        )

    def _retry_at(self, pending: PendingStep, outcome: AttemptFailed, now: datetime) -> datetime | None:
        options = pending.command.options
        retries = options.max_retries
        return next_attempt_at(
            outcome.failure,
            outcome.cause,
            Attempts(pending.scheduled_at, pending.failures, pending.losses),
            now=now,
            max_retries=self._limits.default_retries if retries is None else retries,
            pauses=options.pauses,
            may_retry=lambda: _may_retry(options, outcome.failure),
            max_losses=self._limits.max_losses if options.idempotent else 0,
            source=random.Random(f"{self.run_id}:{pending.command.step_id}:{pending.attempt}"),
        )

    # --- timers -------------------------------------------------------------------------------------

    async def sleep_until(self, resume_at: datetime, name: str = "") -> None:
        """Wait for an instant; the past returns at once and leaves no event."""
        if resume_at <= self._now:
            return
        sleep_id = self._ordinals.next(name or "sleep")
        future: asyncio.Future[None] = self._loop.create_future()
        self._start_timer(sleep_id, resume_at, name, future)
        try:
            await future
        finally:
            self._timers.pop(sleep_id, None)

    def start_loop_timer(self, handle: LoopTimer) -> None:
        handle.timer_id = self._ordinals.next("sleep")
        try:
            resume_at = _EPOCH + timedelta(seconds=handle.when())
        except (OverflowError, ValueError):
            raise ValueError("A timer in a workflow must be due before the year 10000.") from None
        self._start_timer(handle.timer_id, resume_at, "", handle)

    def cancel_loop_timer(self, handle: LoopTimer) -> None:
        self._timers.pop(handle.timer_id, None)

    def _start_timer(
        self, sleep_id: str, resume_at: datetime, name: str, waiting: LoopTimer | asyncio.Future[None]
    ) -> None:
        recorded = self._recorded(TimerStarted, sleep_id)
        if recorded is None:
            self._commands.append(StartTimer(sleep_id, resume_at, name))
        else:
            resume_at = recorded.resume_at
        self._timers[sleep_id] = waiting
        self._timer_count += 1
        heapq.heappush(self._due, (resume_at, self._timer_count, sleep_id))

    def next_timer(self) -> tuple[datetime, str] | None:
        """The timer that is due first, with its instant; timers due together fire in their order."""
        while self._due and self._due[0][2] not in self._timers:
            heapq.heappop(self._due)
        return (self._due[0][0], self._due[0][2]) if self._due else None

    # --- replay-equal values --------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The time of the last event applied: the same in every replay."""
        return self._now

    def uuid4(self) -> uuid.UUID:
        """A UUID from the run's own random source."""
        return uuid.UUID(int=self.random.getrandbits(128), version=4)

    def side_effect(self, function: Callable[[], _T], name: str = "side_effect") -> _T:
        """What the function returned, or raised, when the code first came here.

        The function must be quick and return a small value.
        """
        effect = self._ordinals.next(name)
        recorded = self._recorded(SideEffectRecorded, effect)
        if recorded is not None:
            if recorded.failure is not None:
                raise restore(recorded.failure, fallback=StepFailedError)
            value: _T = self._codec.decode(recorded.value)
            return value
        try:
            value = function()
            encoded = self._codec.encode(value, f"side effect {effect!r}")
        except Exception as error:
            self._commands.append(RecordSideEffect(effect, NONE, capture(error)))
            raise
        self._commands.append(RecordSideEffect(effect, Raw(encoded)))
        return value

    def patched(self, patch_id: str) -> bool:
        """Whether this place of the history has the change: True in new code's runs, False in old ones'."""
        if self._is_beyond_history:
            self._commands.append(ApplyPatch(patch_id))
            return True
        if self._peek(PatchApplied, patch_id) is None:
            return False
        self._cursor += 1
        return True

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Merge attributes into the run's; they are shown and can be searched for."""
        raw = Raw(self._codec.encode(dict(attributes), "the run's attributes"))
        recorded = self._recorded(AttributesSet, "")
        if recorded is None:
            self._commands.append(SetAttributes(raw))
        self.attributes.update(attributes)


def _key_of(event: Event) -> str:
    match event:
        case StepScheduled(step_id=key) | StepCancelled(step_id=key):
            return key
        case TimerStarted(sleep_id=key):
            return key
        case SideEffectRecorded(name=key):
            return key
        case PatchApplied(patch_id=key):
            return key
        case _:
            return ""


def _may_retry(options: StepOptions, failure: Failure) -> bool:
    retry_on = options.retry_on
    if retry_on is None:
        return True
    error = restore(failure, fallback=StepFailedError)
    if isinstance(retry_on, tuple):
        return isinstance(error, retry_on)
    try:
        return bool(retry_on(error))
    except Exception as predicate_error:
        logger.opt(exception=predicate_error).warning("retry_on raised; the step is not tried again")
        return False


def _step_error(event: StepFailed) -> BaseException:
    error = restore(event.failure, fallback=StepFailedError)
    attempts = "1 attempt" if event.attempt == 1 else f"{event.attempt} attempts"
    where = f", last on node {event.node} (pid {event.worker_pid})" if event.node else ""
    error.add_note(f"Step {event.step_id!r} gave up after {attempts}{where}; cause: {event.cause}.")
    return error

