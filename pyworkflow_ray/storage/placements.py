"""Which coordinator drives a run. One query chooses it, in the transaction that accepts or wakes the run.

Coordinators are numbered slots. A run gets the lowest slot that has no live run. If every slot has one, the
run gets the least loaded slot. There is no lock and no allocator. Two transactions that do not see each other
may choose the same slot. Then two runs share a process, which does no harm.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from pyworkflow_ray.storage.leases import WAS_ALONE
from pyworkflow_ray.storage.locks import changing
from pyworkflow_ray.storage.schema import HAS_ENDED, IS_LIVE
from pyworkflow_ray.storage.statements import Bound, Row, Statement
from pyworkflow_ray.storage.works import Steps, ask, last, locking, work

# After the first run of each slot, runs are packed, PACK to a slot. A coordinator drives hundreds of small
# runs at once. If a burst were spread over all slots, it would start as many processes, each with its own
# step workers, and they would wait for each other at the database.
# The count comes from an index, and stops at _MOST_COUNTED.
PACK = 512
_MOST_COUNTED = 4 * PACK

_KNOWN_FOR = 1.0
"""Seconds after which the loads are read again."""
_BURST_PAUSE = 0.1
"""Seconds after which the next placement of this process begins a new burst."""
_BURST_SEARCHES = 32
"""How many runs of a burst look for a free slot."""
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
# The slots are produced in order, one by one, until one is free. Neither database produces more than it
# needs. With an ORDER BY it would produce all of them.
CHOSEN_COORDINATOR = f"""COALESCE((
    {_SLOTS}
    SELECT CAST(:prefix AS TEXT) || CAST(slot AS TEXT) FROM slots
    WHERE CAST(:searches AS INTEGER) = 1 AND (
        SELECT 1 FROM runs AS other
        WHERE other.coordinator = CAST(:prefix AS TEXT) || CAST(slot AS TEXT) AND {IS_LIVE}
        LIMIT 1
    ) IS NULL
    LIMIT 1
), CAST(:fallback AS TEXT))"""
"""The lowest slot with no live run, else the fallback. It needs the parameters of `Loads.choice`."""

# A run that was placed a moment ago stays where it is. A client and the timer may wake it at the same time,
# and must not send two coordinators after it.
#
# A run that is taken from a dead owner loses its lease and gets a new epoch at once. The owner may still be
# alive. Without the new epoch it could renew the run, although the run's messages now go to another
# coordinator. The owner's name stays in the row, so that the next claim sees the interruption.
_IS_FRESH = f"""
    coordinator IS NOT NULL AND {IS_LIVE} AND lease_expires_at IS NULL AND updated_at > <now - :grace>
"""
# Some processes have died of a run that was set apart, perhaps. It does not come back among the others
# before it has let go of its coordinator by itself.
APART = "~"
"""A part of the names of coordinators for runs that were set apart, and of no others."""
_IS_APART = f"(owner IS NOT NULL AND coordinator LIKE '%{APART}%')"
# Whoever takes the run over must know whether other runs may be to blame for the death of its owner. All
# runs of a dead process lose their leases at once, and those that were placed a moment ago keep their owner.
_WAS_ALONE = f"""
    lease_expires_at IS NOT NULL AND owner LIKE coordinator || '%' AND NOT EXISTS (
        SELECT 1 FROM runs AS other
        WHERE other.run_id <> runs.run_id AND {IS_LIVE.replace("status", "other.status")}
            AND (other.owner = runs.coordinator OR other.owner LIKE runs.coordinator || '@%'
                OR other.owner LIKE runs.coordinator || ':%'
                OR other.owner = runs.coordinator || '{WAS_ALONE}')
    )
"""
# A child is placed with its root's coordinator while the root is awake, since the two wait for each other.
_ROOTS_COORDINATOR = f"""
    SELECT root.coordinator FROM runs AS root
    WHERE root.run_id = runs.root_run_id AND root.run_id <> runs.run_id
        AND root.environment = runs.environment AND {IS_LIVE}
