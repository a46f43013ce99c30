"""Drives an execution without Ray, SQL or a clock: steps are called at once, time jumps to what is due."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import Raw

from pyworkflow_ray.engine.attempts import AttemptCompleted, AttemptFailed, AttemptOutcome
from pyworkflow_ray.engine.commands import Command
from pyworkflow_ray.engine.events import (
    ENDINGS,
    OUTCOMES,
    Event,
    Recorded,
    StepRetrying,
    TimerFired,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowInterrupted,
    WorkflowStarted,
    decode_event,
    encode_data,
    type_of,
)
from pyworkflow_ray.engine.executions import Execution, Limits
from pyworkflow_ray.exceptions import WorkflowFailedError
from pyworkflow_ray.failures import Failure, capture, restore
from pyworkflow_ray.values import Values

START = datetime(2026, 1, 1, tzinfo=UTC)
VALUES = Values()


class Simulation:
    """One run of a workflow function, in a plain loop.

    Args:
        function: The workflow's function.
        seed: Chooses which of several outcomes that could come next comes next.
        limits: Bounds on retries.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *args: Any,
        seed: int = 0,
        limits: Limits | None = None,
        run_id: str = "run_0000000000000001",
        **kwargs: Any,
    ) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.limits = limits
        self.run_id = run_id
        self.order = random.Random(seed)
        self.now = START
        self.history: list[Recorded] = []
        self.calls: list[tuple[str, int]] = []
        self.execution = self._execution()

    def _execution(self) -> Execution:
        return Execution(self.run_id, getattr(self.function, "fn", self.function), VALUES, self.limits)

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
        return self.feed(
            WorkflowStarted(
                workflow_name="simulated",
                args=Raw(VALUES.encode(list(self.args), "args")),
                kwargs=Raw(VALUES.encode(self.kwargs, "kwargs")),
            )
        )

    def advance(self) -> bool:
        """Let one thing happen; False when nothing can."""
        ready = [p for p in self.execution.steps.values() if p.retry_at is None or p.retry_at <= self.now]
        timer = self.execution.next_timer()
        if timer is not None and timer[0] <= self.now:
            ready.append(timer[1])  # type: ignore[arg-type]
        if not ready:
            dues = [p.retry_at for p in self.execution.steps.values() if p.retry_at is not None]
            dues += [timer[0]] if timer else []
            if not dues:
                return False
            self.now = max(self.now, min(dues))
            return True
        chosen: Any = self.order.choice(ready)
        if isinstance(chosen, str):
            self.feed(TimerFired(sleep_id=chosen))
            return True
        outcome = self.attempt(chosen.command, chosen.attempt)
        event = self.execution.conclude(chosen.command.step_id, chosen.attempt, outcome, self.now)
        assert event is not None
        self.feed(event)
        return True

    def attempt(self, command: Any, attempt: int) -> AttemptOutcome:
        self.calls.append((command.step_id, attempt))
        try:
            args, kwargs = VALUES.decode(command.args), VALUES.decode(command.kwargs)
            result = command.function.fn(*args, **kwargs)
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
            return AttemptCompleted(result=VALUES.encode(result, "result"), node="sim", worker_pid=1)
        except WorkerKilled:
            return AttemptFailed(
                failure=Failure(error="gone", error_type="WorkerDiedError"), cause="worker_died"
            )
        except BaseException as error:
            return AttemptFailed(failure=capture(error))

    def feed(self, event: Event) -> list[Command]:
        """Apply an outcome and record it with what it provoked."""
        self.now += timedelta(milliseconds=1)
        commands = self.execution.feed(event, self.now)
        for recorded in (event, *(command.to_event() for command in commands)):
            self.record(recorded)
        return commands

    def record(self, event: Event) -> None:
        # Through text and back, as storage does it.
        stored = decode_event(type_of(event), encode_data(event))
        self.history.append(Recorded(len(self.history), self.now, stored))

    def result(self) -> Any:
        match self.history[-1].event:
            case WorkflowCompleted(result=result):
                return VALUES.decode(result)
            case WorkflowFailed() as failed:
                raise restore(failed.failure, fallback=WorkflowFailedError)
            case other:
                raise AssertionError(f"the history ends with {other}")

    def types(self) -> list[str]:
        return [type_of(recorded.event) for recorded in self.history]

    def interrupt(self) -> None:
        self.feed(WorkflowInterrupted(reason="killed"))

    def resumed(self, length: int, seed: int = 0) -> Simulation:
        """Another process that has found the first `length` events of this history."""
        other = Simulation(
            self.function, *self.args, seed=seed, limits=self.limits, run_id=self.run_id, **self.kwargs
        )
        other.history = self.history[:length]
        other.now = self.history[length - 1].timestamp
        for command in other.execution.replay(list(other.history)):
            other.record(command.to_event())
        return other


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
    asked = [command.to_event() for command in execution.replay(list(history[:length]))]
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
            commands = execution.feed(recorded_outcome.event, recorded_outcome.timestamp)
            asked = [command.to_event() for command in commands]
    assert execution.is_finished == isinstance(history[-1].event, ENDINGS)


def told(event: Event) -> tuple[str, Any]:
    """What of an event must come again: all of it but the frames of a traceback."""
    data = msgspec.json.decode(encode_data(event))
    for failure in (data, data.get("failure") or {}):
        for field in ("traceback", "exception", "error_cause", "cause"):
            failure.pop(field, None)
    return type_of(event), data


def retries_of(simulation: Simulation) -> list[StepRetrying]:
    return [r.event for r in simulation.history if isinstance(r.event, StepRetrying)]
