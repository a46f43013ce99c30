"""Schedules: their rows and their events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import msgspec

from pyworkflow_ray.recurrences.specs import ScheduleSpec
from pyworkflow_ray.statuses import OverlapPolicy, RunStatus, ScheduleStatus
from pyworkflow_ray.storage.acceptances import NewRun
from pyworkflow_ray.storage.codes import Code, saving_code
from pyworkflow_ray.storage.damages import Reader
from pyworkflow_ray.storage.dialects import decode_time
from pyworkflow_ray.storage.environments import job_of
from pyworkflow_ray.storage.locks import Locks
from pyworkflow_ray.storage.schedule_records import COLUMNS, ScheduleRecord, schedule_record
from pyworkflow_ray.storage.schema import HAS_ENDED
from pyworkflow_ray.storage.statements import Bound, Row, Statement
from pyworkflow_ray.storage.works import Steps, ask, last, locking, work

KEPT_EVENTS = 1000
"""Events kept of one schedule. Older ones are deleted, since a schedule has no end."""
MOST_OVERTAKEN = 1000
"""The most overtaken fires that a change counts. Other transactions wait while it counts."""

_MICROSECOND = timedelta(microseconds=1)


class ScheduleEvent(msgspec.Struct, frozen=True):
    """An event of a schedule; `data` is JSON text."""

    schedule_id: str
    position: int
    timestamp: datetime
    type: str
    data: str


_schedule_event = Reader("schedule_events", ScheduleEvent, {"schedule_id": "schedule", "position": "event"})
_INSERT = Statement(f"""
    INSERT INTO schedules ({COLUMNS}) VALUES (
        :schedule_id, :workflow_name, 'active', :spec, :overlap_policy, :catchup_window, :run, :environment,
        :declared, :note, 0, :now, :next_fire_at, :look_at, '[]', 0, 0, 0, 0, NULL, NULL, NULL, :now, :now
    )
    ON CONFLICT (schedule_id) DO UPDATE SET
        workflow_name = excluded.workflow_name, status = excluded.status, spec = excluded.spec,
        overlap_policy = excluded.overlap_policy, catchup_window = excluded.catchup_window,
        run = excluded.run, environment = excluded.environment, declared = excluded.declared,
        note = excluded.note, version = schedules.version + 1, anchor_at = excluded.anchor_at,
        next_fire_at = excluded.next_fire_at, look_at = excluded.look_at, buffered = excluded.buffered,
        total_runs = 0, successful_runs = 0, failed_runs = 0, skipped_runs = 0,
        last_fire_at = NULL, last_run_at = NULL, last_run_id = NULL,
        created_at = excluded.created_at, updated_at = excluded.updated_at
    WHERE schedules.status = 'deleted'
    RETURNING {COLUMNS}
""")
_GET = Statement(f"SELECT {COLUMNS} FROM schedules WHERE schedule_id = :schedule_id")
_LIST = Statement(f"""
    SELECT {COLUMNS} FROM schedules
    WHERE (CAST(:status AS TEXT) IS NULL AND status <> 'deleted' OR status = :status)
        AND (CAST(:workflow AS TEXT) IS NULL OR workflow_name = :workflow)
        AND schedule_id > :after
    ORDER BY schedule_id LIMIT :limit
""")
_NOW = Statement("SELECT <now>")
_LOCKED = Statement(f"""
    SELECT {COLUMNS} FROM schedules WHERE schedule_id = :schedule_id AND status <> 'deleted' <for update>
""")
# It looks at `buffered` as it is now, since a fire by hand that is put off does not change the version.
_UPDATE = Statement(f"""
    UPDATE schedules SET
        workflow_name = :workflow_name, environment = :environment,
        spec = :spec, overlap_policy = :overlap_policy, catchup_window = :catchup_window, run = :run,
        declared = :declared, note = :note, status = :status, anchor_at = :anchor_at,
        next_fire_at = :next_fire_at, updated_at = :now, version = version + 1,
        skipped_runs = skipped_runs + :overtaken,
        look_at = CASE WHEN buffered <> '[]' THEN :now ELSE :look_at END
    WHERE schedule_id = :schedule_id AND version = :version
    RETURNING {COLUMNS}
""")
_DELETE = Statement(f"""
    UPDATE schedules SET status = 'deleted', next_fire_at = NULL, look_at = NULL, buffered = '[]',
        updated_at = :now, version = version + 1
    WHERE schedule_id = :schedule_id AND status <> 'deleted' RETURNING {COLUMNS}
