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
import gc
import random
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

from loguru import logger
from msgspec import Raw

from pyworkflow_ray.engine.attempts import AttemptOutcome
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
from pyworkflow_ray.engine.conclusions import Limits, PendingStep, conclude, step_error
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
)
from pyworkflow_ray.engine.loop import EPOCH, LoopTimer, RunLoop, RunTask
from pyworkflow_ray.engine.options import StepOptions
from pyworkflow_ray.engine.timers import Timers, Waiting
from pyworkflow_ray.exceptions import FatalError, NonDeterminismError, StepFailedError
from pyworkflow_ray.failures import capture, restore
from pyworkflow_ray.ids import Ordinals

__all__ = ["Codec", "Execution", "Limits", "PendingStep", "current"]

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Event)
_MANY_EVENTS = 1000

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
        self._loop = RunLoop(self, run_id)  # type: ignore[abstract]  # what it lacks, it refuses
        self._loop.on_callback_error = self._report_callback
        self._now = EPOCH
        self._step_ordinals = Ordinals()
        self._step_ids: set[str] = set()
        self._timer_ordinals = Ordinals()
        self._timers = Timers()
        self._effect_ordinals = Ordinals()
        self._unpatched: set[str] = set()
        self._history: Sequence[Recorded] = ()
        self._cursor = 0
        self._commands: list[Command] = []
        self._divergence: NonDeterminismError | None = None
        self._main: RunTask[Any] | None = None

    # --- feeding ----------------------------------------------------------------------------------

    def replay(self, history: Sequence[Recorded]) -> list[Command]:
        """Bring a fresh execution to where its history ends.

        Returns:
            Commands beyond the history, to be recorded before anything else is fed. There are none when it
            holds whole activations, as every commit does, unless the code now asks for more at its end.

        Raises:
            NonDeterminismError: The code does not ask for what the history records.
        """
        self._history, self._cursor = history, 0
        # Of a history that holds a start alone, none of the code has run before.
        self.is_replaying = len(history) > 1
        try:
            with self._loop.entered(), _collector_paused(len(history)):
                while self._cursor < len(history):
                    recorded = history[self._cursor]
                    if type(recorded.event) not in OUTCOMES:
                        raise self._diverge(recorded, None)
                    self._cursor += 1
                    self._apply(recorded.event, recorded.timestamp)
        except NonDeterminismError:
            self.drop()
            raise
        finally:
            self.is_replaying = False
            self._history, self._cursor = (), 0
        return self._take_commands()

    def feed(self, event: Event, at: datetime) -> list[Command]:
        """Apply one outcome that is not recorded yet, and return the commands that it provoked.

        Raises:
            NonDeterminismError: The outcome answers nothing that the code has asked for.
        """
        try:
            with self._loop.entered():
                self._apply(event, at)
        except NonDeterminismError:
            self.drop()
            raise
        return self._take_commands()

    def _take_commands(self) -> list[Command]:
        commands, self._commands = self._commands, []
        return commands

    def _apply(self, event: Event, at: datetime) -> None:
        if self._divergence is not None:
            raise self._divergence
        if self.is_finished:
            raise NonDeterminismError(
                f"Run {self.run_id!r} has ended, yet its history goes on with {event!r}."
            )
        if at > self._now:
            self._now = at
            self._loop.set_time(at)
        self._resolve(event)
        try:
            self._loop.run_until_idle()
            main = self._main
            if main is not None and main.done() and self._divergence is None:
                self._end(_error_of(main))
        except FatalError as spinning:
            self._end(spinning)
        if self._divergence is not None:
            raise self._divergence

    def _resolve(self, event: Event) -> None:
        match event:
            case StepCompleted() | StepFailed():
                self._pending(event).future.set_result(event)
                del self.steps[event.step_id]
            case TimerFired():
                self._fire(event)
            case StepRetrying():
                self._pending(event).retry(event)
            case WorkflowStarted():
                self._start(event)
            case WorkflowInterrupted():
                for pending in self.steps.values():
                    pending.lose_attempt(self._now)
            case _:
                raise NonDeterminismError(f"Run {self.run_id!r}: {event!r} is not an outcome.")

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

    def _fire(self, event: TimerFired) -> None:
        try:
            waiting = self._timers.fire(event.sleep_id)
        except KeyError:
            raise NonDeterminismError(
                f"Run {self.run_id!r}: its history says that timer {event.sleep_id!r} fired, "
                "which the code has not started."
            ) from None
        match waiting:
            case None:
                pass
            case LoopTimer():
                self._loop.fire(waiting)
            case _:
                waiting.set_result(None)

    def _end(self, error: BaseException | None) -> None:
        """Say how the workflow's function ended: it returned, or raised this error."""
        try:
            for pending in list(self.steps.values()):
                self._cancel_step(pending, "the workflow ended")
            if error is None:
                error = self._complete()
            if error is not None and self._recorded(WorkflowFailed) is None:
                self._commands.append(FailRun(capture(error)))
        except _Halt:
            return
        self.is_finished = True
        self.drop()

    def _complete(self) -> Exception | None:
        """Complete the run with its function's result, or return why that cannot be stored."""
        if self._peek(WorkflowCompleted) is not None:
            self._cursor += 1
            return None
        assert self._main is not None
        try:
            result = Raw(self._codec.encode(self._main.result(), "the workflow's result"))
        except Exception as error:
            return error
        self._recorded(WorkflowCompleted)  # a divergence, if anything else is recorded here
        self._commands.append(CompleteRun(result))
        return None

    def _report_callback(self, context: dict[str, Any]) -> None:
        if not self.is_replaying:
            error = context.get("exception")
            logger.bind(run_id=self.run_id).opt(exception=error).warning(
                "In workflow code of run {}: {}", self.run_id, context.get("message", "")
            )

    def drop(self) -> None:
        """Let go of the run's code where it stands; nothing of it runs any more, not even `finally`."""
        self._loop.discard()
        tasks = list(self._loop.tasks)
        drop_suspended([*(task.get_coro() for task in tasks), *self._loop.async_generators])
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._loop.tasks.clear()
        self.steps.clear()
        self._timers.clear()
        self._main = None

    # --- recorded or new -----------------------------------------------------------------------

    def _recorded(self, kind: type[_E], key: str = "") -> _E | None:
        """The event recorded for the decision that the code makes now; None when it is a new one."""
        if self._divergence is None:
            if self._cursor >= len(self._history):
                self.is_replaying = False
                return None
            recorded = self._history[self._cursor]
            event = recorded.event
            if type(event) is kind and event.key == key:
                self._cursor += 1
                return event
            self._diverge(recorded, (kind, key))
        raise _Halt

    def _peek(self, kind: type[_E], key: str = "") -> _E | None:
        """The recorded event that comes next, if it is this one."""
        if self._divergence is None and self._cursor < len(self._history):
            event = self._history[self._cursor].event
            if type(event) is kind and event.key == key:
                return event
        return None

    def _diverge(self, recorded: Recorded, asked: tuple[type[Event], str] | None) -> NonDeterminismError:
        self._divergence = divergence(self.run_id, recorded, asked)
        self._loop.halt()
        return self._divergence

    async def _stall(self) -> None:
        # Code that waits here after a divergence stays here. An exception would run its `finally` blocks,
        # and a loop around a bare `except` would try again for ever.
        await asyncio.Future(loop=self._loop)

    # --- steps --------------------------------------------------------------------------------------

    async def call_step(
        self, function: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: StepOptions
    ) -> Any:
        """Schedule a step and wait for its result; raises what the step gave up with."""
        step_id = self._step_id(name, options.step_id)
        try:
            pending = self._schedule(function, step_id, name, args, kwargs, options)
            try:
                event = await pending.future
            except asyncio.CancelledError:
                if step_id in self.steps:
                    self._cancel_step(pending, "the workflow waits for it no more")
                raise
        except _Halt:
            await self._stall()
        if isinstance(event, StepCompleted):
            return self._codec.decode(event.result)
        raise step_error(event)

    def _step_id(self, name: str, given: str | None) -> str:
        step_id = given or self._step_ordinals.next(name)
        while step_id in self._step_ids:
            if given:
                raise ValueError(
                    f"Step id {given!r} is used twice in run {self.run_id!r}: ids are unique in a run."
                )
            step_id = self._step_ordinals.next(name)
        self._step_ids.add(step_id)
        return step_id

    def _schedule(
        self,
        function: Any,
        step_id: str,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: StepOptions,
    ) -> PendingStep:
        recorded = self._peek(StepScheduled, step_id)
        if recorded is None:
            what = f"step {step_id!r}"
            raw_args = Raw(self._codec.encode(list(args), f"the arguments of {what}"))
            raw_kwargs = Raw(self._codec.encode(dict(kwargs), f"the keyword arguments of {what}"))
            self._recorded(StepScheduled, step_id)  # a divergence, if anything else is recorded here
            command = ScheduleStep(step_id, name, function, raw_args, raw_kwargs, options)
            self._commands.append(command)
        else:
            self._cursor += 1
            command = ScheduleStep(step_id, name, function, recorded.args, recorded.kwargs, options)
        pending = PendingStep(command, asyncio.Future(loop=self._loop), self._now)
        self.steps[step_id] = pending
        return pending

    def _cancel_step(self, pending: PendingStep, reason: str) -> None:
        command = pending.command
        del self.steps[command.step_id]
        if self._recorded(StepCancelled, command.step_id) is None:
            self._commands.append(CancelStep(command.step_id, command.step_name, reason))

    def conclude(
        self, step_id: str, attempt: int, outcome: AttemptOutcome, now: datetime
    ) -> StepCompleted | StepRetrying | StepFailed | None:
        """The event that an attempt's outcome makes: completed, retrying or failed.

        Returns:
            None when the run no longer waits for this attempt: the outcome is not recorded.
        """
        pending = self.steps.get(step_id)
        if pending is None or pending.attempt != attempt:
            return None
        return conclude(pending, outcome, now=now, limits=self._limits, seed=self.run_id)

    # --- timers -------------------------------------------------------------------------------------

    async def sleep_until(self, resume_at: datetime, name: str = "") -> None:
        """Wait for an instant; the past returns at once and leaves no event."""
        if resume_at <= self._now:
            return
        sleep_id = self._timer_ordinals.next(name or "sleep")
        future: asyncio.Future[None] = asyncio.Future(loop=self._loop)
        try:
            self._start_timer(sleep_id, resume_at, name, future)
        except _Halt:
            await self._stall()
        try:
            await future
        finally:
            self._timers.forget(sleep_id)

    def start_loop_timer(self, handle: LoopTimer) -> None:
        try:
            resume_at = EPOCH + timedelta(seconds=handle.when())
        except (OverflowError, ValueError):
            raise ValueError("A timer in a workflow must be due before the year 10000.") from None
        handle.timer_id = self._timer_ordinals.next("sleep")
        self._start_timer(handle.timer_id, resume_at, "", handle)

    def cancel_loop_timer(self, handle: LoopTimer) -> None:
        self._timers.forget(handle.timer_id)

    def _start_timer(self, sleep_id: str, resume_at: datetime, name: str, waiting: Waiting) -> None:
        recorded = self._recorded(TimerStarted, sleep_id)
        if recorded is None:
            self._commands.append(StartTimer(sleep_id, resume_at, name))
        else:
            resume_at = recorded.resume_at
        self._timers.start(sleep_id, resume_at, waiting)

    def next_timer(self) -> tuple[datetime, str] | None:
        """The timer that is due first, with its instant; timers due together fire in their order."""
        return self._timers.first()

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

        The function must be quick and return a small value. It runs outside of the run, so that nothing
        it does is missing in a replay, where it does not run.
        """
        effect = self._effect_ordinals.next(name)
        recorded = self._recorded(SideEffectRecorded, effect)
        if recorded is None:
            command = self._run_side_effect(function, effect)
            self._commands.append(command)
            value, failure = command.value, command.failure
        else:
            value, failure = recorded.value, recorded.failure
        # Now as in every replay: what comes out of the history.
        if failure is not None:
            raise restore(failure, fallback=StepFailedError)
        result: _T = self._codec.decode(value)
        return result

    def _run_side_effect(self, function: Callable[[], Any], effect: str) -> RecordSideEffect:
        random_state = self.random.getstate()
        outside = copy_context()
        outside.run(current.set, None)
        try:
            value = outside.run(function)
            return RecordSideEffect(effect, Raw(self._codec.encode(value, f"side effect {effect!r}")))
        except Exception as error:
            return RecordSideEffect(effect, NONE, capture(error))
        finally:
            self.random.setstate(random_state)

    def patched(self, patch_id: str) -> bool:
        """Whether this place of the history has the change: True in new code's runs, False in old ones'.

        A run that has gone the old way once keeps to it beyond its history.
        """
        if self._peek(PatchApplied, patch_id) is not None:
            self._cursor += 1
            return True
        if self._cursor < len(self._history):
            self._unpatched.add(patch_id)
        if patch_id in self._unpatched or self._divergence is not None:
            return False
        self.is_replaying = False
        self._commands.append(ApplyPatch(patch_id))
        return True

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Merge attributes into the run's; they are shown and can be searched for."""
        raw = Raw(self._codec.encode(dict(attributes), "the run's attributes"))
        recorded = self._recorded(AttributesSet)
        if recorded is None:
            self._commands.append(SetAttributes(raw))
        self.attributes.update(attributes)


@contextmanager
def _collector_paused(events: int) -> Iterator[None]:
    # A long replay makes thousands of objects that all stay, and the collector would go through them again
    # and again: that is half the time of a wide one.
    if events < _MANY_EVENTS or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _error_of(main: RunTask[Any]) -> BaseException | None:
    if main.cancelled():
        return asyncio.CancelledError("The workflow's function was cancelled from within.")
    return main.exception()
