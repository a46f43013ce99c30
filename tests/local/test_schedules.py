"""Schedules as a client makes and changes them; fired by hand, in process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

import pyworkflow_ray as pr
from pyworkflow_ray.actors.schedulers import Looked, fire_due
from pyworkflow_ray.authoring.schedules import declarations
from pyworkflow_ray.client.sessions import session
from pyworkflow_ray.storage import schedules
from pyworkflow_ray.storage.statements import Statement
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.testing import WorkflowEnvironment

HOURLY = pr.ScheduleSpec(interval="1h")
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@pytest.fixture(autouse=True)
def own_storage(own_settings: None, tmp_path: Path) -> Iterator[None]:
    """A database of the test's own, no declared schedules, and runs in process."""
    before = dict(declarations)
    declarations.clear()
    pr.configure(default_runtime="local", storage=str(tmp_path / "runs.db"))
    yield
    declarations.clear()
    declarations.update(before)


@pr.workflow
async def sched_report(scope: str = "all", *, copies: int = 1) -> str:
    return f"{copies} of {scope}"


@pr.workflow
async def sched_other(scope: str = "none") -> str:
    return f"other {scope}"


@pr.workflow
async def sched_context(times: int = 1) -> tuple[Any, ...]:
    context = pr.get_context()
    if times > 1:
        pr.continue_as_new(times - 1)
    return context.schedule_id, context.scheduled_at


@pr.workflow
async def sched_waits() -> None:
    await pr.hook("approval")


@pr.workflow
async def sched_fails() -> None:
    raise ValueError("no report")


@pr.workflow(durable=False)
async def sched_in_memory() -> str:
    return "done"


async def made(
    workflow: Any = sched_report, *args: Any, schedule_id: str = "hourly", **options: Any
) -> pr.Schedule:
    """A schedule that fires each hour."""
    return await pr.create_schedule.options(schedule_id=schedule_id, **options)(workflow, HOURLY, *args)


async def now_of(schedule_id: str = "hourly") -> pr.Schedule:
    schedule = await pr.get_schedule(schedule_id)
    assert schedule is not None
    return schedule


async def look(at: datetime) -> Looked:
    """Fire what is due at this time, and have the runs go on that were made or asked to cancel."""
    of = session()
    looked = await fire_due(of.storage, "", 3600, now=lambda: at)
    await of.runtime.wake_all(looked.runs)
    for run_id in looked.cancelled:
        await pr.resume(run_id)
    return looked


async def fired(at: datetime) -> list[pr.RunHandle[Any]]:
    """The runs that are made of what is due at this time."""
    return [pr.RunHandle(run.run_id) for run in (await look(at)).runs]


async def statistics(schedule_id: str = "hourly") -> tuple[int, int, int, int]:
    schedule = await now_of(schedule_id)
    return schedule.total_runs, schedule.successful_runs, schedule.failed_runs, schedule.skipped_runs


async def types_of(schedule_id: str = "hourly") -> list[str]:
    return [event.type.removeprefix("schedule.") for event in await pr.get_schedule_events(schedule_id)]


# --- making ---------------------------------------------------------------------------------------


async def test_a_schedule_is_as_it_was_made() -> None:
    spec = pr.ScheduleSpec(cron="0 9 * * *", timezone="Europe/Berlin")
    make = pr.create_schedule.options(
        schedule_id="daily", overlap_policy="buffer_one", catchup_window="2h", note="for Ada"
    )
    schedule = await make(sched_report, spec, "some", copies=2)
    assert schedule == await now_of("daily")
    assert (schedule.schedule_id, schedule.workflow_name, schedule.spec) == ("daily", "sched_report", spec)
    assert (schedule.status, schedule.overlap_policy) == (
        pr.ScheduleStatus.ACTIVE,
        pr.OverlapPolicy.BUFFER_ONE,
    )
    assert (schedule.args, schedule.kwargs) == (["some"], {"copies": 2})
    assert (schedule.catchup_window, schedule.note) == (2 * HOUR, "for Ada")
    assert schedule.next_run_time == spec.next_after(schedule.created_at, schedule.created_at)
    assert (schedule.running_run_ids, schedule.buffered_count) == ([], 0)
    assert await statistics("daily") == (0, 0, 0, 0)


