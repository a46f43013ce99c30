"""Drives an execution without Ray, SQL or a clock: steps are called at once, time jumps to what is due.

What comes from outside is sent by the test: payloads for hooks, signals, a request to cancel. Children run
in simulations of their own as soon as they are chosen, unless the test holds them to tell their outcomes.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from unittest import mock

import msgspec
from msgspec import Raw

from pyworkflow_ray.engine.attempts import AttemptCompleted, AttemptFailed, AttemptOutcome
from pyworkflow_ray.engine.children import Child
from pyworkflow_ray.engine.commands import CancelChild, Command
from pyworkflow_ray.engine.events import (
    ENDINGS,
    OUTCOMES,
    CancellationRequested,
    ChildCancelled,
    ChildCompleted,
    ChildFailed,
    Event,
    HookReceived,
    Recorded,
    SignalReceived,
    StepRetrying,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowContinuedAsNew,
    WorkflowFailed,
    WorkflowInterrupted,
    WorkflowStarted,
    decode_event,
    encode_data,
    failure_fields,
    type_of,
)
from pyworkflow_ray.engine.executions import Execution, current
from pyworkflow_ray.engine.hooks import PendingHook
from pyworkflow_ray.engine.limits import Limits
from pyworkflow_ray.engine.pending_steps import PendingStep
from pyworkflow_ray.exceptions import CancellationError, WorkflowFailedError
from pyworkflow_ray.values.codec import Values
from pyworkflow_ray.values.failures import Failure, capture, restore

START = datetime(2026, 1, 1, tzinfo=UTC)
VALUES = Values()
C = TypeVar("C", bound=Command)
E = TypeVar("E", bound=Event)
LOST = AttemptFailed(failure=Failure(error="gone", error_type="WorkerDiedError"), cause="worker_died")


@dataclass(frozen=True)
class Continued:
    """The result of a run that went on in another: with what."""

    run_id: str
    args: list[Any]
    kwargs: dict[str, Any]


class Simulation:
    """One run of a workflow function, in a plain loop.

    Args:
        function: The workflow's function.
        seed: Chooses which of several outcomes that could come next comes next.
        limits: Bounds on retries, and on the run's time and depth.
        answers: Payloads by the names of hooks: such a hook may be answered whenever it waits; an exception
            rejects it.
        holds_children: Children have no outcome but those that the test tells.
        depth: How many runs are above this one.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *args: Any,
        seed: int = 0,
        limits: Limits | None = None,
        run_id: str = "run_0000000000000001",
        answers: Mapping[str, Any] | None = None,
        holds_children: bool = False,
        depth: int = 0,
        **kwargs: Any,
    ) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.limits = limits
        self.run_id = run_id
        self.answers = dict(answers or {})
        self.holds_children = holds_children
        self.depth = depth
        self.is_durable = True
        self.order = random.Random(seed)
        self.now = START
        self.history: list[Recorded] = []
        self.commands: list[Command] = []
        self.calls: list[tuple[str, int]] = []
        self.execution = self._execution()

    def _execution(self) -> Execution:
        execution = Execution(self.run_id, getattr(self.function, "fn", self.function), VALUES, self.limits)
        execution.nesting_depth = self.depth
        execution.check_arguments = getattr(self.function, "check_arguments", None)
        return execution

    def __del__(self) -> None:
        # As a drive does. A test may leave a run where it stands, and no `finally` of it is to run then.
        if hasattr(self, "execution"):
            self.execution.drop()

    # --- driving --------------------------------------------------------------------------------------

    def run(self) -> Any:
        """Drive the run to its end; its result, or what it raised."""
        if not self.history:
            self.start()
        while not self.execution.is_finished:
            if not self.advance():
                raise AssertionError(f"the run waits for nothing: {self.types()}")
        return self.result()

    def start(self) -> list[Command]:
        """Let the run begin, and nothing else."""
        self.execution.is_durable = self.is_durable
        return self.feed(
            WorkflowStarted(
                workflow_name=getattr(self.function, "name", "simulated"),
                args=Raw(VALUES.encode(list(self.args), "args")),
                kwargs=Raw(VALUES.encode(self.kwargs, "kwargs")),
            )
        )

    def advance(self) -> bool:
        """Let one thing happen; False when nothing can."""
        execution = self.execution
        ready: list[Any] = [
            p for p in execution.steps.values() if p.retry_at is None or p.retry_at <= self.now
        ]
        ready += [p for p in execution.hooks.pending.values() if p.command.name in self.answers]
        ready += [] if self.holds_children else execution.children.open.values()
        timer = execution.next_timer()
        if timer is not None and timer[0] <= self.now:
            ready.append(timer[1])
        if not ready:
            dues = [p.retry_at for p in execution.steps.values() if p.retry_at is not None]
            dues += [timer[0]] if timer else []
            if not dues:
                return False
            self.now = max(self.now, min(dues))
            return True
        match self.order.choice(ready):
            case PendingStep() as step:
                self.end_step(step.command.step_id)
            case PendingHook(command=command):
                self.answer(command.hook_id, self.answers[command.name])
            case Child() as child:
                self.run_child(child.command.child_id)
            case timer_id:
                self.feed(execution.due_event(timer_id))
        return True

    def pass_time(self, seconds: float) -> None:
        """Let timers fire that are due by then, and nothing else happen."""
        until = self.now + timedelta(seconds=seconds)
        while (timer := self.execution.next_timer()) is not None and timer[0] <= until:
            self.now = max(self.now, timer[0])
            self.feed(self.execution.due_event(timer[1]))
        self.now = max(self.now, until)

    def feed(self, event: Event) -> list[Command]:
        """Apply an outcome and record it with what it provoked."""
        self.now += timedelta(milliseconds=1)
        with own_tokens():
            commands = self.execution.feed(event, self.now)
        self.record(event)
        self.take(commands)
        return commands

    def take(self, commands: list[Command]) -> None:
        """Record what the code has asked for."""
        self.commands += commands
        for event in events_of(commands):
            self.record(event)

    def record(self, event: Event) -> None:
        # Through text and back, as storage does it.
        stored = decode_event(type_of(event), encode_data(event))
        self.history.append(Recorded(len(self.history), self.now, stored))

    # --- outcomes -------------------------------------------------------------------------------------

    def end_step(self, step_id: str) -> list[Command]:
        """Make the present attempt of a step, and tell what it came to."""
        pending = self.execution.steps[step_id]
        outcome = LOST if pending.is_lost else self.attempt(pending.command, pending.attempt)
        event = self.execution.conclude(step_id, pending.attempt, outcome, self.now)
        assert event is not None
        return self.feed(event)

    def attempt(self, command: Any, attempt: int) -> AttemptOutcome:
        self.calls.append((command.step_id, attempt))
        try:
            args, kwargs = VALUES.decode(command.args), VALUES.decode(command.kwargs)
            result = command.function.fn(*args, **kwargs)
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
            return AttemptCompleted(result=VALUES.encode(result, "result"), node="sim", worker_pid=1)
        except WorkerKilled:
            return LOST
        except BaseException as error:
            return AttemptFailed(failure=capture(error))

    def answer(self, hook_id: str, payload: Any) -> list[Command]:
        """Give a hook its payload, or reject it with an exception."""
        if isinstance(payload, BaseException):
            return self.feed(HookReceived(hook_id=hook_id, failure=capture(payload)))
        return self.feed(HookReceived(hook_id=hook_id, payload=Raw(VALUES.encode(payload, "payload"))))

    def signal(self, name: str, payload: Any = None) -> list[Command]:
        """Send the run a signal."""
        return self.feed(SignalReceived(name=name, payload=Raw(VALUES.encode(payload, "payload"))))

    def cancel(self, reason: str = "") -> list[Command]:
        """Ask the run to cancel."""
        return self.feed(CancellationRequested(reason=reason, requested_by="test"))

    def interrupt(self) -> None:
        self.feed(WorkflowInterrupted(reason="killed"))

    def end_child(self, child_id: str, result: Any = None) -> list[Command]:
        """Tell that a child has ended: with this result, or failed with it if it is an exception."""
        told = self._child(child_id)
        if isinstance(result, CancellationError):
            return self.feed(ChildCancelled(**told, reason=result.reason or ""))
        if isinstance(result, BaseException):
            return self.feed(ChildFailed(**told, **failure_fields(capture(result))))
        return self.feed(ChildCompleted(**told, result=Raw(VALUES.encode(result, "result"))))

    def run_child(self, child_id: str) -> list[Command]:
        """Run a child to its end, in a simulation of its own; it is cancelled at its start if it is to be."""
        command = self.execution.children.open[child_id].command
        child = Simulation(
            command.definition,
            *VALUES.decode(command.args),
            seed=self.order.randrange(1000),
            limits=self.limits,
            run_id=command.child_run_id,
            depth=self.depth + 1,
            **VALUES.decode(command.kwargs),
        )
        child.start()
        requests = [c for c in self.asked(CancelChild) if c.child_run_id == child.run_id]
        if requests and not child.execution.is_finished:
            child.cancel(requests[0].reason)
        try:
            return self.end_child(child_id, child.run())
        except AssertionError:
            raise
        except BaseException as error:
            return self.end_child(child_id, error)

    def _child(self, child_id: str) -> dict[str, str]:
        for command in self.execution.children.open.values():
            if command.command.child_id == child_id:
                return {
                    "child_id": child_id,
                    "child_run_id": command.command.child_run_id,
                    "child_workflow_name": command.name,
                }
        raise AssertionError(f"no child {child_id!r} is open")

    # --- looking --------------------------------------------------------------------------------------

    def result(self) -> Any:
        match self.history[-1].event:
            case WorkflowCompleted(result=result):
                return VALUES.decode(result)
            case WorkflowFailed() as failed:
                raise restore(failed.failure, fallback=WorkflowFailedError)
            case WorkflowCancelled(reason=reason):
                raise CancellationError(reason=reason)
            case WorkflowContinuedAsNew() as continued:
                args, kwargs = VALUES.decode(continued.args), VALUES.decode(continued.kwargs)
                return Continued(continued.new_run_id, args, kwargs)
            case other:
                raise AssertionError(f"the history ends with {other}")

    def types(self) -> list[str]:
        return [type_of(recorded.event) for recorded in self.history]

    def events(self, kind: type[E]) -> list[E]:
        """The recorded events of one kind."""
        return [r.event for r in self.history if isinstance(r.event, kind)]

    def asked(self, kind: type[C]) -> list[C]:
        """The commands of one kind that came out, recorded or not."""
        return [command for command in self.commands if isinstance(command, kind)]

    @property
    def hooks(self) -> list[str]:
        """The ids of the hooks that wait."""
        return list(self.execution.hooks.pending)

    @property
    def children(self) -> list[str]:
        """The ids of the children that have no outcome."""
        return list(self.execution.children.open)

    @property
    def steps(self) -> list[str]:
        """The ids of the steps that have no outcome."""
        return list(self.execution.steps)

    # --- going on elsewhere ---------------------------------------------------------------------------

    def resumed(self, length: int | None = None, seed: int = 0) -> Simulation:
        """Another process that has found the first `length` events of this history, or all of it."""
        length = len(self.history) if length is None else length
        other = type(self)(
            self.function,
            *self.args,
            seed=seed,
            limits=self.limits,
            run_id=self.run_id,
            answers=self.answers,
            holds_children=self.holds_children,
            depth=self.depth,
            **self.kwargs,
        )
        other.history = self.history[:length]
        other.now = self.history[length - 1].timestamp
        with own_tokens():
            other.take(other.execution.replay(list(other.history)))
        return other


