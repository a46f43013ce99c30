"""Which fires of a schedule are due: no database is needed to say."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from pyworkflow_ray.recurrences.specs import ScheduleSpec
from pyworkflow_ray.statuses import OverlapPolicy, ScheduleStatus
from pyworkflow_ray.storage.plans import MOST_DUE, MOST_MISSED, Plan, plan
from pyworkflow_ray.storage.schedule_records import ScheduleRecord
from tests.storage.builders import NOON

SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=s) for s in (1, 60, 3600, 86_400))


def scheduled(spec: ScheduleSpec, made_at: datetime = NOON, window: timedelta = HOUR) -> ScheduleRecord:
    """A schedule that was just made."""
    values: dict[str, Any] = dict.fromkeys(ScheduleRecord.__struct_fields__)
    values |= {
        "schedule_id": "nightly",
        "status": ScheduleStatus.ACTIVE,
        "spec": spec,
        "overlap_policy": OverlapPolicy.SKIP,
        "catchup_window": window.total_seconds(),
        "version": 0,
        "anchor_at": made_at,
        "next_fire_at": spec.next_after(made_at, made_at),
        "updated_at": made_at,
    }
    return ScheduleRecord(**values)


def moved_on(record: ScheduleRecord, planned: Plan) -> ScheduleRecord:
    return msgspec.structs.replace(record, next_fire_at=planned.next_fire_at, last_fire_at=planned.last)


def test_nothing_is_due_before_the_first_fire() -> None:
    planned = plan(scheduled(ScheduleSpec(interval="1m")), NOON + 59 * SECOND)
    assert (planned.due, planned.missed) == ([], 0)
    assert planned.next_fire_at == planned.look_at == NOON + MINUTE


def test_a_fire_is_due_on_its_instant() -> None:
    planned = plan(scheduled(ScheduleSpec(interval="1m")), NOON + MINUTE)
    assert planned.due == [NOON + MINUTE]
    assert planned.next_fire_at == planned.look_at == NOON + 2 * MINUTE


def test_fires_within_the_catch_up_window_are_due_and_those_before_it_missed() -> None:
    record = scheduled(ScheduleSpec(interval="1m"), window=2 * MINUTE)
    planned = plan(record, NOON + 5 * MINUTE + 30 * SECOND)
    assert planned.due == [NOON + 4 * MINUTE, NOON + 5 * MINUTE]
    assert (planned.missed, planned.missed_from, planned.missed_until) == (
        3,
        NOON + MINUTE,
        NOON + 3 * MINUTE,
    )
    assert planned.next_fire_at == NOON + 6 * MINUTE


def test_a_fire_at_the_edge_of_the_window_is_due() -> None:
    record = scheduled(ScheduleSpec(interval="1m"), window=2 * MINUTE)
    assert plan(record, NOON + 3 * MINUTE).due[0] == NOON + MINUTE
    assert plan(record, NOON + 3 * MINUTE + timedelta(microseconds=1)).due[0] == NOON + 2 * MINUTE


@pytest.mark.parametrize("spec", [ScheduleSpec(interval="1s"), ScheduleSpec(interval="1s", jitter="10s")])
def test_a_month_away_from_a_fire_each_second_is_counted_at_once(spec: ScheduleSpec) -> None:
    now, began = NOON + 30 * DAY, time.process_time()
    record, missed, due = scheduled(spec, window=MINUTE), 0, []
    while (planned := plan(record, now)).due or planned.missed:
        missed, due = missed + planned.missed, due + planned.due
        record = moved_on(record, planned)
    assert time.process_time() - began < 5, "and not for each of 2,592,000 fires"
    every = missed + len(due)
    assert due[0] == NOON + (missed + 1) * SECOND
    assert due[-1] == NOON + every * SECOND
    assert now - 11 * SECOND < due[-1] <= now
    assert 50 <= len(due) <= 71


def test_a_month_away_from_a_cron_of_seconds_is_worked_out_in_parts() -> None:
    record = scheduled(ScheduleSpec(cron="* * * * * *"), window=MINUTE)
    planned = plan(record, NOON + 30 * DAY)
    assert (planned.missed, planned.due) == (MOST_MISSED, [])
    assert planned.look_at is not None
    assert planned.look_at < NOON + 30 * DAY, "the rest is looked at right away"


def test_what_is_due_is_bounded_and_the_rest_is_looked_at_right_away() -> None:
    record = scheduled(ScheduleSpec(interval="1s"))
    first = plan(record, NOON + 20 * MINUTE)
    assert len(first.due) == MOST_DUE
    assert first.look_at is not None
    assert first.look_at <= NOON + 20 * MINUTE
    second = plan(moved_on(record, first), NOON + 20 * MINUTE)
    assert second.due[0] == first.due[-1] + SECOND


def test_a_schedule_that_has_ended_missed_no_fire_behind_its_end() -> None:
    spec = ScheduleSpec(interval="1s", end_at=NOON + 10 * SECOND)
    planned = plan(scheduled(spec), NOON + 30 * DAY)
    assert (planned.missed, planned.due, planned.next_fire_at) == (10, [], None)
    assert planned.look_at is None


# --- jitter ---------------------------------------------------------------------------------------


def test_jitter_puts_a_fire_off_and_never_the_grid() -> None:
    spec = ScheduleSpec(interval="1m", jitter="1m")
    record, now, seen = scheduled(spec), NOON, []
    for _ in range(20):
        planned = plan(record, now)
        seen += planned.due
        record = moved_on(record, planned)
        assert planned.look_at is not None
        assert planned.look_at > now
        now = planned.look_at
    assert seen == [NOON + n * MINUTE for n in range(1, len(seen) + 1)]
    assert len(seen) >= 18


def test_a_fire_with_jitter_is_not_due_before_it_is_carried_out() -> None:
    spec = ScheduleSpec(interval="1h", jitter="30m")
    fire = NOON + HOUR
    carried_out_at = spec.jittered("nightly", fire)
    assert fire < carried_out_at
    record = scheduled(spec)
    assert plan(record, carried_out_at - timedelta(microseconds=1)).due == []
    assert plan(record, carried_out_at).due == [fire]


def test_jitter_beyond_the_catch_up_window_loses_no_fire() -> None:
    spec = ScheduleSpec(interval="1d", jitter="10h")
    record, due = scheduled(spec, window=MINUTE), []
    for _ in range(30):
        assert record.next_fire_at is not None
        planned = plan(record, spec.jittered("nightly", record.next_fire_at))
        assert planned.missed == 0
        due += planned.due
        record = moved_on(record, planned)
    assert due == [NOON + n * DAY for n in range(1, 31)]


def test_a_fire_is_no_later_than_its_jitter_though_the_one_before_it_is_later() -> None:
    spec = ScheduleSpec(interval="1m", jitter="10m")
    record = scheduled(spec)
    for _ in range(50):
        now = plan(record, NOON).look_at
        assert now is not None
        planned = plan(record, now)
        assert all(now - fire < timedelta(minutes=10) for fire in planned.due)
        record = moved_on(record, planned)


# --- zones ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_zone_that_changes_its_rules_takes_the_next_fire_along(hours: int) -> None:
    """1. The next fire is worked out. 2. Its zone changes its rules, and it is no fire any more."""
    spec = ScheduleSpec(cron="0 9 * * *")
    record = scheduled(spec, window=3 * HOUR if hours < 0 else HOUR)
    fire = spec.next_after(NOON, NOON)
    assert fire is not None
    stored = fire + timedelta(hours=hours)
    changed = msgspec.structs.replace(record, next_fire_at=stored)
    first = plan(changed, stored + SECOND)
    second = plan(moved_on(changed, first), fire + 2 * HOUR)
    assert (first.due, second.due) == (([fire], []) if hours > 0 else ([], [fire])), "by the rules of now"
    assert first.missed == second.missed == 0
    assert second.next_fire_at == fire + DAY