async def test_a_schedule_may_be_made_by_the_names_of_all_parameters() -> None:
    schedule = await pr.create_schedule(
        workflow_name="sched_report",
        spec=HOURLY,
        overlap_policy=pr.OverlapPolicy.ALLOW_ALL,
        schedule_id="by-name",
        copies=3,
    )
    assert (schedule.workflow_name, schedule.kwargs) == ("sched_report", {"copies": 3})


async def test_schedules_without_an_id_get_one_each() -> None:
    first, second = [await pr.create_schedule(sched_report, HOURLY) for _ in range(2)]
    assert first.schedule_id != second.schedule_id
    assert await pr.get_schedule(first.schedule_id) == first


async def test_a_fire_runs_the_workflow_with_the_schedules_arguments() -> None:
    schedule = await made(sched_report, "some")
    assert await fired(schedule.created_at + 59 * MINUTE) == []
    of = session()
    looked = await fire_due(of.storage, "", 3600, now=lambda: schedule.created_at + HOUR)
    run = pr.RunHandle[str](looked.runs[0].run_id)
    assert (await now_of()).running_run_ids == [run]
    await of.runtime.wake_all(looked.runs)
    assert await run == "1 of some"
    assert await statistics() == (1, 1, 0, 0)
    after = await now_of()
    assert (after.last_run_id, after.running_run_ids) == (run, [])
    assert after.next_run_time == schedule.created_at + 2 * HOUR


async def test_ends_are_counted_as_they_are() -> None:
    schedule = await made(sched_fails, overlap_policy="allow_all")
    (run,) = await fired(schedule.created_at + HOUR)
    with pytest.raises(ValueError, match="no report"):
        await run
    assert await statistics() == (1, 0, 1, 0)


async def test_a_run_that_keeps_no_history_is_counted() -> None:
    schedule = await made(sched_in_memory)
    (run,) = await fired(schedule.created_at + HOUR)
    assert await run == "done"
    assert await statistics() == (1, 1, 0, 0)


async def test_what_cannot_be_scheduled_is_refused_with_what_could() -> None:
    past = datetime(2020, 1, 1, tzinfo=UTC)
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (
            pr.ConfigurationError,
            "never fires: every 1h, until 2020-01-01T00:00:00Z",
            lambda: pr.create_schedule(sched_report, pr.ScheduleSpec(interval="1h", end_at=past)),
        ),
        (
            pr.ConfigurationError,
            "never fires: cron 0 0 30 2",
            lambda: pr.create_schedule(sched_report, pr.ScheduleSpec(cron="0 0 30 2 *")),
        ),
        (
            pr.ConfigurationError,
            r"such as ScheduleSpec\(cron='0 9 \* \* \*'\), not '0 9 \* \* \*'",
            lambda: pr.create_schedule(sched_report, "0 9 * * *"),  # type: ignore[arg-type]
        ),
        (
            pr.ConfigurationError,
            "'queue': give one of skip, buffer_one",
            lambda: pr.create_schedule(sched_report, HOURLY, overlap_policy="queue"),
        ),
        (
            pr.ConfigurationError,
            "catchup_window is '5s': give 10 s or more",
            lambda: made(catchup_window="5s"),
        ),
        (
            pr.ConfigurationError,
            "catchup_window is 'soon'. Not a duration",
            lambda: made(catchup_window="soon"),
        ),
        (
            pr.StepValidationError,
            "do not fit workflow 'sched_report': too many positional arguments",
            lambda: pr.create_schedule(sched_report, HOURLY, "a", "b"),
        ),
        (
            pr.StepValidationError,
            "copies",
            lambda: pr.create_schedule(sched_report, HOURLY, copies="many"),
        ),
        (
            pr.WorkflowNotFoundError,
            "Did you mean 'sched_report'",
            lambda: pr.create_schedule("sched_reprot", HOURLY),
        ),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            await call()
    assert await pr.list_schedules() == ([], None)


async def test_an_id_in_use_is_refused() -> None:
    before = await made()
    with pytest.raises(pr.ConfigurationError, match="There is a schedule 'hourly'"):
        await made(sched_other)
    assert await now_of() == before


