"""What goes together in one call, and what a call that fails or takes long does to others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from pyworkflow_ray.client import gatherings
from pyworkflow_ray.client.gatherings import Gathering


class Place:
    """Somewhere to send numbers to. It answers with ten times each, once it is let."""

    def __init__(self, **limits: int) -> None:
        self.calls: list[list[int]] = []
        self.called = asyncio.Event()
        self.is_open = asyncio.Event()
        self.gathering: Gathering[int, int] = Gathering(
            self._call,
            limits.get("most", 100),
            weight=lambda number: number,
            max_weight=limits.get("weight", 10_000),
        )

    async def _call(self, numbers: Sequence[int]) -> list[int | BaseException]:
        self.calls.append([*numbers])
        self.called.set()
        await self.is_open.wait()
        if 13 in numbers:
            raise ConnectionError("unlucky")
        return [ValueError(number) if number == 7 else 10 * number for number in numbers]

    def send(self, *numbers: int) -> list[asyncio.Task[int]]:
        return [asyncio.create_task(self.gathering.send(number)) for number in numbers]


async def test_what_comes_during_a_call_goes_together_in_the_next() -> None:
    place = Place()
    first = place.send(1)
    await place.called.wait()
    later = place.send(2, 3, 4)
    place.is_open.set()
    assert await asyncio.gather(*first, *later) == [10, 20, 30, 40]
    assert place.calls == [[1], [2, 3, 4]]


async def test_a_call_takes_no_more_than_it_may() -> None:
    place = Place(most=3, weight=10)
    place.is_open.set()
    await asyncio.gather(*place.send(1, 1, 1, 1, 6, 4, 50, 2))
    assert place.calls == [[1, 1, 1], [1, 6], [4], [50], [2]]


async def test_an_error_belongs_to_its_item_or_to_its_call() -> None:
    place = Place(most=3)
    place.is_open.set()
    got = await asyncio.gather(*place.send(6, 7, 8, 12, 13, 14, 15), return_exceptions=True)
    assert [got[0], got[2], got[6]] == [60, 80, 150]
    assert isinstance(got[1], ValueError)
    assert {type(each) for each in got[3:6]} == {ConnectionError}


async def test_what_nobody_waits_for_any_more_is_not_sent() -> None:
    place = Place()
    first = place.send(1)
    await place.called.wait()
    dropped, kept = place.send(2, 3)
    await asyncio.sleep(0)
    dropped.cancel()
    place.is_open.set()
    assert await asyncio.gather(*first, kept) == [10, 30]
    assert place.calls == [[1], [3]]


async def test_a_call_that_is_not_answered_does_not_hold_up_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gatherings, "PATIENCE", 0.01)
    place = Place()
    waiting = place.send(1)
    await place.called.wait()
    place.called.clear()
    waiting += place.send(2)
    await place.called.wait()
    assert place.calls == [[1], [2]]
    place.is_open.set()
    assert await asyncio.gather(*waiting) == [10, 20]
