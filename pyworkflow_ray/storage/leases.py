"""Which process holds a run: claims, renewals, releases.

A run is held by the claim named in `owner` until `lease_expires_at`, by the database's clock. Every claim
raises `epoch`, and every append names the epoch of its claim. Two processes may both believe that they hold a
run. Then only the one that claimed it later can write.

Whoever claims a run that was not let go of takes it over, and its row says so in `previous_owner`. That holds
for the process that had it before, too: it may have lost what it knew of the run. So a name in `owner` is
that of one claim, and not only that of a process (`claim_name`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec

from pyworkflow_ray.exceptions import UnreadableRowError
from pyworkflow_ray.storage.damages import report, set_aside_all
from pyworkflow_ray.storage.locks import changing
from pyworkflow_ray.storage.records import COLUMNS, RunRecord, run_record
from pyworkflow_ray.storage.schema import HAS_ENDED, IS_LIVE
from pyworkflow_ray.storage.statements import Row, Statement
from pyworkflow_ray.storage.works import Steps, last, locking, work

WAS_ALONE = " (alone)"
"""Behind the name of an owner from which a sweep took the only run that it had."""
GAVE_UP = " (gave up)"
"""Behind the name of an owner that could not drive the run."""
SET_APART = " (set apart)"
"""Behind the name of an owner that went away; the run was given a process with fewer others in it."""
SET_ASIDE = " (set aside)"
"""Behind the name of an owner that set the run aside while attempts of its steps may have been under way."""

# A claim that is run again does not change `previous_owner`. The answer to its COMMIT may be lost. Then the
# second time must still report the interruption that the first one found. It has the same name.
_TAKE = """
    UPDATE runs SET
        epoch = epoch + 1,
        previous_owner = CASE WHEN owner = :owner THEN previous_owner ELSE owner END,
        owner = :owner,
        coordinator = COALESCE(CAST(:force_from AS TEXT), coordinator),
        lease_expires_at = <now + :ttl>,
        status = 'running',
        updated_at = <now>
"""
# Two clusters on one database each have a coordinator of this name. A coordinator of the other cluster is not
# a predecessor here. An owner that names no cluster counts as one.
_IS_FREE = "(lease_expires_at IS NULL OR lease_expires_at <= <now> OR owner = :owner)"
_IS_PREDECESSORS = """
    (coordinator = :force_from
        AND (owner LIKE :force_from || '@' || :cluster || ':%' OR owner NOT LIKE '%@%'))
"""
_CLAIM = Statement(f"""
    {_TAKE}
    WHERE run_id = :run_id
        AND NOT {HAS_ENDED}
        AND ({_IS_FREE} OR {_IS_PREDECESSORS})
    RETURNING {COLUMNS}
""")
_IS_PLACED = f"""
    coordinator = :force_from AND {IS_LIVE} AND (start_at IS NULL OR start_at <= <now>)
        AND ({_IS_FREE} OR {_IS_PREDECESSORS})
"""
# It locks its rows in the order of their ids, as all transactions do.
_CLAIM_PLACED = Statement(f"""
    {_TAKE}
    WHERE {_IS_PLACED} AND run_id IN (
        SELECT run_id FROM runs WHERE {_IS_PLACED} ORDER BY run_id <for no key update>
    )
    RETURNING {COLUMNS}
""")
# Only the runs that are named, and only at their epochs. A process may hold a run that it does not drive: for
# example, the client died before it nudged the coordinator. Such a run must lose its lease, or no coordinator
# would ever claim it.
_RENEW = Statement("""
    UPDATE runs SET
        lease_expires_at = <now + :ttl>,
        owner = CASE WHEN owner = coordinator THEN COALESCE(CAST(:owner AS TEXT), owner) ELSE owner END
    WHERE run_id = (
        SELECT run_id FROM runs WHERE run_id = :run_id AND epoch = :epoch AND lease_expires_at IS NOT NULL
        <for no key update skip locked>
    )
""")
_HOLDER = Statement("SELECT epoch, owner FROM runs WHERE run_id = :run_id")
# Our lease had run out, and a sweep took the run from us and placed it somewhere. Nobody has claimed it
# since, so we hold it at the epoch in its row. If the lease is there and the epoch is new to us, this has
# gone through before, and its answer was lost.
_REGAIN = Statement(f"""
    UPDATE runs SET lease_expires_at = <now + :ttl>, owner = :owner, coordinator = :coordinator
    WHERE run_id = :run_id AND NOT {HAS_ENDED}
        AND owner IN (:owner, :coordinator, :owner || '{WAS_ALONE}', :coordinator || '{WAS_ALONE}')
        AND (lease_expires_at IS NULL OR (owner = :owner AND epoch <> :epoch))
    RETURNING epoch