@pr.workflow
async def sched_names(workflow_name: str = "a", spec: str = "b", schedule_id: str = "c") -> str:
    return workflow_name + spec + schedule_id


async def test_parameters_named_like_options_are_said_apart() -> None:
    with pytest.raises(pr.ConfigurationError, match="'workflow_name' is a parameter of create_schedule"):
        await pr.create_schedule(sched_names, HOURLY)
    make = pr.create_schedule.options(schedule_id="apart")
    schedule = await make(sched_names, HOURLY, workflow_name="x", spec="y", schedule_id="z")
    (run,) = await fired(schedule.created_at + HOUR)
    assert await run == "xyz"


@pr.step(local=True, max_retries=0)
async def makes_a_schedule() -> str:
    return (await made()).schedule_id


@pr.workflow
async def sched_maker(in_step: bool) -> str:
    if in_step:
        return await makes_a_schedule()
    return (await made()).schedule_id


async def test_workflow_code_makes_no_schedules() -> None:
    with pytest.raises(
        pr.WorkflowError, match=r"create_schedule\(\) cannot be called in the code of a workflow"
    ):
        await pr.start(sched_maker, False)


# --- looking --------------------------------------------------------------------------------------


async def test_schedules_are_listed_page_by_page() -> None:
    for name in "cab":
        await made(schedule_id=name)
    await made(sched_other, schedule_id="d")
    await pr.pause_schedule("a")
    await pr.delete_schedule("b")

    async def ids(**wanted: Any) -> list[str]:
        return [schedule.schedule_id for schedule in (await pr.list_schedules(**wanted))[0]]

    first, cursor = await pr.list_schedules(limit=2)
    second, end = await pr.list_schedules(limit=2, cursor=cursor)
    assert [each.schedule_id for each in (*first, *second)] == ["a", "c", "d"]
    assert end is None
    assert await ids(workflow="sched_other") == ["d"]
    assert await ids(status="paused") == ["a"]
    assert await ids(status=pr.ScheduleStatus.ACTIVE) == ["c", "d"]
    assert await ids(status="deleted") == ["b"]
    assert await pr.list_schedules(limit=0) == ([], None)
    with pytest.raises(ValueError, match="status is 'gone': give one of active, paused, deleted"):
        await pr.list_schedules(status="gone")


async def test_what_is_not_there_is_reported() -> None:
    assert await pr.get_schedule("unknown") is None
    assert not await pr.delete_schedule("unknown")
    now = datetime.now(UTC)
    for call in (
        pr.update_schedule("unknown", HOURLY),
        pr.pause_schedule("unknown"),
        pr.resume_schedule("unknown"),
        pr.trigger_schedule("unknown"),
        pr.backfill_schedule("unknown", now - HOUR, now),
        pr.get_schedule_events("unknown"),
    ):
        with pytest.raises(pr.ScheduleNotFoundError, match="There is no schedule 'unknown'"):
            await call


# --- changing -------------------------------------------------------------------------------------


async def test_an_update_changes_what_is_given_and_nothing_else() -> None:
    before = await made(sched_report, "some", overlap_policy="buffer_all", note="for Ada")
    (run,) = await fired(before.created_at + HOUR)
    await run
    later = await pr.update_schedule("hourly", overlap_policy="skip", catchup_window="1d")
    assert (later.overlap_policy, later.catchup_window) == (pr.OverlapPolicy.SKIP, timedelta(days=1))
    assert (later.spec, later.args, later.note) == (HOURLY, ["some"], "for Ada")
    assert later.next_run_time == before.created_at + 2 * HOUR
    assert (later.total_runs, later.last_run_id) == (1, run)
    noted = await pr.update_schedule("hourly", note="for Bob")
    assert (noted.note, noted.overlap_policy) == ("for Bob", pr.OverlapPolicy.SKIP)
    assert await types_of() == ["created", "triggered", "updated", "updated"]


async def test_another_spec_counts_from_now_on() -> None:
    before = await made()
    spec = pr.ScheduleSpec(interval="3h")
    after = await pr.update_schedule("hourly", spec)
    assert after.spec == spec
    assert after.next_run_time == before.created_at + 3 * HOUR, "on the grid it had"
    with pytest.raises(pr.ConfigurationError, match="never fires"):
        await pr.update_schedule("hourly", pr.ScheduleSpec(cron="0 0 31 6 *"))
    assert await now_of() == after


