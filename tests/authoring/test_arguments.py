"""The arguments of calls: what a function gets is what the same call gives without the library."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

import pytest

import pyworkflow_ray
from pyworkflow_ray import testing
from pyworkflow_ray.authoring.bound_steps import BoundStep
from pyworkflow_ray.authoring.children import start_child_workflow
from pyworkflow_ray.authoring.context import Compensations, WorkflowContext, compensations
from pyworkflow_ray.authoring.schedules import declarations, scheduled_workflow
from pyworkflow_ray.authoring.step_contexts import StepContext
from pyworkflow_ray.authoring.steps import Step, registry, run_step, step
from pyworkflow_ray.authoring.workflows import Workflow, as_workflow, workflow
from pyworkflow_ray.authoring.workflows import registry as workflows
from pyworkflow_ray.exceptions import ConfigurationError, StepValidationError
from tests.engine.simulator import Simulation, assert_replays


@pytest.fixture(autouse=True)
def _own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_definitions", {})
    monkeypatch.setattr(registry, "_of_modules", {})
    monkeypatch.setattr(workflows, "_definitions", {})
    monkeypatch.setattr(workflows, "_of_modules", {})


def run(function: Any, *args: Any) -> Any:
    simulation = Simulation(function, *args)
    result = simulation.run()
    assert_replays(simulation)
    return result


def calling(function: Any, *args: Any, **kwargs: Any) -> Any:
    async def workflow() -> Any:
        return await function(*args, **kwargs)

    return run(workflow)


# --- decorated functions ------------------------------------------------------------------------------


def with_options(fn: Any) -> Any:
    @functools.wraps(fn)
    def inner(a: Any, b: Any, **options: Any) -> Any:
        return fn(a, b, **options)

    return inner


def by_name_alone(fn: Any) -> Any:
    @functools.wraps(fn)
    def inner(**given: Any) -> Any:
        return fn(**given)

    return inner


def first_by_position(fn: Any) -> Any:
    @functools.wraps(fn)
    def inner(first: Any, /, **rest: Any) -> Any:
        return fn(first, **rest)

    return inner


def as_given(fn: Any) -> Any:
    @functools.wraps(fn)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return inner


def adding_one(fn: Any) -> Any:
    @functools.wraps(fn)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return fn("session", *args, **kwargs)

    return inner


def taking_one(fn: Any) -> Any:
    @functools.wraps(fn)
    def inner(*args: Any, tries: int = 1, **kwargs: Any) -> Any:
        return [fn(*args, **kwargs) for _ in range(tries)]

    return inner


def showing_another(fn: Any) -> Any:
    def inner(**given: Any) -> Any:
        return fn(**given)

    inner.__signature__ = inspect.signature(fn)  # type: ignore[attr-defined]
    return inner


def add(a: int, b: int, unit: str | None = None) -> str:
    return f"{a!r} {b!r} {unit!r}"


def scale(session: str, by: int) -> str:
    return f"{session} {by!r}"


DECORATED: list[tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (with_options, add, (1, 2), {"unit": "kg"}),
    (with_options, add, (1,), {"b": 2}),
    (by_name_alone, add, (), {"a": 1, "b": 2}),
    (first_by_position, add, (1,), {"b": 2, "unit": "g"}),
    (as_given, add, (1, 2), {"unit": "kg"}),
    (as_given, add, (1, 2, "kg"), {}),
    (adding_one, scale, (3,), {}),
    (adding_one, scale, (), {"by": 3}),
    (taking_one, add, (1, 2), {"tries": 2}),
    (showing_another, add, (), {"a": 1, "b": 2}),
]


@pytest.mark.parametrize(("decorator", "fn", "args", "kwargs"), DECORATED)
def test_a_decorated_step_is_called_as_it_would_be_without_the_library(
    decorator: Any, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    decorated = decorator(fn)
    expected = decorated(*args, **kwargs)
    assert calling(step(decorated), *args, **kwargs) == expected
    assert calling(functools.partial(run_step, decorated), *args, **kwargs) == expected
    assert calling(step(decorated).options(max_retries=0), *args, **kwargs) == expected

    class Decorated(Step):
        @functools.wraps(fn)
        async def execute(self, *args: Any, **kwargs: Any) -> Any:
            return decorated(*args, **kwargs)

    assert calling(step(functools.partial(decorated, *args)), **kwargs) == expected
    assert calling(step(as_given(decorated)), *args, **kwargs) == expected


@pytest.mark.parametrize(("decorator", "fn", "args", "kwargs"), DECORATED)
def test_a_decorated_workflow_gets_its_arguments_as_they_are_given(
    decorator: Any, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    decorated = decorator(fn)
    expected = decorated(*args, **kwargs)

    @functools.wraps(decorated)
    async def code(*args: Any, **kwargs: Any) -> Any:
        return decorated(*args, **kwargs)

    given, named = workflow(code).check_arguments(args, kwargs)
    assert asyncio.run(code(*given, **named)) == expected


def test_a_decorated_methods_arguments_stay_as_they_are_given() -> None:
    class Charge(Step):
        @by_name_alone  # takes even `self` by its name
        async def execute(self, cents: int) -> int:
            return cents

    class Total(Workflow):
        @functools.wraps(add)
        async def run(self, *, a: int, b: int) -> int:
            return a + b

    class Plain(Step):
        @as_given
        async def execute(self, cents: int, *, rate: int = 1) -> int:
            return cents * rate

    assert calling(Plain(), 2, rate=3) == 6
    assert calling(Plain(), cents=2, rate=3) == 6
    assert as_workflow(Total).check_arguments((), {"a": 1, "b": 2}) == ((), {"a": 1, "b": 2})


def test_annotated_arguments_of_a_decorated_function_are_validated_and_rebuilt() -> None:
    for decorator in (with_options, as_given):
        decorated = step(decorator(add))
        assert calling(decorated, "1", b="2") == "1 2 None"
        with pytest.raises(StepValidationError, match="Argument 'b' of step 'add' must be int"):
            calling(decorated, 1, b="two")
    with pytest.raises(StepValidationError, match="Argument 'by' of step 'scale' must be int"):
        calling(step(adding_one(scale)), by="two")


def test_a_decorators_own_function_refuses_what_it_does_not_take() -> None:
    with pytest.raises(StepValidationError, match="missing a required argument: 'b'"):
        calling(step(with_options(add)), 1)
    with pytest.raises(StepValidationError, match="too many positional"):
        calling(step(by_name_alone(add)), 1)


def test_an_equal_call_is_stored_equally_however_it_is_written() -> None:
    """An idempotency key belongs to one input, and inputs are compared as they are stored."""

    @workflow
    async def order(id: int, tags: tuple[str, ...] = ()) -> None: ...

    assert order.check_arguments((), {"id": 3}) == order.check_arguments((3,), {}) == ((3,), {})


def test_a_schedule_asks_for_the_arguments_that_the_decorators_function_needs() -> None:
    def with_session(fn: Any) -> Any:
        @functools.wraps(fn)
        async def inner() -> Any:
            return await fn("session")

        return inner

    @scheduled_workflow(cron="@daily")
    @with_session
    async def nightly_with_session(session: str) -> str:
        return session

    assert declarations.pop("nightly_with_session").definition is nightly_with_session


# --- callables of other kinds -------------------------------------------------------------------------


class Model:
    factor: str = "a class's annotation is not its call's"
    x: str = ""

    def __init__(self, factor: int) -> None:
        self.factor = factor  # type: ignore[assignment]

    def __call__(self, x: int) -> Any:
        return self.factor * x  # type: ignore[operator]

    def predict(self, x: int) -> Any:
        return self.factor + x  # type: ignore[operator]


class AsyncModel:
    async def __call__(self, x: int) -> int:
        return 10 * x


async def later(x: int, y: int = 0) -> int:
    return x + y


CALLABLES: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = [
    (max, (1, 2), {}, 2),
    (max, ([],), {"default": 3}, 3),
    (int, ("5",), {}, 5),
    (int, ("ff",), {"base": 16}, 255),
    (dict, (), {"a": 1}, {"a": 1}),
    (sum, ([1, 2],), {}, 3),
    (getattr, (3, "real"), {}, 3),
    (sorted, ([1, 2],), {"reverse": True}, [2, 1]),
    (math.gcd, (4, 6), {}, 2),
    (type, (3,), {}, int),
    (operator.itemgetter(1), ([1, 2],), {}, 2),
    (operator.methodcaller("upper"), ("a",), {}, "A"),
    ("abc".upper, (), {}, "ABC"),
    (functools.partial(pow, 2), (3,), {}, 8),
    (functools.partial(later, 4), (), {"y": 1}, 5),
    (functools.partial(as_given(later), 4), (), {}, 4),
    (as_given(later), (3,), {"y": 1}, 4),
    (lambda x: x * 2, (4,), {}, 8),
    (Model(3), (4,), {}, 12),
    (Model(3).predict, (4,), {}, 7),
    (AsyncModel(), (4,), {}, 40),
]


@pytest.mark.parametrize(("function", "args", "kwargs", "expected"), CALLABLES)
def test_any_callable_may_be_a_step(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any
) -> None:
    assert calling(functools.partial(run_step, function), *args, **kwargs) == expected
    assert calling(step(name="any_callable")(function), *args, **kwargs) == expected
    assert asyncio.run(run_step(function, *args, **kwargs)) == expected


def test_arguments_of_callable_objects_are_checked_by_their_calls_annotations() -> None:
    assert calling(functools.partial(run_step, Model(3)), "4") == 12
    with pytest.raises(StepValidationError, match="Argument 'x' of step 'Model' must be int"):
        calling(functools.partial(run_step, Model(3)), "four")
    with pytest.raises(StepValidationError, match="Argument 'x' of step 'predict' must be int"):
        calling(functools.partial(run_step, Model(3).predict), "four")


class Box:
    def __init__(self, size: int) -> None:
        self.size = size

    @step
    def put(self, x: int, *, times: int = 1) -> Any:
        return [type(self).__name__, self.size, x * times]

    @staticmethod
    @step
    def outer_static(x: int) -> Any:
        return ["outer", x]

    @step
    @staticmethod
    def inner_static(x: int) -> Any:
        return ["inner", x]

    @classmethod
    @step
    def outer_class(cls, x: int) -> Any:
        return [cls.__name__, x]

    @step
    @classmethod
    def inner_class(cls, x: int) -> Any:
        return [cls.__name__, x]


class Crate(Box):
    pass


def test_methods_of_all_kinds_may_be_steps() -> None:
    for call, args, expected in (
        (Box(3).put, (1,), ["Box", 3, 1]),
        (Crate(3).put, (1,), ["Crate", 3, 1]),
        (Box(3).outer_static, (1,), ["outer", 1]),
        (Box.outer_static, (1,), ["outer", 1]),
        (Box(3).inner_static, (1,), ["inner", 1]),
        (Box.inner_static, (1,), ["inner", 1]),
        (Box.outer_class, (1,), ["Box", 1]),
        (Crate.outer_class, (1,), ["Crate", 1]),
        (Crate.inner_class, (1,), ["Crate", 1]),
        (Crate(3).inner_class, (1,), ["Crate", 1]),
    ):
        assert call(*args) == expected

        async def code() -> Any:
            return await call(*args)  # noqa: B023 - it runs at once

        assert Simulation(code).run() == expected


def test_a_steps_method_keeps_options_and_map() -> None:
    def calling(function: Any, *args: Any, **kwargs: Any) -> Any:
        async def workflow() -> Any:
            return await function(*args, **kwargs)

        return Simulation(workflow).run()

    box = Box(3)
    assert calling(box.put.options(max_retries=0, name="stow"), 2, times=2) == ["Box", 3, 4]
    assert calling(box.put.map, [1, 2]) == [["Box", 3, 1], ["Box", 3, 2]]
    assert calling(Crate.inner_class.options(max_retries=0), 1) == ["Crate", 1]
    assert calling(functools.partial(run_step, box.put), 2) == ["Box", 3, 2]
    assert str(inspect.signature(box.put)) == "(x: 'int', *, times: 'int' = 1) -> 'Any'"
    with pytest.raises(TypeError, match="at least one iterable"):
        calling(box.put.map)


def test_what_undoes_a_step_may_be_any_callable() -> None:
    undone: list[Any] = []
    registry.clear()

    def forget(order: int, *, result: Any) -> None:
        undone.append((order, result))

    def own_result(result: str) -> None:
        undone.append(result)

    @step(compensate=as_given(forget))
    def reserve(order: int) -> str:
        return f"r{order}"

    @step(compensate=max)  # it has no signature
    def with_builtin(a: int, b: int) -> int:
        return a

    @step(compensate=own_result)  # `result` is an argument of both
    def publish(result: str) -> str:
        return "published"

    async def code() -> None:
        await reserve(order=7)
        await with_builtin(1, 2)
        await publish(result="page")
        raise ValueError("no")

    simulation = Simulation(code)
    with pytest.raises(ValueError, match="no"):
        simulation.run()
    assert undone == ["page", (7, "r7")]
    assert_replays(simulation)


# --- names of ours ------------------------------------------------------------------------------------

OWN_NAMES = {
    "exceptions": "the metadata of an error is given by the names that we do not use",
    "CreateSchedule.__call__": "names of ours are refused, with a word about create_schedule.options()",
    "Start.__call__": "start.options()",
    "StartSync.__call__": "start_sync.options()",
    "StartChildWorkflow.__call__": "start_child_workflow.options()",
    "check_every_crash": "its docstring says what to do",
}
"""Why these may take arguments of a user's function, and arguments of their own by name."""