"""
_PLACE = Statement(f"""
    UPDATE runs SET
        coordinator = CASE
            WHEN {_IS_FRESH} OR {_IS_APART} THEN coordinator
            ELSE COALESCE(({_ROOTS_COORDINATOR}), {CHOSEN_COORDINATOR})
        END,
        updated_at = CASE WHEN {_IS_FRESH} THEN updated_at ELSE <now> END,
        status = CASE WHEN status = 'pending' THEN status ELSE 'running' END,
        epoch = CASE WHEN owner IS NULL THEN epoch ELSE epoch + 1 END,
        owner = CASE WHEN {_WAS_ALONE} THEN owner || '{WAS_ALONE}' ELSE owner END,
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
"""Seconds for which a placed run may wait for its coordinator. After that it counts as an orphan."""


class Placement(msgspec.Struct, frozen=True):
    """The slots to choose from: ``coordinator-0``, ``coordinator-1`` and so on.

    With an environment they are ``coordinator-<environment>-0`` and so on.
    """

    prefix: str = "coordinator-"
    slots: int = 4
    environment: str = ""

    @property
    def full_prefix(self) -> str:
        """The part of a slot's name before its number."""
        return f"{self.prefix}{self.environment}-" if self.environment else self.prefix


class _Seen:
    """The loads of one placement's slots, by the slot's number."""

    __slots__ = ("asked_at", "burst", "chosen_at", "loads", "since")

    def __init__(self, loads: list[int]) -> None:
        self.loads = loads
        self.burst = 0
        """How many runs of the present burst this process has placed."""
        self.chosen_at = float("-inf")
        """When it has placed the last one."""
        self.asked_at = time.monotonic()
        """When the loads were last asked for; the answer may be on its way."""
        self.since = [0] * len(loads)
        """What this process has placed since then. The answer does not hold it."""


class Loads:
    """How full a database's coordinators are, as this process last saw them.

    This decides only where a run goes when no slot is free. For that it is exact enough to know the loads of
    a second ago, and the runs that this process has placed since.
    """

    def __init__(self) -> None:
        # More than _MOST_PLACEMENTS are not kept: then all are forgotten.
        self._seen: dict[Placement, _Seen] = {}

    def knows(self, placement: Placement) -> bool:
        """Whether the placement's loads were read, so that `choice` can be called."""
        return placement in self._seen

    def looking(self, placement: Placement) -> list[Bound]:
        """The query that reads the loads again, if that is due; its answer is for `saw`."""
        seen = self._seen.get(placement)
        if seen is not None:
            if time.monotonic() - seen.asked_at < _KNOWN_FOR:
                return []
            seen.asked_at, seen.since = time.monotonic(), [0] * len(seen.loads)
        slots = max(1, placement.slots)
        return [_LOADS.find_all(prefix=placement.full_prefix, slots=slots, cap=_MOST_COUNTED)]

    def saw(self, placement: Placement, rows: Sequence[Row]) -> None:
        """Remember the loads, from the answer to `looking`."""
        if len(self._seen) > _MOST_PLACEMENTS:
            self._seen.clear()
        loads = [load for _, load in sorted(rows)]
        seen = self._seen.setdefault(placement, _Seen(loads))
        seen.loads = [load + more for load, more in zip(loads, seen.since, strict=True)]

    def choice(self, placement: Placement) -> dict[str, Any]:
        """The parameters of `CHOSEN_COORDINATOR` for one more run.

        The fallback is the least full slot. Fullness is counted in packs of `PACK` runs. If several slots are
        equally full, the lowest of them is taken. The run counts there from now on: the next choice may come
        before the answer to this one.

        The first runs of a burst look for free slots, and the others are packed. Short runs of a burst end
        while it goes on. If the others took the slots that these leave, the burst would be spread over all
        slots in small shares.
        """
        seen = self._seen[placement]
        slots, now = len(seen.loads), time.monotonic()
        seen.burst = seen.burst + 1 if now - seen.chosen_at < _BURST_PAUSE else 1
        seen.chosen_at = now
        searches = seen.burst <= _BURST_SEARCHES
        full = _fullness if searches else _packs
        slot = min(range(slots), key=lambda each: (full(seen.loads[each]), each))
        seen.loads[slot] += 1
        seen.since[slot] += 1
        prefix = placement.full_prefix
        fallback = f"{prefix}{slot}"
        return {"prefix": prefix, "slots": slots, "searches": int(searches), "fallback": fallback}

    def placed(self, placement: Placement, choice: dict[str, Any], coordinator: str | None) -> None:
        """Count a run at the slot that it got, if that is not the fallback of its choice."""
        seen = self._seen.get(placement)
        if seen is None or coordinator == choice["fallback"]:
            return
        for name, count in ((choice["fallback"], -1), (coordinator or "", 1)):
            number = name.removeprefix(placement.full_prefix)
            if number.isdecimal() and int(number) < len(seen.loads):
                seen.loads[int(number)] = max(0, seen.loads[int(number)] + count)
                seen.since[int(number)] += count


