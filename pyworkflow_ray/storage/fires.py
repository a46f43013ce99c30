"""The fires of schedules: what is due, and the one transaction in which each is decided.

Theory of operation. A schedule's row holds the next fire of its grid (`next_fire_at`) and when to look at it
(`look_at`: that fire with its jitter, or now, when a run that others wait for has ended). Whoever looks works
out which fires are due, and writes what becomes of them in one transaction under the row's version: the row
moves on, and runs are accepted, put off or skipped. So each fire is decided once, whoever crashes, and of two
who look at the same time one fires.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy.engine import Connection

from pyworkflow_ray.overlaps import Decision, decide
from pyworkflow_ray.statuses import OverlapPolicy
from pyworkflow_ray.storage.acceptances import NewRun, accept
from pyworkflow_ray.storage.dialects import Statement, decode_time
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.schedules import (
    COLUMNS,
    ScheduleRecord,
    database_now,
    note_events,
    running_runs,
    schedule_record,
)

MOST_DUE = 500
"""Fires of one schedule that are decided in one transaction."""

_DUE = Statement("""
    SELECT schedule_id, environment, look_at, <now> FROM schedules
    WHERE status = 'active' AND look_at <= <now + :horizon> ORDER BY look_at LIMIT :limit
""")
_DUE_AT = Statement("""
    SELECT schedule_id, environment, look_at, :now FROM schedules
    WHERE status = 'active' AND look_at <= :until ORDER BY look_at LIMIT :limit
""")
# The first write of the transaction: whoever comes second waits for this row, and then finds another version.
_ADVANCE = Statement(f"""
    UPDATE schedules SET next_fire_at = :next_fire_at, look_at = :look_at, version = version + 1
    WHERE schedule_id = :schedule_id AND version = :version AND status = 'active'
    RETURNING {COLUMNS}
""")
_TAKE = Statement(f"""
    UPDATE schedules SET version = version + 1
    WHERE schedule_id = :schedule_id AND status <> 'deleted' RETURNING {COLUMNS}
""")
_NOTE_FIRES = Statement("""
    UPDATE schedules SET
        buffered = :buffered, total_runs = total_runs + :started, skipped_runs = skipped_runs + :skipped,
        last_fire_at = COALESCE(:last_fire_at, last_fire_at),
        last_run_at = COALESCE(:last_run_at, last_run_at), last_run_id = COALESCE(:last_run_id, last_run_id)
    WHERE schedule_id = :schedule_id