def public_functions() -> dict[str, Any]:
    found: dict[str, Any] = {}
    exported = [getattr(module, name) for module in (pyworkflow_ray, testing) for name in module.__all__]
    given_by_functions = [Compensations, WorkflowContext, BoundStep, StepContext]
    for things in (exported, given_by_functions):
        for thing in things:
            if inspect.isfunction(thing):
                found[thing.__qualname__] = thing
            for cls in (thing if isinstance(thing, type) else type(thing)).__mro__:
                if cls.__module__.startswith("pyworkflow_ray"):
                    found.update(
                        (method.__qualname__, method)
                        for method in vars(cls).values()
                        if inspect.isfunction(method)
                    )
    return found


def test_no_parameter_of_a_users_function_collides_with_one_of_ours() -> None:
    functions = public_functions()
    assert {"run_workflow", "Start.__call__", "RunHandle.query", "Compensations.add"} <= set(functions)
    colliding = set()
    for name, function in functions.items():
        kinds = {p.kind for p in inspect.signature(function).parameters.values()}
        takes_any = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds
        own = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY} & kinds
        if takes_any and own and name not in OWN_NAMES and not name.endswith("__init__"):
            colliding.add(name)
    assert not colliding, "make what is ours positional-only, or add an `options()`"


def test_an_option_of_run_step_that_is_a_parameter_too_must_be_told_apart() -> None:
    def fetch(url: str, timeout: int = 1, name: str = "") -> Any:
        return [url, timeout, name]

    with pytest.raises(ConfigurationError, match=r"run_step\.options\(timeout=\.\.\.\)\(fetch, \.\.\.\)"):
        calling(run_step, fetch, "u", timeout=5)
    both = run_step.options(timeout="5m", name="get")
    assert calling(both, fetch, "u", timeout=5, name="n") == ["u", 5, "n"]


