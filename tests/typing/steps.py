"""What a type checker makes of steps; checked by test_typing, never run."""

from collections.abc import Coroutine
from typing import Any, assert_type

from pyworkflow_ray.authoring.steps import Step, StepFunction, run_step, step


@step
async def bare(x: int, y: str = "") -> list[int]:
    return [x]


@step
def bare_def(x: int) -> str:
    return str(x)


@step()
async def empty(x: int) -> bool:
    return bool(x)


@step(name="called", max_retries=2, retry_delay=[1, "5s"], timeout="5m", num_gpus=1)
async def called(x: int) -> float:
    return x


@step(local=True, retry_on=(OSError,))
def called_def(x: int) -> bytes:
    return bytes(x)


async def code() -> None:
    assert_type(await bare(1, y="a"), list[int])
    assert_type(await bare_def(1), str)
    assert_type(await empty(1), bool)
    assert_type(await called(1), float)
    assert_type(await called_def(1), bytes)
    assert_type(await bare.options(num_gpus=1, step_id="x")(1), list[int])
    assert_type(await bare_def.options(timeout="1s")(1), str)
    assert_type(await bare_def.map([1, 2], max_in_flight=1), list[str])
    assert_type(await called.map(range(3)), list[float])
    assert_type(await bare.map([1], ["a"], batch_size=2), list[list[int]])
    assert_type(await called.map([1], return_exceptions=True), list[float | Exception])
    called_only = assert_type(bare_def(1), Coroutine[object, None, str])
    assert_type(await called_only, str)
    assert_type(await run_step(len, "abc"), Any)
    await bare("x")  # type: ignore[arg-type]
    await bare()  # type: ignore[call-arg]
    await bare_def.options(timeout=1)("x")  # type: ignore[arg-type]
    step(max_retrys=3)  # type: ignore[call-overload]


class Charge(Step):
    max_retries = 5
    retry_delay = "30s"

    async def execute(self, amount: int) -> str:
        return str(amount)


async def classes() -> None:
    assert_type(Charge().options(num_cpus=1), StepFunction[..., Any])
    await Charge()(3)
