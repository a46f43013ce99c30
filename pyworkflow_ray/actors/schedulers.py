"""Fires the schedules that are due; used by the timer, and by tests that own the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from loguru import logger

from pyworkflow_ray.actors.inboxes import InboxEntry
from pyworkflow_ray.engine.events import CancellationRequested
from pyworkflow_ray.exceptions import UnreadableRowError
from pyworkflow_ray.storage.damages import report
from pyworkflow_ray.storage.dialects import decode_time
from pyworkflow_ray.storage.fires import Fired, fire, locks_of
from pyworkflow_ray.storage.inboxes import CANCEL_KEY, was_posted
from pyworkflow_ray.storage.locks import merged
from pyworkflow_ray.storage.plans import DueSchedule, Plan, due_schedules, other_environments, plan
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.runs import latest_of_chain
from pyworkflow_ray.storage.schedule_records import ScheduleRecord, schedule_record
from pyworkflow_ray.storage.schedules import finding_now, finding_schedule
from pyworkflow_ray.storage.statements import Row
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.works import Steps, last, locking, together, work

MOST_DUE = 1000
"""Schedules that are read in one go."""
BATCH = 100
"""Schedules that fire in one transaction. Others can write between two of them."""
STALE_PAUSE = 0.02
"""Seconds after which a schedule is looked at again, if its row was held or changed by another process."""


@dataclass(slots=True)
class Looked:
    """What has come of a look at the schedules.

    Args:
        runs: New runs, to be driven.
        cancelled: Runs to which a request to cancel was sent.
        others: Other environments in which something is due, for their own timers.
        seconds_until: When to look again; None if nothing is due within the horizon.
    """

    runs: list[RunRecord] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    others: set[str] = field(default_factory=set)
    seconds_until: float | None = None


async def fire_due(
    storage: Storage, environment: str, horizon: float, now: Callable[[], datetime] | None = None
) -> Looked:
    """Fire what is due of an environment's schedules, and find what comes within the horizon (in seconds).

    Args:
        now: Instead of the database's clock.
    """
    looked = Looked()
    at = None if now is None else now()

    look = together(other_environments(environment), due_schedules(environment, horizon, MOST_DUE, now=at))
    looked.others, found = await asyncio.to_thread(storage.read, look)
    due = [each for each in found if each.seconds_until <= 0]
    later = [each.seconds_until for each in found if each.seconds_until > 0]
    for first in range(0, len(due), BATCH):
        await _fire(storage, due[first : first + BATCH], at, looked, later)
    if len(found) == MOST_DUE:
        later.append(0.0)  # there may be more
    looked.seconds_until = min(later, default=None)
    return looked


async def _fire(
    storage: Storage, due: Sequence[DueSchedule], at: datetime | None, looked: Looked, later: list[float]
) -> None:
    plans, instant = await asyncio.to_thread(_plan_all, storage, due, at)
    for planned, fired in await _written(storage, plans, at):
        looked.runs += fired.runs
        looked.cancelled += fired.cancelled
        if fired.is_stale:
            later.append(STALE_PAUSE)
        elif planned.look_at is not None:
            later.append(max((planned.look_at - instant).total_seconds(), 0.0))


async def _written(storage: Storage, plans: Sequence[Plan], at: datetime | None) -> list[tuple[Plan, Fired]]:
    """Carry out the plans in one transaction. If it fails, one for each plan: a guilty one stops no other."""

    @locking(lambda: merged(map(locks_of, plans)))
    @work
    def fire_all() -> Steps[list[tuple[Plan, Fired]]]:
        done: list[Fired] = yield from together(*(fire(each, now=at) for each in plans))
        cancelled = [run_id for fired in done for run_id in fired.cancelled]
        yield from together(*map(ask_to_cancel, cancelled)).at_end()
        return list(zip(plans, done, strict=True))

    try:
        return await storage.write(fire_all())
    except Exception as error:
        if len(plans) == 1:
            logger.error("Schedule {} could not be fired; it stays due: {}", plans[0].schedule_id, error)
            return []
    return [done for each in plans for done in await _written(storage, [each], at)]


def _plan_all(
    storage: Storage, due: Sequence[DueSchedule], at: datetime | None
) -> tuple[list[Plan], datetime]:
    rows, now = storage.read(_rows_and_time([each.schedule_id for each in due]))
    instant = at or now
    records = map(_readable, rows)
    plans = (_planned(record, instant) for record in records if record is not None)
    return [planned for planned in plans if planned is not None], instant


def _planned(record: ScheduleRecord, at: datetime) -> Plan | None:
    """The plan of what is due of the schedule; None if it cannot be worked out."""
    try:
        return plan(record, at)
    except Exception as error:
        logger.error("Schedule {} cannot be worked out, and does not fire: {}", record.schedule_id, error)
        return None


@work
def _rows_and_time(schedule_ids: list[str]) -> Steps[tuple[list[Row | None], datetime]]:
    *rows, now = yield last(*map(finding_schedule, schedule_ids), finding_now())
    return rows, decode_time(now[0])


def _readable(row: Row | None) -> ScheduleRecord | None:
    """The schedule, or None: one that cannot be read must not keep the others from firing."""
    try:
        return None if row is None else schedule_record(row)
    except UnreadableRowError as error:
        report(error)
        return None


@work
def ask_to_cancel(run_id: str) -> Steps[None]:
    """Ask the latest run of a chain to cancel, because its schedule has fired again."""
    latest = yield from latest_of_chain(run_id)
    # To post again what its coordinator just reads would wait for its commit, with schedules in hand.
    if not (yield from was_posted(latest, CANCEL_KEY)):
        request = CancellationRequested(reason="its schedule has fired again")
        yield last(InboxEntry(run_id, CANCEL_KEY, request).posting(latest))
