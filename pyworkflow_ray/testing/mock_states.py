"""Mock states: what the runs of one `MockContext` share. Answers, a clock, and a record of the calls."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, Protocol

from pyworkflow_ray.actors.dispatchers import LocalDispatcher
from pyworkflow_ray.actors.runner import Attempt
from pyworkflow_ray.actors.tickets import OnOutcome, Ticket
from pyworkflow_ray.authoring.workflows import caller
from pyworkflow_ray.config import Settings
from pyworkflow_ray.engine.executions import current
from pyworkflow_ray.engine.options import StepOptions
from pyworkflow_ray.testing.clocks import VirtualClock
from pyworkflow_ray.testing.mock_answers import MissingMockError, MockAnswers
from pyworkflow_ray.values.codec import Values


@dataclass
class StepCall:
    """A step that was called in a `MockContext`."""

    name: str
    step_id: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_mocked: bool
    result: Any = None
    error: BaseException | None = None


@dataclass
class ChildCall:
    """A child workflow that was started in a `MockContext`."""

    name: str
    run_id: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_mocked: bool
    result: Any = None
    error: BaseException | None = None


@dataclass
class HookCall:
    """A hook that was waited for in a `MockContext`."""

    name: str
    hook_id: str
    token: str = field(repr=False)
    payload: Any = None
    error: BaseException | None = None


@dataclass(frozen=True)
class Sleep:
    """A sleep that ended in a `MockContext`: `sleep`, `asyncio.sleep`, or a timeout that passed."""

    seconds: float
    name: str = ""


class Playing(Protocol):
    """A mock run that is under way."""

    is_child: bool

    def fail(self, error: BaseException) -> None:
        """End it with this error, which is the test's fault."""
        ...

    def waits_for(self) -> list[str]:
        """What its code waits for, other than time."""
        ...


@dataclass
class MockState:
    """What the runs of one `MockContext` share.

    The clock stands still while any code runs. When every run waits and no step is under way, the clock
    moves to what is due first. So a race has the same winner as in production.
    """

    settings: Settings
    values: Values
    clock: VirtualClock
    skip_sleeps: bool
    strict: bool
    results: MockAnswers
    hooks: MockAnswers
    events: Mapping[str, Any]
    step_calls: list[StepCall] = field(default_factory=list)
    child_calls: list[ChildCall] = field(default_factory=list)
    hook_calls: list[HookCall] = field(default_factory=list)
    sleeps: list[Sleep] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    playing: list[Playing] = field(default_factory=list)
    working: int = 0
    """How many steps and functions of the test are under way."""

    def look_soon(self) -> None:
        """Let time pass in the loop's next turn, if nothing else can happen then."""
        asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        if not self.playing or self.working or self.clock.sleepers < len(self.playing):
            return
        next_at = self.clock.next_at()
        if next_at is None:
            stuck = MissingMockError(self._why_stuck())
            for run in [each for each in self.playing if not each.is_child] or self.playing:
                run.fail(stuck)
        elif self.skip_sleeps:
            self.clock.set_forward(next_at)
        else:
            seconds = (next_at - self.clock.now()).total_seconds()
            asyncio.get_running_loop().call_later(seconds, self.clock.set_forward, next_at)

    def _why_stuck(self) -> str:
        waits = ", ".join(what for run in self.playing for what in run.waits_for())
        return (
            f"The workflow waits for ever: {waits or 'no answer can come'}. Give the answer "
            "(mock_results for steps and children, mock_hooks for hooks, mock_events for signals)."
        )

    def dispatch(
        self, attempt: Attempt, function: Any, options: StepOptions, on_outcome: OnOutcome
    ) -> Ticket:
        """Run an attempt of a step."""
        return outside_of_runs().run(LocalDispatcher().dispatch, attempt, function, options, on_outcome)


def outside_of_runs() -> Context:
    """A copy of the present context for code outside of runs: a step's code, or a mock's."""
    context = copy_context()
    context.run(current.set, None)
    context.run(caller.set, None)
    return context
