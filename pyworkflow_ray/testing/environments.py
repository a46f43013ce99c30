"""Test environments: workflows in this process, a database in memory, and a clock that skips waiting."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from pyworkflow_ray.actors.payloads import configured_values
from pyworkflow_ray.authoring.workflows import WorkflowFunction
from pyworkflow_ray.client.handles import RunHandle
from pyworkflow_ray.client.sessions import Session, enter, leave
from pyworkflow_ray.client.starts import StartOptions, start_run
from pyworkflow_ray.config import get_config
from pyworkflow_ray.durations import Duration, parse_duration
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.testing.clocks import VirtualClock
from pyworkflow_ray.testing.fail_points import CommitPoint, Delayed, FailPoint, LostWorker, Raised, When
from pyworkflow_ray.testing.mirrors import Mirrors
from pyworkflow_ray.testing.runtimes import POLL, CrashableRuntime

P = ParamSpec("P")
T = TypeVar("T")


class WorkflowEnvironment:
    """Runs workflows in this process on a clock of its own: a sleep of 30 days takes milliseconds.

    Coordinator, engine and storage are the same as on Ray. Steps are called in this process, and the
    database is in memory. Use it as
    ``async with WorkflowEnvironment() as env: assert await env.run(order, 42) == ...``.

    Args:
        skip_time: Whether time jumps to what is due next, as soon as the test waits for a run's result and
            all runs wait for time. If False, time passes only in `advance`.
        start_time: The time at the beginning.
        storage: A database to use instead of one in memory.
        across_processes: Whether code and values go through another process, as they do on Ray. So a test
            finds what Ray would refuse, and what is not the same thing any more on the other side. The first
            run waits half a second for that process.
        settings: Settings for the runs, such as `default_retries=0`.
    """

    def __init__(
        self,
        *,
        skip_time: bool = True,
        start_time: datetime | None = None,
        storage: str = "memory",
        across_processes: bool = False,
        **settings: Any,
    ) -> None:
        self.clock = VirtualClock(start_time)
        self._skip_time = skip_time
        self._storage = Storage(storage, synchronous="OFF")
        # A run that waits stays in memory: it waits for this clock, and there is no timer actor to wake it.
        forever = {"suspend_after": None}
        self._settings = get_config().model_copy(update={**settings, **forever})
        self._mirrors = Mirrors() if across_processes else None
        self._runtime = CrashableRuntime(self._settings, self._storage, self.clock, self._mirrors)
        self._session = Session(
            self._settings,
            self._storage,
            self._runtime,
            configured_values(self._settings.payload_codec, self._settings.payload_limit),
        )
        self._skipper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._at_work = contextlib.ExitStack()
        if self._mirrors is not None:
            self._at_work.enter_context(self._mirrors.at_work())
        await self._runtime.open()
        self._entered = enter(self._session)
        if self._skip_time:
            self._skipper = asyncio.get_running_loop().create_task(self._skip())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._skipper is not None:
            self._skipper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._skipper
        leave(self._entered)
        await self._runtime.close()
        self._storage.close()
        self._at_work.close()

    async def start(self, fn: WorkflowFunction[P, T], /, *args: P.args, **kwargs: P.kwargs) -> RunHandle[T]:
        """Start a run; it goes on while the test awaits other things."""
        return await start_run(self._session, StartOptions(), fn, args, kwargs)

    async def run(self, fn: WorkflowFunction[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a new run, or what it raised."""
        handle = await self.start(fn, *args, **kwargs)
        return await handle.result()

    def now(self) -> datetime:
        """What time it is here."""
        return self.clock.now()

    async def advance(self, duration: Duration) -> None:
        """Let this much time pass. Everything that is due in it happens."""
        await self.settle()
        target = self.clock.now() + parse_duration(duration)
        while (next_at := self.clock.next_at()) is not None and next_at <= target:
            self.clock.set_forward(next_at)
            await self.settle()
        self.clock.set_forward(target)
        await self.settle()

    async def settle(self) -> None:
        """Return when every run has ended, or waits for time or for something from outside."""
        await asyncio.sleep(0)  # a run that has just been sent a signal notices it in the loop's next turn
        while not self._runtime.is_settled:
            await asyncio.sleep(POLL)

    # --- faults ------------------------------------------------------------------------------

    async def crash(self) -> None:
        """Crash the coordinator now, as `kill -9` would; return when its successor has taken over.

        Nothing in memory survives. No code of a run or of an `async def` step goes on, not even `finally`.
        The successor replays every run from its rows, and begins new attempts of the steps that were under
        way. (A `def` step goes on in its thread. It has no effect on the run.)
        """
        await self._runtime.crash()

    def crash_at(
        self,
        when: When,
        event: str | None = None,
        *,
        step: str | None = None,
        workflow: str | None = None,
        skip: int = 0,
        times: int | None = 1,
    ) -> FailPoint:
        """Crash the coordinator right before or after a commit; see `crash`.

        Args:
            when: "before_commit": the commit is lost. "after_commit": the commit is made, but the
                coordinator crashes before it acts on it.
            event: The type of an event in the commit, such as "step.completed"; any type by default.
            step: The name or the id of the event's step; any step by default.
            workflow: The name of the run's workflow; any workflow by default.
            skip: How many such commits pass before the first crash.
            times: How often the coordinator crashes; None means at every such commit.

        Raises:
            ValueError: There is no such `when` or `event`.
        """
        return self._add(CommitPoint(when, event, step, workflow, skip, times))

    def lose_worker(
        self, step: str, *, after_work: bool = False, skip: int = 0, times: int | None = 1
    ) -> FailPoint:
        """Kill the worker of a step's attempt.

        Args:
            step: The step's name, or its id, such as "charge#2".
            after_work: Whether the worker dies after the step has done its work. Then the step's effects
                stay, and its result is lost.
            skip: How many attempts succeed before the first loss.
            times: How often a worker dies; None means in every attempt.
        """
        return self._add(LostWorker(step, skip, times, after_work))

    def fail_step(
        self,
        step: str,
        error: BaseException | type[BaseException],
        *,
        skip: int = 0,
        times: int | None = 1,
    ) -> FailPoint:
        """Let attempts of a step raise an error instead of doing its work. Retries follow as usual."""
        return self._add(Raised(step, skip, times, error))

    def delay_step(self, step: str, duration: Duration, *, skip: int = 0, times: int | None = 1) -> FailPoint:
        """Delay attempts of a step by this much time on the environment's clock.

        An attempt that takes longer than the step's `timeout` fails with a timeout.
        """
        return self._add(Delayed(step, skip, times, parse_duration(duration)))

    def _add(self, point: FailPoint) -> FailPoint:
        self._runtime.points.add(point)
        return point

    async def _skip(self) -> None:
        while True:
            next_at = self.clock.next_at()
            if next_at is not None and self._runtime.waiting and self._runtime.is_settled:
                self.clock.set_forward(next_at)
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(POLL)