""")
# Those that a predecessor held to the end. What a sweep has taken from it is not here, nor what was only
# placed here.
_HELD = Statement(f"""
    SELECT run_id FROM runs
    WHERE {_IS_PREDECESSORS} AND {IS_LIVE} AND lease_expires_at IS NOT NULL
""")
# The new epoch fences off writes that are still under way. The name shows the interruption to the next claim.
_GIVE_UP = Statement("""
    UPDATE runs SET epoch = epoch + 1, owner = COALESCE(owner, '') || :mark, lease_expires_at = NULL
    WHERE run_id = :run_id AND epoch = :epoch
""")
_SET_APART = Statement("""
    UPDATE runs SET
        epoch = epoch + 1,
        coordinator = :coordinator,
        owner = COALESCE(previous_owner, owner) || :mark,
        previous_owner = NULL,
        lease_expires_at = NULL,
        shared_recoveries = shared_recoveries + 1,
        updated_at = <now>
    WHERE run_id = :run_id AND epoch = :epoch
""")
_RELEASE = Statement("""
    UPDATE runs SET owner = NULL, previous_owner = NULL, lease_expires_at = NULL
    WHERE run_id = :run_id AND epoch = :epoch
""")


class Holder(msgspec.Struct, frozen=True):
    """Who a name in `owner` or `previous_owner` stands for.

    Args:
        process: The process, or only a coordinator: a new run is held under its coordinator's name, although
            no process may have seen it yet.
        mark: Why it has let go of the run, if it says so.
    """

    process: str
    mark: str = ""

    @property
    def is_process(self) -> bool:
        """Whether it is known that a process held the run."""
        return ":" in self.process


def owner_of(coordinator: str, cluster: str, incarnation: str) -> str:
    """The name of a process that holds runs: its coordinator's name, its cluster, and its own part."""
    return f"{coordinator}@{cluster}:{incarnation}" if cluster else f"{coordinator}:{incarnation}"


def claim_name(process: str, number: int) -> str:
    """The name under which a process makes its claim of this number."""
    return f"{process}/{number}"


def holder_of(owner: str) -> Holder:
    """Who this name stands for."""
    mark = next((each for each in (WAS_ALONE, GAVE_UP, SET_APART, SET_ASIDE) if owner.endswith(each)), "")
    coordinator, colon, incarnation = owner.removesuffix(mark).rpartition(":")
    return Holder(f"{coordinator}{colon}{incarnation.partition('/')[0] if colon else incarnation}", mark)


def claim_of(run: RunRecord, process: str) -> str:
    """The name of the claim by which this process holds the run. A run that was born held had none."""
    return process if run.owner in (None, run.coordinator) else str(run.owner)


@locking(lambda run_id, *_, **__: changing(run_id))
@work
def claim(
    run_id: str,
    owner: str,
    lease_ttl: float,
    *,
    force_from: str | None = None,
    cluster: str = "",
) -> Steps[RunRecord | None]:
    """The run, which `owner` now holds at a new epoch; None if it cannot be claimed.

    A run whose row cannot be read is set aside, and cannot be claimed.

    A run can be claimed when no process holds it, when its lease has run out, or when `owner` holds it
    already. It can also be claimed when it is placed with the coordinator `force_from`: a new incarnation of
    that name takes at once what its predecessor held in the same `cluster`. A run that has ended, or does not
    exist, can never be claimed.

    The record is the row after the claim. Its `previous_owner` shows an interruption. The same claim, run
    again after a COMMIT whose answer was lost, gives the same record at a higher epoch.

    Args:
        owner: The name of this claim (`claim_name`). Another claim of the same process has another name.
    """
    found = yield last(
        _CLAIM.find(run_id=run_id, owner=owner, ttl=lease_ttl, force_from=force_from, cluster=cluster)
    )
    runs = yield from _readable([] if found[0] is None else [found[0]]).at_end()
    return runs[0] if runs else None


@work
def claim_placed(coordinator: str, owner: str, lease_ttl: float, cluster: str = "") -> Steps[list[RunRecord]]:
    """All live runs placed with this coordinator, oldest first, claimed as with `force_from`."""
    (rows,) = yield last(
        _CLAIM_PLACED.find_all(owner=owner, ttl=lease_ttl, force_from=coordinator, cluster=cluster)
    )
    runs = yield from _readable(rows).at_end()
    return sorted(runs, key=lambda run: (run.created_at, run.run_id))


