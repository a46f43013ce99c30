"""Workflows as people write them, and what their code may ask."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from pyworkflow_ray.authoring.context import (
    get_context,
    has_context,
    patched,
    set_attributes,
    side_effect,
)
from pyworkflow_ray.authoring.steps import step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.authoring.workflows import (
    Workflow,
    WorkflowOptions,
    as_workflow,
    get_workflow,
    list_workflows,
    registry,
    workflow,
)
from pyworkflow_ray.engine.running_steps import RunningStep, running
from pyworkflow_ray.exceptions import (
    ConfigurationError,
    StepValidationError,
    WorkflowError,
    WorkflowNotFoundError,
)
from tests.engine.simulator import Simulation


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_definitions", {})
    monkeypatch.setattr(registry, "_of_modules", {})


def test_a_workflow_is_made_bare_or_called() -> None:
    @workflow
    async def bare(x: int) -> int:
        return x

    @workflow()
    async def empty(x: int) -> int:
        return x

    @workflow(name="named", durable=False, max_duration="1h", tags=["a", "b", "c"], isolation="process")
    async def called(x: int) -> int:
        return x

    assert set(list_workflows()) == {"bare", "empty", "named"}
    assert called.workflow_options == WorkflowOptions(
        durable=False, max_duration=timedelta(hours=1), tags=("a", "b", "c"), isolation="process"
    )
    assert asyncio.run(bare(3)) == 3
    assert bare.parameters == ("x",)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tags": ["a", "b", "c", "d"]}, "4 tags, and 3 at most"),
        ({"tags": "abc"}, "list of texts"),
        ({"tags": [1]}, "list of texts"),
        ({"max_duration": "long"}, "max_duration"),
        ({"max_duration": -1}, "negative"),
        ({"isolation": "planet"}, "'process'"),
        ({"max_recovery_attempts": -1}, "0 or more"),
    ],
)
def test_an_option_that_is_not_accepted_is_refused_at_the_decorator(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        workflow(**options)


def test_an_unknown_option_suggests_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'max_duration'"):
        workflow(max_durations="1h")  # type: ignore[call-overload]


def test_a_workflow_is_an_async_function() -> None:
    def plain() -> None: ...

    async def numbers() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(ConfigurationError, match="must be an `async def`"):
        workflow(plain)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="cannot be a generator"):
        workflow(numbers)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="by name"):
        workflow("named")  # type: ignore[call-overload]


async def first_at_the_top() -> None: ...


async def second_at_the_top() -> None: ...


def test_a_step_is_no_workflow_and_a_workflow_no_step() -> None:
    @step
    async def charge() -> None: ...

    @workflow
    async def order() -> None: ...

    with pytest.raises(ConfigurationError, match=r"<step 'charge'> is a step and cannot be a workflow too"):
        workflow(charge)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigurationError, match=r"<workflow 'order'> is a workflow and cannot be a step too"
    ):
        step(order)


def test_a_method_is_no_workflow_and_a_static_function_of_a_class_is_one() -> None:
    with pytest.raises(ConfigurationError, match=r"a method of .*Shop, .*class Shop\(Workflow\)"):

        class Shop:
            @workflow
            async def total(self, net: int) -> int:
                return net

    class Till:
        @staticmethod
        @workflow
        async def count(net: int) -> int:
            return net

    assert Till.count.check_arguments((3,), {}) == ((3,), {})


def test_a_misspelt_option_of_a_workflow_class_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'max_durations', which is no option .*'max_duration'"):

        class Long(Workflow):
            max_durations = "1h"

            async def run(self) -> None: ...


def test_a_definition_inside_a_function_replaces_any_other_workflow_of_its_name() -> None:
    def one() -> Any:
        return workflow(name="taken")(lambda_like("one"))

    def lambda_like(word: str) -> Any:
        async def inside() -> str:
            return word

        return inside

    workflow(name="taken")(first_at_the_top)
    latest = one()
    assert get_workflow("taken") is latest


def test_a_name_belongs_to_one_workflow_and_the_error_shows_both_places() -> None:
    workflow(name="taken")(first_at_the_top)
    with pytest.raises(ConfigurationError) as refused:
        workflow(name="taken")(second_at_the_top)

    assert str(refused.value).count(f"{__file__}:") == 2


def test_defining_the_same_workflow_again_replaces_it() -> None:
    def cell(value: int) -> Any:
        @workflow
        async def again() -> int:
            return value

        return again

    cell(1)
    latest = cell(2)
    assert get_workflow("again") is latest


def test_a_workflow_class_is_a_workflow() -> None:
    class Order(Workflow):
        name = "order"
        tags = ("shop",)
        max_duration = "1d"

        async def run(self, order_id: int, *, fast: bool = False) -> str:
            """Ship it."""
            return f"{order_id} {fast}"

    made = as_workflow(Order)
    assert made is as_workflow(Order()) is as_workflow("order") is get_workflow("order")
    assert made.parameters == ("order_id", "fast")
    assert made.workflow_options.tags == ("shop",)
    assert Simulation(made, 3, fast=True).run() == "3 True"
    assert asyncio.run(Order()(4)) == "4 False"
    with pytest.raises(StepValidationError, match="'order_id' of workflow 'order' must be int"):
        made.check_arguments(("x",), {})


def test_a_workflow_class_wants_an_async_run() -> None:
    with pytest.raises(ConfigurationError, match="run must be an `async def`"):

        class Wrong(Workflow):
            def run(self) -> None:  # type: ignore[override]
                pass

    class Base(Workflow):
        """A base of others is no workflow itself."""

    with pytest.raises(ConfigurationError, match="not a workflow"):
        as_workflow(Base)


@pytest.mark.parametrize("value", [lambda: None, 3, int, functools.partial(print)])
def test_what_is_no_workflow_is_told_so(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="is not a workflow: decorate"):
        as_workflow(value)


def test_an_unknown_workflow_suggests_one_that_is_alike() -> None:
    @workflow
    async def shipping() -> None: ...

    with pytest.raises(WorkflowNotFoundError, match="Did you mean 'shipping'"):
        as_workflow("shiping")


def test_arguments_of_a_workflow_are_checked_against_its_signature() -> None:
    @workflow
    async def order(id: int, items: list[int]) -> None: ...

    assert order.check_arguments(("3", (1, "2")), {}) == ((3, [1, 2]), {})
    with pytest.raises(StepValidationError, match="workflow 'order': missing a required argument: 'items'"):
        order.check_arguments((3,), {})


def test_keywords_named_like_options_reach_the_workflow() -> None:
    @workflow
    async def awkward(runtime: str, durable: int, storage: str, name: str) -> list[Any]:
        return [runtime, durable, storage, name]

    assert Simulation(awkward, runtime="r", durable=2, storage="s", name="n").run() == ["r", 2, "s", "n"]


def test_a_workflow_called_in_a_workflow_is_its_code_in_the_same_run() -> None:
    @step(name="wf_inner_step")
    def one() -> int:
        return 1

    @workflow
    async def inner() -> int:
        return await one()

    @workflow
    async def outer() -> int:
        return await inner() + await inner()

    simulation = Simulation(outer)
    assert simulation.run() == 2
    assert [call[0] for call in simulation.calls] == ["wf_inner_step#1", "wf_inner_step#2"]


# --- contexts -----------------------------------------------------------------------------------------


def test_there_is_no_context_outside_of_runs() -> None:
    assert not has_context()
    with pytest.raises(WorkflowError, match=r"has_context\(\)"):
        get_context()
    for call in (lambda: patched("p"), lambda: side_effect(list), lambda: set_attributes(a=1)):
        with pytest.raises(WorkflowError, match="belongs in the code of a workflow"):
            call()


def test_the_context_of_a_workflow_tells_its_run() -> None:
    async def code() -> list[Any]:
        ctx = get_context()
        return [has_context(), ctx.run_id, ctx.workflow_name, ctx.is_durable, ctx.is_replaying]

    assert Simulation(code).run() == [True, "run_0000000000000001", "simulated", True, False]


def test_the_context_runs_steps_sleeps_and_gathers() -> None:
    def double(x: int) -> int:
        return x * 2

    async def code() -> list[Any]:
        ctx = get_context()
        await ctx.sleep("1h", name="pause")
        told = [await ctx.run(double, 2), await ctx.run(double, 3, name="twice")]
        return [*told, *await ctx.parallel(ctx.run(double, 4), ctx.run(double, 5))]

    simulation = Simulation(code)
    assert simulation.run() == [4, 6, 8, 10]
    assert [call[0] for call in simulation.calls][:2] == ["double#1", "twice#1"]


def test_the_context_of_a_step_tells_its_attempt() -> None:
    with running(RunningStep("run_1", "order", "charge#1", "charge", attempt=2)):
        assert has_context()
        context = get_context()
        told = (context.run_id, context.workflow_name, context.step_id, context.step_name, context.attempt)
        assert told == ("run_1", "order", "charge#1", "charge", 2)
        assert context.idempotency_key == "run_1:charge#1"
        assert 0 <= context.random() < 1
    assert not has_context()


def test_sleep_outside_of_a_run_is_asyncios() -> None:
    asyncio.run(sleep("1ms"))
    with pytest.raises(ValueError, match="negative"):
        asyncio.run(sleep(-1))
