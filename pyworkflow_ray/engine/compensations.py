"""What undoes the work of a run: a stack of calls, made when the run fails or is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from pyworkflow_ray.engine.loop import RunTask


class CompensationStack:
    """The calls that undo a run's work. The last one added is made first."""

    def __init__(self) -> None:
        self._stack: list[Callable[[], Awaitable[Any]]] = []

    def __len__(self) -> int:
        return len(self._stack)

    def add(self, step: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Have ``await step(*args, **kwargs)`` made if the run fails or is cancelled from now on."""
        self._stack.append(lambda: step(*args, **kwargs))

    def clear(self) -> None:
        """Forget all compensations: what was done stays."""
        self._stack.clear()

    async def run(self, error: BaseException) -> None:
        """Run the compensations, the last one first. If one fails, the others run all the same.

        Args:
            error: Why the run fails or is cancelled. It gets a note of each compensation that fails.
        """
        task = asyncio.current_task()
        assert isinstance(task, RunTask), "only a run has compensations"
        task.shields += 1  # not a Shield: a request that comes now must not take the place of the error
        try:
            while self._stack:
                try:
                    await self._stack.pop()()
                except Exception as failure:
                    error.add_note(f"A compensation failed too: {type(failure).__name__}: {failure}")
        finally:
            task.shields -= 1
            task.is_cancel_deferred = False
