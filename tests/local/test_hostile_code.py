"""Values and errors with code of their own that fights back: a clear error, and nothing else is disturbed."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.testing import WorkflowEnvironment

# What a step, a query or a workflow makes of its argument, by name: the code of this module travels by value.


class Exits:
    def __reduce__(self) -> Any:
        raise SystemExit(3)


class ExitsWhenLoaded:
    def __reduce__(self) -> Any:
        return _exit, ()


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit(2)

    __repr__ = __str__

    def __reduce__(self) -> Any:
        raise SystemExit(3)


def _exit() -> None:
    raise SystemExit(4)


def _generator() -> Any:
    yield 1


async def _coroutine() -> None:
    pass


def made(what: str) -> Any:
    match what:
        case "exits":
            return Exits()
        case "exits when loaded":
            return ExitsWhenLoaded()
        case "generator":
            return _generator()
        case "coroutine":
            return [_coroutine()]
        case "lock":
            return {"locks": [threading.Lock()]}
        case "deep":
            value: Any = threading.Lock()
            for _ in range(10_000):
                value = [value]
            return value
        case "mute":
            raise Mute
        case "exit":
            raise SystemExit(5)
        case "stop":
            raise KeyboardInterrupt
        case "generator exit":
            raise GeneratorExit
        case "stop iteration":
            raise StopIteration(1)
    return what


HOSTILE = [
    "exits",
    "exits when loaded",
    "generator",
    "coroutine",
    "lock",
    "deep",
    "mute",
    "exit",
    "stop",
    "generator exit",
    "stop iteration",
]


@pr.step(local=True, max_retries=0)
async def makes(what: str) -> Any:
    return made(what)


@pr.step(local=True, max_retries=0)
def makes_on_a_thread(what: str) -> Any:
    return made(what)


@pr.workflow
async def hostile_calls(what: str, on_thread: bool) -> Any:
    await (makes_on_a_thread(what) if on_thread else makes(what))


@pr.workflow
async def hostile_returns(what: str) -> Any:
    return made(what)


@pr.workflow
async def hostile_takes(value: Any) -> Any:
    return value


@pr.workflow
async def hostile_passes_on(what: str) -> Any:
    await makes.options(name="takes")(made(what))


@pr.workflow
async def hostile_records(what: str) -> Any:
    pr.side_effect(lambda: made(what))


@pr.workflow
async def hostile_answers() -> None:
    pr.set_query_handler("made", made)
    await pr.sleep("1d")


@pr.workflow
async def hostile_bystands() -> str:
    await pr.sleep("1d")
    return await makes("whole")


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("what", HOSTILE)
async def test_what_fights_back_fails_its_own_run_and_no_other(what: str) -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        bystander = await environment.start(hostile_bystands)
        for run in [
            await environment.start(hostile_calls, what, False),
            await environment.start(hostile_calls, what, True),
            await environment.start(hostile_returns, what),
            await environment.start(hostile_passes_on, what),
            await environment.start(hostile_records, what),
        ]:
            await environment.settle()
            is_at_result = what == "exits when loaded" and await run.status() is pr.RunStatus.COMPLETED
            assert is_at_result or await run.status() is pr.RunStatus.FAILED
            with pytest.raises(Exception, match=r"\S") as caught:
                await run
            assert isinstance(caught.value, Exception)
        asked = await environment.start(hostile_answers)
        await environment.settle()
        with pytest.raises(Exception, match=r"\S"):
            await asked.query("made", what)
        await environment.advance("2d")
        assert await bystander == "whole"


@pytest.mark.parametrize("what", ["exits", "generator", "lock", "deep"])
async def test_an_argument_that_cannot_be_stored_is_refused_by_the_call(what: str) -> None:
    async with WorkflowEnvironment() as environment:
        with pytest.raises(pr.SerializationError, match=r"of type|nested"):
            await environment.start(hostile_takes, made(what))
        run = await environment.start(hostile_bystands)
        with pytest.raises(pr.SerializationError, match=r"of type|nested"):
            await run.signal("x", made(what))
        assert await run == "whole"


# --- names ----------------------------------------------------------------------------------------------


@pr.workflow
async def hostile_names(what: str, name: str) -> None:
    match what:
        case "hook":
            await pr.hook(name)
        case "step":
            await makes.options(name=name)("whole")
        case "step's id":
            await makes.options(step_id=name)("whole")
        case "named step with an id":
            await makes.options(step_id="an id", name=name)("whole")
        case "sleep":
            await pr.sleep("1h", name=name)
        case "side effect":
            pr.side_effect(lambda: 1, name)
        case "patch":
            pr.patched(name)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"], ids=["NUL", "surrogate"])
@pytest.mark.parametrize(
    "what", ["hook", "step", "step's id", "named step with an id", "sleep", "side effect", "patch"]
)
async def test_a_name_that_no_database_holds_fails_its_run_and_stops_it_not(what: str, name: str) -> None:
    """A run whose append no database takes would be given up and taken over again, for ever."""
    async with WorkflowEnvironment() as environment:
        with pytest.raises(ValueError, match="cannot be stored: names have no NUL"):
            await environment.run(hostile_names, what, name)
