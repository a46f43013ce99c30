"""What schedules promise: each fire decided once, by policy, and counted right; on every database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from secrets import token_hex
from threading import Barrier, Event
from typing import Any

import msgspec
import pytest
from sqlalchemy.engine import Connection

from pyworkflow_ray.actors.schedulers import ask_to_cancel
from pyworkflow_ray.recurrences.specs import ScheduleSpec
from pyworkflow_ray.statuses import OverlapPolicy, RunStatus, ScheduleStatus
from pyworkflow_ray.storage import schedules
from pyworkflow_ray.storage.acceptances import accept
from pyworkflow_ray.storage.fires import Fired, backfill, fire, trigger
from pyworkflow_ray.storage.histories import append
from pyworkflow_ray.storage.inboxes import unread
from pyworkflow_ray.storage.plans import Plan, due_schedules, other_environments, plan
from pyworkflow_ray.storage.runs import delete_run, get_run, list_runs
from pyworkflow_ray.storage.schedule_records import ScheduleRecord
from pyworkflow_ray.storage.schedules import (
    KEPT_EVENTS,
    change_schedule,
    create_schedule,
    delete_schedule,
    get_schedule,
    list_schedules,
    note_once,
    running_runs,
    schedule_events,
)
from pyworkflow_ray.storage.storages import Storage
from tests.storage.builders import NOON, claimed, new_append, new_run, read, write

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
ALL_POLICIES = pytest.mark.parametrize("policy", list(OverlapPolicy))
SKIP, ONE, ALL, CANCEL, ALLOW = (
    OverlapPolicy.SKIP,
    OverlapPolicy.BUFFER_ONE,
    OverlapPolicy.BUFFER_ALL,
    OverlapPolicy.CANCEL_OTHER,
    OverlapPolicy.ALLOW_ALL,
)


def made(
    storage: Storage,
    policy: OverlapPolicy = SKIP,
    spec: ScheduleSpec | None = None,
    schedule_id: str = "nightly",
    *,
    at: datetime = NOON,
    window: timedelta = timedelta(hours=1),
    **run: Any,
) -> ScheduleRecord:
    """A schedule that fires each minute from noon on."""
    record = write(
        storage,
        create_schedule,
        schedule_id,
        new_run("", **run),
        spec or ScheduleSpec(interval="1m"),
        policy,
        window.total_seconds(),
        now=at,
    )
    assert record is not None
    return record


def now_of(storage: Storage, schedule_id: str = "nightly") -> ScheduleRecord:
    record = read(storage, get_schedule, schedule_id)
    assert record is not None
    return record


def looked(storage: Storage, minutes: float, schedule_id: str = "nightly") -> Fired:
    """What firing so many minutes past noon makes."""
    now = NOON + minutes * MINUTE
    return write(storage, fire, plan(now_of(storage, schedule_id), now), now=now)


def ended(storage: Storage, run_id: str, status: RunStatus = RunStatus.COMPLETED) -> None:
    """End a run as its drive does."""
    run = claimed(storage, run_id)
    changes = {"status": status}
    new = new_append(run, "workflow.completed", changes=changes, release=True, schedule_id=run.schedule_id)
    write(storage, append, new)


def minutes_of(fired: Fired) -> list[float]:
    """The minutes past noon for which runs were made."""
    return [(run.scheduled_at - NOON) / MINUTE for run in fired.runs if run.scheduled_at is not None]


def counts(storage: Storage, schedule_id: str = "nightly") -> tuple[int, int, int, int]:
    """Total, successful, failed, skipped."""
    r = now_of(storage, schedule_id)
    return r.total_runs, r.successful_runs, r.failed_runs, r.skipped_runs


def told(storage: Storage, schedule_id: str = "nightly") -> list[tuple[str, dict[str, Any]]]:
    return [
        (event.type.removeprefix("schedule."), msgspec.json.decode(event.data))
        for event in read(storage, schedule_events, schedule_id)
    ]


def is_due(storage: Storage, minutes: float) -> bool:
    found = read(storage, due_schedules, "", now=NOON + minutes * MINUTE)
    return any(each.schedule_id == "nightly" for each in found)


def state(storage: Storage) -> tuple[Any, ...]:
    """All that there is of schedules and their runs."""
    runs, _ = read(storage, list_runs)
    return read(storage, list_schedules), told(storage), sorted(run.run_id for run in runs)


# --- one fire, one run ----------------------------------------------------------------------------


def test_a_fire_makes_a_run_that_carries_its_time(storage: Storage) -> None:
    made(storage, SKIP, workflow_name="report", input_args='["all"]')
    (run,) = looked(storage, 1).runs
    assert run == read(storage, get_run, run.run_id)
    assert (run.workflow_name, run.input_args, run.status) == ("report", '["all"]', RunStatus.PENDING)
    assert (run.schedule_id, run.scheduled_at) == ("nightly", NOON + MINUTE)
    assert run.idempotency_key == f"schedule:nightly:{(NOON + MINUTE).isoformat()}"
    assert run.metadata is not None
    assert msgspec.json.decode(run.metadata) == {
        "schedule_id": "nightly",
        "scheduled_at": (NOON + MINUTE).isoformat(),
    }
    record = now_of(storage)
    assert (record.last_fire_at, record.last_run_id) == (NOON + MINUTE, run.run_id)
    assert record.next_fire_at == record.look_at == NOON + 2 * MINUTE


def at_once(storage: Storage, barrier: Barrier, planned: Plan, now: datetime) -> Fired:
    barrier.wait(30)
    return write(storage, fire, planned, now=now)


def test_of_two_who_plan_the_same_fire_one_fires(shared_url: str) -> None:
    """1. Two timers read the schedule. 2. Both find the same fire due. 3. Both write at once."""
    with Storage(shared_url) as first, Storage(shared_url) as second, ThreadPoolExecutor(2) as pool:
        made(first, ALLOW)
        for minute in range(1, 21):
            now, barrier = NOON + minute * MINUTE, Barrier(2)
            planned = plan(now_of(first), now)
            futures = [pool.submit(at_once, storage, barrier, planned, now) for storage in (first, second)]
            fired = [future.result(30) for future in futures]
            assert sorted(len(each.runs) for each in fired) == [0, 1]
            assert [each.is_stale for each in fired if not each.runs] == [True]
        assert counts(first) == (20, 0, 0, 0)


@ALL_POLICIES
def test_a_fire_whose_commit_was_lost_changes_nothing_when_it_is_run_again(
    storage: Storage, policy: OverlapPolicy
) -> None:
    made(storage, policy)
    looked(storage, 1)
    planned = plan(now_of(storage), NOON + 3 * MINUTE)
    write(storage, fire, planned, now=NOON + 3 * MINUTE)
    before = state(storage)
    again = write(storage, fire, planned, now=NOON + 3 * MINUTE)
    assert (again.runs, again.cancelled, again.is_stale) == ([], [], True)
    assert state(storage) == before


def test_who_holds_the_schedule_is_not_waited_for(postgresql_url: str) -> None:
    """1. A run's end holds the schedule's row. 2. The timer goes on with other schedules. 3. It looks again.

    It would wait with other schedules in its hand, for which the run's end might wait in turn.
    """
    with Storage(postgresql_url) as timer, Storage(postgresql_url) as other, ThreadPoolExecutor(1) as pool:
        made(timer)
        planned = plan(now_of(timer), NOON + MINUTE)
        entered, gate = Event(), Event()

        def hold(connection: Connection) -> None:
            schedules.locked_schedule("nightly").on(connection)
            entered.set()
            assert gate.wait(30)

        held = pool.submit(write, other, hold)
        assert entered.wait(30)
        assert write(timer, fire, planned, now=NOON + MINUTE).is_stale
        gate.set()
        held.result(30)
        assert minutes_of(write(timer, fire, planned, now=NOON + MINUTE)) == [1]


def test_a_run_that_reads_its_request_to_cancel_is_not_waited_for(postgresql_url: str) -> None:
    """1. A run is asked to cancel. 2. Its coordinator reads that. 3. It is asked again."""
    with Storage(postgresql_url) as timer, Storage(postgresql_url) as other, ThreadPoolExecutor(1) as pool:
        run = claimed(timer)
        write(timer, ask_to_cancel, run.run_id)
        (request,) = read(timer, unread, run.run_id)
        entered, gate = Event(), Event()

        def reads(connection: Connection) -> None:
            append(new_append(run, "cancellation.requested", read_inbox=[request.id])).on(connection)
            entered.set()
            assert gate.wait(30)

        held = pool.submit(write, other, reads)
        assert entered.wait(30)
        write(timer, ask_to_cancel, run.run_id)
        gate.set()
        held.result(30)
        assert read(timer, unread, run.run_id) == []


def test_a_schedule_that_changes_between_plan_and_fire_does_not_fire_as_planned(storage: Storage) -> None:
    record = made(storage)
    planned = plan(record, NOON + MINUTE)
    changed = msgspec.structs.replace(record, overlap_policy=ALLOW)
    assert write(storage, change_schedule, changed, "schedule.updated", counts_anew=False, now=NOON)
    assert write(storage, fire, planned, now=NOON + MINUTE).is_stale
    assert minutes_of(looked(storage, 1)) == [1]


def test_a_run_of_its_own_coordinator_has_one_by_its_name(storage: Storage) -> None:
    made(storage, SKIP, coordinator="")
    (run,) = looked(storage, 1).runs
    assert run.coordinator == f"coordinator-{run.run_id}"


# --- overlaps -------------------------------------------------------------------------------------


def test_skip_makes_no_run_while_one_has_not_ended(storage: Storage) -> None:
    made(storage, SKIP)
    (run,) = looked(storage, 1).runs
    assert minutes_of(looked(storage, 2)) == []
    ended(storage, run.run_id)
    assert minutes_of(looked(storage, 3)) == [3]
    assert counts(storage) == (2, 1, 0, 1)
    assert told(storage)[2] == (
        "skipped",
        {
            "reason": f"run {run.run_id} has not ended",
            "scheduled_at": (NOON + 2 * MINUTE).isoformat(),
        },
    )


@pytest.mark.parametrize(("policy", "kept"), [(ONE, [2]), (ALL, [2, 3, 4])])
@pytest.mark.parametrize("end", [RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED])
def test_what_waits_for_its_turn_is_looked_at_when_the_run_has_ended(
    storage: Storage, policy: OverlapPolicy, kept: list[float], end: RunStatus
) -> None:
    made(storage, policy, ScheduleSpec(interval="1m", end_at=NOON + 4 * MINUTE))
    (running,) = looked(storage, 1).runs
    assert looked(storage, 4).runs == []
    assert now_of(storage).buffered == [NOON + minute * MINUTE for minute in kept]
    for minute in kept:
        assert not is_due(storage, 10)
        ended(storage, running.run_id, end)
        assert is_due(storage, 4)
        fired = looked(storage, 5)
        assert minutes_of(fired) == [minute]
        (running,) = fired.runs
    assert now_of(storage).buffered == []
    assert counts(storage)[::3] == (1 + len(kept), 3 - len(kept))


def test_an_end_that_comes_while_a_fire_is_put_off_is_not_lost(shared_url: str) -> None:
    """1. The timer sees a run that has not ended. 2. It ends. 3. The timer commits that a fire waits."""
    with Storage(shared_url) as timer, Storage(shared_url) as other, ThreadPoolExecutor(2) as pool:
        made(timer, ALL, ScheduleSpec(interval="1m", end_at=NOON + 2 * MINUTE))
        (run,) = looked(timer, 1).runs
        planned = plan(now_of(timer), NOON + 2 * MINUTE)
        put_off, gate = Event(), Event()

        def slowly(connection: Connection) -> None:
            fire(planned, now=NOON + 2 * MINUTE).on(connection)
            put_off.set()
            gate.wait(0.3)

        firing = pool.submit(write, timer, slowly)
        assert put_off.wait(30)
        if shared_url.startswith("sqlite"):
            gate.set()  # there the end waits until then
        ending = pool.submit(ended, other, run.run_id, RunStatus.CANCELLED)
        firing.result(30)
        ending.result(30)
        assert is_due(timer, 2)
        assert minutes_of(looked(timer, 3)) == [2]


def test_cancel_other_has_the_running_one_cancelled_and_starts_the_latest(storage: Storage) -> None:
    made(storage, CANCEL)
    (run,) = looked(storage, 1).runs
    second = looked(storage, 2)
    assert (second.runs, second.cancelled) == ([], [run.run_id])
    third = looked(storage, 3)
    assert (third.cancelled, third.skipped) == ([run.run_id], 1)
    ended(storage, run.run_id, RunStatus.CANCELLED)
    assert minutes_of(looked(storage, 3.5)) == [3]
    assert counts(storage) == (2, 0, 0, 1)
    assert told(storage)[2][1]["reason"] == "a later fire has taken its place"


def test_allow_all_makes_runs_beside_each_other(storage: Storage) -> None:
    made(storage, ALLOW)
    assert minutes_of(looked(storage, 3)) == [1, 2, 3]
    assert len(read(storage, running_runs, "nightly")) == 3


def test_the_run_in_which_one_continues_is_the_schedules_running_one(storage: Storage) -> None:
    made(storage, ONE)
    (first,) = looked(storage, 1).runs
    held = claimed(storage, first.run_id)

    def go_on(connection: Connection) -> None:
        kept = {"schedule_id": held.schedule_id, "scheduled_at": held.scheduled_at}
        accept(new_run("run_next", continued_from_run_id=held.run_id, **kept)).on(connection)
        changes = {"status": RunStatus.CONTINUED_AS_NEW, "continued_to_run_id": "run_next"}
        new = new_append(
            held, "workflow.continued_as_new", changes=changes, release=True, schedule_id=held.schedule_id
        )
        append(new).on(connection)

    write(storage, go_on)
    assert read(storage, running_runs, "nightly") == ["run_next"]
    assert looked(storage, 2).runs == []
    assert counts(storage) == (1, 0, 0, 0), "a chain is one run"
    ended(storage, "run_next")
    assert minutes_of(looked(storage, 2)) == [2]
    assert counts(storage) == (2, 1, 0, 0)


# --- statistics -----------------------------------------------------------------------------------


def test_an_end_whose_commit_was_lost_is_counted_once(storage: Storage) -> None:
    made(storage)
    (run,) = looked(storage, 1).runs
    held = claimed(storage, run.run_id)
    new = new_append(
        held,
        "workflow.completed",
        changes={"status": RunStatus.COMPLETED},
        release=True,
        schedule_id="nightly",
    )
    for _ in range(2):
        write(storage, append, new)
    assert counts(storage) == (1, 1, 0, 0)


def test_statistics_are_true_whoever_ends_runs_at_the_same_time(shared_url: str) -> None:
    """Two coordinators end runs of two schedules, in opposite orders, while the timer makes more."""
    with Storage(shared_url) as first, Storage(shared_url) as second, Storage(shared_url) as timer:
        for name in ("nightly", "weekly"):
            made(first, ALLOW, schedule_id=name)
        runs = {name: looked(first, 12, name).runs for name in ("nightly", "weekly")}
        pairs = list(zip(runs["nightly"], runs["weekly"], strict=True))

        def end_all(storage: Storage, mine: list[Any], failing: bool) -> None:
            for one, other in mine:
                for run in (other, one) if failing else (one, other):
                    ended(storage, run.run_id, RunStatus.FAILED if failing else RunStatus.COMPLETED)

        def fire_more() -> None:
            for minute in range(13, 19):
                for name in ("weekly", "nightly"):
                    while looked(timer, minute, name).is_stale:
                        pass

        with ThreadPoolExecutor(3) as pool:
            done = [
                pool.submit(end_all, first, pairs[:6], False),
                pool.submit(end_all, second, pairs[6:], True),
                pool.submit(fire_more),
            ]
            for each in done:
                each.result(60)
        assert counts(timer) == counts(timer, "weekly") == (18, 6, 6, 0)


def test_a_cancelled_run_is_neither_successful_nor_failed(storage: Storage) -> None:
    made(storage)
    (run,) = looked(storage, 1).runs
    ended(storage, run.run_id, RunStatus.CANCELLED)
    assert counts(storage) == (1, 0, 0, 0)


# --- missed ---------------------------------------------------------------------------------------


def test_missed_fires_are_made_up_within_the_window_and_skipped_before_it(storage: Storage) -> None:
    made(storage, ALL, window=2 * MINUTE)
    assert minutes_of(looked(storage, 7)) == [5]
    record = now_of(storage)
    assert record.buffered == [NOON + 6 * MINUTE, NOON + 7 * MINUTE]
    assert counts(storage) == (1, 0, 0, 4)
    assert told(storage)[-1] == (
        "skipped",
        {
            "reason": "missed: the catch-up window had passed",
            "count": 4,
            "scheduled_at": (NOON + MINUTE).isoformat(),
            "until": (NOON + 4 * MINUTE).isoformat(),
        },
    )


def test_skip_makes_up_one_of_the_missed_fires(storage: Storage) -> None:
    made(storage, SKIP)
    assert minutes_of(looked(storage, 5)) == [1]
    assert counts(storage) == (1, 0, 0, 4)
    assert {data.get("reason") for type_, data in told(storage) if type_ == "skipped"} == {
        f"run {now_of(storage).last_run_id} has not ended"
    }


# --- changes --------------------------------------------------------------------------------------


def changed(
    storage: Storage, minutes: float, type_: str = "schedule.updated", **fields: Any
) -> ScheduleRecord:
    before = now_of(storage)
    after = msgspec.structs.replace(before, **fields)
    counts_anew = after.spec != before.spec or after.status != before.status
    record = write(
        storage, change_schedule, after, type_, counts_anew=counts_anew, now=NOON + minutes * MINUTE
    )
    assert record is not None
    return record


def test_what_a_pause_has_missed_is_not_made_up(storage: Storage) -> None:
    made(storage, ALLOW)
    looked(storage, 1)
    changed(storage, 1.5, "schedule.paused", status=ScheduleStatus.PAUSED)
    assert not is_due(storage, 30)
    assert looked(storage, 30).is_stale
    changed(storage, 30.5, "schedule.resumed", status=ScheduleStatus.ACTIVE)
    assert not is_due(storage, 30.9)
    assert minutes_of(looked(storage, 32)) == [31, 32]
    assert counts(storage) == (3, 0, 0, 0)


@pytest.mark.parametrize("type_", ["schedule.paused", "schedule.updated"])
def test_a_fire_that_waits_for_its_jitter_is_skipped_by_a_change_and_told_of(
    storage: Storage, type_: str
) -> None:
    spec = ScheduleSpec(interval="1m", jitter="50s")
    made(storage, ALLOW, spec)
    at = spec.jittered("nightly", NOON + MINUTE)
    assert at > NOON + MINUTE
    is_pause = type_ == "schedule.paused"
    change = {"status": ScheduleStatus.PAUSED} if is_pause else {"spec": ScheduleSpec(interval="1d")}
    changed(storage, 1, type_, **change)
    assert counts(storage) == (0, 0, 0, 1)
    assert told(storage)[1] == (
        "skipped",
        {
            "reason": "the schedule was changed before it was carried out",
            "count": 1,
            "scheduled_at": (NOON + MINUTE).isoformat(),
            "until": (NOON + MINUTE).isoformat(),
        },
    )
    assert told(storage)[2][0] == type_.removeprefix("schedule.")


def test_a_change_skips_no_fire_that_has_a_run_and_none_of_a_pause(storage: Storage) -> None:
    made(storage, ALLOW)
    backfilled(storage, [1, 2], asked=2.5)
    changed(storage, 2.5, "schedule.paused", status=ScheduleStatus.PAUSED)
    changed(storage, 9.5, spec=ScheduleSpec(interval="2m"))
    changed(storage, 10.5, "schedule.resumed", status=ScheduleStatus.ACTIVE)
    assert counts(storage) == (2, 0, 0, 0)
    assert "skipped" not in [type_ for type_, _ in told(storage)]


def test_what_waits_for_its_turn_waits_through_a_pause(storage: Storage) -> None:
    made(storage, ALL)
    (run,) = looked(storage, 1).runs
    looked(storage, 2)
    changed(storage, 2.5, "schedule.paused", status=ScheduleStatus.PAUSED)
    ended(storage, run.run_id)
    assert not is_due(storage, 10)
    changed(storage, 10.5, "schedule.resumed", status=ScheduleStatus.ACTIVE)
    assert is_due(storage, 10.5)
    assert minutes_of(looked(storage, 10.5)) == [2]
    assert minutes_of(looked(storage, 11)) == []
    assert now_of(storage).buffered == [NOON + 11 * MINUTE]


def test_another_policy_leaves_a_missed_fire_to_be_made_up(storage: Storage) -> None:
    made(storage)
    record = changed(storage, 3.5, overlap_policy=ALL)
    assert record.next_fire_at == NOON + MINUTE
    assert minutes_of(looked(storage, 3.5)) == [1]
    assert len(now_of(storage).buffered) == 2


def test_another_spec_counts_from_now_on_and_keeps_its_grid_and_statistics(storage: Storage) -> None:
    made(storage, ALL)
    (run,) = looked(storage, 1).runs
    looked(storage, 2)
    changed(storage, 3.5, spec=ScheduleSpec(interval="5m"))
    record = now_of(storage)
    assert record.next_fire_at == NOON + 5 * MINUTE
    assert record.buffered == [NOON + 2 * MINUTE], "what was put off keeps its turn"
    ended(storage, run.run_id)
    assert minutes_of(looked(storage, 4)) == [2]
    assert counts(storage) == (2, 1, 0, 1), "the fire of minute 3 was overtaken"


def test_a_schedule_may_change_its_workflow_and_its_environment(storage: Storage) -> None:
    made(storage)
    text = schedules.run_text(new_run("", workflow_name="other", environment="e1"))
    record = changed(storage, 0.5, run=text, workflow_name="other", environment="e1")
    assert (record.workflow_name, record.environment) == ("other", "e1")
    assert read(storage, list_schedules, None, "other") == [record]
    (run,) = looked(storage, 1).runs
    assert (run.workflow_name, run.environment) == ("other", "e1")


def test_of_two_changes_at_once_the_second_is_refused(storage: Storage) -> None:
    record = made(storage)
    changed(storage, 0.1, note="mine")
    assert write(storage, change_schedule, record, "schedule.updated", now=NOON) is None


def test_a_deleted_schedule_fires_no_more(storage: Storage) -> None:
    made(storage, ALL)
    (run,) = looked(storage, 1).runs
    looked(storage, 2)
    planned = plan(now_of(storage), NOON + 3 * MINUTE)
    assert write(storage, delete_schedule, "nightly", now=NOON + 2 * MINUTE)
    assert not write(storage, delete_schedule, "nightly", now=NOON + 2 * MINUTE)
    assert write(storage, fire, planned, now=NOON + 3 * MINUTE).is_stale
    ended(storage, run.run_id)
    assert not is_due(storage, 60)
    for refused in (
        write(storage, trigger, "nightly", ALLOW, "c"),
        write(storage, backfill, "nightly", [NOON], "c"),
    ):
        assert refused is None
    assert read(storage, list_schedules) == []
    assert [each.schedule_id for each in read(storage, list_schedules, ScheduleStatus.DELETED)] == ["nightly"]
    assert told(storage)[-1] == ("deleted", {})


def test_a_schedule_that_is_made_anew_counts_its_own_runs(storage: Storage) -> None:
    made(storage, ALLOW)
    old = looked(storage, 2).runs
    write(storage, delete_schedule, "nightly", now=NOON + 2.5 * MINUTE)
    record = made(storage, ALLOW, at=NOON + 3 * MINUTE)
    assert record.next_fire_at == NOON + 4 * MINUTE
    assert counts(storage) == (0, 0, 0, 0)
    (run,) = looked(storage, 4).runs
    for each in (*old, run):
        ended(storage, each.run_id)
    assert counts(storage) == (1, 1, 0, 0)


def test_an_id_in_use_makes_no_second_schedule(storage: Storage) -> None:
    record = made(storage)
    spec = ScheduleSpec(interval="5m")
    assert write(storage, create_schedule, "nightly", new_run(""), spec, SKIP, 3600.0) is None
    assert now_of(storage) == record


# --- by hand --------------------------------------------------------------------------------------


def triggered(storage: Storage, minutes: float, policy: OverlapPolicy = ALLOW) -> Fired:
    at, call = NOON + minutes * MINUTE, token_hex(8)
    fired = write(storage, trigger, "nightly", policy, call, now=at)
    before = state(storage)
    again = write(storage, trigger, "nightly", policy, call, now=at)
    assert again is not None
    assert fired is not None
    assert [run.run_id for run in again.runs] == [run.run_id for run in fired.runs]
    assert state(storage) == before, "a trigger whose COMMIT was lost changes nothing when it is run again"
    return fired


@ALL_POLICIES
def test_a_trigger_fires_at_once_if_nothing_runs(storage: Storage, policy: OverlapPolicy) -> None:
    made(storage)
    assert minutes_of(triggered(storage, 0.5, policy)) == [0.5]
    record = now_of(storage)
    assert (record.next_fire_at, record.total_runs) == (NOON + MINUTE, 1)
    assert record.last_fire_at is None


@pytest.mark.parametrize(
    ("policy", "runs", "skipped", "waiting"),
    [
        (SKIP, [], 1, []),
        (ONE, [], 0, [0.7]),
        (ALL, [], 0, [0.7]),
        (CANCEL, [], 0, [0.7]),
        (ALLOW, [0.7], 0, []),
    ],
)
def test_a_trigger_goes_by_its_own_policy(
    storage: Storage, policy: OverlapPolicy, runs: list[float], skipped: int, waiting: list[float]
) -> None:
    made(storage)
    (running,) = triggered(storage, 0.5).runs
    fired = triggered(storage, 0.7, policy)
    assert (minutes_of(fired), fired.skipped) == (runs, skipped)
    assert now_of(storage).buffered == [NOON + minute * MINUTE for minute in waiting]
    assert fired.cancelled == ([running.run_id] if policy is CANCEL else [])


@pytest.mark.parametrize("policy", [SKIP, ONE, ALL, ALLOW])
def test_a_trigger_lets_nothing_begin_that_waits_for_its_turn(
    storage: Storage, policy: OverlapPolicy
) -> None:
    made(storage, ALL)
    (run,) = looked(storage, 1).runs
    looked(storage, 3)
    for minutes in (3.1, 3.2):  # while a run has not ended, and when nobody has looked since its end
        before = now_of(storage).buffered
        fired = triggered(storage, minutes, policy)
        assert minutes_of(fired) in ([], [minutes])
        assert now_of(storage).buffered[: len(before)] == before
        ended(storage, run.run_id) if minutes == 3.1 else None


def test_a_paused_schedule_can_be_triggered(storage: Storage) -> None:
    made(storage)
    changed(storage, 0.1, status=ScheduleStatus.PAUSED)
    assert minutes_of(triggered(storage, 0.5)) == [0.5]


def test_two_triggers_at_one_instant_make_two_runs_and_never_that_of_a_fire(storage: Storage) -> None:
    made(storage, ALLOW)
    at_once = [triggered(storage, 1), triggered(storage, 1), looked(storage, 1)]
    assert len({run.run_id for fired in at_once for run in fired.runs}) == 3
    assert minutes_of(at_once[2]) == [1]
    assert counts(storage)[0] == 3


def test_triggers_at_one_instant_from_many_places_make_a_run_each(shared_url: str) -> None:
    with Storage(shared_url) as first, Storage(shared_url) as second, ThreadPoolExecutor(8) as pool:
        made(first, ALLOW)

        def ask(number: int) -> Fired | None:
            storage = first if number % 2 else second
            return write(storage, trigger, "nightly", ALLOW, token_hex(8), now=NOON + 0.5 * MINUTE)

        fired = list(pool.map(ask, range(16)))
        assert len({run.run_id for each in fired if each is not None for run in each.runs}) == 16
        assert counts(first) == (16, 0, 0, 0)


def test_a_trigger_that_has_to_wait_is_told_of(storage: Storage) -> None:
    made(storage)
    triggered(storage, 0.5)
    triggered(storage, 0.7, ALL)
    type_, data = told(storage)[-1]
    at = (NOON + 0.7 * MINUTE).isoformat()
    assert (type_, data["run_id"], data["scheduled_at"], data["reason"]) == (
        "triggered",
        None,
        at,
        "triggered",
    )


def test_a_schedule_that_is_resumed_looks_at_what_was_put_off_just_before(storage: Storage) -> None:
    """1. A paused schedule is read. 2. A trigger is put off. 3. It is resumed as it was read."""
    made(storage)
    (run,) = triggered(storage, 0.5).runs
    paused = changed(storage, 0.6, "schedule.paused", status=ScheduleStatus.PAUSED)
    assert triggered(storage, 0.7, ALL).runs == []
    ended(storage, run.run_id)
    resumed = msgspec.structs.replace(paused, status=ScheduleStatus.ACTIVE)
    assert write(storage, change_schedule, resumed, "schedule.resumed", now=NOON + 0.8 * MINUTE)
    assert is_due(storage, 0.8)
    assert minutes_of(looked(storage, 0.8)) == [0.7]


def backfilled(storage: Storage, minutes: list[float], asked: float) -> Fired:
    at, call = NOON + asked * MINUTE, token_hex(8)
    fires = [NOON + minute * MINUTE for minute in minutes]
    fired = write(storage, backfill, "nightly", fires, call, now=at)
    before = state(storage)
    again = write(storage, backfill, "nightly", fires, call, now=at)
    assert fired is not None
    assert again is not None
    assert {run.run_id for run in again.runs} == {run.run_id for run in fired.runs}
    assert state(storage) == before, "a backfill whose COMMIT was lost changes nothing when it is run again"
    return fired


def test_a_backfill_makes_the_runs_that_are_missing(storage: Storage) -> None:
    made(storage, ALLOW)
    looked(storage, 2)
    fired = backfilled(storage, [-1, 0, 1, 2], asked=2.5)
    assert (minutes_of(fired), fired.skipped) == ([-1, 0], 2)
    again = backfilled(storage, [-1, 0, 1, 2], asked=2.5)
    assert (again.runs, again.skipped) == ([], 4)
    record = now_of(storage)
    assert (record.total_runs, record.skipped_runs, record.last_fire_at) == (4, 0, NOON + 2 * MINUTE)


def test_backfills_at_one_instant_leave_no_fire_out(storage: Storage) -> None:
    made(storage)
    assert minutes_of(backfilled(storage, [-6, -5, -4], asked=0)) == [-6, -5, -4]
    fired = backfilled(storage, [-5, -4, -3, -2], asked=0)
    assert (minutes_of(fired), fired.skipped) == ([-3, -2], 2)


def test_a_backfill_that_is_run_again_makes_what_is_missing_still(storage: Storage) -> None:
    made(storage)
    fires = [NOON - minute * MINUTE for minute in (3, 2, 1)]
    first = write(storage, backfill, "nightly", fires[:2], "call")
    again = write(storage, backfill, "nightly", fires, "call")
    assert first is not None
    assert again is not None
    assert (minutes_of(first), sorted(minutes_of(again)), again.skipped) == ([-3, -2], [-3, -2, -1], 0)
    assert counts(storage)[0] == 3


def test_a_run_that_holds_the_key_of_a_run_that_has_gone_is_not_made_by_a_backfill(storage: Storage) -> None:
    """1. A run continues as new, and hands on its key. 2. It is deleted. 3. Its fire is filled."""
    made(storage)
    (first,) = looked(storage, 1).runs
    write(storage, delete_run, first.run_id)
    kept = {"schedule_id": "nightly", "scheduled_at": first.scheduled_at}
    write(storage, accept, new_run("run_next", idempotency_key=first.idempotency_key, **kept))
    fired = backfilled(storage, [0, 1], asked=2)
    assert (minutes_of(fired), fired.skipped) == ([0], 1)
    assert counts(storage)[0] == 2


def test_a_missed_fire_that_a_backfill_has_made_is_not_skipped(storage: Storage) -> None:
    made(storage, ALL, window=2 * MINUTE)
    triggered(storage, 2.5)
    backfilled(storage, [0, 2, 3], asked=6.5)
    looked(storage, 7)
    assert counts(storage) == (4, 0, 0, 2)
    (missed,) = [data for type_, data in told(storage) if type_ == "skipped"]
    assert missed["count"] == 2


def test_missed_fires_that_a_backfill_has_made_all_are_not_told_of(storage: Storage) -> None:
    made(storage, ALL, window=2 * MINUTE)
    backfilled(storage, [1, 2, 3, 4], asked=6.5)
    looked(storage, 7)
    assert counts(storage)[3] == 0
    assert "skipped" not in [type_ for type_, _ in told(storage)]


@ALL_POLICIES
def test_a_fire_after_a_backfill_of_its_instant_makes_no_second_run(
    storage: Storage, policy: OverlapPolicy
) -> None:
    made(storage, policy)
    (run,) = backfilled(storage, [1], asked=1).runs
    fired = looked(storage, 1)
    assert (fired.runs, fired.cancelled, fired.skipped) == ([], [], 0)
    assert read(storage, running_runs, "nightly") == [run.run_id]
    assert counts(storage) == (1, 0, 0, 0)
    assert now_of(storage).buffered == []


def test_a_backfill_takes_what_waits_for_its_turn(storage: Storage) -> None:
    made(storage, ALL)
    looked(storage, 1)
    looked(storage, 3)
    assert minutes_of(backfilled(storage, [0, 1, 2], asked=3.5)) == [0, 2]
    assert now_of(storage).buffered == [NOON + 3 * MINUTE]
    assert counts(storage)[0] == 3
    for each in read(storage, running_runs, "nightly"):
        ended(storage, each)
    assert minutes_of(looked(storage, 3.6)) == [3]


def test_what_a_backfill_does_is_told_once_however_often_it_is_run(storage: Storage) -> None:
    made(storage)
    for call in ("a", "a", "b", "b"):
        note = ("schedule.backfill_started", {"start": "…"}, call)
        assert write(storage, note_once, "nightly", *note, now=NOON)
    assert told(storage)[1:] == [("backfill_started", {"start": "…", "call": call}) for call in "ab"]
    assert not write(storage, note_once, "unknown", "schedule.backfill_started", {}, "a")


# --- events and lists -----------------------------------------------------------------------------


def test_the_events_kept_of_a_schedule_are_bounded(storage: Storage) -> None:
    made(storage, ALLOW, ScheduleSpec(interval="1s"))
    for minute in range(1, 25):
        looked(storage, minute)
    found = read(storage, schedule_events, "nightly")
    assert len(found) == KEPT_EVENTS
    positions = [event.position for event in found]
    assert positions == list(range(positions[0], positions[0] + KEPT_EVENTS))
    assert positions[-1] == 24 * 60
    with storage.database.snapshot() as connection:
        kept = connection.exec_driver_sql("SELECT count(*) FROM schedule_events").scalar_one()
    assert kept < KEPT_EVENTS + 100


def test_events_tell_what_has_happened_to_a_schedule(storage: Storage) -> None:
    made(storage)
    (run,) = looked(storage, 1).runs
    changed(storage, 1.5, "schedule.paused", status=ScheduleStatus.PAUSED, note="holidays")
    assert told(storage) == [
        (
            "created",
            {"workflow_name": "order", "spec": {"interval": "1m"}, "overlap_policy": "skip"},
        ),
        (
            "triggered",
            {"run_id": run.run_id, "scheduled_at": (NOON + MINUTE).isoformat(), "reason": "due"},
        ),
        ("paused", {"note": "holidays"}),
    ]


def test_schedules_are_listed_in_pages_by_their_ids(storage: Storage) -> None:
    for name in ("b", "a", "d", "c", "E"):
        made(storage, schedule_id=name, workflow_name="order" if name != "c" else "report")
    write(storage, delete_schedule, "d")

    def pages(**wanted: Any) -> Iterator[list[str]]:
        after = ""
        while page := [
            each.schedule_id for each in read(storage, list_schedules, limit=2, after=after, **wanted)
        ]:
            yield page
            after = page[-1]

    assert list(pages()) == [["E", "a"], ["b", "c"]]
    assert list(pages(workflow="order")) == [["E", "a"], ["b"]]
    assert list(pages(status=ScheduleStatus.DELETED)) == [["d"]]
    assert list(pages(status=ScheduleStatus.PAUSED)) == []


def test_the_schedules_of_another_environment_do_not_stand_in_the_way(storage: Storage) -> None:
    """Of those, thousands may be overdue: their cluster has gone."""
    for number in range(5):
        made(storage, schedule_id=f"other-{number}", environment=f"e{number % 2}", at=NOON - 20 * 365 * DAY)
    made(storage)
    found = read(storage, due_schedules, "", 3600.0, 3, now=NOON)
    assert [(each.schedule_id, each.seconds_until) for each in found] == [("nightly", 60.0)]
    assert read(storage, other_environments, "") == {"e0", "e1"}
    assert read(storage, other_environments, "e0") == {"e1"}


def test_the_runs_that_have_not_ended_are_found_without_looking_at_the_others(
    open_storage: Callable[..., Storage],
) -> None:
    storage = open_storage("memory")
    made(storage)
    with storage.database.snapshot() as connection:
        query = schedules._RUNNING._sql.replace(":schedule_id", "'nightly'")
        found = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}").fetchall()
    assert "USING" in str(found)
    assert "ix_runs_schedule" in str(found)
