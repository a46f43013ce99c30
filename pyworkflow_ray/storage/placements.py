"""Which coordinator a run lives with: one query in the transaction that accepts or wakes it.

Coordinators are numbered slots. A run gets the lowest slot that has no live run, else the least loaded. There
is no lock and no allocator: two transactions that do not see each other may choose the same slot, which
only means that two runs share a process.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from pyworkflow_ray.storage.schema import HAS_ENDED, IS_LIVE
from pyworkflow_ray.storage.statements import Bound, Row, Statement
from pyworkflow_ray.storage.works import Steps, ask, last, work

# Beyond the first run of each slot, runs are packed: a coordinator drives hundreds of small runs at once, and
# spreading a burst over all slots would start as many processes, each with step workers of its own, which
# would wait for each other at the database. What is counted, from an index, is bounded.
PACK = 512
_MOST_COUNTED = 4 * PACK

_KNOWN_FOR = 1.0
"""Seconds after which loads are looked at anew."""
_MOST_PLACEMENTS = 100

_SLOTS = """
    WITH RECURSIVE slots(slot) AS (
        SELECT 0 UNION ALL SELECT slot + 1 FROM slots WHERE slot + 1 < :slots
    )
"""
_LOADS = Statement(f"""
    {_SLOTS}
    SELECT slot, (
        SELECT count(*) FROM (
            SELECT 1 FROM runs
            WHERE coordinator = CAST(:prefix AS TEXT) || CAST(slot AS TEXT) AND {IS_LIVE}
            LIMIT :cap
        ) AS counted
    ) AS load FROM slots
""")
# The slots come in their order, one by one, until one is free: neither database makes more of them than it
# needs. An ORDER BY would make all of them.
CHOSEN_COORDINATOR = f"""COALESCE((
    {_SLOTS}
    SELECT CAST(:prefix AS TEXT) || CAST(slot AS TEXT) FROM slots
    WHERE (
        SELECT 1 FROM runs AS other
        WHERE other.coordinator = CAST(:prefix AS TEXT) || CAST(slot AS TEXT) AND {IS_LIVE}
        LIMIT 1
    ) IS NULL
    LIMIT 1
), CAST(:fallback AS TEXT))"""
"""The lowest slot with no live run, or else the fallback; needs the parameters of `Loads.choice`."""

# A run that was placed a moment ago stays where it is: two who wake it at once (a client and the timer) must
# not send two coordinators after it.
#
# A run that is taken from a dead owner loses its lease and gets a new epoch at once: the owner, should it
# still breathe, could otherwise renew a run whose messages go to another coordinator from now on. Its name
# stays, so that the next claim knows of the interruption.
_IS_FRESH = f"""
    coordinator IS NOT NULL AND {IS_LIVE} AND lease_expires_at IS NULL AND updated_at > <now - :grace>
"""
# A child lives with its root, as long as that is awake: the two wait for each other.
_ROOTS_COORDINATOR = f"""
    SELECT root.coordinator FROM runs AS root
    WHERE root.run_id = runs.root_run_id AND root.run_id <> runs.run_id
        AND root.environment = runs.environment AND {IS_LIVE}
"""
_PLACE = Statement(f"""
    UPDATE runs SET
        coordinator = CASE
            WHEN {_IS_FRESH} THEN coordinator ELSE COALESCE(({_ROOTS_COORDINATOR}), {CHOSEN_COORDINATOR})
        END,
        updated_at = CASE WHEN {_IS_FRESH} THEN updated_at ELSE <now> END,
        status = CASE WHEN status = 'pending' THEN status ELSE 'running' END,
        epoch = CASE WHEN owner IS NULL THEN epoch ELSE epoch + 1 END,
        lease_expires_at = NULL
    WHERE run_id = :run_id
        AND status IN ('pending', 'running', 'suspended', 'interrupted')
        AND (lease_expires_at IS NULL OR lease_expires_at <= <now>)
    RETURNING coordinator
""")
_COORDINATOR = Statement(f"""
    SELECT coordinator FROM runs WHERE run_id = :run_id AND coordinator IS NOT NULL AND NOT {HAS_ENDED}
""")

GRACE = 5.0
"""Seconds that a placed run may wait for its coordinator before it counts as an orphan."""


class Placement(msgspec.Struct, frozen=True):
    """The slots to choose from: ``coordinator-0`` and on, or ``coordinator-<environment>-0`` and on."""

    prefix: str = "coordinator-"
    slots: int = 4
    environment: str = ""

    @property
    def full_prefix(self) -> str:
        """What a slot's name has before its number."""
        return f"{self.prefix}{self.environment}-" if self.environment else self.prefix