def events_of(commands: Sequence[Command]) -> list[Event]:
    """The events that record these commands; some leave none."""
    return [event for event in (command.to_event() for command in commands) if event is not None]


@contextmanager
def own_tokens() -> Iterator[None]:
    """Hooks draw tokens that a replay would draw again: a prefix may end where a token is yet to be drawn."""

    def draw() -> str:
        execution = current.get()
        assert execution is not None
        return f"token-{execution.run_id}-{len(execution.hooks._created)}"

    with mock.patch("pyworkflow_ray.engine.hooks.new_token", draw):
        yield


class WorkerKilled(BaseException):
    """Raised by a simulated step whose worker dies."""


def outcome_of(simulation: Simulation) -> tuple[str, Any]:
    """How the run ended, comparable."""
    try:
        return "returned", simulation.run()
    except AssertionError:
        raise  # the simulation's own
    except BaseException as error:
        return "raised", (type(error).__name__, str(error))


def finished(simulation: Simulation) -> Any:
    """What the run comes to when it is driven to its end; its history has replayed from every prefix."""
    outcome_of(simulation)
    assert_replays(simulation)
    return simulation.result()


def assert_replays(simulation: Simulation) -> None:
    """The history gives the same commands at every place, from every prefix.

    Each prefix is replayed in a fresh execution and then fed the outcomes that the history holds beyond it:
    everything provoked must be what was recorded.
    """
    history = simulation.history
    for length in range(1, len(history) + 1):
        follow(simulation, history, length)