async def test_an_update_may_change_the_arguments_and_the_workflow() -> None:
    schedule = await made(sched_report, "some", overlap_policy="allow_all")
    updated = await pr.update_schedule("hourly", args=["few"], kwargs={"copies": 2})
    assert (updated.args, updated.kwargs) == (["few"], {"copies": 2})
    updated = await pr.update_schedule("hourly", kwargs={"copies": 3})
    assert (updated.args, updated.kwargs) == ([], {"copies": 3})
    updated = await pr.update_schedule("hourly", args=["new"])
    other = await pr.update_schedule("hourly", workflow=sched_other)
    assert (other.workflow_name, other.args) == ("sched_other", ["new"]), "arguments that are not given stay"
    (run,) = await fired(schedule.created_at + HOUR)
    assert await run == "other new"
    with pytest.raises(pr.StepValidationError, match="do not fit workflow 'sched_other'"):
        await pr.update_schedule("hourly", kwargs={"copies": 2})
    with pytest.raises(pr.ConfigurationError, match="overlap_policy is 'none'"):
        await pr.update_schedule("hourly", overlap_policy="none")
    with pytest.raises(pr.ConfigurationError, match="catchup_window is 0"):
        await pr.update_schedule("hourly", catchup_window=0)


async def test_what_a_change_returns_tells_of_the_runs() -> None:
    schedule = await made(sched_waits)
    (run,) = await fired(schedule.created_at + HOUR)
    for change in (
        pr.update_schedule("hourly", note="new"),
        pr.pause_schedule("hourly"),
        pr.pause_schedule("hourly"),
        pr.resume_schedule("hourly"),
    ):
        assert (await change).running_run_ids == [run]


async def test_a_paused_schedule_makes_up_nothing_when_it_is_resumed() -> None:
    schedule = await made()
    paused = await pr.pause_schedule("hourly", note="holidays")
    assert (paused.status, paused.next_run_time, paused.note) == (pr.ScheduleStatus.PAUSED, None, "holidays")
    assert await fired(schedule.created_at + 3 * HOUR) == []
    assert await pr.pause_schedule("hourly") == paused, "paused already: nothing to do"
    resumed = await pr.resume_schedule("hourly")
    assert (resumed.status, resumed.note) == (pr.ScheduleStatus.ACTIVE, "holidays")
    assert resumed.next_run_time == schedule.created_at + HOUR
    assert await types_of() == ["created", "paused", "resumed"]


async def test_a_deleted_schedule_can_be_made_anew() -> None:
    schedule = await made(sched_report, "old")
    (run,) = await fired(schedule.created_at + HOUR)
    await run
    assert await pr.delete_schedule("hourly")
    assert not await pr.delete_schedule("hourly")
    assert await pr.get_schedule("hourly") is None
    assert await fired(schedule.created_at + 5 * HOUR) == []
    assert await run.status() is pr.RunStatus.COMPLETED, "its runs stay"
    anew = await made(sched_other, "new")
    assert (anew.workflow_name, anew.total_runs, anew.last_run_id) == ("sched_other", 0, None)
    assert await types_of() == ["created", "triggered", "deleted", "created"]


# --- by hand --------------------------------------------------------------------------------------


async def test_a_trigger_makes_a_run_now_and_moves_no_fire() -> None:
    schedule = await made(sched_context)
    run = await pr.trigger_schedule("hourly")
    assert run is not None
    schedule_id, scheduled_at = await run
    assert schedule_id == "hourly"
    assert schedule.created_at <= scheduled_at <= datetime.now(UTC) + MINUTE
    assert (await now_of()).next_run_time == schedule.next_run_time
    events = await pr.get_schedule_events("hourly")
    assert (events[-1].data["reason"], events[-1].data["run_id"]) == ("triggered", run)
    await pr.pause_schedule("hourly")
    assert await pr.trigger_schedule("hourly") is not None, "also while it is paused"
    assert (await statistics())[0] == 2