""")
_run_decoder = msgspec.json.Decoder(NewRun)


class Plan(msgspec.Struct, frozen=True):
    """Which fires of a schedule are due, as its row of this version says.

    Args:
        due: Those that are to be decided, in order.
        missed: How many are too late for that, from `missed_from` to `missed_until`.
        next_fire_at: The first fire behind all of these; None if there is none any more.
        look_at: When to look again.
    """

    schedule_id: str
    version: int
    due: list[datetime]
    missed: int
    missed_from: datetime | None
    missed_until: datetime | None
    next_fire_at: datetime | None
    look_at: datetime | None


class Fired(msgspec.Struct, frozen=True):
    """What a transaction has made: runs to be driven, and runs that were asked to cancel."""

    runs: list[RunRecord]
    cancelled: list[str]
    skipped: int = 0


class DueSchedule(msgspec.Struct, frozen=True):
    """A schedule to look at in so many seconds (negative: since so many)."""

    schedule_id: str
    environment: str
    seconds_until: float


def due_schedules(
    connection: Connection, horizon_seconds: float = 0.0, limit: int = 1000, *, now: datetime | None = None
) -> list[DueSchedule]:
    """The schedules that are to be looked at within the horizon, earliest first."""
    if now is None:
        rows = _DUE.rows(connection, horizon=horizon_seconds, limit=limit)
    else:
        rows = _DUE_AT.rows(connection, now=now, until=now + timedelta(seconds=horizon_seconds), limit=limit)
    return [
        DueSchedule(id_, environment, (decode_time(look_at) - decode_time(at)).total_seconds())
        for id_, environment, look_at, at in rows
    ]


def plan(record: ScheduleRecord, now: datetime) -> Plan:
    """Which fires of the schedule are due. Takes long if very many were missed: not for a transaction."""
    spec, horizon = record.spec, now - timedelta(seconds=record.catchup_window)
    due: list[datetime] = []
    missed, missed_from, missed_until = 0, None, None
    fire = record.next_fire_at
    while fire is not None and len(due) < MOST_DUE and spec.jittered(record.schedule_id, fire) <= now:
        if fire < horizon:
            missed_from = missed_from or fire
            skipped = 1
            if spec.interval is not None:  # a machine that was away for a month, and a fire each second
                skipped = max(1, (horizon - fire) // spec.interval)
                fire += (skipped - 1) * spec.interval
            missed, missed_until = missed + skipped, fire
        else:
            due.append(fire)
        fire = spec.next_after(fire, record.anchor_at)
    look_at = None if fire is None else spec.jittered(record.schedule_id, fire)
    return Plan(record.schedule_id, record.version, due, missed, missed_from, missed_until, fire, look_at)


def fire(connection: Connection, planned: Plan, *, now: datetime | None = None) -> Fired:
    """Decide what is due and what was put off; nothing when the schedule has changed since it was planned."""
    row = _ADVANCE.row(
        connection,
        schedule_id=planned.schedule_id,
        version=planned.version,
        next_fire_at=planned.next_fire_at,
        look_at=planned.look_at,
    )
    if row is None:
        return Fired([], [])
    at = now or database_now(connection)
    return _carry_out(connection, schedule_record(row), planned.due, at, planned=planned)


def trigger(
    connection: Connection,
    schedule_id: str,
    fire_at: datetime,
    policy: OverlapPolicy | None = None,
) -> Fired | None:
    """Fire once, apart from the grid, paused or not; None when there is no such schedule.

    Args:
        fire_at: What tells this fire from others, and what the run sees as its scheduled time.
        policy: Instead of the schedule's own.
    """
    row = _TAKE.row(connection, schedule_id=schedule_id)
    if row is None:
        return None
    record = schedule_record(row)
    if policy is not None:
        record = msgspec.structs.replace(record, overlap_policy=policy)
    return _carry_out(connection, record, [fire_at], fire_at, reason="triggered")


def backfill(
    connection: Connection, schedule_id: str, fires: Sequence[datetime], asked_at: datetime
) -> Fired | None:
    """Make the runs of past fires that have none; None when there is no such schedule.

    Args:
        asked_at: When this was asked for; by it the runs of an earlier try, whose answer was lost, are known.
    """
    row = _TAKE.row(connection, schedule_id=schedule_id)
    if row is None:
        return None
    record = schedule_record(row)
    runs = []
    for at in fires:
        new = msgspec.structs.replace(_run_of(record, at), created_at=asked_at)
        accepted = accept(connection, new)
        if accepted.is_new:
            runs.append(accepted.run)
    events = [("schedule.triggered", _told(run, "backfill")) for run in runs]
    note_events(connection, schedule_id, asked_at, events)
    _NOTE_FIRES.execute(
        connection,
        schedule_id=schedule_id,
        buffered=_buffered_text(record.buffered),
        started=len(runs),
        skipped=0,
        last_fire_at=None,
        last_run_at=None,
        last_run_id=None,
    )
    return Fired(runs, [], skipped=len(fires) - len(runs))


def _carry_out(
    connection: Connection,
    record: ScheduleRecord,
    due: Sequence[datetime],
    at: datetime,
    *,
    planned: Plan | None = None,
    reason: str = "due",
) -> Fired:
    running = running_runs(connection, record.schedule_id)
    decision = decide(record.overlap_policy, due, record.buffered, is_running=bool(running))
    runs = []
    for fire_at in decision.starts:
        accepted = accept(connection, msgspec.structs.replace(_run_of(record, fire_at), created_at=at))
        if accepted.is_new:  # a backfill may have been before us
            runs.append(accepted.run)
    missed = 0 if planned is None else planned.missed
    events = [("schedule.triggered", _told(run, reason)) for run in runs]
    events += [("schedule.skipped", skipped) for skipped in _skips(decision, running, planned)]
    note_events(connection, record.schedule_id, at, events)
    last = max((*due, *decision.starts), default=None)
    _NOTE_FIRES.execute(
        connection,
        schedule_id=record.schedule_id,
        buffered=_buffered_text(decision.buffered),
        started=len(runs),
        skipped=len(decision.skipped) + missed,
        last_fire_at=last if reason == "due" else None,
        last_run_at=runs[-1].created_at if runs else None,
        last_run_id=runs[-1].run_id if runs else None,
    )
    return Fired(runs, running if decision.is_cancelling else [], skipped=len(decision.skipped) + missed)


def _skips(decision: Decision, running: Sequence[str], planned: Plan | None) -> list[dict[str, Any]]:
    told = []
    if planned is not None and planned.missed_from is not None and planned.missed_until is not None:
        told.append(
            {
                "reason": "missed: the catch-up window had passed",
                "count": planned.missed,
                "scheduled_at": planned.missed_from.isoformat(),
                "until": planned.missed_until.isoformat(),
            }
        )
    reason = f"run {running[-1]} has not ended" if running else "a later fire has taken its place"
    told += [{"reason": reason, "scheduled_at": skipped.isoformat()} for skipped in decision.skipped]
    return told


def _told(run: RunRecord, reason: str) -> dict[str, Any]:
    at = None if run.scheduled_at is None else run.scheduled_at.isoformat()
    return {"run_id": run.run_id, "scheduled_at": at, "reason": reason}


def run_of_text(text: str) -> NewRun:
    """What a schedule's row keeps of the run that it makes others from."""
    return _run_decoder.decode(text)


def fire_key(schedule_id: str, fire_at: datetime) -> str:
    """The idempotency key of the run of a fire."""
    return f"schedule:{schedule_id}:{fire_at.isoformat()}"


def _run_of(record: ScheduleRecord, fire_at: datetime) -> NewRun:
    """The run of a fire: the same, whoever makes it and however often."""
    key = fire_key(record.schedule_id, fire_at)
    about = {"schedule_id": record.schedule_id, "scheduled_at": fire_at.isoformat()}
    run_id = f"run_{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    like = run_of_text(record.run)
    return msgspec.structs.replace(
        like,
        run_id=run_id,
        coordinator=None if like.coordinator is None else f"coordinator-{run_id}",
        idempotency_key=key,
        schedule_id=record.schedule_id,
        scheduled_at=fire_at,
        metadata=msgspec.json.encode(about).decode(),
    )


def _buffered_text(buffered: Sequence[datetime]) -> str:
    return msgspec.json.encode([each.isoformat() for each in buffered]).decode()
