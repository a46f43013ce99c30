"""Which schedules must be looked at, and which of their fires are due."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import islice

import msgspec

from pyworkflow_ray.recurrences.specs import ScheduleSpec
from pyworkflow_ray.statuses import OverlapPolicy
from pyworkflow_ray.storage.damages import report, time_of, unreadable
from pyworkflow_ray.storage.dialects import decode_time
from pyworkflow_ray.storage.schedule_records import ScheduleRecord
from pyworkflow_ray.storage.statements import Statement
from pyworkflow_ray.storage.works import Steps, last, work

MOST_DUE = 500
"""Fires of one schedule that are decided in one transaction."""
MOST_MISSED = 10_000
"""Fires of one schedule that are computed in one pass, so that other schedules can fire between passes."""

_MICROSECOND = timedelta(microseconds=1)

_DUE = Statement("""
    SELECT schedule_id, look_at, <now> FROM schedules
    WHERE status = 'active' AND environment = :environment AND look_at <= <now + :horizon>
    ORDER BY look_at LIMIT :limit
""")
_DUE_AT = Statement("""
    SELECT schedule_id, look_at, :now FROM schedules
    WHERE status = 'active' AND environment = :environment AND look_at <= :until
    ORDER BY look_at LIMIT :limit
""")
# Two ranges of the index, mostly empty. A query with `<>` would read all schedules.
_OTHERS = Statement("""
    SELECT DISTINCT environment FROM schedules
    WHERE status = 'active' AND environment < :environment AND look_at <= <now>
    UNION
    SELECT DISTINCT environment FROM schedules
    WHERE status = 'active' AND environment > :environment AND look_at <= <now>
""")


class DueSchedule(msgspec.Struct, frozen=True):
    """A schedule to look at in `seconds_until` seconds (negative: it is late by so many seconds)."""

    schedule_id: str
    seconds_until: float


class Plan(msgspec.Struct, frozen=True):
    """Which fires of a schedule are due, according to its row at this version.

    Args:
        due: The fires to decide, in order.
        missed: How many fires are too late to be decided, from `missed_from` to `missed_until`.
        next_fire_at: The first fire after all of these; None if there are no more.
        look_at: When to look at the schedule again.
        is_cancelling: Whether a fire may ask the schedule's other runs to cancel.
    """

    schedule_id: str
    version: int
    due: list[datetime]
    missed: int
    missed_from: datetime | None
    missed_until: datetime | None
    next_fire_at: datetime | None
    look_at: datetime | None
    is_cancelling: bool = False

    @property
    def last(self) -> datetime | None:
        """The last of these fires."""
        return self.due[-1] if self.due else self.missed_until


@work
def due_schedules(
    environment: str,
    horizon_seconds: float = 0.0,
    limit: int = 1000,
    *,
    now: datetime | None = None,
) -> Steps[list[DueSchedule]]:
    """The schedules of an environment that must be looked at within the horizon, earliest first.

    A schedule whose time cannot be read is left out, and reported in the log.
    """
    if now is None:
        due = _DUE.find_all(environment=environment, horizon=horizon_seconds, limit=limit)
    else:
        until = now + timedelta(seconds=horizon_seconds)
        due = _DUE_AT.find_all(environment=environment, now=now, until=until, limit=limit)
    (rows,) = yield last(due)
    found = []
    for id_, look_at, at in rows:
        try:
            seconds = (time_of(look_at) - decode_time(at)).total_seconds()
        except ValueError as error:
            report(unreadable("schedules", f"schedule {id_!r}", "look_at", str(error)))
        else:
            found.append(DueSchedule(id_, seconds))
    return found


@work
def other_environments(environment: str) -> Steps[set[str]]:
    """The other environments that have schedules to look at now."""
    (rows,) = yield last(_OTHERS.find_all(environment=environment))
    return {row[0] for row in rows}


def plan(record: ScheduleRecord, now: datetime) -> Plan:
    """Which fires of the schedule are due.

    This may take a third of a second, so call it outside a transaction.
    """
    spec, stored, first = record.spec, record.next_fire_at, _first_undecided(record)
    due: list[datetime] = []
    missed, missed_from, missed_until, last = 0, None, None, None
    if first is not None:
        horizon = now - timedelta(seconds=record.catchup_window)
        if stored is not None and first < stored:
            horizon -= stored - first  # the row named a later time, so this fire is not late
        missed = _surely_missed(spec, first, horizon)
        if missed:
            missed_from, missed_until = first, first + (missed - 1) * (spec.interval or timedelta())
            last = missed_until
        rest = first if last is None else last + _MICROSECOND
        for fire in islice(spec.between(rest, now + _MICROSECOND, record.anchor_at), MOST_MISSED):
            carried_out_at = spec.jittered(record.schedule_id, fire)
            if carried_out_at > now or len(due) == MOST_DUE:
                break
            if carried_out_at < horizon and not due:  # fires are carried out in order
                missed, missed_from, missed_until = missed + 1, missed_from or fire, fire
            else:
                due.append(fire)
            last = fire
    following = first if last is None else spec.next_after(last, record.anchor_at)
    look_at = None if following is None else spec.jittered(record.schedule_id, following)
    return Plan(
        record.schedule_id,
        record.version,
        due,
        missed,
        missed_from,
        missed_until,
        following,
        look_at,
        is_cancelling=record.overlap_policy is OverlapPolicy.CANCEL_OTHER,
    )


def _first_undecided(record: ScheduleRecord) -> datetime | None:
    """The next fire, from the row if it is still right; else computed again.

    The rules of its time zone may have changed since the row was written.
    """
    spec, stored = record.spec, record.next_fire_at
    if stored is None or spec.next_after(stored - _MICROSECOND, record.anchor_at) == stored:
        return stored
    return spec.next_after(max(record.last_fire_at or record.updated_at, record.updated_at), record.anchor_at)


def _surely_missed(spec: ScheduleSpec, first: datetime, horizon: datetime) -> int:
    """How many fires from `first` on are before the horizon, whatever their jitter; 0 without an interval.

    They are computed, not listed: a machine may have been off for a month, with a fire each second.
    """
    if spec.interval is None:
        return 0
    count = (horizon - (spec.jitter or timedelta()) - first) // spec.interval
    if spec.end_at is not None:
        count = min(count, (spec.end_at - first) // spec.interval + 1)
    return max(count, 0)