async def test_triggers_at_once_make_a_run_each() -> None:
    await made(sched_report)
    runs = [await asyncio.gather(*(pr.trigger_schedule("hourly") for _ in range(4))) for _ in range(5)]
    assert len({run for some in runs for run in some}) == 20
    assert (await statistics())[0] == 20


async def test_a_trigger_goes_by_the_policy_that_it_is_given() -> None:
    await made(sched_waits)
    first = await pr.trigger_schedule("hourly")
    assert first is not None
    assert await pr.trigger_schedule("hourly", "skip") is None
    assert await pr.trigger_schedule("hourly", pr.OverlapPolicy.BUFFER_ALL) is None
    assert await pr.trigger_schedule("hourly") is not None, "beside it, by default"
    schedule = await now_of()
    assert (schedule.total_runs, schedule.skipped_runs, schedule.buffered_count) == (2, 1, 1)
    with pytest.raises(pr.ConfigurationError, match="overlap_policy is 'maybe'"):
        await pr.trigger_schedule("hourly", "maybe")


async def test_a_trigger_that_cancels_takes_the_place_of_what_runs() -> None:
    schedule = await made(sched_waits)
    first = await pr.trigger_schedule("hourly")
    assert first is not None
    assert await pr.trigger_schedule("hourly", "cancel_other") is None
    with pytest.raises(pr.CancellationError):
        await first
    (second,) = await fired(schedule.created_at + MINUTE)
    assert (await now_of()).running_run_ids == [second]
    requested = [event for event in await first.events() if event.type == "cancellation.requested"]
    assert requested[0].data["reason"] == "its schedule has fired again"


async def test_a_backfill_includes_its_start_excludes_its_end_and_skips_what_has_run() -> None:
    schedule = await made(sched_context, overlap_policy="allow_all")
    made_at = schedule.created_at
    run_ids = await pr.backfill_schedule("hourly", made_at - 3 * HOUR, made_at - HOUR)
    times = [(await pr.RunHandle(run_id))[1] for run_id in run_ids]
    assert times == [made_at - 3 * HOUR, made_at - 2 * HOUR]
    more = await pr.backfill_schedule("hourly", made_at - 4 * HOUR, made_at)
    times = [(await pr.RunHandle(run_id))[1] for run_id in more]
    assert times == [made_at - 4 * HOUR, made_at - HOUR]
    assert await pr.backfill_schedule("hourly", made_at - 4 * HOUR, made_at) == []
    assert await statistics() == (4, 4, 0, 0)
    events = [event for event in await pr.get_schedule_events("hourly") if "backfill" in event.type]
    assert [event.type.removeprefix("schedule.backfill_") for event in events] == ["started", "completed"] * 3
    assert [(each.data["started"], each.data["skipped"]) for each in events[1::2]] == [(2, 0), (2, 2), (0, 4)]
    assert (await now_of()).next_run_time == schedule.next_run_time


async def test_a_naive_time_of_a_backfill_is_utc() -> None:
    await pr.create_schedule(sched_report, pr.ScheduleSpec(cron="0 12 * * *"), schedule_id="noon")
    run_ids = await pr.backfill_schedule("noon", datetime(2024, 2, 28), datetime(2024, 3, 1))
    assert len(run_ids) == 2


async def test_a_backfill_of_no_past_time_is_refused() -> None:
    await made()
    now = datetime.now(UTC)
    for start, end in ((now, now - HOUR), (now - HOUR, now + HOUR), (now - HOUR, now - HOUR)):
        with pytest.raises(pr.ConfigurationError, match="A backfill goes from one past time to a later one"):
            await pr.backfill_schedule("hourly", start, end)
    with pytest.raises(pr.ConfigurationError, match=r"more than 10,000 fires\. Give a shorter time"):
        await pr.backfill_schedule("hourly", now - 10_002 * HOUR, now)
    assert await types_of() == ["created"]


async def test_a_fire_that_a_backfill_has_made_is_past() -> None:
    """1. Nobody fires for some hours. 2. They are filled by hand. 3. The timer is back."""
    schedule = await made(sched_report, overlap_policy="buffer_all")
    with_time_passed = Statement(
        "UPDATE schedules SET created_at = :at, anchor_at = :at, next_fire_at = :next"
    )
    at = schedule.created_at - 150 * MINUTE
    await session().storage.write(with_time_passed.change(at=at, next=at + HOUR).on)
    run_ids = await pr.backfill_schedule("hourly", at, schedule.created_at)
    assert len(run_ids) == 3
    assert await fired(schedule.created_at + MINUTE) == []
    assert ((await now_of()).total_runs, (await now_of()).buffered_count) == (3, 0)