def follow(simulation: Simulation, history: Sequence[Recorded], length: int) -> None:
    execution = simulation._execution()
    with own_tokens():
        _follow(execution, history, length)
    execution.drop()


def _follow(execution: Execution, history: Sequence[Recorded], length: int) -> None:
    asked = events_of(execution.replay(list(history[:length])))
    position = length
    while position < len(history) or asked:
        for event in asked:
            recorded = history[position].event
            assert told(event) == told(recorded), f"prefix {length}, position {position}"
            position += 1
        asked = []
        if position < len(history):
            recorded_outcome = history[position]
            assert isinstance(recorded_outcome.event, OUTCOMES), f"prefix {length}, position {position}"
            position += 1
            asked = events_of(execution.feed(recorded_outcome.event, recorded_outcome.timestamp))
    assert execution.is_finished == isinstance(history[-1].event, ENDINGS)


def told(event: Event) -> tuple[str, Any]:
    """What of an event must come again: all of it but the frames of a traceback."""
    data = msgspec.json.decode(encode_data(event))
    for failure in (data, data.get("failure") or {}):
        for field in ("traceback", "exception", "error_cause", "cause", "error_details", "details"):
            failure.pop(field, None)
    return type_of(event), data


def retries_of(simulation: Simulation) -> list[StepRetrying]:
    return [r.event for r in simulation.history if isinstance(r.event, StepRetrying)]