def test_arguments_may_have_the_names_of_ours() -> None:
    @step
    def names(fn: Any, name: Any, self: Any = None, args: Any = None) -> Any:
        return [fn, name, self, args]

    async def code() -> Any:
        compensations().add(names, fn=1, name=2, self=3)
        compensations().clear()
        return [
            await names(fn=1, name=2, self=3, args=4),
            await run_step.options()(names, fn=1, name=2, self=3),
            await names.options(max_retries=0)(fn=1, name=2, self=3),
        ]

    assert run(code) == [[1, 2, 3, 4], [1, 2, 3, None], [1, 2, 3, None]]


def test_a_child_may_have_parameters_with_the_names_of_its_options() -> None:
    @workflow
    async def child_of_names(parent_close: str, wait_for_completion: bool = True, fn: str = "") -> Any:
        return [parent_close, wait_for_completion, fn]

    async def code() -> Any:
        return await start_child_workflow.options(parent_close="wait")(
            child_of_names, parent_close="never", fn="f"
        )

    simulation = Simulation(code)
    simulation.start()
    (child,) = simulation.children
    simulation.end_child(child, ["never", True, "f"])
    assert simulation.result() == ["never", True, "f"]


# --- options in the place of arguments ----------------------------------------------------------------


def test_an_option_given_as_an_argument_is_told_where_it_belongs() -> None:
    @step
    def charge(cents: int) -> int:
        return cents

    @workflow
    async def small_order(cents: int) -> int:
        return cents

    with pytest.raises(
        StepValidationError, match=r"'timeout' is an option of steps: charge\.options\(timeout"
    ):
        calling(charge, 3, timeout="5m")
    with pytest.raises(StepValidationError, match=r"Did you mean 'cents'\?"):
        calling(charge, cent=3)
    with pytest.raises(StepValidationError, match=r"'delay' is an option of start\(\); a child has"):
        calling(start_child_workflow, small_order, 3, delay="5m")
