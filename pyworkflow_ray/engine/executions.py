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
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context, ContextVar, copy_context
from datetime import datetime, timedelta
from typing import Any, TypeVar

from loguru import logger
from msgspec import Raw

from pyworkflow_ray.engine.cancellations import Cancellation, is_cancellation
from pyworkflow_ray.engine.children import Child, Children, derived_run_id
from pyworkflow_ray.engine.codecs import Codec
from pyworkflow_ray.engine.commands import (
    ApplyPatch,
    CancelRun,
    Command,
    CompleteRun,
    ContinueRun,
    FailRun,
    RecordSideEffect,
    SetAttributes,
    StartTimer,
)
from pyworkflow_ray.engine.compensations import Compensations
from pyworkflow_ray.engine.continuations import ContinueAsNew, continuation_in
from pyworkflow_ray.engine.events import (
    MAX_DURATION,
    NONE,
    OUTCOMES,
    AttributesSet,
    CancellationRequested,
    ChildCancelled,
    ChildCompleted,
    ChildFailed,
    Event,
    HookExpired,
    HookReceived,
    PatchApplied,
    Recorded,
    SideEffectRecorded,
    SignalReceived,
    StepCompleted,
    StepFailed,
    StepRetrying,
    TimerFired,
    TimerStarted,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowContinuedAsNew,
    WorkflowFailed,
    WorkflowInterrupted,
    WorkflowStarted,
)
from pyworkflow_ray.engine.evictions import evict_suspended
from pyworkflow_ray.engine.hooks import Hooks, PendingHook
from pyworkflow_ray.engine.loop import EPOCH, LoopTimer, RunLoop, RunTask, collector_paused
from pyworkflow_ray.engine.pending_steps import Limits, PendingStep
from pyworkflow_ray.engine.recordings import Halt, Recording
from pyworkflow_ray.engine.signals import Signals
from pyworkflow_ray.engine.steps import Steps
from pyworkflow_ray.engine.timers import Timers, Waiting
from pyworkflow_ray.exceptions import (
    EventLimitExceededError,
    FatalError,
    NonDeterminismError,
    StepFailedError,
    WorkerDiedError,
    WorkflowError,
    WorkflowTimeoutError,
)
from pyworkflow_ray.ids import Ordinals
from pyworkflow_ray.values.failures import capture, error_type_name, restore

__all__ = ["Codec", "Execution", "Limits", "PendingStep", "current"]

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Event)
_DEADLINE = "\0deadline"
"""The id of the timer of `max_duration`. No sleep can be named so."""

current: ContextVar[Execution | None] = ContextVar("pyworkflow_ray_execution", default=None)
"""The execution whose code is running; None in steps and outside of runs."""


_ENDED_FROM_OUTSIDE = [error_type_name(error) for error in (WorkerDiedError, EventLimitExceededError)]


