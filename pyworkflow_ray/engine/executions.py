"""One run's code, driven over its history.

Theory of operation. An `Execution` is fed outcomes, one at a time and in the order of the history. Feeding
one resolves what it answers, runs the workflow's code until all of it waits, and returns the commands that
the code has asked for. A replay does the same, but compares each command with the event that is recorded at
that place. The recorded one counts (its timer's due time, its side effect's value). A command of another kind
or name is a `NonDeterminismError`. So live and replay are the same code, and after a replay an execution is
in the state in which a crash left it.

No I/O, no clock, no threads, no logger: the owner of an execution calls it from one thread at a time, and
logs the notes that it takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import Context, ContextVar, copy_context
from datetime import datetime
from typing import Any, TypeVar, assert_never

from pyworkflow_ray.engine.cancellations import Cancellation
from pyworkflow_ray.engine.children import Child, Children
from pyworkflow_ray.engine.codecs import Codec
from pyworkflow_ray.engine.commands import Command
from pyworkflow_ray.engine.compensations import CompensationStack
from pyworkflow_ray.engine.continuations import continuation_in
from pyworkflow_ray.engine.effects import Effects
from pyworkflow_ray.engine.endings import end_run, error_of, is_without_code, require_awaited
from pyworkflow_ray.engine.events import (
    MAX_DURATION,
    NONE,
    CancellationRequested,
    ChildCancelled,
    ChildCompleted,
    ChildFailed,
    Event,
    HookExpired,
    HookReceived,
    Outcome,
    Recorded,
    SignalReceived,
    StepCompleted,
    StepFailed,
    StepRetrying,
    TimerFired,
    WorkflowInterrupted,
    WorkflowStarted,
    is_outcome,
)
from pyworkflow_ray.engine.evictions import evict_suspended
from pyworkflow_ray.engine.hooks import Hooks, PendingHook
from pyworkflow_ray.engine.limits import Limits
from pyworkflow_ray.engine.loop import LoopTimer, RunLoop, RunTask, collector_paused
from pyworkflow_ray.engine.recordings import Halt
from pyworkflow_ray.engine.repairs import repair_asyncio
from pyworkflow_ray.engine.running_steps import current_step
from pyworkflow_ray.engine.scopes import Scope
from pyworkflow_ray.engine.signals import Signals
from pyworkflow_ray.engine.steps import Steps
from pyworkflow_ray.engine.timers import Timers
from pyworkflow_ray.engine.unseen_events import is_unseen
from pyworkflow_ray.exceptions import FatalError, NonDeterminismError, WorkflowError
from pyworkflow_ray.values.failures import capture

_T = TypeVar("_T")
_DEADLINE = "\0deadline"
"""The id of the timer of `max_duration`. No sleep can have such a name."""

repair_asyncio()

current: ContextVar[Execution | None] = ContextVar("pyworkflow_ray_execution", default=None)
"""The execution whose code is running; None in steps and outside of runs."""


class Execution:
    """A run's code, and how far it has come.

    Args:
        run_id: Also the seed of the run's random source.
        function: The workflow's function.
        codec: How the run's values are encoded.
        limits: The bounds of what the run may do.
    """

    def __init__(
        self, run_id: str, function: Callable[..., Awaitable[Any]], codec: Codec, limits: Limits | None = None
    ) -> None:
        self.run_id = run_id
        self.workflow_name, self.metadata = "", NONE
        self.queries: dict[str, Callable[..., Any]] = {}
        self.check_arguments: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]] | None = None
        self.is_durable = True
        self.is_finished = False
        """Whether the last command has come out. No outcome may be fed after that."""
        self._function = function
        self._loop = RunLoop(run_id)  # type: ignore[abstract]  # what it lacks, it refuses
        self._loop.on_callback_error = self._note_callback_error
        self.scope = Scope(run_id, self._loop, codec, limits or Limits())
        self.timers = Timers(self.scope)
        self._loop.timers = self.timers
        self.calls = Steps(self.scope)
        self.steps, self.call_step, self.conclude = self.calls.pending, self.calls.call, self.calls.conclude
        self.hooks = Hooks(self.scope, self.timers)
        self.children = Children(self.scope)
        self.signals = Signals(self.scope)
        self.effects = Effects(self.scope)
        self.random, self.attributes = self.effects.random, self.effects.attributes
        self.compensations = CompensationStack()
        self._recording = self.scope.recording
        self._main: RunTask[Any] | None = None
        """The workflow function's own task; None before the start."""
        self._code: Any = None
        self._deadline: datetime | None = None
        self._is_closed = False
        """Whether the code has ended. Nothing of it runs after that."""

    # --- about the run ------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The time of the last event applied. It is the same in every replay."""
        return self.scope.now

    @property
    def is_replaying(self) -> bool:
        """Whether the code runs over recorded events."""
        return self._recording.is_replaying

    @property
    def cancellation(self) -> Cancellation:
        """Whether the run was asked to cancel."""
        return self.scope.cancellation

    @property
    def nesting_depth(self) -> int:
        """How many runs are above this one."""
        return self.scope.nesting_depth

    @nesting_depth.setter
    def nesting_depth(self, depth: int) -> None:
        self.scope.nesting_depth = depth

    # --- feeding ------------------------------------------------------------------------------------

    def replay(self, history: Sequence[Recorded]) -> list[Command]:
        """Bring a fresh execution to where its history ends.

        Returns:
            Commands beyond the history, to be recorded before anything else is fed. There are none when the
            history holds whole activations, as every commit does, unless the code now asks for more.

        Raises:
            NonDeterminismError: The code does not ask for what the history records.
        """
        recording = self._recording
        recording.begin(history)
        try:
            with self._loop.entered(), collector_paused(len(history)):
                while (recorded := recording.upcoming()) is not None:
                    event = recorded.event
                    if is_outcome(event):
                        recording.skip()
                        if not is_unseen(event):
                            self._apply(event, recorded.timestamp)
                    elif is_without_code(event):
                        self.is_finished = True
                        self.drop()
                        break
                    else:
                        raise recording.diverge()
        except NonDeterminismError:
            self.drop()
            raise
        finally:
            recording.end()
        return recording.take_commands()

    def feed(self, event: Event, at: datetime) -> list[Command]:
        """Apply one outcome that is not recorded yet, and return the commands that it has caused.

        Raises:
            NonDeterminismError: The event is no outcome, or answers nothing that the code has asked for.
        """
        try:
            if not is_outcome(event):
                raise NonDeterminismError(f"Run {self.run_id!r}: {event!r} is not an outcome.")
            with self._loop.entered():
                self._apply(event, at)
        except NonDeterminismError:
            self.drop()
            raise
        return self._recording.take_commands()

    def take_commands(self) -> list[Command]:
        """The commands that no feed has returned."""
        return self._recording.take_commands()

    def take_notes(self) -> list[str]:
        """Warnings about the run's code, to be logged by the owner of this execution."""
        return self._recording.take_notes()

    def _apply(self, event: Outcome, at: datetime) -> None:
        recording = self._recording
        if recording.divergence is not None:
            raise recording.divergence
        if self.is_finished:
            raise NonDeterminismError(
                f"Run {self.run_id!r} has ended, yet its history goes on with {event!r}."
            )
        if at > self.scope.now:
            self.scope.now = at
            self._loop.set_time(at)
        self._resolve(event)
        try:
            self._loop.run_until_idle()
            self.cancellation.passed()
            main = self._main
            if main is not None and main.done() and recording.divergence is None and not self._is_unwinding():
                self._close()
                if not self.children.are_waited_for:
                    error = error_of(main)
                    self._end(error, main.result() if error is None else None)
        except FatalError as spinning:
            self._end(spinning, None)
        except Halt:
            pass
        if recording.divergence is not None:
            raise recording.divergence

    def _resolve(self, event: Outcome) -> None:
        """Resolve what this outcome answers. The code that waits for it runs later."""
        match event:
            case StepCompleted() | StepFailed():
                self.calls.apply(event)
            case TimerFired():
                self._fire(event)
            case StepRetrying():
                self.calls.retry(event)
            case HookReceived() | HookExpired():
                self.hooks.apply(event)
            case ChildCompleted() | ChildFailed() | ChildCancelled():
                self.children.apply(event)
            case SignalReceived():
                self.signals.apply(event)
            case CancellationRequested():
                self._cancel(event)
            case WorkflowStarted():
                self._start(event)
            case WorkflowInterrupted():
                for step_id, pending in self.steps.items():
                    if step_id not in event.not_begun:
                        pending.lose_attempt(self.scope.now)
            case _:
                assert_never(event)

    def _start(self, event: WorkflowStarted) -> None:
        self.workflow_name, self.metadata = event.workflow_name, event.metadata
        if event.seed:
            self.effects.seed(event.seed)
        max_duration = self.scope.limits.max_duration
        if max_duration is not None:
            counted_from = event.counted_from or self.scope.now
            self._deadline = counted_from + max_duration
            self.timers.keep(_DEADLINE, self._deadline, None)
        context = Context()
        context.run(current.set, self)
        self._main = self._loop.create_task(self._run(event), name=self.run_id, context=context)

    async def _run(self, event: WorkflowStarted) -> Any:
        args = self.scope.codec.decode(event.args)
        kwargs = self.scope.codec.decode(event.kwargs)
        try:
            try:
                self._code = self._function(*args, **kwargs)
                result = await self._code
            except BaseException as error:
                require_awaited(self.scope, self._loop.tasks, error)
                raise
            require_awaited(self.scope, self._loop.tasks, None)
            return result
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
            # The code has ended, and the run waits for children. They are asked in its place.
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
            case asyncio.Future():
                waiting.set_result(None)
            case _:
                assert_never(waiting)

    # --- due timers ---------------------------------------------------------------------------------

    def next_timer(self) -> tuple[datetime, str] | None:
        """The timer that is due first, with its instant. Timers due together fire in their order."""
        return self.timers.first()

    def due_event(self, timer_id: str) -> Event:
        """The event that says that this timer is due."""
        if timer_id == _DEADLINE:
            return self.end_of_time()
        return self.hooks.expiry(timer_id) or TimerFired(sleep_id=timer_id)

    def is_late(self, at: datetime) -> bool:
        """Whether the run's time is over, which its code has not been told. Any thread may ask."""
        return self._deadline is not None and at >= self._deadline and not self.cancellation.is_timeout

    def end_of_time(self) -> CancellationRequested:
        """The event that says that the run's time is over."""
        reason = f"its max_duration of {self.scope.limits.max_duration} is over"
        return CancellationRequested(reason=reason, requested_by=MAX_DURATION)

    # --- ending -------------------------------------------------------------------------------------

    def _is_unwinding(self) -> bool:
        """Whether a cancelled run has tasks that go on, because they are shielded or are cleaning up."""
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

    def _end(self, error: BaseException | None, result: Any) -> None:
        """End the run: its code has returned this result, or raised this error."""
        try:
            self._close()
            end_run(self.scope, error, result, self.signals.unread)
        except Halt:
            return
        self.is_finished = True
        self.drop()

    def drop(self) -> None:
        """Let go of the run's code where it stands. Nothing of it runs any more, not even `finally`."""
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
        self.scope.unawaited.clear()
        self._main = None

    def _note_callback_error(self, context: dict[str, Any]) -> None:
        if not self.is_replaying:
            error = context.get("exception")
            text = "" if error is None else capture(error).traceback  # without the values in its frames
            self._recording.note(f"In workflow code of run {self.run_id}: {context.get('message')}\n{text}")

    # --- what the code waits for --------------------------------------------------------------------

    def sleep_until(self, resume_at: datetime, name: str = "") -> Coroutine[Any, Any, None]:
        """Wait for an instant. One in the past returns at once and leaves no event."""
        return self.timers.sleep_until(resume_at, name)

    def call_hook(self, pending: PendingHook) -> Coroutine[Any, Any, Any]:
        """Wait for the payload of a hook that was created."""
        return self.hooks.call(pending)

    def call_child(self, child: Child) -> Coroutine[Any, Any, Any]:
        """Wait for a child run, as the code that started it."""
        return self.children.call(child)

    def receive(self, name: str) -> Coroutine[Any, Any, Any]:
        """The payload of the next signal of this name."""
        return self.signals.receive(name)

    # --- what the code asks for at once ---------------------------------------------------------------

    def side_effect(self, function: Callable[[], _T], name: str = "side_effect") -> _T:
        """What the function returned or raised when the code first came here.

        The function must be quick and return a small value. It runs outside of the run. So nothing that it
        does is missing in a replay, which does not call it.
        """
        return self.effects.side_effect(lambda: _outside(function), name)

    def query(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The answer of the function that the code has registered under this name."""
        function = self.queries.get(name)
        if function is None:
            known = ", ".join(map(repr, self.queries)) or "none so far"
            raise WorkflowError(f"Run {self.run_id!r} answers no query {name!r}; it answers {known}.")
        return copy_context().run(function, *args, **kwargs)

    def require_durable(self, what: str) -> None:
        """Refuse to a run without a history what needs one."""
        if not self.is_durable:
            raise WorkflowError(f"{what} needs a history, and run {self.run_id!r} is not durable.")

    def require_main(self, what: str) -> None:
        """Refuse what only the workflow function's own task may do."""
        if asyncio.current_task() is not self._main:
            raise WorkflowError(
                f"{what} ends the run, so it must be called in the workflow function itself, and not in "
                "a task that runs beside it: return from the task, and call it after that."
            )


def _outside(function: Callable[[], _T]) -> _T:
    """Call a function as code that belongs to no run."""
    outside = copy_context()
    outside.run(current.set, None)
    return outside.run(function)


def require_execution(name: str) -> Execution:
    """The run whose code is running. `name` is the function that only a workflow's code may call.

    Raises:
        FatalError: The code of a step is running.
        WorkflowError: No run's code is running.
    """
    execution = current.get()
    if execution is None:
        step = current_step.get()
        if step is not None:
            raise FatalError(
                f"{name}() belongs in the code of a workflow, and step {step.step_id!r} has called it. Call "
                "it in the workflow, and give the step what comes of it."
            )
        raise WorkflowError(f"{name}() belongs in the code of a workflow, and no run is executing here.")
    return execution
