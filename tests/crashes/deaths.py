"""Deaths of a process: `kill -9` at a place of the engine, before or after what is done there.

All writes of a process go through four functions, and all attempts in process through one. These are wrapped
in a process that will die. So nothing in the package knows of it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyworkflow_ray.actors.dispatchers import LocalDispatcher
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.works import Steps, Work, as_work
from pyworkflow_ray.storage.writers import Writer
from tests.crashes.places import PACKAGE, Place, all_places

BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class Death:
    """Where a process dies.

    Args:
        place: The name of the place.
        when: "before": what is written there is in the database, and not committed; nothing is sent yet.
            "after": it is committed or sent, and nobody in the process has heard of it.
        skip: How often the process passes the place first.
    """

    place: str
    when: str
    skip: int = 0


class UnknownPlaceError(Exception):
    """Something is committed or sent from a place that nobody has found."""


class Reaper:
    """Ends this process at a place.

    Args:
        death: Where; None only watches.
        passed: A file that gets a line for each place that is passed.
    """

    def __init__(self, death: Death | None, passed: Path) -> None:
        self._death, self._passed = death, passed
        self._by_file: dict[str, list[Place]] = {}
        for place in all_places().values():
            self._by_file.setdefault(place.file, []).append(place)
        self._left = 0 if death is None else death.skip

    def here(self) -> str:
        """The place from which the door was called."""
        frame = sys._getframe(2)
        while frame is not None:
            file, line = frame.f_code.co_filename, frame.f_lineno
            for place in self._by_file.get(file, ()):
                if place.first <= line <= place.last:
                    return place.name
            if not file.startswith(str(PACKAGE)):
                return ""  # the test itself
            if not file.startswith((str(PACKAGE / "storage"), __file__)):
                raise UnknownPlaceError(f"{file}:{line} commits or sends, and is no place.")
            frame = frame.f_back  # type: ignore[assignment]
        return ""

    def moment_at(self, place: str) -> str | None:
        """When the process dies here; None if it passes."""
        if not place:
            return None
        with self._passed.open("a") as file:
            file.write(f"{place}\n")
        if self._death is None or place != self._death.place:
            return None
        self._left -= 1
        return self._death.when if self._left < 0 else None


def die() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def _dying(task: Any) -> Work[Any]:
    """The work; the process dies when all of it is done but the COMMIT."""
    inner = as_work(task)

    def steps() -> Steps[Any]:
        result = yield from inner
        die()
        return result

    return Work(steps, inner.locks)


def expect(death: Death | None, passed: Path) -> None:
    """Let this process die there."""
    reaper = Reaper(death, passed)
    write, aside, submit = Storage.write, Storage.write_aside, Storage.submit
    write_here, dispatch = Writer.write_here, LocalDispatcher.dispatch

    def own_write(self: Storage, task: Any) -> Any:
        when = reaper.moment_at(reaper.here())  # now: the coroutine may be awaited from anywhere

        async def written() -> Any:
            result = await write(self, _dying(task) if when == BEFORE else task)
            if when == AFTER:
                die()
            return result

        return written()

    def own_aside(self: Storage, task: Any) -> Any:
        when = reaper.moment_at(reaper.here())
        result = aside(self, _dying(task) if when == BEFORE else task)
        if when == AFTER:
            die()
        return result

    def own_submit(self: Storage, task: Any) -> Future[Any]:
        inner = sys._getframe(1).f_code is aside.__code__
        when = None if inner else reaper.moment_at(reaper.here())
        future = submit(self, _dying(task) if when == BEFORE else task)
        if when == AFTER:
            future.result()
            die()
        return future

    def own_write_here(
        self: Writer, task: Any, future: asyncio.Future[Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        when = reaper.moment_at(reaper.here())
        if when == AFTER:
            future = loop.create_future()  # nobody else waits for this one
            future.add_done_callback(lambda done: die())
        write_here(self, _dying(task) if when == BEFORE else task, future, loop)

    def own_dispatch(self: LocalDispatcher, *args: Any) -> Any:
        when = reaper.moment_at(reaper.here())
        if when == BEFORE:
            die()
        ticket = dispatch(self, *args)
        if when == AFTER:
            die()
        return ticket

    wrapped: list[tuple[Any, str, Callable[..., Any]]] = [
        (Storage, "write", own_write),
        (Storage, "write_aside", own_aside),
        (Storage, "submit", own_submit),
        (Writer, "write_here", own_write_here),
        (LocalDispatcher, "dispatch", own_dispatch),
    ]
    for owner, name, function in wrapped:
        setattr(owner, name, function)