class Execution(Recording):
    """A run's code and where it stands.

    Args:
        run_id: Also the seed of the run's random source.
        limits: Bounds on what the run may do.
    """

    def __init__(
        self, run_id: str, function: Callable[..., Awaitable[Any]], codec: Codec, limits: Limits | None = None
    ) -> None:
        super().__init__(run_id)
        self.workflow_name, self.metadata = "", NONE
        self.nesting_depth = 0
        self.codec = codec
        self.limits = limits or Limits()
        self.timers = Timers()
        self.calls = Steps(self)
        self.steps, self.call_step, self.conclude = self.calls.pending, self.calls.call, self.calls.conclude
        self.hooks = Hooks(self)
        self.children = Children(self)
        self.signals = Signals()
        self.compensations = Compensations()
        self.queries: dict[str, Callable[..., Any]] = {}
        self.check_arguments: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]] | None = None
        self.is_durable = True
        self.is_finished = False
        self.attributes: dict[str, Any] = {}
        self.random = random.Random(f"pyworkflow-ray:{run_id}")
        self._function = function
        self._loop = RunLoop(self, run_id)  # type: ignore[abstract]  # what it lacks, it refuses
        self._loop.on_callback_error = self._report_callback
        self.cancellation = Cancellation(run_id, self._loop, self.limits.max_duration)
        self._now = EPOCH
        self._timer_ordinals = Ordinals()
        self._effect_ordinals = Ordinals()
        self._unpatched: set[str] = set()
        self._main: RunTask[Any] | None = None
        self._code: Any = None
        self._is_closed = False

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
            with self._loop.entered(), collector_paused(len(history)):
                while self._cursor < len(history):
                    recorded = history[self._cursor]
                    if type(recorded.event) not in OUTCOMES:
                        if self._was_ended(recorded.event):
                            break
                        raise self._diverge(recorded, None)
                    self._cursor += 1
                    self._apply(recorded.event, recorded.timestamp)
        except NonDeterminismError:
            self.drop()
            raise
        finally:
            self.is_replaying = False
            self._history, self._cursor = (), 0
        return self.take_commands()

    def _was_ended(self, event: Event) -> bool:
        """Whether the run's coordinator has ended it, without asking the code."""
        if not isinstance(event, WorkflowFailed) or event.error_type not in _ENDED_FROM_OUTSIDE:
            return False
        self.is_finished = True
        self.drop()
        return True

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
        return self.take_commands()

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
            self.cancellation.passed()
            main = self._main
            if main is not None and main.done() and self._divergence is None and not self._is_unwinding():
                self._close()
                if not self.children.are_waited_for:
                    self._end(_error_of(main))
        except FatalError as spinning:
            self._end(spinning)
        except Halt:
            pass
        if self._divergence is not None:
            raise self._divergence

    def _resolve(self, event: Event) -> None:
        match event:
            case StepCompleted() | StepFailed():
                self.calls.answer(event)
            case TimerFired():
                self._fire(event)
            case StepRetrying():
                self.calls.retry(event)
            case HookReceived() | HookExpired():
                self.hooks.answer(event)
            case ChildCompleted() | ChildFailed() | ChildCancelled():
                self.children.answer(event)
            case SignalReceived():
                self.signals.answer(event)
            case CancellationRequested():
                self._cancel(event)
            case WorkflowStarted():
                self._start(event)
            case WorkflowInterrupted():
                for pending in self.steps.values():
                    pending.lose_attempt(self._now)
            case _:
                raise NonDeterminismError(f"Run {self.run_id!r}: {event!r} is not an outcome.")

    def _start(self, event: WorkflowStarted) -> None:
        self.workflow_name, self.metadata = event.workflow_name, event.metadata
        if event.seed:
            self.random.seed(f"pyworkflow-ray:{event.seed}")
        if self.limits.max_duration is not None:
            begun_at = event.counted_from or self._now
            self.timers.start(_DEADLINE, begun_at + self.limits.max_duration, None)
        context = Context()
        context.run(current.set, self)
        self._main = self._loop.create_task(self._call(event), name=self.run_id, context=context)

    async def _call(self, event: WorkflowStarted) -> Any:
        args = self.codec.decode(event.args)
        kwargs = self.codec.decode(event.kwargs)
        try:
            self._code = self._function(*args, **kwargs)
            return await self.cancellation.translating(self._code)
        except (Halt, GeneratorExit):
            raise
        except BaseException as error:
            if self.compensations and continuation_in(error) is None:
                await self.compensations.run(error)
            raise

    def _cancel(self, event: CancellationRequested) -> None:
        if event.requested_by == MAX_DURATION:
            self.timers.forget(_DEADLINE)
        main = self._main
        if main is not None and not main.done():
            self.cancellation.deliver(event, main)
        elif self.cancellation.note(event):
            for child in list(self.children.open.values()):
                if child.command.parent_close == "wait":
                    self.children.cancel(child, event.reason)

    def _fire(self, event: TimerFired) -> None:
        try:
            waiting = self.timers.fire(event.sleep_id)
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

    def _is_unwinding(self) -> bool:
        """Whether a run that was cancelled has tasks that go on: shielded, or asked too and cleaning up."""
        if not self.cancellation.is_requested or self._is_closed:
            return False
        return any(task.cancelling() or task.shields for task in self._loop.tasks)

    def _close(self) -> None:
        """Let go of what the code has left behind."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.halt()
        for step in list(self.steps.values()):
            self.calls.cancel(step, "the workflow ended")
        for hook in list(self.hooks.pending.values()):
            self.hooks.dispose(hook)
        self.children.close()

    def _end(self, error: BaseException | None) -> None:
        """Say how the workflow's function ended: it returned, or raised this error."""
        try:
            self._close()
            error = continuation_in(error) or error
            if self.cancellation.is_timeout and not isinstance(error, WorkflowTimeoutError):
                error = self._timed_out(error)
            if error is None:
                error = self._complete()
            elif isinstance(error, ContinueAsNew) and not self.cancellation.is_kept_off:
                error = self._continue(error)
            elif self.cancellation.is_requested and is_cancellation(error):
                error = None
                self._cancelled()
            if error is not None and self.recorded(WorkflowFailed) is None:
                self.emit(FailRun(capture(error)))
        except Halt:
            return
        self.is_finished = True
        self.drop()

    def _timed_out(self, error: BaseException | None) -> WorkflowTimeoutError:
        timed_out = WorkflowTimeoutError(self.run_id, self.limits.max_duration or timedelta())
        for note in getattr(error, "__notes__", []):
            timed_out.add_note(note)
        return timed_out

    def _cancelled(self) -> None:
        if self.recorded(WorkflowCancelled) is None:
            self.emit(CancelRun(self.cancellation.reason))

    def _continue(self, ending: ContinueAsNew) -> Exception | None:
        """Continue in another run, or return why its arguments cannot be stored."""
        if self.peek(WorkflowContinuedAsNew) is not None:
            self.recorded(WorkflowContinuedAsNew)
            return None
        args, kwargs = ending.call
        try:
            raw_args = Raw(self.codec.encode(list(args), "the arguments of continue_as_new()"))
            raw_kwargs = Raw(self.codec.encode(dict(kwargs), "the keyword arguments of continue_as_new()"))
        except Exception as error:
            return error
        self.recorded(WorkflowContinuedAsNew)  # a divergence, if anything else is recorded here
        run_id = derived_run_id(self.run_id, "continued")
        self.emit(ContinueRun(run_id, raw_args, raw_kwargs, self.signals.unread()))
        return None

    def require_durable(self, what: str) -> None:
        """Refuse what needs a history to a run that keeps none."""
        if not self.is_durable:
            raise WorkflowError(f"{what} needs a history, and run {self.run_id!r} is not durable.")

    def require_main(self, what: str) -> None:
        """Refuse what only the workflow function's own task may do."""
        if asyncio.current_task() is not self._main:
            raise WorkflowError(
                f"{what} ends the run, so it is called in the workflow function itself, and not in a task "
                "that runs beside it: return from the task, and call it after that."
            )

    def _complete(self) -> Exception | None:
        """Complete the run with its function's result, or return why that cannot be stored."""
        if self.peek(WorkflowCompleted) is not None:
            self._cursor += 1
            return None
        assert self._main is not None
        try:
            result = Raw(self.codec.encode(self._main.result(), "the workflow's result"))
        except Exception as error:
            return error
        self.recorded(WorkflowCompleted)  # a divergence, if anything else is recorded here
        self.emit(CompleteRun(result))
        return None

    def _report_callback(self, context: dict[str, Any]) -> None:
        if not self.is_replaying:
            error = context.get("exception")
            told = "" if error is None else capture(error).traceback  # its text, without the values in frames
            logger.warning("In workflow code of run {}: {}\n{}", self.run_id, context.get("message"), told)

    def halt(self) -> None:
        self._loop.halt()

    def future(self) -> asyncio.Future[Any]:
        """A future of the run's loop."""
        return self._loop.create_future()

    async def stall(self) -> None:
        """Stay here for ever: an exception would run the code's `finally` blocks, and a loop around a bare
        `except` would try again for ever."""
        await self.future()

    def drop(self) -> None:
        """Let go of the run's code where it stands; nothing of it runs any more, not even `finally`."""
        self._loop.discard()
        tasks = list(self._loop.tasks)
        code = () if self._code is None else (self._code,)
        evict_suspended([*(task.get_coro() for task in tasks), *code, *self._loop.async_generators])
        self._code = None
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._loop.tasks.clear()
        self.steps.clear()
        self.hooks.pending.clear()
        self.children.open.clear()
        self.timers.clear()
        self._main = None

    # --- timers -------------------------------------------------------------------------------------

    async def sleep_until(self, resume_at: datetime, name: str = "") -> None:
        """Wait for an instant; the past returns at once and leaves no event."""
        if resume_at <= self._now:
            return
        sleep_id = self._timer_ordinals.next(name or "sleep")
        future: asyncio.Future[None] = self.future()
        try:
            self._start_timer(sleep_id, resume_at, name, future)
        except Halt:
            await self.stall()
        try:
            await future
        except asyncio.CancelledError as error:
            raise self.cancellation.told(error) from None
        finally:
            self.timers.forget(sleep_id)

    def start_loop_timer(self, handle: LoopTimer) -> None:
        try:
            resume_at = EPOCH + timedelta(seconds=handle.when())
        except (OverflowError, ValueError):
            raise ValueError("A timer in a workflow must be due before the year 10000.") from None
        handle.timer_id = self._timer_ordinals.next("sleep")
        self._start_timer(handle.timer_id, resume_at, "", handle)

    def cancel_loop_timer(self, handle: LoopTimer) -> None:
        self.timers.forget(handle.timer_id)

    def _start_timer(self, sleep_id: str, resume_at: datetime, name: str, waiting: Waiting) -> None:
        recorded = self.recorded(TimerStarted, sleep_id)
        if recorded is None:
            self.emit(StartTimer(sleep_id, resume_at, name))
        else:
            resume_at = recorded.resume_at
        self.timers.start(sleep_id, resume_at, waiting)

    def next_timer(self) -> tuple[datetime, str] | None:
        """The timer that is due first, with its instant; timers due together fire in their order."""
        return self.timers.first()

    def due_event(self, timer_id: str) -> Event:
        """The event that says that this timer is due."""
        if timer_id == _DEADLINE:
            reason = f"its max_duration of {self.limits.max_duration} is over"
            return CancellationRequested(reason=reason, requested_by=MAX_DURATION)
        return self.hooks.expiry(timer_id) or TimerFired(sleep_id=timer_id)

    # --- hooks, children, signals -----------------------------------------------------------------

    async def call_hook(self, pending: PendingHook) -> Any:
        """Wait for a hook that was made, and let it go if the code waits no more."""
        try:
            try:
                return await self.hooks.payload(pending)
            except asyncio.CancelledError as error:
                self.hooks.dispose(pending)
                raise self.cancellation.told(error) from None
        except Halt:
            await self.stall()

    async def recorded_call(self, make: Callable[[], _T]) -> _T:
        """What `make` gives, where it records a decision: code that has left its history stays there."""
        try:
            return make()
        except Halt:
            await self.stall()
            raise

    async def call_child(self, child: Child) -> Any:
        """Wait for a child run, as its starter."""
        try:
            return await self.children.result(child)
        except Halt:
            await self.stall()

    async def receive(self, name: str) -> Any:
        """The payload of the next signal of this name."""
        try:
            return self.codec.decode(await self.signals.receive(name))
        except asyncio.CancelledError as error:
            raise self.cancellation.told(error) from None

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
        recorded = self.recorded(SideEffectRecorded, effect)
        if recorded is None:
            command = self._run_side_effect(function, effect)
            self.emit(command)
            value, failure = command.value, command.failure
        else:
            value, failure = recorded.value, recorded.failure
        # Now as in every replay: what comes out of the history.
        if failure is not None:
            raise restore(failure, fallback=StepFailedError)
        result: _T = self.codec.decode(value)
        return result

    def _run_side_effect(self, function: Callable[[], Any], effect: str) -> RecordSideEffect:
        random_state = self.random.getstate()
        outside = copy_context()
        outside.run(current.set, None)
        try:
            value = outside.run(function)
            return RecordSideEffect(effect, Raw(self.codec.encode(value, f"side effect {effect!r}")))
        except Exception as error:
            return RecordSideEffect(effect, NONE, capture(error))
        finally:
            self.random.setstate(random_state)

    def patched(self, patch_id: str) -> bool:
        """Whether this place of the history has the change: True in new code's runs, False in old ones'.

        A run that has gone the old way once keeps to it beyond its history.
        """
        if self.peek(PatchApplied, patch_id) is not None:
            self._cursor += 1
            return True
        if self._cursor < len(self._history):
            self._unpatched.add(patch_id)
        if patch_id in self._unpatched or self._divergence is not None:
            return False
        self.is_replaying = False
        self.emit(ApplyPatch(patch_id))
        return True

    def query(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the function that the code has registered under this name answers."""
        function = self.queries.get(name)
        if function is None:
            known = ", ".join(map(repr, self.queries)) or "none so far"
            raise WorkflowError(f"Run {self.run_id!r} answers no query {name!r}; it answers {known}.")
        return copy_context().run(function, *args, **kwargs)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Merge attributes into the run's; they are shown and can be searched for."""
        raw = Raw(self.codec.encode(dict(attributes), "the run's attributes"))
        recorded = self.recorded(AttributesSet)
        if recorded is None:
            self.emit(SetAttributes(raw))
        self.attributes.update(attributes)


def _error_of(main: RunTask[Any]) -> BaseException | None:
    if main.cancelled():
        ending = asyncio.CancelledError("The workflow's function was cancelled from within.")
        try:
            main.result()
        except asyncio.CancelledError as error:
            for note in getattr(error, "__notes__", []):
                ending.add_note(note)
        return ending
    return main.exception()
