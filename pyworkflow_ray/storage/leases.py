"""Who holds a run: claims, renewals, releases.

A run is held by the process named in `owner` until `lease_expires_at`, by the database's clock. Every claim
raises `epoch`, and every append names the epoch it was claimed at, so that of two processes that both
believe to hold a run only the later one can write.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyworkflow_ray.storage.records import COLUMNS, RunRecord, run_record
from pyworkflow_ray.storage.schema import HAS_ENDED, IS_LIVE
from pyworkflow_ray.storage.statements import Statement
from pyworkflow_ray.storage.works import Steps, last, work

# `previous_owner` is left alone by an owner's second claim: after a COMMIT whose answer was lost, the second
# try must still tell of the interruption that the first one met.
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
# Two clusters on one database each have a coordinator of this name: one that lives in the other is nobody's
# predecessor here. An owner that names no cluster may be one.
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
_CLAIM_PLACED = Statement(f"""
    {_TAKE}
    WHERE coordinator = :force_from AND {IS_LIVE} AND (start_at IS NULL OR start_at <= <now>)
        AND ({_IS_FREE} OR {_IS_PREDECESSORS})
    RETURNING {COLUMNS}
""")
# Only what is named, and only at its epoch: a run that a process holds and does not drive (its client died
# before it told, say) must lose its lease, or nobody would ever come for it.
_RENEW = Statement("""
    UPDATE runs SET
        lease_expires_at = <now + :ttl>,
        owner = CASE WHEN owner = coordinator THEN COALESCE(CAST(:owner AS TEXT), owner) ELSE owner END
    WHERE run_id = :run_id AND epoch = :epoch AND lease_expires_at IS NOT NULL
""")
# A sweep took the run from us while our lease had lapsed, and placed it with us again: nobody else has
# claimed it, so it is ours as it stands.
_REGAIN = Statement(f"""
    UPDATE runs SET lease_expires_at = <now + :ttl>, owner = :owner
    WHERE run_id = :run_id AND owner IN (:owner, :born_owner) AND lease_expires_at IS NULL AND NOT {HAS_ENDED}
    RETURNING epoch
""")
# The epoch fences whatever is still under way, and the name tells the next claim of an interruption.
_GIVE_UP = Statement("""
    UPDATE runs SET epoch = epoch + 1, owner = COALESCE(owner, '') || ' (gave up)', lease_expires_at = NULL
    WHERE run_id = :run_id AND epoch = :epoch
""")
_RELEASE = Statement("""
    UPDATE runs SET owner = NULL, previous_owner = NULL, lease_expires_at = NULL
    WHERE run_id = :run_id AND epoch = :epoch
""")


def owner_of(coordinator: str, cluster: str, incarnation: str) -> str:
    """What a process is called that holds runs: its coordinator's name, its cluster, and its own part."""
    return f"{coordinator}@{cluster}:{incarnation}" if cluster else f"{coordinator}:{incarnation}"


@work
def claim(
    run_id: str,
    owner: str,
    lease_ttl: float,
    *,
    force_from: str | None = None,
    cluster: str = "",
) -> Steps[RunRecord | None]:
    """The run, held by `owner` from now on at a new epoch, or None when it may not be had.

    A run may be had when nobody holds it, when its lease has run out, when `owner` holds it already, or
    when it is placed with the coordinator `force_from`: a new incarnation of that name takes at once what
    its predecessor held in the same `cluster`. A run that has ended, or does not exist, is never had.

    The record is the row after the claim; its `previous_owner` tells of an interruption. Run again after
    a lost COMMIT, it gives the same at a higher epoch.
    """
    found = yield last(
        _CLAIM.find(run_id=run_id, owner=owner, ttl=lease_ttl, force_from=force_from, cluster=cluster)
    )
    return None if found[0] is None else run_record(found[0])


@work
def claim_placed(coordinator: str, owner: str, lease_ttl: float, cluster: str = "") -> Steps[list[RunRecord]]:
    """All live runs placed with this coordinator, oldest first, claimed as with `force_from`."""
    (rows,) = yield last(
        _CLAIM_PLACED.find_all(owner=owner, ttl=lease_ttl, force_from=coordinator, cluster=cluster)
    )
    return sorted(map(run_record, rows), key=lambda run: (run.created_at, run.run_id))


@work
def renew_leases(held: Iterable[tuple[str, int]], lease_ttl: float, owner: str | None = None) -> Steps[None]:
    """Hold these runs, each at its epoch, for another `lease_ttl` seconds.

    A lease that has run out is renewed too, as long as nobody else has taken the run.

    Args:
        owner: Whose they are; runs that were born held by their coordinator's name get this one.
    """
    # In one order everywhere: two transactions that lock the same rows must not wait for each other.
    rows = [
        {"run_id": run_id, "epoch": epoch, "ttl": lease_ttl, "owner": owner} for run_id, epoch in sorted(held)
    ]
    yield last(_RENEW.change_each(rows))


@work
def regain(run_id: str, owner: str, lease_ttl: float, *, born_owner: str) -> Steps[int | None]:
    """The epoch at which `owner` goes on with a run whose lease lapsed under it, or None if it may not."""
    (row,) = yield last(_REGAIN.find(run_id=run_id, owner=owner, born_owner=born_owner, ttl=lease_ttl))
    return None if row is None else int(row[0])


@work
def give_up(run_id: str, epoch: int) -> Steps[bool]:
    """Let go of a run that could not be driven; whoever claims it next learns that it was interrupted."""
    (changed,) = yield last(_GIVE_UP.change(run_id=run_id, epoch=epoch))
    return bool(changed == 1)


@work
def release(run_id: str, epoch: int) -> Steps[bool]:
    """Let go of a run without an interruption; False when it is no longer held at this epoch."""
    (changed,) = yield last(_RELEASE.change(run_id=run_id, epoch=epoch))
    return bool(changed == 1)