def _fullness(load: int) -> int:
    return 0 if load == 0 else 1 + _packs(load)


def _packs(load: int) -> int:
    return load // PACK


@work
def known_loads(placement: Placement, loads: Loads | None) -> Steps[tuple[Loads, list[Bound]]]:
    """Loads that know the placement, and the query that reads them again with the next batch.

    None, or loads that do not know the placement (a new process has such), are read first.
    """
    loads = loads or Loads()
    if loads.knows(placement):
        return loads, loads.looking(placement)
    (rows,) = yield ask(*loads.looking(placement))
    loads.saw(placement, rows)
    return loads, []


@locking(lambda run_ids, *_, **__: changing(*run_ids))
@work
def place(run_ids: Iterable[str], placement: Placement, loads: Loads | None = None) -> Steps[dict[str, str]]:
    """Place runs that no process holds (suspended runs to wake, orphans to pick up); their coordinators.

    After: each run is live and placed. A child is placed with its root's coordinator if the root is awake. A
    process that held the run before can no longer write to it. The answer leaves out runs that are held or
    have ended. If no coordinator claims a placed run, the sweep finds the run again.
    """
    placed, _ = yield from _placed(run_ids, placement, loads, asks_holders=False).at_end()
    return placed


@locking(lambda run_ids, *_, **__: changing(*run_ids))
@work
def locate(run_ids: Iterable[str], placement: Placement, loads: Loads | None = None) -> Steps[dict[str, str]]:
    """The coordinators to nudge for these runs: as `place`, and for a run that is held, its coordinator.

    The answer leaves out runs that have ended or do not exist.
    """
    placed, held = yield from _placed(run_ids, placement, loads, asks_holders=True).at_end()
    return {**held, **placed}


@locking(lambda run_ids, *_, **__: changing(*run_ids))
@work
def _placed(
    run_ids: Iterable[str], placement: Placement, loads: Loads | None, *, asks_holders: bool
) -> Steps[tuple[dict[str, str], dict[str, str]]]:
    # All transactions lock rows in this order, so that two of them never wait for each other.
    wanted = sorted(set(run_ids))
    if not wanted:
        return {}, {}
    loads, looking = yield from known_loads(placement, loads)
    places = []
    for run_id in wanted:
        choice = loads.choice(placement)
        places.append(_PLACE.find(run_id=run_id, grace=GRACE, **choice))
    holders = [_COORDINATOR.find(run_id=run_id) for run_id in wanted] if asks_holders else []
    answers = yield last(*places, *holders, *looking)
    if looking:
        loads.saw(placement, answers[-1])
    rows = dict(zip(wanted, answers, strict=False))
    held = dict(zip(wanted, answers[len(wanted) : 2 * len(wanted)], strict=True)) if asks_holders else {}
    return _names(rows), _names(held)


def _names(rows: dict[str, Row | None]) -> dict[str, str]:
    return {run_id: str(row[0]) for run_id, row in rows.items() if row is not None}
