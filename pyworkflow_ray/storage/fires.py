"""The fires of schedules: what is due, and the one transaction in which each is decided.

Theory of operation. A schedule's row holds the next fire of its grid (`next_fire_at`) and when to look at it
(`look_at`: that fire with its jitter, or now, when a run that others wait for has ended). Whoever looks works
out which fires are due, and writes what becomes of them in one transaction under the row's version: the row
moves on, and runs are accepted, put off or skipped. So each fire is decided once, whoever crashes, and of two
who look at the same time one fires.

A fire that a backfill has made is past when its turn comes: it is neither started, put off nor skipped. What
is put off has no run yet.

What is asked for by hand has no row version to go by. It is decided with the schedule's row locked, and each
of its events carries the `call`, a random name of who asks: so it is known when the transaction is run again
after its COMMIT, whose answer was lost. An instant does not tell two who ask at once from each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy.engine import Connection

from pyworkflow_ray.recurrences.overlaps import Decision, decide
from pyworkflow_ray.statuses import OverlapPolicy
from pyworkflow_ray.storage.acceptances import NewRun, accept
from pyworkflow_ray.storage.plans import Plan
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.runs import get_runs
from pyworkflow_ray.storage.schedules import (
    COLUMNS,
    ScheduleRecord,
    count_made,
    database_now,
    events_of,
    fire_key,
    has_event_at,
    is_fire,
    locked_schedule,
    note_events,
    running_runs,
    schedule_record,
)
from pyworkflow_ray.storage.statements import Statement

# The first write of the transaction: whoever comes second finds another version. One who holds the row now,
# such as a run that ends, is not waited for: it may itself wait for a row that this transaction holds.
_ADVANCE = Statement(f"""
    UPDATE schedules SET next_fire_at = :next_fire_at, look_at = :look_at, version = version + 1
    WHERE schedule_id = (
        SELECT schedule_id FROM schedules
        WHERE schedule_id = :schedule_id AND version = :version AND status = 'active' <for update skip locked>
    )
    RETURNING {COLUMNS}
""")
_NOTE_FIRES = Statement("""
    UPDATE schedules SET
        buffered = :buffered, total_runs = total_runs + :started, skipped_runs = skipped_runs + :skipped,
        last_fire_at = COALESCE(:last_fire_at, last_fire_at),
        last_run_at = COALESCE(:last_run_at, last_run_at), last_run_id = COALESCE(:last_run_id, last_run_id)
    WHERE schedule_id = :schedule_id
