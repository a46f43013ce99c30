"""Mock contexts: a test calls workflows directly, and gives the answers of their steps."""

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
from pyworkflow_ray.testing.clocks import VirtualClock
from pyworkflow_ray.testing.direct_calls import DirectCallRun
from pyworkflow_ray.testing.mock_answers import MockAnswers
from pyworkflow_ray.testing.mock_runs import MockRun
from pyworkflow_ray.testing.mock_states import ChildCall, HookCall, MockState, Sleep, StepCall
from pyworkflow_ray.values.failures import error_type_name, restore


class ContinuedAsNew(Exception):
    """A workflow that a test calls in a `MockContext` has continued as a new run.

    `args` and `kwargs` are the new run's arguments.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args)
        self.kwargs = kwargs

    def __str__(self) -> str:
        given = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        return f"The workflow has continued as a new run, with the arguments ({', '.join(given)})."


class MockContext(WorkflowContext):
    """Within ``with MockContext(...) as context:`` a test calls workflows directly, and mocks steps by name.

    ``await order("A-1")`` then runs the workflow's code on the engine's event loop, as in a run. Nothing is
    stored. The answer of a step comes from `mock_results`. A step without an answer there calls its
    function. A step that the test itself calls is treated in the same way. `sleep`, `asyncio.sleep` and
    timeouts take no time: when nothing else can happen, time jumps to what is due first.

    An answer is a value, an exception (which is raised), or a function (which is called with the step's
    arguments, and may be `async def`). A list of these has one answer for each call. With `NEVER` no answer
    comes.

    Args:
        run_id: The value of `get_context().run_id`; also the seed of the run's random source.
        workflow_name: The value of `get_context().workflow_name`; the workflow's own name by default.
        skip_sleeps: If False, sleeps take real time.
        mock_results: The answers of steps and child workflows, by their names.
        mock_events: The signals that a workflow receives, by name: a payload, or a list of payloads.
        mock_hooks: The answers to hooks, by name. A function may take the hook's token.
        strict: If True, a step or child without an answer is an error, and is not really called.
        start_time: The time at the beginning.
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
        self._shared = MockState(
            settings=settings,
            values=configured_values(settings.payload_codec, settings.payload_limit),
            clock=VirtualClock(start_time),
            skip_sleeps=skip_sleeps,
            strict=strict,
            results=MockAnswers("mock_results", self.mock_results),
            hooks=MockAnswers("mock_hooks", self.mock_hooks),
            events=self.mock_events,
        )
        self._direct = DirectCallRun(self._shared, run_id, workflow_name or "mock")
        self._entered: list[tuple[Token[Execution | None], Token[Caller | None]]] = []
        super().__init__(self._direct)

    # --- what was called --------------------------------------------------------------------------------

    @property
    def steps(self) -> list[StepCall]:
        """The steps that were called, in order, with their arguments and outcomes."""
        return self._shared.step_calls

    @property
    def step_names(self) -> list[str]:
        """The names of the steps that were called, in order."""
        return [call.name for call in self.steps]

    @property
    def children(self) -> list[ChildCall]:
        """The child workflows that were started, in order."""
        return self._shared.child_calls

    @property
    def hooks(self) -> list[HookCall]:
        """The hooks that were waited for, in order."""
        return self._shared.hook_calls

    @property
    def sleeps(self) -> list[Sleep]:
        """The sleeps that ended, in order. Sleeps that the code gave up are not among them."""
        return self._shared.sleeps

    @property
    def attributes(self) -> dict[str, Any]:
        """What `set_attributes` has set."""
        return self._shared.attributes

    def assert_step_called(self, name: str, times: int | None = None) -> None:
        """Check that a step was called: at least once, or as often as `times` says.

        Raises:
            AssertionError: It was not. The message lists the steps that were called.
        """
        counts = Counter(self.step_names)
        if counts[name] == times or (times is None and counts[name]):
            return
        expected = "" if times is None else f", and not {_times(times)}"
        was = _times(counts[name]) if counts[name] else "not"
        called = ", ".join(f"{each} ({_times(count)})" for each, count in counts.items())
        raise AssertionError(
            f"Step {name!r} was {was} called{expected}. Steps that were called: {called or 'none'}."
        )

    def assert_slept(self, total_seconds: float | None = None) -> None:
        """Check that the code has slept: at all, or `total_seconds` in all.

        Raises:
            AssertionError: It has not. The message lists the sleeps.
        """
        slept = sum(sleep.seconds for sleep in self.sleeps)
        if self.sleeps and (total_seconds is None or abs(slept - total_seconds) < _A_MOMENT):
            return
        if not self.sleeps and total_seconds == 0:
            return
        expected = "" if total_seconds is None else f", and not {total_seconds:g} s"
        sleeps = ", ".join(
            f"{each.seconds:g} s" + f" ({each.name})" * bool(each.name) for each in self.sleeps
        )
        raise AssertionError(f"The code slept {slept:g} s{expected}. The sleeps: {sleeps or 'none'}.")

    # --- entering ------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._entered.append((current.set(self._direct), caller.set(self._call)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        execution, call = self._entered.pop()
        current.reset(execution)
        caller.reset(call)
        if not self._entered:
            self._direct.close()
            self._execution = self._direct = DirectCallRun(self._shared, self.run_id, self.workflow_name)

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
        """What a workflow returns when the test calls it."""
        args, kwargs = definition.check_arguments(args, kwargs)
        run = MockRun(self._shared, self.run_id, self._name or definition.name, function, definition)
        ending = await run.play(args, kwargs)
        values = self._shared.values
        match ending:
            case CompleteRun(result=result):
                return values.decode(result)
            case FailRun(failure=failure):
                raised = run.raised
                if raised is not None and error_type_name(type(raised)) == failure.error_type:
                    raise raised  # the error itself and no copy: its traceback leads into the workflow's code
                raise restore(failure, fallback=WorkflowFailedError)
            case ContinueRun():
                raise ContinuedAsNew(*values.decode(ending.args), **values.decode(ending.kwargs))
            case _:
                raise CancellationError(reason=ending.reason or None)


_A_MOMENT = 0.001


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
