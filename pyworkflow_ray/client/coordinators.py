"""Clients of coordinators: many starts, wakes and waits travel in few actor calls.

An actor call costs as much as a step. So all requests that come while a call is under way go together in the
next call. A burst of a thousand starts is a handful of calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
from loguru import logger

from pyworkflow_ray.actors.activations import RunEnd
from pyworkflow_ray.actors.cluster import Cluster
from pyworkflow_ray.actors.coordinator import LONG_POLL
from pyworkflow_ray.client.gatherings import Gathering
from pyworkflow_ray.exceptions import NoAnswerError, WorkflowError
from pyworkflow_ray.storage.records import RunRecord

MOST_WAKES = 1000
"""The most requests to wake runs that go in one call."""
START_TIME = 30.0
"""Seconds that a start waits for its coordinator, which may have to be made. The run is accepted by then."""
WAKE_TIME = 10.0
"""Seconds that a nudge waits for a coordinator."""
WAIT_TIME = LONG_POLL + 10.0
"""Seconds that a wait for runs waits for a coordinator, which answers after `LONG_POLL` at the latest."""

_encoder = msgspec.msgpack.Encoder()
_ends_decoder = msgspec.msgpack.Decoder(list[RunEnd])


class CoordinatorClient:
    """Talks to one coordinator, on one event loop.

    Args:
        cluster: Finds the actor.
        name: The coordinator's name.
        environment: The environment to create the coordinator in.
        storage_id: The storage of the runs; a coordinator of another storage refuses them.
    """

    def __init__(self, cluster: Cluster, name: str, environment: str, storage_id: str) -> None:
        self._cluster, self._name, self._storage_id = cluster, name, storage_id
        self._callee = cluster.coordinator_callee(name, environment)
        self._starts: list[tuple[RunRecord, asyncio.Future[None]]] = []
        self._wakes: Gathering[list[str], None] = Gathering(self._send_wakes, MOST_WAKES)
        self._waits: dict[str, list[asyncio.Future[RunEnd | None]]] = {}
        self._starting = self._waiting = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, run: RunRecord) -> None:
        """Hand over an accepted run; return when the coordinator has it, or does not answer."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._starts.append((run, done))
        if not self._starting:
            self._starting = True
            self._spawn(self._send_starts)
        await done

    async def wake(self, run_ids: list[str]) -> None:
        """Have the coordinator drive these runs, or look into their inboxes; return when it knows of them."""
        await self._wakes.send(run_ids)

    async def _send_wakes(self, wakes: Sequence[list[str]]) -> list[None]:
        await self._call("wake", WAKE_TIME, list({run_id: None for run_ids in wakes for run_id in run_ids}))
        return [None] * len(wakes)

    async def wait(self, run_id: str) -> RunEnd | None:
        """How the run's drive ends; None if the coordinator does not drive the run, or does not answer."""
        done: asyncio.Future[RunEnd | None] = asyncio.get_running_loop().create_future()
        self._waits.setdefault(run_id, []).append(done)
        if not self._waiting:
            self._waiting = True
            self._spawn(self._send_waits)
        return await done

    def _spawn(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_starts(self) -> None:
        while self._starts:
            batch, self._starts = self._starts, []
            data = _encoder.encode([run for run, _ in batch])
            try:
                await self._call("accept", START_TIME, data, self._storage_id)
            except Exception as error:
                if isinstance(error, WorkflowError) and not isinstance(error, NoAnswerError):
                    _resolve_all([done for _, done in batch], None, error)
                    continue
                # The rows are stored and placed. The coordinator's next process claims them, or the sweep
                # hands them to another one.
                logger.warning("Coordinator {} cannot be reached now: {}", self._name, error)
            _resolve_all([done for _, done in batch], None, None)
        self._starting = False

    async def _send_waits(self) -> None:
        await asyncio.sleep(0)  # requests of this turn of the loop go together
        self._waiting = False
        mine, self._waits = self._waits, {}
        while mine:
            try:
                ends = _ends_decoder.decode(await self._call("ends", WAIT_TIME, list(mine)))
            except Exception as error:
                logger.debug("Waiting at coordinator {} failed: {}", self._name, type(error).__name__)
                for futures in mine.values():
                    _resolve_all(futures, None, None)
                return
            for end in ends:
                _resolve_all(mine.pop(end.run_id, []), end if end.status != "unknown" else None, None)
            mine = {run_id: live for run_id, fs in mine.items() if (live := [f for f in fs if not f.done()])}

    async def _call(self, method: str, answer_time: float, *args: object) -> Any:
        return await self._cluster.handles.call(self._callee, method, *args, answer_time=answer_time)


def _resolve_all(futures: list[asyncio.Future[Any]], result: object, error: Exception | None) -> None:
    for future in futures:
        if not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
