"""Workflows called directly, with mocks for their steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Token
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from pyworkflow_ray.actors.payloads import configured_values
from pyworkflow_ray.authoring.context import WorkflowContext
from pyworkflow_ray.authoring.workflows import Caller, WorkflowFunction, caller
from pyworkflow_ray.config import get_config
from pyworkflow_ray.engine.commands import CompleteRun, ContinueRun, FailRun
from pyworkflow_ray.engine.executions import Execution, current
from pyworkflow_ray.exceptions import CancellationError, WorkflowFailedError
from pyworkflow_ray.testing.answers import Answers
from pyworkflow_ray.testing.clocks import VirtualClock
from pyworkflow_ray.testing.mock_runs import MockRun
from pyworkflow_ray.testing.outer_runs import OuterRun
from pyworkflow_ray.testing.rehearsals import ChildCall, HookCall, Rehearsal, Sleep, StepCall
from pyworkflow_ray.values.failures import error_type_name, restore


class ContinuedAsNew(Exception):
    """A workflow that was called in a `MockContext` goes on in a new run.

    `args` and `kwargs` are the new run's arguments.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args)
        self.kwargs = kwargs

    def __str__(self) -> str:
        given = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        return f"The workflow goes on in a new run, with the arguments ({', '.join(given)})."


class MockContext(WorkflowContext):
    """Within ``with MockContext(...) as context:`` a test calls workflows directly, and mocks steps by name.

    ``await order("A-1")`` then runs the workflow's code on the engine's event loop, as in a run, but stores
    nothing. Steps are answered as `mock_results` says, else their functions are called, once for each call.
    A step called by the test itself is answered in the same way. `sleep`, `asyncio.sleep` and timeouts take
    no time: when nothing else goes on, time jumps to what is due first.

    An answer is a value, an exception (which is raised), a function (which is called with the step's
    arguments, and may be `async def`), or a list of these, one for each call; `NEVER` is none at all.

    Args:
        run_id: What `get_context().run_id` says; also the seed of the run's random source.
        workflow_name: What `get_context().workflow_name` says; the workflow's own name by default.
        skip_sleeps: False has sleeps take the time that they take.
        mock_results: The answers to steps, and to child workflows, by their names.
        mock_events: The signals that a workflow receives, by name: a payload, or a list of payloads.
        mock_hooks: The answers to hooks, by name; a function may take the hook's token.
        strict: Whether a step or child without an answer is an error, rather than done in earnest.
        start_time: What time it is at first.
    """

    def __init__(
        self,
        run_id: str = "run_mock",
        workflow_name: str | None = None,
        skip_sleeps: bool = True,
        mock_results: Mapping[str, Any] | None = None,
        mock_events: Mapping[str, Any] | None = None,
        mock_hooks: Mapping[str, Any] | None = None,
        *,
        strict: bool = False,
        start_time: datetime | None = None,
    ) -> None:
        settings = get_config()
        self.mock_results = dict(mock_results or {})
        self.mock_events = dict(mock_events or {})
        self.mock_hooks = dict(mock_hooks or {})
        self._name = workflow_name
        self._rehearsal = Rehearsal(
            settings=settings,
            values=configured_values(settings.payload_codec, settings.payload_limit),
            clock=VirtualClock(start_time),
            skip_sleeps=skip_sleeps,
            strict=strict,
            results=Answers("mock_results", self.mock_results),
            hooks=Answers("mock_hooks", self.mock_hooks),
            events=self.mock_events,
        )
        self._outer = OuterRun(self._rehearsal, run_id, workflow_name or "mock")
        self._entered: list[tuple[Token[Execution | None], Token[Caller | None]]] = []
        super().__init__(self._outer)

    # --- what was called --------------------------------------------------------------------------------

    @property
    def steps(self) -> list[StepCall]:
        """The steps that were called, in order, with their arguments and what they came to."""
        return self._rehearsal.step_calls

    @property
    def step_names(self) -> list[str]:
        """The names of the steps that were called, in order."""
        return [call.name for call in self.steps]

    @property
    def children(self) -> list[ChildCall]:
        """The child workflows that were started, in order."""
        return self._rehearsal.child_calls

    @property
    def hooks(self) -> list[HookCall]:
        """The hooks that were waited for, in order."""
        return self._rehearsal.hook_calls

    @property
    def sleeps(self) -> list[Sleep]:
        """The sleeps that came to their end, in order; not those that the code gave up before."""
        return self._rehearsal.sleeps

    @property
    def attributes(self) -> dict[str, Any]:
        """What `set_attributes` has set."""
        return self._rehearsal.attributes

    def assert_step_called(self, name: str, times: int | None = None) -> None:
        """Check that a step was called: at least once, or as often as `times` says.

        Raises:
            AssertionError: It was not; it tells which steps were called.
        """
        counts = Counter(self.step_names)
        if counts[name] == times or (times is None and counts[name]):
            return
        expected = "" if times is None else f", and not {_times(times)}"
        was = _times(counts[name]) if counts[name] else "not"
        called = ", ".join(f"{each} ({_times(count)})" for each, count in counts.items())
        raise AssertionError(
            f"Step {name!r} was {was} called{expected}. Called were: {called or 'no steps at all'}."
        )

    def assert_slept(self, total_seconds: float | None = None) -> None:
        """Check that the code has slept: at all, or as many seconds in all as `total_seconds` says.

        Raises:
            AssertionError: It has not; it tells the sleeps that there were.
        """
        slept = sum(sleep.seconds for sleep in self.sleeps)
        if self.sleeps and (total_seconds is None or abs(slept - total_seconds) < _A_MOMENT):
            return
        if not self.sleeps and total_seconds == 0:
            return
        expected = "" if total_seconds is None else f", and not {total_seconds:g} s"
        told = ", ".join(f"{each.seconds:g} s" + f" ({each.name})" * bool(each.name) for each in self.sleeps)
        raise AssertionError(f"The code slept {slept:g} s{expected}. The sleeps: {told or 'none'}.")

    # --- entering ------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._entered.append((current.set(self._outer), caller.set(self._call)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        execution, call = self._entered.pop()
        current.reset(execution)
        caller.reset(call)
        if not self._entered:
            self._outer.close()
            self._execution = self._outer = OuterRun(self._rehearsal, self.run_id, self.workflow_name)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    async def _call(
        self,
        definition: WorkflowFunction[Any, Any],
        function: Callable[..., Coroutine[Any, Any, Any]],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """What a workflow returns that the test calls."""
        args, kwargs = definition.check_arguments(args, kwargs)
        run = MockRun(self._rehearsal, self.run_id, self._name or definition.name, function, definition)
        ending = await run.play(args, kwargs)
        values = self._rehearsal.values
        match ending:
            case CompleteRun(result=result):
                return values.decode(result)
            case FailRun(failure=failure):
                raised = run.raised
                if raised is not None and error_type_name(type(raised)) == failure.error_type:
                    raise raised  # itself rather than its copy, with the traceback into the workflow's code
                raise restore(failure, fallback=WorkflowFailedError)
            case ContinueRun():
                raise ContinuedAsNew(*values.decode(ending.args), **values.decode(ending.kwargs))
            case _:
                raise CancellationError(reason=ending.reason or None)


_A_MOMENT = 0.001


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