""")
# WHERE has no condition on `buffered`: it would not see a fire that is being put off now, and would not wait
# for it. `created_at` is in the past by any clock. A schedule that was deleted and made again under the same
# name does not count runs of the old one.
_IS_ITS_OWN = """EXISTS (
    SELECT 1 FROM runs
    WHERE run_id = :run_id AND (runs.created_at >= schedules.created_at OR continued_from_run_id IS NOT NULL)
)"""
_COUNT_END = Statement(f"""
    UPDATE schedules SET
        successful_runs = successful_runs + CASE WHEN {_IS_ITS_OWN} THEN :successful ELSE 0 END,
        failed_runs = failed_runs + CASE WHEN {_IS_ITS_OWN} THEN :failed ELSE 0 END,
        look_at = CASE WHEN status = 'active' AND buffered <> '[]' THEN created_at ELSE look_at END
    WHERE schedule_id = :schedule_id
""")
_RUNNING = Statement(
    f"SELECT run_id FROM runs WHERE schedule_id = :schedule_id AND NOT {HAS_ENDED} "
    "ORDER BY created_at, run_id"
)
_NEXT_POSITION = Statement(
    "SELECT COALESCE(MAX(position) + 1, 0) FROM schedule_events WHERE schedule_id = :schedule_id"
)
_INSERT_EVENT = Statement(
    "INSERT INTO schedule_events (schedule_id, position, timestamp, type, data) "
    "VALUES (:schedule_id, :position, :timestamp, :type, :data)"
)
_TRIM_EVENTS = Statement(
    "DELETE FROM schedule_events WHERE schedule_id = :schedule_id AND position < :position"
)
_EVENTS = Statement(
    "SELECT schedule_id, position, timestamp, type, data FROM schedule_events "
    "WHERE schedule_id = :schedule_id ORDER BY position DESC LIMIT :limit"
)
_HAS_EVENT_AT = Statement(
    "SELECT 1 FROM schedule_events WHERE schedule_id = :schedule_id AND timestamp = :at LIMIT 1"
)
_EVENTS_OF = Statement(
    "SELECT type, data FROM schedule_events WHERE schedule_id = :schedule_id AND data LIKE :said "
    "ORDER BY position"
)
# It uses the index of keys: it reads only the runs of fires in the range, not all runs of the schedule.
_RUNS_BETWEEN = Statement("""
    SELECT scheduled_at FROM runs
    WHERE idempotency_key >= :first_key AND idempotency_key <= :last_key AND schedule_id = :schedule_id
""")
_run_encoder = msgspec.json.Encoder()


def run_text(run: NewRun) -> str:
    """The text of the model of a schedule's runs, as the row keeps it."""
    return _run_encoder.encode(msgspec.structs.replace(run, code=None)).decode()


def _spec_text(spec: ScheduleSpec) -> str:
    return msgspec.json.encode(spec.to_dict()).decode()


@work
def database_now() -> Steps[datetime]:
    """The time by the database's clock, which decides when schedules fire."""
    (row,) = yield last(finding_now())
    return decode_time(row[0])


def finding_now() -> Bound:
    """The query of `database_now`. Its value is for `decode_time`."""
    return _NOW.find()


def fire_key(schedule_id: str, fire_at: datetime) -> str:
    """The idempotency key of a fire's run."""
    return f"schedule:{schedule_id}:{fire_at.isoformat()}"


def is_fire(record: ScheduleRecord, at: datetime) -> bool:
    """Whether the schedule fires at this instant by itself."""
    return record.spec.next_after(at - _MICROSECOND, record.anchor_at) == at


def finding_made(schedule_id: str, first: datetime, until: datetime) -> Bound:
    """The query that finds the runs of the fires from `first` to `until`; its answer is for `count_made`."""
    return _RUNS_BETWEEN.find_all(
        schedule_id=schedule_id,
        first_key=fire_key(schedule_id, first),
        last_key=fire_key(schedule_id, until),
    )


def count_made(record: ScheduleRecord, rows: Sequence[Row]) -> int:
    """How many of the schedule's fires have a run. Runs that were made by hand do not count."""
    return sum(is_fire(record, decode_time(row[0])) for row in rows)


# --- keeping schedules ----------------------------------------------------------------------------


