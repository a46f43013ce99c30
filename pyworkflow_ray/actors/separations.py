"""Setting runs apart from each other, after they were together in processes that died.

Theory of operation. One run that ends its process takes the others in it along, and nobody knows which one it
was. A process that has died once may have been killed from outside, and its runs stay together. If it dies
again before a run has got further, that run is a suspect. Suspects are split over processes of their own. The
process with the guilty run dies again, and its runs are split further. The others go on.

The name of a coordinator says how often its runs were split (`coordinator-0~2~1`). So nothing else must be
remembered, and two who split the same runs put them into the same places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

from pyworkflow_ray.actors.names import alone_with, coordinator_of
from pyworkflow_ray.actors.recoveries import Loss, allowed_recoveries, loss_of
from pyworkflow_ray.storage.leases import holder_of
from pyworkflow_ray.storage.placements import APART
from pyworkflow_ray.storage.records import RunRecord

MOST_ALONE = 8
"""Suspects of one process that get a process each. A process costs 90 MB."""
PARTS = 4
"""Processes over which more suspects than that are split."""
_MOST_SPLITS = 16


def losses_of(
    runs: Iterable[RunRecord], held: Collection[str], process: str, *, can_set_apart: bool
) -> list[tuple[RunRecord, Loss]]:
    """How these runs were lost that this process has claimed.

    Args:
        held: The runs that were in the process before this one when it went away, if that is known.
        can_set_apart: Whether runs can be set apart. If not, each takes the blame for itself.
    """
    lost = []
    for run in runs:
        company = len(held) - 1 if run.run_id in held else 0 if _had_own_process(run) else None
        lost.append((run, loss_of(run, process, company if can_set_apart else 0)))
    return lost


def _had_own_process(run: RunRecord) -> bool:
    """Whether the run was lost by a process that was made for this run alone."""
    process = holder_of(run.previous_owner or "").process
    own = (alone_with(run.run_id), coordinator_of(run.run_id))
    return process.rpartition(":")[0].partition("@")[0] in own


def suspects(lost: Iterable[tuple[RunRecord, Loss]]) -> list[RunRecord]:
    """Those of these runs that are to be set apart."""
    return [
        run
        for run, loss in lost
        if loss is Loss.SHARED and run.shared_recoveries > 0 and allowed_recoveries(run) > 0
    ]


def separated(coordinator: str, runs: Collection[RunRecord]) -> dict[str, str]:
    """The coordinators that these suspects of one coordinator go on with, by the runs' ids.

    One that is to stay where it is, is left out: a run that has a coordinator to itself keeps it.
    """
    run_ids = [run.run_id for run in runs]
    splits = coordinator.count(APART)
    if len(run_ids) <= MOST_ALONE or splits >= _MOST_SPLITS:
        places = {run_id: alone_with(run_id) for run_id in run_ids}
    else:
        places = {run_id: f"{coordinator}{APART}{_part(run_id, splits)}" for run_id in run_ids}
    kept = {run.run_id for run in runs if coordinator == coordinator_of(run.run_id)}
    return {run_id: place for run_id, place in places.items() if place != coordinator and run_id not in kept}


def _part(run_id: str, splits: int) -> int:
    return hashlib.sha256(run_id.encode()).digest()[splits] % PARTS