# --- what is run again ----------------------------------------------------------------------------


@pytest.fixture
def lost_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to each COMMIT is lost: what was written is run again."""
    written = Storage.write

    async def twice(self: Storage, write: Callable[[Any], Any]) -> Any:
        await written(self, write)
        return await written(self, write)

    monkeypatch.setattr(Storage, "write", twice)


async def test_calls_whose_commit_was_lost_do_once_what_they_say(lost_commits: None) -> None:
    schedule = await made(sched_waits)
    first = await pr.trigger_schedule("hourly")
    assert first is not None
    assert await pr.trigger_schedule("hourly", "skip") is None
    made_at = schedule.created_at
    assert len(await pr.backfill_schedule("hourly", made_at - 3 * HOUR, made_at)) == 3
    await pr.pause_schedule("hourly")
    assert await statistics() == (4, 0, 0, 1)
    types = ["triggered", "skipped", "backfill_started", *["triggered"] * 3, "backfill_completed", "paused"]
    assert await types_of() == ["created", *types]
    with pytest.raises(pr.ConfigurationError, match="There is a schedule 'hourly'"):
        await made()
    assert await pr.delete_schedule("hourly")
    assert not await pr.delete_schedule("hourly")


# --- in the run -----------------------------------------------------------------------------------


async def test_a_run_sees_the_time_it_was_made_for_also_where_it_continues() -> None:
    schedule = await made(sched_context, 2)
    fire = schedule.created_at + HOUR
    (run,) = await fired(fire + 5 * MINUTE)
    assert await run == ("hourly", fire)
    about = {"schedule_id": "hourly", "scheduled_at": fire.isoformat()}
    chain = await pr.get_workflow_chain(run)
    assert len(chain) == 2
    for each in chain:
        assert each.metadata == about
        (started, *_) = await pr.get_workflow_events(each.run_id)
        assert started.data["metadata"] == about
    assert await statistics() == (1, 1, 0, 0), "a chain is one run"


async def test_a_run_of_no_schedule_has_no_scheduled_time() -> None:
    assert await (await pr.start(sched_context)) == (None, None)


# --- decorators -----------------------------------------------------------------------------------


def declared(*, answer: str = "", **options: Any) -> Any:
    """A workflow with a schedule, as a module declares it: each call is that module, changed."""

    @pr.scheduled_workflow(**({"interval": "1h"} | options), name="sched_declared")
    async def sched_declared() -> str:
        return answer

    return sched_declared


async def test_declared_schedules_are_made_when_they_are_activated() -> None:
    declared(answer="yes", overlap_policy="allow_all", jitter="1m", catchup_window="2h")
    assert await pr.list_schedules() == ([], None)
    assert await pr.activate_scheduled_workflows() == ["sched_declared"]
    schedule = await now_of("sched_declared")
    assert schedule.spec == pr.ScheduleSpec(interval="1h", jitter="1m")
    assert (schedule.overlap_policy, schedule.catchup_window) == (pr.OverlapPolicy.ALLOW_ALL, 2 * HOUR)
    (run,) = await fired(schedule.created_at + HOUR + MINUTE)
    assert await run == "yes"


async def test_a_second_activation_changes_nothing() -> None:
    declared()
    await pr.activate_scheduled_workflows()
    before = await now_of("sched_declared")
    declared()
    await pr.activate_scheduled_workflows()
    assert await now_of("sched_declared") == before
    assert await types_of("sched_declared") == ["created"]


async def test_a_changed_decorator_changes_the_schedule() -> None:
    declared()
    await pr.activate_scheduled_workflows()
    before = await now_of("sched_declared")
    declared(interval="2h", overlap_policy="buffer_one")
    await pr.activate_scheduled_workflows()
    after = await now_of("sched_declared")
    assert (after.spec.interval, after.overlap_policy) == (2 * HOUR, pr.OverlapPolicy.BUFFER_ONE)
    assert (after.created_at, after.next_run_time) == (before.created_at, before.created_at + 2 * HOUR)
    assert await types_of("sched_declared") == ["created", "updated"]


async def test_a_decorator_whose_times_stay_keeps_the_missed_fire() -> None:
    """1. A fire comes while nothing runs. 2. A new release is started, with another policy and other code."""
    declared(answer="old")
    await pr.activate_scheduled_workflows()
    schedule = await now_of("sched_declared")
    earlier = Statement("UPDATE schedules SET next_fire_at = :at, look_at = :at, anchor_at = :at")
    missed = schedule.created_at - 5 * MINUTE
    await session().storage.write(earlier.change(at=missed).on)
    declared(answer="new", overlap_policy="allow_all")
    await pr.activate_scheduled_workflows()
    assert (await now_of("sched_declared")).next_run_time == missed
    (run,) = await fired(datetime.now(UTC))
    assert await run == "new"


async def test_a_paused_schedule_stays_paused_when_it_is_activated() -> None:
    declared()
    await pr.activate_scheduled_workflows()
    await pr.pause_schedule("sched_declared", note="holidays")
    for interval in ("1h", "2h"):
        declared(interval=interval)
        await pr.activate_scheduled_workflows()
        schedule = await now_of("sched_declared")
        assert (schedule.status, schedule.note) == (pr.ScheduleStatus.PAUSED, "holidays")
    assert schedule.spec.interval == 2 * HOUR


async def test_what_was_changed_by_hand_stays_until_the_decorator_says_something_new() -> None:
    declared()
    await pr.activate_scheduled_workflows()
    await pr.update_schedule("sched_declared", pr.ScheduleSpec(interval="5h"))
    await pr.activate_scheduled_workflows()
    assert (await now_of("sched_declared")).spec.interval == 5 * HOUR
    declared(interval="3h")
    await pr.activate_scheduled_workflows()
    assert (await now_of("sched_declared")).spec.interval == 3 * HOUR


async def test_many_who_activate_at_once_make_one_schedule() -> None:
    declared()
    await asyncio.gather(*(pr.activate_scheduled_workflows() for _ in range(5)))
    assert await types_of("sched_declared") == ["created"]


def test_a_decorator_that_is_wrong_is_refused_where_it_is_written() -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("exactly one of cron, interval and calendar; given: none", {"interval": None}),
        ("exactly one of cron, interval and calendar; given: cron, interval", {"cron": "@daily"}),
        ("overlap_policy is 'queue': give one of skip,", {"overlap_policy": "queue"}),
        ("catchup_window is '1s': give 10 s or more", {"catchup_window": "1s"}),
        ("There is no time zone 'Europe/Atlantis'", {"timezone": "Europe/Atlantis"}),
    ]
    for message, options in cases:
        with pytest.raises(pr.ConfigurationError, match=message):
            declared(**options)
    with pytest.raises(pr.ConfigurationError, match="nobody gives its parameter 'scope' a value"):

        @pr.scheduled_workflow(interval="1h")
        async def sched_wants(scope: str) -> None: ...

    assert declarations == {}


async def test_a_scheduled_workflow_is_a_workflow_like_any_other() -> None:
    workflow = declared(answer="yes", tags=["reports"], max_duration="1m")
    assert await workflow() == "yes"
    run = await pr.start(workflow)
    assert await run == "yes"
    assert (await run.refresh()).tags == ("reports",)


# --- what must not keep others from firing ----------------------------------------------------------


async def test_a_schedule_that_cannot_be_read_does_not_keep_others_from_firing() -> None:
    schedule = await made()
    for name, column in (("zone", "spec"), ("policy", "overlap_policy"), ("run", "run")):
        await made(schedule_id=name)
        broken = Statement(f"UPDATE schedules SET {column} = :value WHERE schedule_id = :name")
        value = '{"cron":"@daily","timezone":"Europe/Atlantis"}' if column == "spec" else "{"
        await session().storage.write(broken.change(value=value, name=name).on)
    looked = await look(schedule.created_at + HOUR + MINUTE)
    assert [run.schedule_id for run in looked.runs] == ["hourly"]


async def test_a_schedule_that_cannot_be_fired_does_not_keep_others_from_firing() -> None:
    for name in ("first", "guilty", "last"):
        schedule = await made(schedule_id=name)
    too_deep = Statement("UPDATE schedules SET run = :run WHERE schedule_id = 'guilty'")
    record = await session().storage.write(schedules.get_schedule("guilty"))
    assert record is not None
    run = record.run.replace('"nesting_depth":0', f'"nesting_depth":{2**63}')
    await session().storage.write(too_deep.change(run=run).on)
    messages: list[str] = []
    sink = logger.add(lambda message: messages.append(str(message)), level="ERROR")
    try:
        looked = await look(schedule.created_at + HOUR + MINUTE)
    finally:
        logger.remove(sink)
    assert {run.schedule_id for run in looked.runs} == {"first", "last"}
    assert len(messages) == 1
    assert "Schedule guilty could not be fired" in messages[0]
    assert (await statistics("guilty"))[0] == 0


async def test_a_look_says_when_to_look_again() -> None:
    schedule = await made()
    made_at = schedule.created_at
    await made(sched_other, schedule_id="later")
    assert (await look(made_at + 30 * MINUTE)).seconds_until == 30 * 60
    at = made_at + HOUR + MINUTE
    assert (await look(at)).seconds_until == 59 * 60
    assert (await fire_due(session().storage, "", 60, now=lambda: at)).seconds_until is None


# --- by a test's clock ----------------------------------------------------------------------------


async def test_calls_at_one_instant_are_told_apart() -> None:
    """A test's clock stands still: what is asked for twice is done twice."""
    async with WorkflowEnvironment(start_time=datetime(2020, 1, 1, tzinfo=UTC)) as environment:
        await made(sched_context, overlap_policy="allow_all")
        await environment.advance("2h")
        runs = [await pr.trigger_schedule("hourly") for _ in range(2)]
        assert len(set(runs)) == 2
        runs += await asyncio.gather(*(pr.trigger_schedule("hourly") for _ in range(3)))
        assert len(set(runs)) == 5
        now = environment.now()
        assert len(await pr.backfill_schedule("hourly", now - 5 * HOUR, now)) == 4
        assert await pr.backfill_schedule("hourly", now - 5 * HOUR, now) == []
        await environment.advance("1h")
        assert await statistics() == (2 + 5 + 4 + 1, 12, 0, 0)


