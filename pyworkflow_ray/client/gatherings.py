"""Gatherings: many calls of a client's made as few calls to an actor.

An actor call costs as much as a step. So everything that comes while a call is under way goes together in
the next call. Something that comes alone is sent at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = 1.0
"""Seconds after which a call that is not answered holds up the next one no longer."""


class Gathering(Generic[Item, Result]):
    """Gathers what is to be sent to one place, on one event loop.

    Args:
        call: Sends several at once; the result of each, or the error to raise, in their order. What it raises
            itself is raised for each of them.
        most: The most that go together.
        weight: How much of the call one of them takes.
        max_weight: How much they may take together. Whatever one takes, it is sent.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Item]], Awaitable[Sequence[Result | BaseException]]],
        most: int,
        weight: Callable[[Item], int] = lambda item: 0,
        max_weight: int = 1,
    ) -> None:
        self._call, self._most = call, most
        self._weight, self._max_weight = weight, max_weight
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._is_sending = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def send(self, item: Item) -> Result:
        """The item's own result. If the caller is cancelled before the item has gone, it is not sent."""
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if not self._is_sending:
            self._is_sending = True
            self._spawn(self._send_all())
        return await done

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _send_all(self) -> None:
        await asyncio.sleep(0)  # what comes in this turn of the loop goes together
        try:
            while group := self._next_group():
                await asyncio.wait([self._spawn(self._send(group))], timeout=PATIENCE)
        finally:
            self._is_sending = False

    def _next_group(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        self._waiting = [(item, done) for item, done in self._waiting if not done.done()]
        taken = weight = 0
        for item, _ in self._waiting[: self._most]:
            weight += self._weight(item)
            if taken and weight > self._max_weight:
                break
            taken += 1
        group, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return group

    async def _send(self, group: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        results: Sequence[Result | BaseException]
        try:
            results = await self._call([item for item, _ in group])
        except Exception as error:
            results = [error] * len(group)
        for (_, done), result in zip(group, results, strict=True):
            if done.done():
                continue  # whoever waited has been cancelled
            if isinstance(result, BaseException):
                done.set_exception(result)
            else:
                done.set_result(result)
