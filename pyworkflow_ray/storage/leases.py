"""Which process holds a run: claims, renewals, releases.

A run is held by the process named in `owner` until `lease_expires_at`, by the database's clock. Every claim
raises `epoch`, and every append names the epoch of its claim. Two processes may both believe that they hold a
run. Then only the one that claimed it later can write.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyworkflow_ray.exceptions import UnreadableRowError
from pyworkflow_ray.storage.damages import report, set_aside_all
from pyworkflow_ray.storage.locks import changing
from pyworkflow_ray.storage.records import COLUMNS, RunRecord, run_record
from pyworkflow_ray.storage.schema import HAS_ENDED, IS_LIVE
from pyworkflow_ray.storage.statements import Row, Statement
from pyworkflow_ray.storage.works import Steps, last, locking, work

# An owner's second claim does not change `previous_owner`. The answer to the first claim's COMMIT may be
# lost. Then the second claim must still report the interruption that the first one found.
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
_HOLDER = Statement("SELECT epoch, owner, coordinator FROM runs WHERE run_id = :run_id")
# Our lease had run out. A sweep took the run from us and placed it with us again. No other process has
# claimed it, so we hold it at the epoch in its row.
_REGAIN = Statement(f"""
    UPDATE runs SET lease_expires_at = <now + :ttl>, owner = :owner
    WHERE run_id = :run_id AND owner IN (:owner, :born_owner) AND lease_expires_at IS NULL AND NOT {HAS_ENDED}
    RETURNING epoch
""")
# The new epoch fences off writes that are still under way. The name shows the interruption to the next claim.
_GIVE_UP = Statement("""
    UPDATE runs SET epoch = epoch + 1, owner = COALESCE(owner, '') || ' (gave up)', lease_expires_at = NULL
    WHERE run_id = :run_id AND epoch = :epoch
""")
_RELEASE = Statement("""
    UPDATE runs SET owner = NULL, previous_owner = NULL, lease_expires_at = NULL
    WHERE run_id = :run_id AND epoch = :epoch
""")


def owner_of(coordinator: str, cluster: str, incarnation: str) -> str:
    """The name of a process that holds runs: its coordinator's name, its cluster, and its own part."""
    return f"{coordinator}@{cluster}:{incarnation}" if cluster else f"{coordinator}:{incarnation}"


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

    The record is the row after the claim. Its `previous_owner` shows an interruption. A second claim, after a
    COMMIT whose answer was lost, gives the same record at a higher epoch.
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
def lost_leases(held: Iterable[tuple[str, int]], owner: str) -> Steps[list[str]]:
    """Which of these runs, each held at its epoch by `owner`, are gone or another process's by now.

    A run that was taken from `owner` and that nobody has claimed yet is not among them.
    """
    wanted = list(held)
    rows = yield last(*(_HOLDER.find(run_id=run_id) for run_id, _ in wanted))
    return [
        run_id
        for (run_id, epoch), row in zip(wanted, rows, strict=True)
        if row is None or (row[0] != epoch and row[1] not in (owner, row[2]))
    ]


@locking(lambda run_id, *_, **__: changing(run_id))
@work
def regain(run_id: str, owner: str, lease_ttl: float, *, born_owner: str) -> Steps[int | None]:
    """The epoch at which `owner` goes on with a run after its lease ran out; None if it may not."""
    (row,) = yield last(_REGAIN.find(run_id=run_id, owner=owner, born_owner=born_owner, ttl=lease_ttl))
    return None if row is None else int(row[0])


@locking(lambda run_id, epoch: changing(run_id))
@work
def give_up(run_id: str, epoch: int) -> Steps[bool]:
    """Let go of a run that could not be driven. The next claim sees that the run was interrupted."""
    (changed,) = yield last(_GIVE_UP.change(run_id=run_id, epoch=epoch))
    return bool(changed == 1)


@locking(lambda run_id, epoch: changing(run_id))
@work
def release(run_id: str, epoch: int) -> Steps[bool]:
    """Let go of a run without an interruption; False if it is no longer held at this epoch."""
    (changed,) = yield last(_RELEASE.change(run_id=run_id, epoch=epoch))
    return bool(changed == 1)
