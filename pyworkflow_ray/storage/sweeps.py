"""What the timer looks for: runs whose time has come, and runs that no process drives."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from pyworkflow_ray.exceptions import UnreadableRowError
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.damages import UNREADABLE_RUN, time_of, unreadable
from pyworkflow_ray.storage.dialects import decode_time
from pyworkflow_ray.storage.placements import GRACE
from pyworkflow_ray.storage.schema import HAS_ENDED, IS_LIVE
from pyworkflow_ray.storage.statements import Statement
from pyworkflow_ray.storage.works import Steps, last, work

T = TypeVar("T")

_DUE_COLUMNS = "run_id, coordinator, environment, wake_at"
_IS_WAITING = "wake_at IS NOT NULL AND status IN ('suspended', 'pending') AND lease_expires_at IS NULL"
_DUE = Statement(f"""
    SELECT {_DUE_COLUMNS}, <now> FROM runs
    WHERE {_IS_WAITING} AND wake_at <= <now + :horizon> ORDER BY wake_at LIMIT :limit
""")
_DUE_AT = Statement(f"""
    SELECT {_DUE_COLUMNS}, :now FROM runs
    WHERE {_IS_WAITING} AND wake_at <= :until ORDER BY wake_at LIMIT :limit
""")

_ORPHAN_COLUMNS = "run_id, status, coordinator, environment, owner"
_EXPIRED = Statement(f"""
    SELECT {_ORPHAN_COLUMNS} FROM runs WHERE lease_expires_at <= <now> AND {IS_LIVE}
    ORDER BY lease_expires_at LIMIT :limit
""")
_NEVER_PICKED_UP = Statement(f"""
    SELECT {_ORPHAN_COLUMNS} FROM runs
    WHERE {IS_LIVE} AND lease_expires_at IS NULL AND updated_at <= <now - :grace>
        AND (start_at IS NULL OR start_at <= <now>)
    LIMIT :limit
""")
# A run that was set aside since its row cannot be read cannot be cancelled, either.
# The query goes from the few unread rows to their runs. The other direction would read a million sleeping
# runs. SQLite keeps the order of a CROSS JOIN.
_UNREAD = Statement(f"""
    SELECT runs.{_ORPHAN_COLUMNS}
    FROM (
        SELECT run_id, MAX(CASE WHEN kind = 'cancellation.requested' THEN 1 ELSE 0 END) AS is_cancelled
        FROM inbox WHERE read_position IS NULL GROUP BY run_id
    ) AS unread CROSS JOIN runs
    WHERE runs.run_id = unread.run_id
        AND (status = 'suspended' OR status = 'pending' AND lease_expires_at IS NULL
            OR status = 'interrupted' AND is_cancelled = 1
                AND (error_type IS NULL OR error_type <> '{UNREADABLE_RUN}'))
    LIMIT :limit
""")


# Text that is no time sorts behind all times. Nobody would ever look at such a run.
_FAR = 100 * 365.25 * 86400.0
_FAR_WAKES = Statement(
    f"SELECT run_id, wake_at FROM runs WHERE {_IS_WAITING} AND wake_at > <now + :far> LIMIT :limit"
)
_FAR_LEASES = Statement(
    f"SELECT run_id, lease_expires_at FROM runs WHERE NOT {HAS_ENDED} AND lease_expires_at > <now + :far> "
    "LIMIT :limit"
)


class Due(msgspec.Struct, frozen=True):
    """A run that is to wake in `seconds_until` seconds (negative: it is late by so many seconds)."""

    run_id: str
    coordinator: str | None
    environment: str
    wake_at: datetime
    seconds_until: float


class Orphan(msgspec.Struct, frozen=True):
    """A run that should go on and that no process holds. Place it and nudge its coordinator.

    `reason` is "lease_expired", "never_picked_up" or "unread_inbox".
    """

    run_id: str
    status: RunStatus
    coordinator: str | None
    environment: str
    owner: str | None
    reason: str


@work
def due(
    horizon_seconds: float = 0.0,
    limit: int = 1000,
    *,
    now: datetime | None = None,
    damages: list[UnreadableRowError] | None = None,
) -> Steps[list[Due]]:
    """The suspended runs (and those that start later) whose time comes within the horizon, earliest first.

    Args:
        now: Used instead of the database's clock, for a test with its own clock.
        damages: Gets the errors of runs whose rows cannot be read. They are left out.
    """
    if now is None:
        found = _DUE.find_all(horizon=horizon_seconds, limit=limit)
    else:
        until = datetime.fromtimestamp(now.timestamp() + horizon_seconds, now.tzinfo)
        found = _DUE_AT.find_all(now=now, until=until, limit=limit)
    (rows,) = yield last(found)
    runs, damages = [], [] if damages is None else damages
    for run_id, coordinator, environment, wake_at, at in rows:
        try:
            _require_place(coordinator, environment)
            wakes_at = _read(time_of, wake_at, "wake_at")
        except _DamageError as error:
            damages.append(error.of(run_id))
            continue
        seconds = (wakes_at - decode_time(at)).total_seconds()
        runs.append(Due(run_id, coordinator, environment, wakes_at, seconds))
    return runs


@work
def orphans(
    limit: int = 1000, *, grace: float = GRACE, damages: list[UnreadableRowError] | None = None
) -> Steps[list[Orphan]]:
    """Live runs whose lease has run out or that were never picked up, and sleeping ones with an unread inbox.

    A run sleeps if it is suspended or starts later. A run that was set aside (interrupted) counts only if a
    request to cancel is in its inbox.

    Args:
        damages: Gets the errors of runs whose rows cannot be read. They are left out.
    """
    damages = [] if damages is None else damages
    found: dict[str, Orphan] = {}
    *answers, late, long_held = yield last(
        _EXPIRED.find_all(limit=limit),
        _NEVER_PICKED_UP.find_all(limit=limit, grace=grace),
        _UNREAD.find_all(limit=limit),
        _FAR_WAKES.find_all(far=_FAR, limit=limit),
        _FAR_LEASES.find_all(far=_FAR, limit=limit),
    )
    reasons = ("lease_expired", "never_picked_up", "unread_inbox")
    for reason, rows in zip(reasons, answers, strict=True):
        for run_id, status, coordinator, environment, owner in rows:
            try:
                _require_place(coordinator, environment)
            except _DamageError as error:
                damages.append(error.of(run_id))
                continue
            found.setdefault(
                run_id, Orphan(run_id, RunStatus(status), coordinator, environment, owner, reason)
            )
    for column, rows in (("wake_at", late), ("lease_expires_at", long_held)):
        for run_id, value in rows:
            try:
                _read(time_of, value, column)
            except _DamageError as error:
                damages.append(error.of(run_id))
    return list(found.values())[:limit]


class _DamageError(Exception):
    """A cell of a run's row cannot be read."""

    def of(self, run_id: str) -> UnreadableRowError:
        column, problem = self.args
        return unreadable("runs", f"run {run_id!r}", column, problem, run_id)


def _read(parse: Callable[[Any], T], value: Any, column: str) -> T:
    try:
        return parse(value)
    except ValueError as error:
        raise _DamageError(column, str(error)) from None


def _require_place(coordinator: Any, environment: Any) -> None:
    for column, value in (("coordinator", coordinator or ""), ("environment", environment)):
        if not isinstance(value, str):
            raise _DamageError(column, "it is no text")