async def test_backfills_at_one_time_make_all_runs_between_them() -> None:
    async with WorkflowEnvironment(start_time=datetime(2020, 1, 1, tzinfo=UTC)) as environment:
        await made(sched_context)
        now = environment.now()
        spans = [(now - 6 * HOUR, now - 3 * HOUR), (now - 4 * HOUR, now)]
        filled = await asyncio.gather(*(pr.backfill_schedule("hourly", *span) for span in spans))
        assert len({run_id for each in filled for run_id in each}) == sum(map(len, filled)) == 6
        types = [type_ for type_ in await types_of() if "backfill" in type_]
        assert sorted(types) == ["backfill_completed"] * 2 + ["backfill_started"] * 2


@pr.workflow(recover_on_worker_loss=False)
async def sched_not_again() -> None:
    await pr.hook("approval")


async def test_a_run_that_ends_without_its_code_lets_the_next_one_begin() -> None:
    """Its coordinator is lost, and it may not be recovered: it fails where it is found."""
    async with WorkflowEnvironment(start_time=datetime(2020, 1, 1, tzinfo=UTC)) as environment:
        await made(sched_not_again, overlap_policy="buffer_all")
        await environment.advance("2h")
        assert (await now_of()).buffered_count == 1
        await environment.crash()
        await environment.settle()
        assert (await now_of()).buffered_count == 0
        assert await statistics() == (2, 0, 1, 0)


@pytest.mark.parametrize("year", [2020, 2060])
async def test_statistics_are_true_by_any_clock(year: int) -> None:
    async with WorkflowEnvironment(start_time=datetime(year, 1, 1, tzinfo=UTC)) as environment:
        await made(sched_context, 2, overlap_policy="buffer_all")
        await environment.advance("3h")
        assert await statistics() == (3, 3, 0, 0)
