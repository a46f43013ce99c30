"""Having runs go on that something has come for, wherever they are."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Protocol

from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.storage.placements import locate
from pyworkflow_ray.storage.runs import get_runs
from pyworkflow_ray.storage.storages import Storage

Nudge = Callable[[str, str, list[str]], None]
"""Tells a coordinator, by name and environment, to wake runs; it may fail: the next sweep tells again."""


class Placed(Protocol):
    """A run, as far as its place goes."""

    @property
    def run_id(self) -> str: ...
    @property
    def coordinator(self) -> str | None: ...
    @property
    def environment(self) -> str: ...


class Nudger:
    """Places runs that nobody holds, and tells the coordinators of all.

    Args:
        engine: The settings of all actors.
        nudge: How coordinators are told.
    """

    def __init__(self, engine: EngineSettings, nudge: Nudge) -> None:
        self._engine, self._nudge = engine, nudge

    async def wake(self, storage: Storage, runs: Iterable[Placed]) -> int:
        """Have these runs go on; how many were told of."""
        by_environment: dict[str, list[str]] = defaultdict(list)
        told = 0
        for run in runs:
            if is_isolated(run):
                self._nudge(coordinator_of(run.run_id), run.environment, [run.run_id])
                told += 1
            else:
                by_environment[run.environment].append(run.run_id)
        for environment, run_ids in by_environment.items():
            for name, group in (await self._located(storage, environment, run_ids)).items():
                self._nudge(name, environment, group)
                told += len(group)
        return told

    async def wake_ids(self, storage: Storage, run_ids: Iterable[str]) -> int:
        """As `wake`, by their ids."""
        wanted = list(run_ids)
        runs = await asyncio.to_thread(storage.read, lambda connection: get_runs(connection, wanted))
        return await self.wake(storage, [run for run in runs.values() if not run.status.is_terminal])

    async def _located(self, storage: Storage, environment: str, run_ids: list[str]) -> dict[str, list[str]]:
        placement = self._engine.placement(environment)
        placed = await storage.write(locate(run_ids, placement, storage.loads))
        groups: dict[str, list[str]] = defaultdict(list)
        for run_id, name in placed.items():
            groups[name].append(run_id)
        return groups


def coordinator_of(run_id: str) -> str:
    """The name of the coordinator that one run has for itself."""
    return f"coordinator-{run_id}"


def is_isolated(run: Placed) -> bool:
    """Whether a run has a coordinator for itself, and keeps it."""
    return run.coordinator == coordinator_of(run.run_id)
