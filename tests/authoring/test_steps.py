"""Steps as people write them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from pyworkflow_ray.authoring.steps import Step, get_step, list_steps, registry, run_step, step
from pyworkflow_ray.engine.retries import RetryPolicy
from pyworkflow_ray.exceptions import ConfigurationError, StepValidationError, WorkflowNotFoundError
from tests.engine.simulator import Simulation, assert_replays


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_definitions", {})
    monkeypatch.setattr(registry, "_of_modules", {})


def run(function: Any, *args: Any) -> Any:
    simulation = Simulation(function, *args)
    result = simulation.run()
    assert_replays(simulation)
    return result


def first_at_the_top() -> None: ...


def second_at_the_top() -> None: ...


# --- decorating ---------------------------------------------------------------------------------------


def test_a_step_is_made_bare_or_called() -> None:
    @step
    async def bare(x: int) -> int:
        return x

    @step()
    async def empty(x: int) -> int:
        return x

    @step(name="named", max_retries=5)
    def called(x: int) -> int:
        return x

    assert set(list_steps()) == {"bare", "empty", "named"}
    assert called.step_options.max_retries == 5
    assert (bare.__name__, called.__name__, called.fn(3)) == ("bare", "called", 3)


def test_a_step_called_outside_of_a_run_is_the_plain_function() -> None:
    @step
    def plain(x: int) -> int:
        return x + 1

    @step
    async def asynchronous(x: int) -> int:
        return x + 1

    assert plain(1) == 2
    assert asyncio.run(asynchronous(1)) == 2
    # Not even its arguments are looked at.
    assert plain(1.5) == 2.5


def test_a_plain_function_is_awaited_as_a_step_in_a_workflow() -> None:
    @step
    def plain(x: int) -> int:
        return x + 1

    async def workflow() -> int:
        return await plain(1)

    assert run(workflow) == 2


def test_a_step_called_from_a_step_is_the_plain_function() -> None:
    @step
    async def inner(x: int) -> int:
        return x + 1

    @step
    async def outer(x: int) -> int:
        return await inner(x) * 10

    async def workflow() -> int:
        return await outer(1)

    simulation = Simulation(workflow)
    assert simulation.run() == 20
    assert [call[0] for call in simulation.calls] == ["outer#1"]


def test_a_name_belongs_to_one_function_and_the_error_shows_both_places() -> None:
    step(name="taken")(first_at_the_top)
    with pytest.raises(ConfigurationError) as refused:
        step(name="taken")(second_at_the_top)

    text = str(refused.value)
    assert "Two steps are named 'taken'" in text
    assert text.count(f"{__file__}:") == 2
    assert "first" in text
    assert "second" in text


def test_a_definition_inside_a_function_replaces_any_other_of_its_name() -> None:
    """As two tests do that each define a step."""

    def one() -> Any:
        @step(name="taken")
        def charge() -> int:
            return 1

        return charge

    def other() -> Any:
        @step(name="taken")
        def charge() -> int:
            return 2

        return charge

    first, second = one(), other()
    assert get_step("taken") is second

    async def workflow() -> list[int]:
        return [await first(), await second()]

    assert run(workflow) == [1, 2]
    at_the_top = step(name="taken")(first_at_the_top)
    assert get_step("taken") is at_the_top
    assert get_step("taken") is not one()
    with pytest.raises(ConfigurationError, match="second_at_the_top"):
        step(name="taken")(second_at_the_top)


def test_defining_the_same_function_again_replaces_it() -> None:
    def cell(value: int) -> Any:
        @step
        def again() -> int:
            return value

        return again

    cell(1)
    latest = cell(2)
    assert get_step("again") is latest


def test_an_unknown_name_suggests_one_that_is_alike() -> None:
    @step
    def charge() -> None: ...

    with pytest.raises(WorkflowNotFoundError, match="Did you mean 'charge'"):
        get_step("chrage")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_retrys": 3}, "did you mean 'max_retries'"),
        ({"num_cpu": 3}, "did you mean 'num_cpus'"),
        ({"zzz": 3}, "the options are"),
        ({"max_retries": -1}, "0 or more"),
        ({"max_retries": 2.5}, "whole number"),
        ({"max_retries": True}, "whole number"),
        ({"retry_delay": "soon"}, "exponential|duration"),
        ({"retry_delay": []}, "empty"),
        ({"timeout": 0}, "longer than 0"),
        ({"timeout": "never"}, "duration"),
        ({"retry_on": 3}, "exception type"),
        ({"on_cancel": "explode"}, "'wait'"),
        ({"num_gpus": -1}, "0 or more"),
        ({"num_cpus": "two"}, "number"),
        ({"resources": ["a"]}, "mapping"),
        ({"local": True, "num_gpus": 1}, "local"),
        ({"step_id": "mine"}, "one call"),
    ],
)
def test_an_option_that_is_not_accepted_is_refused_at_the_decorator(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        step(**options)


def test_a_decorator_wants_its_options_by_name() -> None:
    with pytest.raises(ConfigurationError, match="by name"):
        step("charge")  # type: ignore[call-overload]


def test_every_form_of_an_option_is_taken() -> None:
    @step(
        retry_delay=RetryPolicy(initial="1s"),
        timeout="5m",
        metadata={"team": "pay"},
        retry_on=(OSError, ValueError),
        idempotent=False,
        on_cancel="kill",
        num_cpus=0.5,
        num_gpus=1,
        memory=2**30,
        resources={"slot": 1},
        accelerator_type="H100",
        label_selector={"zone": "a"},
        runtime_env={"pip": []},
        scheduling_strategy="SPREAD",
    )
    def everything() -> None: ...

    options = everything.step_options
    assert options.timeout is not None
    assert options.timeout.total_seconds() == 300
    assert set(options.ray_options) == {
        "num_cpus",
        "num_gpus",
        "memory",
        "resources",
        "accelerator_type",
        "label_selector",
        "runtime_env",
        "scheduling_strategy",
    }
    assert everything.metadata == {"team": "pay"}


def test_a_generator_is_no_step() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    async def more_numbers() -> AsyncIterator[int]:
        yield 1

    for function in (numbers, more_numbers):
        with pytest.raises(ConfigurationError, match="cannot be a generator"):
            step(function)


# --- options of one call ------------------------------------------------------------------------------


def test_options_for_one_call_leave_the_step_as_it_was() -> None:
    @step(max_retries=1, num_cpus=2, metadata={"a": 1})
    def charge(x: int) -> int:
        return x

    changed = charge.options(max_retries=7, num_gpus=1, num_cpus=None, metadata={"b": 2}, timeout="1s")
    assert changed.step_options.max_retries == 7
    assert dict(changed.step_options.ray_options) == {"num_gpus": 1}
    assert changed.metadata == {"a": 1, "b": 2}
    assert charge.step_options.max_retries == 1
    assert dict(charge.step_options.ray_options) == {"num_cpus": 2}
    assert get_step("charge") is charge

    async def workflow() -> Any:
        return [await changed(1), await charge(2)]

    assert run(workflow) == [1, 2]


def test_an_option_of_a_call_that_is_not_accepted_names_step_and_option() -> None:
    @step
    def charge() -> None: ...

    with pytest.raises(ConfigurationError, match=r"timout.*step 'charge'.*'timeout'"):
        charge.options(timout=3)


def test_run_step_calls_a_function_that_nobody_decorated() -> None:
    def area(width: int, height: int = 1) -> int:
        return width * height

    async def workflow() -> list[Any]:
        return [
            await run_step(area, 3, height=4),
            await run_step(area, 3, name="surface", max_retries=0),
            await run_step(step(area), 5, step_id="mine"),
        ]

    simulation = Simulation(workflow)
    assert simulation.run() == [12, 3, 5]
    assert [call[0] for call in simulation.calls] == ["area#1", "surface#1", "mine"]
    assert_replays(simulation)


def test_run_step_outside_of_a_run_calls_the_function() -> None:
    async def asynchronous(x: int) -> int:
        return x

    assert asyncio.run(run_step(asynchronous, 3)) == 3
    assert asyncio.run(run_step(len, "abc")) == 3


# --- arguments ----------------------------------------------------------------------------------------


class Order(BaseModel):
    id: int
    tags: list[str] = []


def calling(function: Any, *args: Any, **kwargs: Any) -> Any:
    async def workflow() -> Any:
        return await function(*args, **kwargs)

    simulation = Simulation(workflow)
    try:
        return simulation.run()
    finally:
        simulation.execution.drop()


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {}, "missing a required argument: 'a'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"c": 3}, "unexpected keyword argument 'c'"),
        ((1,), {"a": 3}, "multiple values for argument 'a'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_recorded(
    args: tuple[Any, ...], kwargs: dict[str, Any], said: str
) -> None:
    @step
    def two(a: int, b: int = 2) -> None: ...

    async def workflow() -> str:
        try:
            await two(*args, **kwargs)
        except StepValidationError as error:
            return str(error)
        return "accepted"

    simulation = Simulation(workflow)
    text = simulation.run()
    assert said in text
    assert "step 'two'" in text
    assert "(a: 'int', b: 'int' = 2)" in text or "(a: int, b: int = 2)" in text
    assert "step.started" not in simulation.types()


def test_arguments_are_refused_also_after_a_call_that_fitted() -> None:
    @step
    def none() -> None: ...

    @step
    def one(a: int) -> int:
        return a

    async def workflow() -> list[str]:
        told = []
        await none()
        for _ in range(2):
            await one(1)
            for call in (one, lambda: none(1), lambda: one("x")):  # type: ignore[call-arg, arg-type]
                try:
                    await call()
                except StepValidationError:
                    told.append("refused")
        return told

    assert run(workflow) == ["refused"] * 6


def test_an_argument_of_the_wrong_type_names_step_parameter_and_type() -> None:
    @step
    def charge(order: Order, amount: int) -> None: ...

    with pytest.raises(
        StepValidationError, match=r"Argument 'amount' of step 'charge' must be int.*type str"
    ):
        calling(charge, Order(id=1), "much")
    with pytest.raises(
        StepValidationError, match=r"Argument \"order\['id'\]\" of step 'charge' must be .*Order"
    ):
        calling(charge, {"id": "x"}, 1)


def test_annotated_arguments_are_rebuilt() -> None:
    @step
    def kinds(order: Order, counts: list[int], rest: Any, plain) -> list[str]:  # type: ignore[no-untyped-def]
        return [type(order).__name__, repr(counts), repr(rest), repr(plain), repr(order.tags)]

    told = calling(kinds, {"id": "3", "tags": ["a"]}, ("1", 2), ("1", 2), "7")
    assert told == ["Order", "[1, 2]", "('1', 2)", "'7'", "['a']"]


def test_variadic_and_keyword_only_arguments_reach_the_step() -> None:
    @step
    def spread(a: int, /, *rest: int, key: str = "k", **more: int) -> list[Any]:
        return [a, rest, key, more]

    assert calling(spread, 1, 2, 3, key="x", z=9) == [1, (2, 3), "x", {"z": 9}]


def test_defaults_are_the_steps_own_when_it_runs() -> None:
    @step
    def defaulted(a: int, b: list[int] | None = None) -> Any:
        return [a, b]

    assert calling(defaulted, 1) == [1, None]


# --- classes ------------------------------------------------------------------------------------------


class Charge(Step):
    max_retries = 7
    timeout = "30s"

    def __init__(self, currency: str = "EUR") -> None:
        self.currency = currency

    async def execute(self, amount: int) -> str:
        return f"{amount} {self.currency}"


def test_a_step_class_is_called_by_an_instance_with_what_init_stored() -> None:
    async def workflow() -> list[str]:
        return [await Charge()(3), await Charge("USD")(4), await Charge().options(step_id="mine")(5)]

    simulation = Simulation(workflow)
    assert simulation.run() == ["3 EUR", "4 USD", "5 EUR"]
    assert [call[0] for call in simulation.calls] == ["Charge#1", "Charge#2", "mine"]
    assert_replays(simulation)


def test_a_step_class_is_known_by_its_name() -> None:
    class Pay(Charge):
        pass

    assert asyncio.run(get_step("Pay")(3)) == "3 EUR"
    assert "Pay" in list_steps()


def test_a_step_class_called_outside_of_a_run_is_its_method() -> None:
    assert asyncio.run(Charge()(3)) == "3 EUR"


def test_a_step_class_takes_its_options_from_its_attributes() -> None:
    class Refund(Charge):
        name = "give_back"
        num_gpus = 1

    made = Refund().options()
    assert (made.name, made.step_options.max_retries) == ("give_back", 7)
    assert dict(made.step_options.ray_options) == {"num_gpus": 1}
    with pytest.raises(ConfigurationError, match="0 or more"):

        class Wrong(Step):
            max_retries = -1


def test_a_misspelt_option_of_a_step_class_is_refused() -> None:
    for name, meant in (
        ("max_retry", "max_retries"),
        ("timout", "timeout"),
        ("retries", "max_retries"),
        ("num_cpu", "num_cpus"),
        ("retry_onn", "retry_on"),
    ):
        with pytest.raises(ConfigurationError, match=f"{name!r}, which is no option .* mean {meant!r}"):
            type("Charge", (Step,), {name: ValueError})
    with pytest.raises(ConfigurationError, match="a step id names one call"):
        type("Charge", (Step,), {"step_id": "one"})


def test_a_step_class_may_have_attributes_of_its_own() -> None:
    class Translate(Step):
        locale = "de"  # nearly `local`
        currency = "EUR"
        _max_retry = 3
        metadata = {"team": "text"}  # noqa: RUF012

        @property
        def names(self) -> list[str]:
            return [self.locale]

        def retries(self) -> int:
            return 3

        async def execute(self) -> list[str]:
            return self.names

    class Nearly(Translate):
        locale = "fr"

    assert calling(Nearly()) == ["fr"]
    assert get_step("Translate").metadata == {"team": "text"}
    assert Translate().options(metadata={"more": 1}).metadata == {"team": "text", "more": 1}


def test_a_step_class_checks_the_arguments_of_a_call() -> None:
    with pytest.raises(StepValidationError, match="'amount' of step 'Charge' must be int"):
        calling(Charge(), "much")


def test_a_step_class_without_execute_says_what_to_write() -> None:
    class Empty(Step):
        pass

    with pytest.raises(NotImplementedError, match="async def execute"):
        asyncio.run(Empty()())


# --- forms of functions -------------------------------------------------------------------------------


def test_a_step_may_be_a_method_of_an_object_that_can_be_stored() -> None:
    class Shop:
        def __init__(self, tax: int) -> None:
            self.tax = tax

        @step
        def total(self, net: int) -> int:
            return net + self.tax

    async def workflow() -> int:
        return await Shop(3).total(4)

    assert Simulation(workflow).run() == 7
    assert Shop(1).total(1) == 2


def test_a_step_may_be_made_of_a_partial() -> None:
    def add(a: int, b: int) -> int:
        return a + b

    made = step(name="add_one")(functools.partial(add, 1))

    async def workflow() -> int:
        return await made(2)

    assert run(workflow) == 3
