"""Which coordinator a run lives with: one query in the transaction that accepts or wakes it.

Coordinators are numbered slots. A run gets the lowest slot that has no live run, else the least loaded. There
is no lock and no allocator: two transactions that do not see each other may choose the same slot, which
only means that two runs share a process.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import msgspec
from sqlalchemy.engine import Connection

from pyworkflow_ray.storage.dialects import Statement
from pyworkflow_ray.storage.schema import HAS_ENDED, IS_LIVE

# Beyond the first run of each slot, runs are packed: a coordinator drives hundreds of small runs at once, and
# spreading a burst over all slots would start as many processes, each with step workers of its own, which
# would wait for each other at the database. What is counted, from an index, is bounded.
PACK = 512
_MOST_COUNTED = 4 * PACK

_LOADS = Statement(f"""
    WITH RECURSIVE slots(slot) AS (
        SELECT 0 UNION ALL SELECT slot + 1 FROM slots WHERE slot + 1 < :slots
    )
    SELECT slot, (
        SELECT count(*) FROM (
            SELECT 1 FROM runs
            WHERE coordinator = CAST(:prefix AS TEXT) || CAST(slot AS TEXT) AND {IS_LIVE}
            LIMIT :cap
        ) AS counted
    ) AS load FROM slots
""")

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
            WHEN {_IS_FRESH} THEN coordinator ELSE COALESCE(({_ROOTS_COORDINATOR}), :coordinator)
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


def choose_coordinator(connection: Connection, placement: Placement) -> str:
    """The lowest slot with no live run, else the lowest of the least full; the run counts there from now on.

    How full a slot is, is counted in packs of `PACK` runs.
    """
    slots = _slots_of_transaction(connection, placement)
    _, slot, load, name = slots[0]
    heapq.heapreplace(slots, (_fullness(load + 1), slot, load + 1, name))
    return name


def _fullness(load: int) -> int:
    return 0 if load == 0 else 1 + load // PACK


_Slot = tuple[int, int, int, str]
"""Fullness, number, load, name: a heap of these has the slot to choose on top."""


def _slots_of_transaction(connection: Connection, placement: Placement) -> list[_Slot]:
    # Counted once in a transaction: a group of hundreds of new runs asks once.
    heaps: dict[Placement, list[_Slot]] = connection.info.setdefault("slots", {})
    if placement not in heaps:
        heaps[placement] = _read_slots(connection, placement)
    return heaps[placement]


def _read_slots(connection: Connection, placement: Placement) -> list[_Slot]:
    count, prefix = max(1, placement.slots), placement.full_prefix
    slots = [
        (_fullness(load), slot, load, f"{prefix}{slot}")
        for slot, load in _LOADS.rows(connection, prefix=prefix, slots=count, cap=_MOST_COUNTED)
    ]
    heapq.heapify(slots)
    return slots


def place(connection: Connection, run_ids: Iterable[str], placement: Placement) -> dict[str, str]:
    """The coordinators of runs that nobody holds: suspended ones to wake, orphans to pick up.

    After: each run is live and placed, a child with its root's coordinator if the root is awake, and whoever
    held it before is fenced out. Runs that are held or have ended are left out of the answer. Should nobody
    claim a placed run, the sweep finds it again.
    """
    placed = {}
    for run_id in run_ids:
        coordinator = choose_coordinator(connection, placement)
        row = _PLACE.row(connection, run_id=run_id, coordinator=coordinator, grace=GRACE)
        if row is not None:
            placed[run_id] = str(row[0])
    return placed


def locate(connection: Connection, run_ids: Iterable[str], placement: Placement) -> dict[str, str]:
    """The coordinators to tell of news for these runs: as `place`, and of those that are held, the holder's.

    Runs that have ended, or do not exist, are left out of the answer.
    """
    wanted = list(run_ids)
    located = place(connection, wanted, placement)
    for run_id in wanted:
        if run_id not in located:
            row = _COORDINATOR.row(connection, run_id=run_id)
            if row is not None:
                located[run_id] = str(row[0])
    return located
