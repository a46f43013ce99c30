"""Nudges: calls that have coordinators look after runs for which something has come.

A nudge only saves time. What has come is a row already, and the sweep finds it if the nudge is lost.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from pyworkflow_ray.actors.names import coordinator_of
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.storage.placements import locate
from pyworkflow_ray.storage.runs import get_runs
from pyworkflow_ray.storage.storages import Storage


class Placed(Protocol):
    """A run, as far as its place is concerned."""

    @property
    def run_id(self) -> str: ...
    @property
    def coordinator(self) -> str | None: ...
    @property
    def environment(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that one coordinator is to wake."""

    coordinator: str
    environment: str
    run_ids: list[str]


Nudge = Callable[[Group], None]
"""Has a coordinator wake runs. It may fail: the sweep finds the runs."""


class Nudger:
    """Places runs that nobody holds, and nudges the coordinators of all.

    Args:
        settings: The settings of all actors.
        nudge: How a coordinator is nudged.
    """

    def __init__(self, settings: EngineSettings, nudge: Nudge) -> None:
        self._settings, self._nudge = settings, nudge

    async def nudge(self, storage: Storage, runs: Iterable[Placed]) -> int:
        """Have these runs go on; the number of runs that were nudged for."""
        nudged = 0
        async for group in grouped(self._settings, storage, runs):
            self._nudge(group)
            nudged += len(group.run_ids)
        return nudged

    async def nudge_ids(self, storage: Storage, run_ids: Iterable[str]) -> int:
        """As `nudge`, by the runs' ids."""
        wanted = list(run_ids)
        runs = await asyncio.to_thread(storage.read, get_runs(wanted))
        return await self.nudge(storage, [run for run in runs.values() if not run.status.is_terminal])


async def grouped(settings: EngineSettings, storage: Storage, runs: Iterable[Placed]) -> AsyncIterator[Group]:
    """The coordinators of these runs, each with its runs; a run that nobody holds is placed first.

    Runs that have ended, or do not exist, are left out.
    """
    by_environment: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        if is_isolated(run):
            yield Group(coordinator_of(run.run_id), run.environment, [run.run_id])
        else:
            by_environment[run.environment].append(run.run_id)
    for environment, run_ids in by_environment.items():
        located = await _located(settings, storage, environment, run_ids)
        for name, its_runs in located.items():
            yield Group(name, environment, its_runs)


async def _located(
    settings: EngineSettings, storage: Storage, environment: str, run_ids: list[str]
) -> dict[str, list[str]]:
    placement = settings.placement(environment)
    placed = await storage.write(locate(run_ids, placement, storage.loads))
    by_coordinator: dict[str, list[str]] = defaultdict(list)
    for run_id, name in placed.items():
        by_coordinator[name].append(run_id)
    return by_coordinator


def is_isolated(run: Placed) -> bool:
    """Whether the run has a coordinator to itself, and keeps it."""
    return run.coordinator == coordinator_of(run.run_id)
