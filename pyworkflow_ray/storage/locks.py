"""Locks on rows, taken before a transaction's first work and in one order.

Two transactions that lock the same rows in different orders wait for each other. The database finds that out
after a second, and undoes one of them. So each work says beforehand which rows it will lock (`Work.locks`). A
transaction locks all of them first: runs by their ids, then schedules by theirs. After that no statement of
its works waits for a row of these.

A group of works that each change one run is run in the order of these runs instead, which costs nothing.

Hooks are not among them. Whoever changes a hook's row has locked its run, or needs no lock after it.

SQLite has one writer, and locks no rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import IntEnum
from itertools import groupby
from typing import assert_never

import msgspec

from pyworkflow_ray.storage.schema import HAS_ENDED
from pyworkflow_ray.storage.statements import Bound, Statement


class Strength(IntEnum):
    """What a work does with a run's row."""

    POSTS = 1
    """It puts something into the run's inbox. This waits only for the run's end, and the end waits for it."""
    CHANGES = 2
    ENDS = 3
    """It ends the run. Nothing can be posted until the end is committed, and then nothing is posted."""


class Locks(msgspec.Struct, frozen=True, kw_only=True):
    """The rows that a work locks.

    Args:
        runs: Runs by their ids, and what is done with them.
        tokens: Tokens of hooks to whose runs something is posted.
        schedules: Schedules that are changed.
        cancelled_of: Schedules whose runs may be asked to cancel.
    """

    runs: Mapping[str, Strength] = {}
    schedules: Collection[str] = ()
    tokens: Collection[str] = ()
    cancelled_of: Collection[str] = ()

    @property
    def changed(self) -> str | None:
        """The run that the work changes, if it does nothing else than that; otherwise None."""
        if len(self.runs) != 1 or self.schedules or self.tokens or self.cancelled_of:
            return None
        ((run_id, strength),) = self.runs.items()
        return run_id if strength is Strength.CHANGES else None


NO_LOCKS = Locks()


def changing(*run_ids: str) -> Locks:
    """The locks of a work that changes these runs."""
    return Locks(runs=dict.fromkeys(run_ids, Strength.CHANGES))


def merged(many: Iterable[Locks]) -> Locks:
    """The locks of several works: of each run, the strongest."""
    runs: dict[str, Strength] = {}
    schedules, tokens, cancelled_of = set[str](), set[str](), set[str]()
    for each in many:
        for run_id, strength in each.runs.items():
            runs[run_id] = max(strength, runs.get(run_id, strength))
        schedules.update(each.schedules)
        tokens.update(each.tokens)
        cancelled_of.update(each.cancelled_of)
    return Locks(runs=runs, schedules=schedules, tokens=tokens, cancelled_of=cancelled_of)


def _on_runs(condition: str) -> dict[Strength, Statement]:
    return {
        each: Statement(f"SELECT 1 FROM runs WHERE run_id = ANY({condition}) ORDER BY run_id {_mode(each)}")
        for each in Strength
    }


def _mode(strength: Strength) -> str:
    match strength:
        case Strength.POSTS:
            return "<for key share>"
        case Strength.CHANGES:
            return "<for no key update>"
        case Strength.ENDS:
            return "<for update>"
        case _:
            assert_never(strength)


_IDS = "CAST(:ids AS text[])"
_NAMED = _on_runs(_IDS)
# Arrays and not conditions with OR: each part uses its own index.
_FOUND = _on_runs(f"""
    {_IDS} || ARRAY(SELECT run_id FROM hooks WHERE token = ANY(:tokens))
    || ARRAY(SELECT run_id FROM runs WHERE schedule_id = ANY(:cancelled_of) AND NOT {HAS_ENDED})
""")
_SCHEDULES = Statement(
    "SELECT 1 FROM schedules WHERE schedule_id = ANY(:ids) ORDER BY schedule_id <for no key update>"
)


def taking(locks: Locks) -> list[Bound]:
    """The statements that take the locks, for PostgreSQL.

    A single row needs none of its own, since the statement that changes it locks it. The end of a run does:
    it is stronger than the lock of an UPDATE.
    """
    count = len(locks.runs) + len(locks.schedules)
    if locks.tokens or locks.cancelled_of:
        strongest = max(locks.runs.values(), default=Strength.POSTS)
        parameters = {"tokens": sorted(locks.tokens), "cancelled_of": sorted(locks.cancelled_of)}
        taken = [_FOUND[strongest].find_all(ids=sorted(locks.runs), **parameters)]
    elif count > 1 or Strength.ENDS in locks.runs.values():
        by_strength = groupby(sorted(locks.runs), locks.runs.__getitem__)
        taken = [_NAMED[strength].find_all(ids=list(ids)) for strength, ids in by_strength]
    else:
        return []
    if locks.schedules:
        taken.append(_SCHEDULES.find_all(ids=sorted(locks.schedules)))
    return taken