@work
def create_schedule(
    schedule_id: str,
    run: NewRun,
    spec: ScheduleSpec,
    overlap_policy: OverlapPolicy,
    catchup_window: float,
    *,
    code: Code | None = None,
    declared: str | None = None,
    note: str | None = None,
    now: datetime | None = None,
) -> Steps[ScheduleRecord | None]:
    """Make a schedule, or make a deleted one again; None if there is one with this id.

    Args:
        run: The model of its runs. Its `environment` decides which coordinators drive them.
        code: The workflow's code, which is saved with the schedule.
        declared: A hash of the decorator's arguments. The next process that declares it compares the hash.
        now: Used instead of the database's clock, for a test with its own clock.
    """
    *_, row = yield ask(*saving_code(code), finding_now())
    at = now or decode_time(row[0])
    first = spec.next_after(at, at)
    insert = _INSERT.find(
        schedule_id=schedule_id,
        workflow_name=run.workflow_name,
        spec=_spec_text(spec),
        overlap_policy=overlap_policy.value,
        catchup_window=catchup_window,
        run=run_text(run),
        environment=job_of(run.environment),
        declared=declared,
        note=note,
        now=at,
        next_fire_at=first,
        look_at=None if first is None else spec.jittered(schedule_id, first),
    )
    row, position = yield ask(insert, finding_next_position(schedule_id))
    if row is None:
        return None
    said = {
        "workflow_name": run.workflow_name,
        "spec": spec.to_dict(),
        "overlap_policy": overlap_policy.value,
    }
    yield last(*noting_events(schedule_id, position, at, [("schedule.created", said)]))
    return schedule_record(row)


@work
def get_schedule(schedule_id: str) -> Steps[ScheduleRecord | None]:
    """The schedule, or None. A deleted schedule is found too, until it is made again."""
    (row,) = yield last(finding_schedule(schedule_id))
    return None if row is None else schedule_record(row)


def finding_schedule(schedule_id: str) -> Bound:
    """The query of `get_schedule`. Its row is for `schedule_record`."""
    return _GET.find(schedule_id=schedule_id)


@work
def locked_schedule(schedule_id: str) -> Steps[ScheduleRecord | None]:
    """The schedule, locked until this transaction ends; None if it was deleted or never existed."""
    (row,) = yield ask(_LOCKED.find(schedule_id=schedule_id))
    return None if row is None else schedule_record(row)


@work
def list_schedules(
    status: ScheduleStatus | None = None,
    workflow: str | None = None,
    limit: int = 100,
    after: str = "",
) -> Steps[list[ScheduleRecord]]:
    """Schedules by their ids, from the first after `after` on; without a status, no deleted ones.

    Schedules whose rows cannot be read are left out, and reported in the log.
    """
    found = _LIST.find_all(
        status=None if status is None else status.value,
        workflow=workflow,
        limit=limit,
        after=after,
    )
    (rows,) = yield last(found)
    return schedule_record.readable(rows)


@work
def running_runs(schedule_id: str) -> Steps[list[str]]:
    """The runs of a schedule that have not ended, oldest first."""
    (rows,) = yield last(finding_running(schedule_id))
    return [row[0] for row in rows]


def finding_running(schedule_id: str) -> Bound:
    """The query of `running_runs`. Each of its rows is one id."""
    return _RUNNING.find_all(schedule_id=schedule_id)


@locking(lambda record, *_, **__: Locks(schedules=(record.schedule_id,)))
@work
def change_schedule(
    record: ScheduleRecord,
    type_: str,
    *,
    code: Code | None = None,
    counts_anew: bool = True,
    now: datetime | None = None,
) -> Steps[ScheduleRecord | None]:
    """Write a schedule that was read and changed; None if another transaction has changed it meanwhile.

    Args:
        record: The new record, with the version that was read.
        type_: The type of the event that records the change.
        counts_anew: Whether the next fire is the first from now on. Then fires that were missed until now (in
            a pause, for example) are not made up. A fire that was due before, and still waited for its jitter
            or for the timer to look, is counted as skipped.
    """
    *_, row = yield ask(*saving_code(code), finding_now())
    at = now or decode_time(row[0])
    following, look_at = record.next_fire_at, record.look_at
    overtaken, events = 0, list[tuple[str, dict[str, Any]]]()
    if counts_anew:
        before = yield from locked_schedule(record.schedule_id)
        if before is None or before.version != record.version:
            return None
        overtaken, events = yield from _overtaken(before, at)
        following = record.spec.next_after(at, record.anchor_at)
        look_at = None if following is None else record.spec.jittered(record.schedule_id, following)
    update = _UPDATE.find(
        schedule_id=record.schedule_id,
        version=record.version,
        workflow_name=record.workflow_name,
        environment=record.environment,
        spec=_spec_text(record.spec),
        overlap_policy=record.overlap_policy.value,
        catchup_window=record.catchup_window,
        run=record.run,
        declared=record.declared,
        note=record.note,
        status=record.status.value,
        anchor_at=record.anchor_at,
        next_fire_at=following,
        look_at=look_at,
        overtaken=overtaken,
        now=at,
    )
    row, position = yield ask(update, finding_next_position(record.schedule_id))
    if row is None:
        return None
    said: dict[str, Any] = {} if record.note is None else {"note": record.note}
    if type_ == "schedule.updated":
        said |= {"spec": record.spec.to_dict(), "overlap_policy": record.overlap_policy.value}
    yield last(*noting_events(record.schedule_id, position, at, [*events, (type_, said)]))
    return schedule_record(row)


