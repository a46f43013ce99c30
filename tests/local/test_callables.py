"""What may be a step or a workflow, and what its arguments may be called; in whole runs."""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.testing import MockContext, WorkflowEnvironment
from tests.local.notes import types


class Model:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: int) -> int:
        return self.factor * x

    async def predict(self, x: int) -> int:
        await asyncio.sleep(0)
        return self.factor + x


class AsyncModel:
    async def __call__(self, x: int) -> int:
        await asyncio.sleep(0)
        return 10 * x


def logged(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return inner


@logged
async def later(x: int, *, plus: int = 0) -> int:
    await asyncio.sleep(0)
    return x + plus


def scheduled(x: int) -> Any:
    """A plain function that returns a future of the step's loop."""
    return later(x)


CALLABLES: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = [
    (max, (1, 2), {}, 2),
    (dict, (), {"a": 1}, {"a": 1}),
    (operator.itemgetter(1), ([1, 2],), {}, 2),
    ("abc".upper, (), {}, "ABC"),
    (functools.partial(later, plus=4), (1,), {}, 5),
    (later, (1,), {"plus": 2}, 3),
    (scheduled, (1,), {}, 1),
    (Model(3), (4,), {}, 12),
    (Model(3).predict, (4,), {}, 7),
    (AsyncModel(), (4,), {}, 40),
]


@pr.workflow
async def calls_of_all_kinds(local: bool) -> list[Any]:
    async def call(at: int) -> Any:
        function, args, kwargs, _ = CALLABLES[at]
        return await pr.run_step.options(local=local, max_retries=0, timeout="1m")(function, *args, **kwargs)

    return await pr.gather(*map(call, range(len(CALLABLES))))


@pytest.mark.parametrize("local", [True, False])
async def test_steps_may_be_callables_of_all_kinds(local: bool) -> None:
    async with WorkflowEnvironment() as environment:
        results = await environment.run(calls_of_all_kinds, local)
        assert results == [expected for *_, expected in CALLABLES]
    with MockContext():
        assert await calls_of_all_kinds(local) == results


@pr.workflow
@logged
async def decorated_workflow(x: int, *, plus: int = 0) -> int:
    return x + plus


async def test_a_plain_decorators_workflow_runs() -> None:
    async with WorkflowEnvironment() as environment:
        assert await environment.run(decorated_workflow, 1, plus=2) == 3


@pr.step(max_retries=0)
def starts_another_run() -> Any:
    return pr.RunHandle("run_0123456789abcdef")


@pr.workflow
async def keeps_a_handle() -> Any:
    return await starts_another_run()


async def test_a_step_that_returns_something_to_await_does_not_await_it() -> None:
    """The handle of a run can be awaited, and is a result all the same."""
    async with WorkflowEnvironment() as environment:
        assert await environment.run(keeps_a_handle) == "run_0123456789abcdef"


# --- definitions inside functions -----------------------------------------------------------------


@pytest.mark.parametrize("rate", [1, 2])
async def test_each_test_may_define_a_step_and_a_workflow_of_one_name(rate: int) -> None:
    @pr.step
    def defined_in_a_test(n: int) -> int:
        return n * rate

    @pr.workflow
    async def defined_in_a_test_too(n: int) -> int:
        return await defined_in_a_test(n)

    async with WorkflowEnvironment() as environment:
        run = await environment.start(defined_in_a_test_too, 3)
        assert await run == 3 * rate
        assert await environment.run(pr.get_workflow("defined_in_a_test_too"), 3) == 3 * rate


async def test_a_run_goes_on_with_its_own_code_when_its_name_means_another_workflow() -> None:
    def define(rate: int) -> Any:
        @pr.step
        def replaced_step(n: int) -> int:
            return n * rate

        @pr.workflow
        async def replaced_workflow(n: int) -> int:
            await pr.sleep("1h")
            return await replaced_step(n)

        return replaced_workflow

    async with WorkflowEnvironment(skip_time=False) as environment:
        first = await environment.start(define(1), 3)
        second = await environment.start(define(2), 3)
        await environment.settle()
        await environment.crash()
        await environment.advance("2h")
        assert [await first, await second] == [3, 6]


# --- names ----------------------------------------------------------------------------------------


@pr.step(max_retries=0)
def shows(name: Any, fn: Any, self: Any = None) -> Any:
    return [name, fn, self]


@pr.workflow
async def named_like_ours(fn: Any, name: Any = None, self: Any = None, workflow: Any = None) -> Any:
    return [fn, name, self, workflow, await shows(name=name, fn=fn, self=self)]


@pr.workflow
async def parent_named_like_ours() -> Any:
    return await pr.start_child_workflow(named_like_ours, fn=1, name=2, self=3, workflow=4)


@pr.step(max_retries=0)
def undo_named_like_ours(step: Any, undo: Any) -> None:
    pass


@pr.workflow
async def undoes_named_like_ours() -> Any:
    pr.compensations().add(undo_named_like_ours, step="a", undo="b")
    raise ValueError("no")


@pr.workflow
async def answers_named_like_ours() -> Any:
    pr.set_query_handler("find", lambda name, run_id="", self="": [name, run_id, self])
    return await pr.receive("go")


async def test_arguments_named_like_ours_reach_the_run() -> None:
    expected = [1, 2, 3, 4, [2, 1, 3]]
    given: dict[str, Any] = {"fn": 1, "name": 2, "self": 3, "workflow": 4}
    async with WorkflowEnvironment() as environment:
        starts: list[Callable[[], Awaitable[Any]]] = [
            lambda: environment.start(named_like_ours, **given),
            lambda: pr.start(named_like_ours, **given),
            lambda: pr.start.options()(named_like_ours, **given),
        ]
        for start in starts:
            assert await (await start()) == expected
        assert await environment.run(named_like_ours, **given) == expected
        assert await environment.run(parent_named_like_ours) == expected
        run = await environment.start(undoes_named_like_ours)
        with pytest.raises(ValueError, match="no") as failed:
            await run
        assert not [note for note in failed.value.__notes__ if "compensation" in note]
        asked = await environment.start(answers_named_like_ours)
        await environment.settle()
        assert await asked.query("find", name=1, run_id=2, self=3) == [1, 2, 3]
        assert await pr.query(asked, "find", name=1, run_id=2) == [1, 2, ""]
        create = pr.create_schedule.options(schedule_id="named")
        await create(named_like_ours, pr.ScheduleSpec(cron="@daily"), **given)
        assert await (await pr.trigger_schedule("named")) == expected
    with MockContext(mock_results={"shows": lambda name, fn, self, answer=None: [name, fn, self]}):
        assert await named_like_ours(**given) == expected


# --- mistakes -------------------------------------------------------------------------------------


@pr.workflow
async def small_errand(cents: int) -> int:
    return cents


async def test_a_workflow_that_was_called_is_told_apart_from_the_workflow(
    recwarn: pytest.WarningsRecorder,
) -> None:
    told = r"small_errand\(\.\.\.\) was called already\. Give the workflow itself"
    spec = pr.ScheduleSpec(cron="@daily")
    async with WorkflowEnvironment() as environment:
        calls: list[Callable[[Any], Any]] = [
            pr.start,
            pr.start.options(),
            environment.run,
            lambda called: pr.create_schedule(called, spec),
            lambda called: asyncio.to_thread(pr.start_sync, called),
            lambda called: asyncio.to_thread(pr.run_workflow, called),
        ]
        for call in calls:
            with pytest.raises(pr.ConfigurationError, match=told):
                await call(small_errand(3))

        @pr.workflow
        async def gives_a_call_to_a_child() -> Any:
            return await pr.start_child_workflow(small_errand(3))  # type: ignore[arg-type]

        with pytest.raises(pr.ConfigurationError, match=told):
            await environment.run(gives_a_call_to_a_child)
    assert not [w for w in recwarn if "never awaited" in str(w.message)]


async def test_an_option_among_the_arguments_is_told_where_it_belongs() -> None:
    async with WorkflowEnvironment() as environment:
        for name in ("delay", "run_id", "conflict", "attributes"):
            cure = rf"await start\.options\({name}=\.\.\.\)\(small_errand, \.\.\.\) gives it"
            with pytest.raises(pr.StepValidationError, match=cure):
                await pr.start(small_errand, 3, **{name: "x"})
            with pytest.raises(pr.StepValidationError, match=cure):
                await environment.run(small_errand, 3, **{name: "x"})  # type: ignore[call-arg]
        with pytest.raises(pr.StepValidationError, match=r"create_schedule\.options\(note=\.\.\.\)"):
            await pr.create_schedule(small_errand, pr.ScheduleSpec(cron="@daily"), 3, note="x")


async def test_a_blocking_start_takes_the_same_options() -> None:
    async with WorkflowEnvironment() as environment:
        make = pr.start_sync.options(run_id="errand-7", attributes={"a": 1})
        run = await asyncio.to_thread(make, small_errand, 3)
        assert run == "errand-7"
        assert await run == 3
        assert environment.now()


async def test_blocking_starts_are_refused_in_a_workflow(recwarn: pytest.WarningsRecorder) -> None:
    async with WorkflowEnvironment() as environment:
        for start in (pr.start_sync, pr.start_sync.options(), pr.run_workflow):

            @pr.workflow(name="starts_within_a_workflow")
            async def starts(start: Any = start) -> Any:
                start(small_errand, 3)

            with pytest.raises(pr.WorkflowError, match="Call it in a step, or start a child workflow"):
                await environment.run(starts)
    assert not [w for w in recwarn if "never awaited" in str(w.message)]


# --- calls in the wrong place -------------------------------------------------------------------------


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("hook", lambda: pr.hook("approval")),
        ("start_child_workflow", lambda: pr.start_child_workflow(small_errand, 3)),
        ("receive", lambda: pr.receive("go")),
        ("side_effect", lambda: pr.side_effect(lambda: 3)),
        ("continue_as_new", lambda: pr.continue_as_new(3)),
    ],
)
async def test_what_belongs_in_a_workflow_fails_a_step_at_once(name: str, call: Any, local: bool) -> None:
    @pr.step(name="calls_what_belongs_in_a_workflow", max_retries=3, local=local)
    async def calls_it() -> None:
        await call()

    @pr.workflow(name="calls_a_step_that_does")
    async def code() -> None:
        await calls_it()

    async with WorkflowEnvironment() as environment:
        told = rf"{name}\(\) belongs in the code of a workflow, and step 'calls_what_.*#1' has called it"
        run = await environment.start(code)
        with pytest.raises(pr.FatalError, match=told):
            await run
        assert "step.retrying" not in await types(run)


async def test_a_call_that_is_never_awaited_fails_its_run() -> None:
    @pr.workflow(name="forgets_to_await")
    async def code() -> str:
        shows(1, 2)  # type: ignore[unused-coroutine]
        return "done"

    async with WorkflowEnvironment() as environment:
        with pytest.raises(pr.FatalError, match=rf"nobody has awaited step 'shows' at {__file__}:\d+"):
            await environment.run(code)
    with MockContext(), pytest.raises(pr.FatalError, match="nobody has awaited step 'shows'"):
        await code()
