"""Direct calls: a test itself calls steps, sleeps and hooks within a `MockContext`.

Theory of operation. Such calls need a run, and a run's event loop. The test's code runs outside of that
loop. So each call travels to the run as a signal. Code in the run makes the call and gives the test its
result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import Any, TypeVar

from msgspec import Raw

from pyworkflow_ray.engine.children import Child, Children
from pyworkflow_ray.engine.events import SignalReceived
from pyworkflow_ray.engine.hooks import PendingHook
from pyworkflow_ray.testing.mock_runs import MockRun
from pyworkflow_ray.testing.mock_states import MockState

T = TypeVar("T")

_CALL = "\0call"
"""The name of the signal that carries a call. No signal of a workflow can have this name."""


class DirectCallRun(MockRun):
    """The run that makes the test's direct calls.

    Args:
        shared: What it shares with the runs of the workflows that the test calls.
        run_id: The run's id.
        name: The name that it gives as its workflow's.
    """

    def __init__(self, shared: MockState, run_id: str, name: str) -> None:
        super().__init__(shared, run_id, name, self._make_calls)
        self.children = _DirectChildren(self)
        self.call_step = self._call_step  # type: ignore[assignment]
        self._calls: list[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = []
        self._wanted: set[asyncio.Future[Any]] = set()
        self._player: asyncio.Task[None] | None = None
        self._has_begun = False

    @property
    def now(self) -> datetime:
        return self._shared.clock.now()

    async def make(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of a call, made in the run's own event loop."""
        if self._loop.is_running():
            return await call()
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.append((call, done))
        self._wanted.add(done)
        self.post(SignalReceived(name=_CALL, payload=Raw(str(len(self._calls) - 1).encode())))
        if self._player is None or self._player.done():
            self.enter()
            self._player = asyncio.get_running_loop().create_task(self._play())
        try:
            return await done
        finally:
            self._wanted.discard(done)
            self._arrived.set()

    async def _make_calls(self) -> None:
        while True:
            number = await self.receive(_CALL)
            asyncio.create_task(self._make(*self._calls[number]))  # noqa: RUF006 - the run's loop keeps it

    async def _make(self, call: Callable[[], Awaitable[Any]], done: asyncio.Future[Any]) -> None:
        try:
            result = await call()
        except asyncio.CancelledError:
            done.cancel()
        except Exception as error:
            if not done.done():
                done.set_exception(error)
        else:
            if not done.done():
                done.set_result(result)

    async def _play(self) -> None:
        try:
            if not self._has_begun:
                self._has_begun = True
                self.begin((), {})
            while any(not done.done() for done in self._wanted):
                self._apply_next(await self._next())
        except Exception as error:
            self._failure = None
            for done in self._wanted:
                if not done.done():
                    done.set_exception(error)
        finally:
            self.leave()

    # --- calls that wait ---------------------------------------------------------------------------

    def _call_step(self, *call: Any) -> Coroutine[Any, Any, Any]:
        return self.make(lambda: self.calls.call(*call))

    async def sleep_until(self, resume_at: datetime, name: str = "") -> None:
        await self.make(lambda: super(DirectCallRun, self).sleep_until(resume_at, name))

    async def call_hook(self, pending: PendingHook) -> Any:
        return await self.make(lambda: super(DirectCallRun, self).call_hook(pending))

    async def call_child(self, child: Child) -> Any:
        return await self.make(lambda: super(DirectCallRun, self).call_child(child))

    async def receive(self, name: str) -> Any:
        return await self.make(lambda: super(DirectCallRun, self).receive(name))


class _DirectChildren(Children):
    def __init__(self, run: DirectCallRun) -> None:
        super().__init__(run.scope)
        self._run = run

    async def outcome(self, child: Child) -> Any:
        return await self._run.make(lambda: super(_DirectChildren, self).outcome(child))