@work
def _overtaken(record: ScheduleRecord, at: datetime) -> Steps[tuple[int, list[tuple[str, dict[str, Any]]]]]:
    """How many fires of the old schedule were due and are not decided, and the event that records them."""
    first = record.next_fire_at
    if record.status is not ScheduleStatus.ACTIVE or first is None or first > at:
        return 0, []
    fires = record.spec.between(first, at + _MICROSECOND, record.anchor_at)
    found = list(islice(fires, MOST_OVERTAKEN))
    if not found:
        return 0, []
    (made,) = yield ask(finding_made(record.schedule_id, found[0], found[-1]))
    count = len(found) - count_made(record, made)
    if count <= 0:
        return 0, []
    told = {
        "reason": "the schedule was changed before it was carried out",
        "count": count,
        "scheduled_at": found[0].isoformat(),
        "until": found[-1].isoformat(),
    }
    return count, [("schedule.skipped", told)]


@locking(lambda schedule_id, *_, **__: Locks(schedules=(schedule_id,)))
@work
def delete_schedule(schedule_id: str, *, now: datetime | None = None) -> Steps[bool]:
    """Delete a schedule; whether it existed. It fires no more, and its runs go on."""
    at = now or (yield from database_now())
    row, position = yield ask(
        _DELETE.find(schedule_id=schedule_id, now=at), finding_next_position(schedule_id)
    )
    if row is None:
        return False
    yield last(*noting_events(schedule_id, position, at, [("schedule.deleted", {})]))
    return True


@work
def schedule_events(schedule_id: str, limit: int = KEPT_EVENTS) -> Steps[list[ScheduleEvent]]:
    """The latest events of a schedule, oldest first."""
    (rows,) = yield last(_EVENTS.find_all(schedule_id=schedule_id, limit=limit))
    return _schedule_event.readable(reversed(rows))


def finding_event_at(schedule_id: str, at: datetime) -> Bound:
    """The query that finds a row if the schedule has an event at exactly this instant."""
    return _HAS_EVENT_AT.find(schedule_id=schedule_id, at=at)


@work
def events_of(schedule_id: str, call: str) -> Steps[list[tuple[str, dict[str, Any]]]]:
    """Type and data of a schedule's events that have this `call` in their data (a hexadecimal name)."""
    (rows,) = yield last(_EVENTS_OF.find_all(schedule_id=schedule_id, said=f'%"call":"{call}"%'))
    return [(type_, msgspec.json.decode(data)) for type_, data in rows]


@locking(lambda schedule_id, *_, **__: Locks(schedules=(schedule_id,)))
@work
def note_once(
    schedule_id: str, type_: str, data: dict[str, Any], call: str, *, now: datetime | None = None
) -> Steps[bool]:
    """Add an event to a schedule, once for each call; False if there is no such schedule."""
    if (yield from locked_schedule(schedule_id)) is None:
        return False
    if type_ in [noted for noted, _ in (yield from events_of(schedule_id, call))]:
        return True
    row, position = yield ask(finding_now(), finding_next_position(schedule_id))
    at = now or decode_time(row[0])
    yield last(*noting_events(schedule_id, position, at, [(type_, data | {"call": call})]))
    return True


def finding_next_position(schedule_id: str) -> Bound:
    """The query that finds the position of a schedule's next event. Its answer is for `noting_events`.

    The caller must have changed or locked the schedule's row: no other transaction then takes the position.
    """
    return _NEXT_POSITION.find(schedule_id=schedule_id)


def noting_events(
    schedule_id: str, next_position: Row, at: datetime, events: Sequence[tuple[str, dict[str, Any]]]
) -> list[Bound]:
    """The statements that add events to a schedule: `(type, data)` each, with data of JSON's types.

    Args:
        next_position: The answer to `finding_next_position`, in the same transaction.
    """
    if not events:
        return []
    position = int(next_position[0])
    rows = [
        {
            "schedule_id": schedule_id,
            "position": position + number,
            "timestamp": at,
            "type": type_,
            "data": msgspec.json.encode(data).decode(),
        }
        for number, (type_, data) in enumerate(events)
    ]
    statements = [_INSERT_EVENT.change_each(rows)]
    following = position + len(rows)
    if following // 100 > position // 100:
        statements.append(_TRIM_EVENTS.change(schedule_id=schedule_id, position=following - KEPT_EVENTS))
    return statements


def counting_end(schedule_id: str, run_id: str, status: RunStatus) -> Bound:
    """The statement that counts the end of a run. If a fire waits for it, the schedule gets looked at."""
    return _COUNT_END.change(
        schedule_id=schedule_id,
        run_id=run_id,
        successful=int(status is RunStatus.COMPLETED),
        failed=int(status is RunStatus.FAILED),
    )
