"""What a run must do to undo what it has done: a stack, worked off when the run fails or is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from pyworkflow_ray.engine.loop import RunTask


class Compensations:
    """A run's compensations, the last one first."""

    def __init__(self) -> None:
        self._stack: list[Callable[[], Awaitable[Any]]] = []

    def __len__(self) -> int:
        return len(self._stack)

    def add(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Have ``await step(*args, **kwargs)`` done should the run fail or be cancelled from now on."""
        self._stack.append(lambda: step(*args, **kwargs))

    def clear(self) -> None:
        """Forget them all: what was done is to stay."""
        self._stack.clear()

    async def run(self, error: BaseException) -> None:
        """Work them off. One that gives up does not keep the others from being done.

        Args:
            error: Why; notes of compensations that failed are added to it.
        """
        task = asyncio.current_task()
        assert isinstance(task, RunTask), "only a run has compensations"
        task.shields += 1  # not a Shield: a request that comes now does not take the place of the error
        try:
            while self._stack:
                try:
                    await self._stack.pop()()
                except Exception as failure:
                    error.add_note(f"A compensation failed too: {type(failure).__name__}: {failure}")
        finally:
            task.shields -= 1
            task.is_cancel_deferred = False
