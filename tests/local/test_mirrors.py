"""Code and values of a test go through another process, if it asks for that."""

from __future__ import annotations

import dataclasses
import enum
import threading
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.testing import WorkflowEnvironment


class Decision(enum.Enum):
    YES = "yes"


@dataclasses.dataclass
class Order:
    id: str


class Shy:
    """Something whose copy is not itself."""

    def __reduce__(self) -> Any:
        return str, ("a copy",)


class Unreadable:
    def __reduce__(self) -> Any:
        return int, ("no number",)


@pr.step(max_retries=0)
async def mirrored(value: Any) -> Any:
    return value


@pr.workflow
async def through_a_mirror(value: Any) -> list[Any]:
    again = await mirrored(value)
    return [again, type(again).__name__]


@pytest.mark.parametrize("value", [Decision.YES, Order("A"), [1, {"a": (2,)}], None])
async def test_values_of_a_modules_classes_are_the_same_on_the_other_side(value: Any) -> None:
    async with WorkflowEnvironment(across_processes=True) as env:
        again, name = await env.run(through_a_mirror, value)
    assert again == value
    assert type(again) is type(value)
    assert name == type(value).__name__
    if value is Decision.YES:
        assert again is value


async def test_what_is_lost_on_the_way_is_seen() -> None:
    async with WorkflowEnvironment(across_processes=True) as env:
        assert await env.run(through_a_mirror, Shy()) == ["a copy", "str"]


async def test_what_the_other_process_cannot_take_is_refused() -> None:
    async with WorkflowEnvironment(across_processes=True) as env:
        with pytest.raises(pr.SerializationError, match=r"Another process cannot take it.*no number"):
            await env.run(through_a_mirror, Unreadable())


async def test_code_that_cannot_travel_is_refused_at_the_start() -> None:
    lock = threading.Lock()

    @pr.workflow
    async def holds_a_lock() -> bool:
        return lock.locked()

    async with WorkflowEnvironment(across_processes=True) as env:
        with pytest.raises(pr.ConfigurationError, match="cannot travel"):
            await env.run(holds_a_lock)
    async with WorkflowEnvironment() as env:
        with pytest.raises(pr.ConfigurationError, match="cannot travel"):
            await env.run(holds_a_lock)