@work
def _readable(rows: Sequence[Row]) -> Steps[list[RunRecord]]:
    """The runs that were claimed. Those whose rows cannot be read are set aside: nobody can drive them."""
    runs: list[RunRecord] = []
    damages: list[UnreadableRowError] = []
    for row in rows:
        try:
            runs.append(run_record(row))
        except UnreadableRowError as error:
            report(error)
            damages.append(error)
    if damages:
        yield from set_aside_all(damages).at_end()
    return runs


@work
def renew_leases(
    held: Iterable[tuple[str, int]], lease_ttl: float, owner: str | None = None
) -> Steps[list[str]]:
    """Hold these runs, each at its epoch, for another `lease_ttl` seconds; those that are held now.

    A lease that has run out is renewed too, as long as no other process has taken the run. A run whose row is
    locked just now is left out: this waits for nobody.

    Args:
        owner: The name of their owner. A run that was accepted as held by its coordinator's name gets it.
    """
    wanted = sorted(held)
    renewing = [
        _RENEW.change(run_id=run_id, epoch=epoch, ttl=lease_ttl, owner=owner) for run_id, epoch in wanted
    ]
    counts = yield last(*renewing)
    return [run_id for (run_id, _), count in zip(wanted, counts, strict=True) if count == 1]


@work
def lost_leases(held: Iterable[tuple[str, int, Collection[str]]]) -> Steps[list[str]]:
    """Which of these runs are gone, or another claim's by now.

    A run that a sweep has taken from its claim, and that nobody has claimed since, is not among them.

    Args:
        held: Each run's id, the epoch at which it is held, and the names under which.
    """
    wanted = list(held)
    rows = yield last(*(_HOLDER.find(run_id=run_id) for run_id, _, _ in wanted))
    return [
        run_id
        for (run_id, epoch, names), row in zip(wanted, rows, strict=True)
        if row is None or (row[0] != epoch and str(row[1]).removesuffix(WAS_ALONE) not in names)
    ]


@locking(lambda run_id, *_, **__: changing(run_id))
@work
def regain(run_id: str, owner: str, epoch: int, lease_ttl: float, *, coordinator: str) -> Steps[int | None]:
    """The epoch at which `owner` goes on with a run after its lease ran out; None if nothing has changed.

    It is no takeover: the claim is the same one, and its attempts are still under way. If anybody has claimed
    the run since, the same process included, nothing is changed.

    Args:
        owner: The name of the claim; for a run that was born held, that of its process.
        epoch: The epoch at which `owner` believes to hold the run.
        coordinator: Where the run lives from then on. It may be held under this name from its birth.
    """
    names = {"owner": owner, "coordinator": coordinator}
    (row,) = yield last(_REGAIN.find(run_id=run_id, epoch=epoch, ttl=lease_ttl, **names))
    return None if row is None else int(row[0])


@work
def held_with(coordinator: str, cluster: str = "") -> Steps[list[str]]:
    """The runs that predecessors of this name in this cluster held when they went away."""
    (rows,) = yield last(_HELD.find_all(force_from=coordinator, cluster=cluster))
    return [str(run_id) for (run_id,) in rows]


@locking(lambda run_id, epoch: changing(run_id))
@work
def give_up(run_id: str, epoch: int) -> Steps[bool]:
    """Let go of a run that could not be driven. The next claim sees that the run was interrupted."""
    (changed,) = yield last(_GIVE_UP.change(run_id=run_id, epoch=epoch, mark=GAVE_UP))
    return bool(changed == 1)


@locking(lambda moves: changing(*(run_id for run_id, _, _ in moves)))
@work
def set_apart(moves: Collection[tuple[str, int, str]]) -> Steps[None]:
    """Let go of runs that were just claimed, and have other coordinators go on with them.

    One more shared takeover of each is counted. The next claim sees that it was interrupted.

    Args:
        moves: Each run's id, the epoch at which it is held, and the coordinator that is to go on with it.
    """
    # All transactions lock rows in this order, so that two of them never wait for each other.
    rows = [
        {"run_id": run_id, "epoch": epoch, "coordinator": coordinator, "mark": SET_APART}
        for run_id, epoch, coordinator in sorted(moves)
    ]
    yield last(_SET_APART.change_each(rows))


@locking(lambda run_id, epoch: changing(run_id))
@work
def release(run_id: str, epoch: int) -> Steps[bool]:
    """Let go of a run without an interruption; False if it is no longer held at this epoch."""
    (changed,) = yield last(_RELEASE.change(run_id=run_id, epoch=epoch))
    return bool(changed == 1)
