"""The fires of schedules: which are due, and the one transaction in which each is decided.

Theory of operation. A schedule's row holds the next fire of its grid (`next_fire_at`) and when to look at it
(`look_at`). That is the time of the fire with its jitter, or now, when a run has ended for which other fires
wait. A process that looks computes which fires are due. It writes its decisions in one transaction, which
requires the row's version: the row moves on, and fires are started, put off or skipped. So each fire is
decided once, whichever process crashes. If two processes look at the same time, one of them fires.

A fire that a backfill has made is left out when its turn comes: it is neither started, put off nor skipped. A
fire that is put off has no run yet.

A fire by hand has no row version to check. It is decided while the schedule's row is locked. Each of its
events carries the `call`, a random name of the request. So the transaction recognises its own events when it
runs again after a COMMIT whose answer was lost. An instant could not distinguish two requests of the same
time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from pyworkflow_ray.recurrences.overlaps import Decision, decide
from pyworkflow_ray.statuses import OverlapPolicy
from pyworkflow_ray.storage.acceptances import NewRun, accept
from pyworkflow_ray.storage.dialects import decode_time
from pyworkflow_ray.storage.locks import Locks
from pyworkflow_ray.storage.plans import Plan
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.runs import get_runs
from pyworkflow_ray.storage.schedule_records import COLUMNS, ScheduleRecord, schedule_record
from pyworkflow_ray.storage.schedules import (
    count_made,
    events_of,
    finding_event_at,
    finding_made,
    finding_next_position,
    finding_now,
    finding_running,
    fire_key,
    is_fire,
    locked_schedule,
    noting_events,
)
from pyworkflow_ray.storage.statements import Bound, Row, Statement
from pyworkflow_ray.storage.works import Steps, ask, last, locking, together, work

# The first write of the transaction: a second transaction finds another version. If another transaction locks
# the row now (a run that ends, for example), this one does not wait for it. The other one may itself wait for
# a row that this one holds.
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
    """What a transaction did: runs to drive, and runs to cancel.

    `is_stale` means that it did nothing, since the schedule has changed since it was planned.
    """

    runs: list[RunRecord]
    cancelled: list[str]
    skipped: int = 0
    is_stale: bool = False


@locking(lambda planned, *_, **__: locks_of(planned))
@work
def fire(planned: Plan, *, now: datetime | None = None) -> Steps[Fired]:
    """Decide the fires that are due or put off; nothing if the schedule has changed since it was planned."""
    id_ = planned.schedule_id
    advance = _ADVANCE.find(
        schedule_id=id_,
        version=planned.version,
        next_fire_at=planned.next_fire_at,
        look_at=planned.look_at,
    )
    missed = _finding_missed(planned)
    runs = [_finding_run(id_, at) for at in planned.due]
    answers = yield ask(
        advance, finding_running(id_), finding_next_position(id_), finding_now(), *missed, *runs
    )
    row, running_rows, position, database_time, *rest = answers
    if row is None:
        return Fired([], [], is_stale=True)
    record = schedule_record(row)
    there = rest[len(missed) :]
    due = [at for at, run in zip(planned.due, there, strict=True) if run is None]  # others: a backfill's
    running = [run_id for (run_id,) in running_rows]
    decision = decide(record.overlap_policy, due, record.buffered, is_running=bool(running))
    late = max(planned.missed - count_made(record, rest[0]), 0) if missed else 0
    at = now or decode_time(database_time[0])
    carried_out = _carry_out(record, decision, running, position, at, planned=planned, missed=late)
    return (yield from carried_out.at_end())


def locks_of(planned: Plan) -> Locks:
    """The rows that a fire locks: runs before schedules, as the end of a run does.

    The schedule's own row is not among them. It is left for the next look if another transaction locks it.
    """
    return Locks(cancelled_of=(planned.schedule_id,) if planned.is_cancelling else ())


def locks_of_trigger(schedule_id: str, policy: OverlapPolicy) -> Locks:
    """The rows that `trigger` locks."""
    is_cancelling = policy is OverlapPolicy.CANCEL_OTHER
    return Locks(schedules=(schedule_id,), cancelled_of=(schedule_id,) if is_cancelling else ())


@locking(lambda schedule_id, policy, *_, **__: locks_of_trigger(schedule_id, policy))
@work
def trigger(
    schedule_id: str, policy: OverlapPolicy, call: str, *, now: datetime | None = None
) -> Steps[Fired | None]:
    """Fire once, outside the grid, also while paused; None if there is no such schedule.

    The run's scheduled time is the first instant from now on at which the schedule has nothing else.

    Args:
        policy: Used instead of the schedule's own policy. Fires that were put off before stay so, unless this
            fire takes their place.
        call: A name of the request. What this call has done already is not done again.
        now: Used instead of the database's clock.
    """
    record = yield from locked_schedule(schedule_id)
    if record is None:
        return None
    if earlier := (yield from events_of(schedule_id, call)):
        runs = yield from get_runs(_runs_of(earlier))
        return Fired(list(runs.values()), [])
    running_rows, position, row = yield ask(
        finding_running(schedule_id), finding_next_position(schedule_id), finding_now()
    )
    running = [run_id for (run_id,) in running_rows]
    fire_at = yield from _unused_instant(record, now or decode_time(row[0]))
    if policy in (OverlapPolicy.ALLOW_ALL, OverlapPolicy.CANCEL_OTHER):
        waiting = [] if policy is OverlapPolicy.ALLOW_ALL else record.buffered
        decision = decide(policy, [fire_at], waiting, is_running=bool(running))
    else:
        is_busy = bool(running or record.buffered)
        decision = decide(policy, [fire_at], record.buffered, is_running=is_busy)
    if policy is OverlapPolicy.ALLOW_ALL:
        decision.buffered = record.buffered
    record = msgspec.structs.replace(record, overlap_policy=policy)
    return (yield from _carry_out(record, decision, running, position, fire_at, call=call).at_end())


@locking(lambda schedule_id, *_, **__: Locks(schedules=(schedule_id,)))
@work
def backfill(
    schedule_id: str, fires: Sequence[datetime], call: str, *, now: datetime | None = None
) -> Steps[Fired | None]:
    """Make the runs of past fires that have none; None if there is no such schedule.

    Args:
        call: A name of the request. Runs that this call has made already are in its answer too.
        now: Used instead of the database's clock.
    """
    record = yield from locked_schedule(schedule_id)
    if record is None:
        return None
    ids = {run_id_of(schedule_id, at): at for at in fires}
    there = yield from get_runs(ids)
    earlier = _runs_of((yield from events_of(schedule_id, call)))
    missing = [at for run_id, at in ids.items() if run_id not in there and run_id not in earlier]
    position, row = yield ask(finding_next_position(schedule_id), finding_now())
    asked_at = now or decode_time(row[0])
    runs = yield from _accepted(record, missing, asked_at)
    events = [("schedule.triggered", _said_of(run, "backfill") | {"call": call}) for run in runs]
    made = set(missing)
    note_fires = _NOTE_FIRES.change(
        schedule_id=schedule_id,
        buffered=_buffered_text([at for at in record.buffered if at not in made]),
        started=len(runs),
        skipped=0,
        last_fire_at=None,
        last_run_at=None,
        last_run_id=None,
    )
    yield last(*noting_events(schedule_id, position, asked_at, events), note_fires)
    runs = [run for run_id, run in there.items() if run_id in earlier] + runs
    return Fired(runs, [], skipped=len(fires) - len(runs))


@work
def _unused_instant(record: ScheduleRecord, at: datetime) -> Steps[datetime]:
    """The first instant from `at` on at which the schedule has no run, no event and no fire.

    The caller has locked the schedule's row.
    """
    while True:
        run, event = yield ask(_finding_run(record.schedule_id, at), finding_event_at(record.schedule_id, at))
        if run is None and event is None and at not in record.buffered and not is_fire(record, at):
            return at
        at += _MICROSECOND


def _runs_of(events: Sequence[tuple[str, dict[str, Any]]]) -> set[str]:
    """The ids of the runs in these events."""
    made = [data.get("run_id") for type_, data in events if type_ == "schedule.triggered"]
    return {run_id for run_id in made if run_id is not None}


@work
def _carry_out(
    record: ScheduleRecord,
    decision: Decision,
    running: Sequence[str],
    position: Row,
    at: datetime,
    *,
    planned: Plan | None = None,
    missed: int = 0,
    call: str | None = None,
) -> Steps[Fired]:
    """Write a decision: about a plan, or about a fire by hand at this instant, which `call` asked for.

    Args:
        position: The position of the schedule's next event.
        missed: How many fires of the plan were too late and have no run.
    """
    runs = yield from _accepted(record, decision.starts, at)
    reason = "triggered" if planned is None else "due"
    events = [("schedule.triggered", _said_of(run, reason)) for run in runs]
    if planned is None and at in decision.buffered:
        waits = {"run_id": None, "scheduled_at": at.isoformat(), "reason": reason}
        events.append(("schedule.triggered", waits))
    if planned is not None and missed:
        events.append(("schedule.skipped", _said_of_missed(planned, missed)))
    why = _why_skipped(record.overlap_policy, [*running, *(run.run_id for run in runs)])
    events += [
        ("schedule.skipped", {"reason": why, "scheduled_at": skipped.isoformat()})
        for skipped in decision.skipped
    ]
    if call is not None:
        events = [(type_, data | {"call": call}) for type_, data in events]
    note_fires = _NOTE_FIRES.change(
        schedule_id=record.schedule_id,
        buffered=_buffered_text(decision.buffered),
        started=len(runs),
        skipped=len(decision.skipped) + missed,
        last_fire_at=None if planned is None else planned.last,
        last_run_at=runs[-1].created_at if runs else None,
        last_run_id=runs[-1].run_id if runs else None,
    )
    yield last(*noting_events(record.schedule_id, position, at, events), note_fires)
    cancelled = list(running) if decision.is_cancelling else []
    return Fired(runs, cancelled, skipped=len(decision.skipped) + missed)


@work
def _accepted(record: ScheduleRecord, fires: Sequence[datetime], at: datetime) -> Steps[list[RunRecord]]:
    """Accept the runs of fires that have none; the runs.

    A fire may get no run: its run was deleted, and the run that continued it still holds the fire's key.
    """
    like = run_of_text(record.run)
    news = [msgspec.structs.replace(_run_of(record, like, fire_at), created_at=at) for fire_at in fires]
    runs = [each.run for each in (yield from together(*(accept(new) for new in news)))]
    return [run for run, new in zip(runs, news, strict=True) if run.run_id == new.run_id]


def _finding_missed(planned: Plan) -> list[Bound]:
    """The query that finds runs of the fires that are too late; a backfill may have made some."""
    if not planned.missed:
        return []
    assert planned.missed_from is not None
    assert planned.missed_until is not None
    return [finding_made(planned.schedule_id, planned.missed_from, planned.missed_until)]


def _said_of_missed(planned: Plan, count: int) -> dict[str, Any]:
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


def _said_of(run: RunRecord, reason: str) -> dict[str, Any]:
    at = None if run.scheduled_at is None else run.scheduled_at.isoformat()
    return {"run_id": run.run_id, "scheduled_at": at, "reason": reason}


# --- the runs -------------------------------------------------------------------------------------


def run_of_text(text: str) -> NewRun:
    """The model of a schedule's runs, from the text in the schedule's row."""
    return _run_decoder.decode(text)


def run_id_of(schedule_id: str, fire_at: datetime) -> str:
    """The id of the run of a fire. It is always the same, whichever process makes the run."""
    return f"run_{hashlib.sha256(fire_key(schedule_id, fire_at).encode()).hexdigest()[:16]}"


def _finding_run(schedule_id: str, fire_at: datetime) -> Bound:
    """The query that finds a row if a fire has a run."""
    return _HAS_RUN.find(run_id=run_id_of(schedule_id, fire_at))


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