class Loads:
    """How full the coordinators of a database are, as this process has seen it last.

    It decides only where to put a run when no slot is free. Then what was seen a second ago, and what this
    process has placed since, is right enough.
    """

    def __init__(self) -> None:
        self._seen: dict[Placement, tuple[float, list[int]]] = {}

    def knows(self, placement: Placement) -> bool:
        """Whether there is something to choose a fallback by."""
        return placement in self._seen

    def looking(self, placement: Placement) -> list[Bound]:
        """What looks at the loads anew, if that is due; its answer is for `saw`."""
        seen_at, _ = self._seen.get(placement, (float("-inf"), []))
        if time.monotonic() - seen_at < _KNOWN_FOR:
            return []
        slots = max(1, placement.slots)
        return [_LOADS.find_all(prefix=placement.full_prefix, slots=slots, cap=_MOST_COUNTED)]

    def saw(self, placement: Placement, rows: Sequence[Row]) -> None:
        """Take note of the loads."""
        if len(self._seen) > _MOST_PLACEMENTS:
            self._seen.clear()
        self._seen[placement] = time.monotonic(), [load for _, load in sorted(rows)]

    def choice(self, placement: Placement) -> dict[str, Any]:
        """The parameters of `CHOSEN_COORDINATOR`. The fallback is the least full slot, the lowest of these.

        How full a slot is, is counted in packs of `PACK` runs.
        """
        _, loads = self._seen[placement]
        slot = min(range(len(loads)), key=lambda each: (_fullness(loads[each]), each))
        prefix = placement.full_prefix
        return {"prefix": prefix, "slots": len(loads), "fallback": f"{prefix}{slot}"}

    def placed(self, placement: Placement, coordinator: str | None) -> None:
        """Count a run that was placed."""
        number = (coordinator or "").removeprefix(placement.full_prefix)
        _, loads = self._seen[placement]
        if number.isdecimal() and int(number) < len(loads):
            loads[int(number)] += 1


def _fullness(load: int) -> int:
    return 0 if load == 0 else 1 + load // PACK


@work
def known_loads(placement: Placement, loads: Loads | None) -> Steps[tuple[Loads, list[Bound]]]:
    """Loads that know the placement, and what looks at them anew with the next batch.

    None stands for loads that know nothing, as those of a new process: these are asked for first.
    """
    loads = loads or Loads()
    if loads.knows(placement):
        return loads, loads.looking(placement)
    (rows,) = yield ask(*loads.looking(placement))
    loads.saw(placement, rows)
    return loads, []


@work
def place(run_ids: Iterable[str], placement: Placement, loads: Loads | None = None) -> Steps[dict[str, str]]:
    """The coordinators of runs that nobody holds: suspended ones to wake, orphans to pick up.

    After: each run is live and placed, a child with its root's coordinator if the root is awake, and whoever
    held it before is fenced out. Runs that are held or have ended are left out of the answer. Should nobody
    claim a placed run, the sweep finds it again.
    """
    placed, _ = yield from _placed(run_ids, placement, loads, asks_holders=False).at_end()
    return placed


@work
def locate(run_ids: Iterable[str], placement: Placement, loads: Loads | None = None) -> Steps[dict[str, str]]:
    """The coordinators to nudge for these runs: as `place`, and for runs that are held, the holder's.

    Runs that have ended, or do not exist, are left out of the answer.
    """
    placed, held = yield from _placed(run_ids, placement, loads, asks_holders=True).at_end()
    return {**held, **placed}


@work
def _placed(
    run_ids: Iterable[str], placement: Placement, loads: Loads | None, *, asks_holders: bool
) -> Steps[tuple[dict[str, str], dict[str, str]]]:
    # In one order everywhere: two transactions that lock the same rows must not wait for each other.
    wanted = sorted(set(run_ids))
    if not wanted:
        return {}, {}
    loads, looking = yield from known_loads(placement, loads)
    places = []
    for run_id in wanted:
        choice = loads.choice(placement)
        places.append(_PLACE.find(run_id=run_id, grace=GRACE, **choice))
        loads.placed(placement, choice["fallback"])
    holders = [_COORDINATOR.find(run_id=run_id) for run_id in wanted] if asks_holders else []
    answers = yield last(*places, *holders, *looking)
    if looking:
        loads.saw(placement, answers[-1])
    rows = dict(zip(wanted, answers, strict=False))
    held = dict(zip(wanted, answers[len(wanted) : 2 * len(wanted)], strict=True)) if asks_holders else {}
    return _names(rows), _names(held)


def _names(rows: dict[str, Row | None]) -> dict[str, str]:
    return {run_id: str(row[0]) for run_id, row in rows.items() if row is not None}