""")
_HAS_RUN = Statement("SELECT 1 FROM runs WHERE run_id = :run_id")
_run_decoder = msgspec.json.Decoder(NewRun)


_MICROSECOND = timedelta(microseconds=1)


class Fired(msgspec.Struct, frozen=True):
    """What a transaction has made: runs to be driven, and runs that were asked to cancel.

    `is_stale` tells that it has made nothing, since the schedule is not what it was when it was planned.
    """

    runs: list[RunRecord]
    cancelled: list[str]
    skipped: int = 0
    is_stale: bool = False


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
        return Fired([], [], is_stale=True)
    record = schedule_record(row)
    due = [at for at in planned.due if not _has_run(connection, record, at)]  # a backfill may have been here
    running = running_runs(connection, record.schedule_id)
    decision = decide(record.overlap_policy, due, record.buffered, is_running=bool(running))
    return _carry_out(connection, record, decision, running, now or database_now(connection), planned=planned)


def trigger(
    connection: Connection,
    schedule_id: str,
    policy: OverlapPolicy,
    call: str,
    *,
    now: datetime | None = None,
) -> Fired | None:
    """Fire once, apart from the grid, paused or not; None when there is no such schedule.

    The run sees as its scheduled time the first instant from now on at which the schedule has nothing else.

    Args:
        policy: Instead of the schedule's own. What was put off before stays so, unless this fire takes its
            place.
        call: Who asks: what this call has done already is not done again.
        now: Instead of the database's clock.
    """
    record = locked_schedule(connection, schedule_id)
    if record is None:
        return None
    if earlier := events_of(connection, schedule_id, call):
        runs = get_runs(connection, _runs_told(earlier))
        return Fired(list(runs.values()), [])
    fire_at = _unused_instant(connection, record, now or database_now(connection))
    running = running_runs(connection, schedule_id)
    if policy in (OverlapPolicy.ALLOW_ALL, OverlapPolicy.CANCEL_OTHER):
        waiting = [] if policy is OverlapPolicy.ALLOW_ALL else record.buffered
        decision = decide(policy, [fire_at], waiting, is_running=bool(running))
    else:
        is_busy = bool(running or record.buffered)
        decision = decide(policy, [fire_at], record.buffered, is_running=is_busy)
    if policy is OverlapPolicy.ALLOW_ALL:
        decision.buffered = record.buffered
    record = msgspec.structs.replace(record, overlap_policy=policy)
    return _carry_out(connection, record, decision, running, fire_at, call=call)


def backfill(
    connection: Connection,
    schedule_id: str,
    fires: Sequence[datetime],
    call: str,
    *,
    now: datetime | None = None,
) -> Fired | None:
    """Make the runs of past fires that have none; None when there is no such schedule.

    Args:
        call: Who asks: the runs that this call has made already count as made by it.
        now: Instead of the database's clock.
    """
    record = locked_schedule(connection, schedule_id)
    if record is None:
        return None
    ids = {run_id_of(schedule_id, at): at for at in fires}
    there = get_runs(connection, ids)
    earlier = _runs_told(events_of(connection, schedule_id, call))
    missing = [at for run_id, at in ids.items() if run_id not in there and run_id not in earlier]
    asked_at = now or database_now(connection)
    runs = _accepted(connection, record, missing, asked_at)
    events = [("schedule.triggered", _told(run, "backfill") | {"call": call}) for run in runs]
    note_events(connection, schedule_id, asked_at, events)
    made = set(missing)
    _NOTE_FIRES.execute(
        connection,
        schedule_id=schedule_id,
        buffered=_buffered_text([at for at in record.buffered if at not in made]),
        started=len(runs),
        skipped=0,
        last_fire_at=None,
        last_run_at=None,
        last_run_id=None,
    )
    runs = [run for run_id, run in there.items() if run_id in earlier] + runs
    return Fired(runs, [], skipped=len(fires) - len(runs))


def _unused_instant(connection: Connection, record: ScheduleRecord, at: datetime) -> datetime:
    """The first instant from `at` on that tells what is done by hand from all else of the schedule, whose
    row is locked."""
    while (
        is_fire(record, at)
        or at in record.buffered
        or _has_run(connection, record, at)
        or has_event_at(connection, record.schedule_id, at)
    ):
        at += _MICROSECOND
    return at


def _runs_told(events: Sequence[tuple[str, dict[str, Any]]]) -> set[str]:
    """The runs that these events tell of."""
    told = [data.get("run_id") for type_, data in events if type_ == "schedule.triggered"]
    return {run_id for run_id in told if run_id is not None}


def _carry_out(
    connection: Connection,
    record: ScheduleRecord,
    decision: Decision,
    running: Sequence[str],
    at: datetime,
    *,
    planned: Plan | None = None,
    call: str | None = None,
) -> Fired:
    """Write what was decided: of a plan, or of a fire by hand at this instant, which a call has asked for."""
    runs = _accepted(connection, record, decision.starts, at)
    missed = 0 if planned is None else _missed(connection, record, planned)
    reason = "triggered" if planned is None else "due"
    events = [("schedule.triggered", _told(run, reason)) for run in runs]
    if planned is None and at in decision.buffered:
        waits = {"run_id": None, "scheduled_at": at.isoformat(), "reason": reason}
        events.append(("schedule.triggered", waits))
    if planned is not None and missed:
        events.append(("schedule.skipped", _told_missed(planned, missed)))
    why = _why_skipped(record.overlap_policy, [*running, *(run.run_id for run in runs)])
    events += [
        ("schedule.skipped", {"reason": why, "scheduled_at": skipped.isoformat()})
        for skipped in decision.skipped
    ]
    if call is not None:
        events = [(type_, data | {"call": call}) for type_, data in events]
    note_events(connection, record.schedule_id, at, events)
    _NOTE_FIRES.execute(
        connection,
        schedule_id=record.schedule_id,
        buffered=_buffered_text(decision.buffered),
        started=len(runs),
        skipped=len(decision.skipped) + missed,
        last_fire_at=None if planned is None else planned.last,
        last_run_at=runs[-1].created_at if runs else None,
        last_run_id=runs[-1].run_id if runs else None,
    )
    cancelled = list(running) if decision.is_cancelling else []
    return Fired(runs, cancelled, skipped=len(decision.skipped) + missed)


def _accepted(
    connection: Connection, record: ScheduleRecord, fires: Sequence[datetime], at: datetime
) -> list[RunRecord]:
    """The runs of fires that have none, which are there from now on; none of a fire whose run has gone while
    the one in which it continued, and which holds its key, has not."""
    like = run_of_text(record.run)
    news = [msgspec.structs.replace(_run_of(record, like, fire_at), created_at=at) for fire_at in fires]
    runs = [accept(new).on(connection).run for new in news]
    return [run for run, new in zip(runs, news, strict=True) if run.run_id == new.run_id]


def _missed(connection: Connection, record: ScheduleRecord, planned: Plan) -> int:
    """How many of the fires that are too late have no run: a backfill may have been here."""
    if not planned.missed:
        return 0
    assert planned.missed_from is not None
    assert planned.missed_until is not None
    made = count_made(connection, record, planned.missed_from, planned.missed_until)
    return max(planned.missed - made, 0)


def _told_missed(planned: Plan, count: int) -> dict[str, Any]:
    assert planned.missed_from is not None
    assert planned.missed_until is not None
    return {
        "reason": "missed: the catch-up window had passed",
        "count": count,
        "scheduled_at": planned.missed_from.isoformat(),
        "until": planned.missed_until.isoformat(),
    }


def _why_skipped(policy: OverlapPolicy, running: Sequence[str]) -> str:
    if policy is OverlapPolicy.CANCEL_OTHER:
        return "a later fire has taken its place"
    if policy is OverlapPolicy.SKIP and running:
        return f"run {running[-1]} has not ended"
    return "another fire waits for its turn"


def _told(run: RunRecord, reason: str) -> dict[str, Any]:
    at = None if run.scheduled_at is None else run.scheduled_at.isoformat()
    return {"run_id": run.run_id, "scheduled_at": at, "reason": reason}


# --- the runs -------------------------------------------------------------------------------------


def run_of_text(text: str) -> NewRun:
    """What a schedule's row keeps of the run that it makes others from."""
    return _run_decoder.decode(text)


def run_id_of(schedule_id: str, fire_at: datetime) -> str:
    """The id of the run of a fire: the same, whoever makes it and however often."""
    return f"run_{hashlib.sha256(fire_key(schedule_id, fire_at).encode()).hexdigest()[:16]}"


def _has_run(connection: Connection, record: ScheduleRecord, fire_at: datetime) -> bool:
    return _HAS_RUN.row(connection, run_id=run_id_of(record.schedule_id, fire_at)) is not None


def _run_of(record: ScheduleRecord, like: NewRun, fire_at: datetime) -> NewRun:
    about = {"schedule_id": record.schedule_id, "scheduled_at": fire_at.isoformat()}
    run_id = run_id_of(record.schedule_id, fire_at)
    return msgspec.structs.replace(
        like,
        run_id=run_id,
        coordinator=None if like.coordinator is None else f"coordinator-{run_id}",
        idempotency_key=fire_key(record.schedule_id, fire_at),
        schedule_id=record.schedule_id,
        scheduled_at=fire_at,
        metadata=msgspec.json.encode(about).decode(),
    )


def _buffered_text(buffered: Sequence[datetime]) -> str:
    return msgspec.json.encode([each.isoformat() for each in buffered]).decode()
