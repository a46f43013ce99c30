"""Firing the schedules that are due: for the timer, and for a test that owns the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
from loguru import logger

from pyworkflow_ray.actors.inboxes import CANCEL_KEY, InboxEntry
from pyworkflow_ray.engine.events import CancellationRequested
from pyworkflow_ray.exceptions import WorkflowError
from pyworkflow_ray.storage.fires import Fired, fire, run_of_text
from pyworkflow_ray.storage.inboxes import was_posted
from pyworkflow_ray.storage.plans import DueSchedule, Plan, due_schedules, other_environments, plan
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.runs import latest_of_chain
from pyworkflow_ray.storage.schedules import ScheduleRecord, database_now, get_schedule
from pyworkflow_ray.storage.storages import Storage

MOST_DUE = 1000
"""Schedules that are read in one go."""
BATCH = 100
"""Schedules that fire in one transaction: others write in between."""
STALE_PAUSE = 0.02
"""Seconds after which a schedule is looked at again that somebody else held, or has changed meanwhile."""


@dataclass(slots=True)
class Looked:
    """What a look at the schedules has made and seen.

    Args:
        runs: To be driven.
        cancelled: Runs that have been sent a request to cancel.
        others: Other environments, whose own timers have something to fire.
        seconds_until: When to look again; None if nothing is due within the horizon.
    """

    runs: list[RunRecord] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    others: set[str] = field(default_factory=set)
    seconds_until: float | None = None


async def fire_due(
    storage: Storage, environment: str, horizon: float, now: Callable[[], datetime] | None = None
) -> Looked:
    """Fire what is due of an environment's schedules, and say what comes within the horizon (in seconds).

    Args:
        now: Instead of the database's clock.
    """
    looked = Looked()
    at = None if now is None else now()

    def read(connection: Any) -> list[DueSchedule]:
        looked.others = other_environments(connection, environment)
        return due_schedules(connection, environment, horizon, MOST_DUE, now=at)

    found = await asyncio.to_thread(storage.read, read)
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
    """What has become of these plans: in one transaction; if that fails, in one each, without the guilty."""

    def write(connection: Any) -> list[tuple[Plan, Fired]]:
        done = [(each, fire(connection, each, now=at)) for each in plans]
        for _, fired in done:
            for run_id in fired.cancelled:
                ask_to_cancel(connection, run_id)
        return done

    try:
        return await storage.write(write)
    except Exception as error:
        if len(plans) == 1:
            logger.error("Schedule {} could not be fired; it stays due: {}", plans[0].schedule_id, error)
            return []
    return [done for each in plans for done in await _written(storage, [each], at)]


def _plan_all(
    storage: Storage, due: Sequence[DueSchedule], at: datetime | None
) -> tuple[list[Plan], datetime]:
    def read(connection: Any) -> tuple[list[ScheduleRecord], datetime]:
        records = (_readable(connection, each.schedule_id) for each in due)
        return [record for record in records if record is not None], at or database_now(connection)

    records, instant = storage.read(read)
    plans = (_planned(record, instant) for record in records)
    return [planned for planned in plans if planned is not None], instant


def _planned(record: ScheduleRecord, at: datetime) -> Plan | None:
    """What is due of the schedule, if that can be worked out."""
    try:
        return plan(record, at)
    except Exception as error:
        logger.error("Schedule {} cannot be worked out, and does not fire: {}", record.schedule_id, error)
        return None


def _readable(connection: Any, schedule_id: str) -> ScheduleRecord | None:
    """The schedule, if it can be read: one that cannot must not keep the others from firing."""
    try:
        record = get_schedule(connection, schedule_id)
        if record is not None:
            run_of_text(record.run)
    except (WorkflowError, ValueError, TypeError, msgspec.MsgspecError) as error:
        logger.error("Schedule {} cannot be read, and does not fire: {}", schedule_id, error)
        return None
    return record


def ask_to_cancel(connection: Any, run_id: str) -> None:
    """Have a run of a schedule make room for another one."""
    latest = latest_of_chain(run_id).on(connection)
    # To post again what its coordinator just reads would wait for its commit, with schedules in hand.
    if not was_posted(latest, CANCEL_KEY).on(connection):
        request = CancellationRequested(reason="its schedule has fired again")
        InboxEntry(run_id, CANCEL_KEY, request).posting(latest).on(connection)
