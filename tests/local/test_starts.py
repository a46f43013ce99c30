"""Starting runs: keys and conflicts, starts that are put off, and the limits of a run; in process."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.actors.coordinator import Coordinator
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.storage.leases import claim
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.testing import WorkflowEnvironment
from tests.local.notes import note, notes, types


@pr.workflow
async def waits_a_day(name: str = "") -> str:
    await pr.sleep("1d")
    return name


@pr.workflow
async def tells_when(folder: str = "") -> datetime:
    if folder:
        await note(folder, "started")
    return pr.get_context().now()  # type: ignore[no-any-return]


# --- keys and conflicts ---------------------------------------------------------------------------


async def test_of_many_starts_with_one_key_one_makes_a_run() -> None:
    async with WorkflowEnvironment() as environment:
        keyed = pr.start.options(idempotency_key="order-1")
        runs = await asyncio.gather(*(keyed(waits_a_day, "a") for _ in range(20)))
        assert len(set(runs)) == 1
        found, _ = await pr.list_runs()
        assert [run.run_id for run in found] == [runs[0]]
        assert await runs[0] == "a"
        assert await keyed(waits_a_day, "a") == runs[0], "also when it has ended"
        with pytest.raises(pr.WorkflowAlreadyRunningError, match="other arguments"):
            await keyed(waits_a_day, "b")
        other = await keyed(tells_when)
        assert other != runs[0], "a key belongs to a workflow"
        assert environment.now()


async def test_a_run_may_have_an_id_of_ones_own() -> None:
    async with WorkflowEnvironment():
        run = await pr.start.options(run_id="order-7")(waits_a_day, "a")
        assert run == "order-7"
        with pytest.raises(pr.WorkflowAlreadyRunningError):
            await pr.start.options(run_id="order-7")(waits_a_day, "b")
        assert await run == "a"


async def test_a_conflict_may_be_an_error() -> None:
    async with WorkflowEnvironment() as environment:
        starter = pr.start.options(idempotency_key="k", conflict="fail")
        run = await starter(waits_a_day, "a")
        for name in ("a", "b"):
            with pytest.raises(pr.WorkflowAlreadyRunningError) as caught:
                await starter(waits_a_day, name)
            assert caught.value.run_id == run
        outcomes = await asyncio.gather(
            *(
                pr.start.options(idempotency_key="k2", conflict="fail")(waits_a_day, str(number))
                for number in range(10)
            ),
            return_exceptions=True,
        )
        assert [type(each) for each in outcomes].count(pr.RunHandle) == 1
        assert environment.now()


async def test_a_run_may_replace_the_one_that_has_its_key() -> None:
    async with WorkflowEnvironment() as environment:
        starter = pr.start.options(idempotency_key="k", conflict="replace")
        first = await starter(waits_a_day, "a")
        await environment.settle()
        second = await starter(waits_a_day, "b")
        with pytest.raises(pr.CancellationError) as caught:
            await first
        assert caught.value.reason == f"it was replaced by {second}"
        assert await second == "b"
        third = await starter(waits_a_day, "c")
        assert third != second
        assert await second.status() is pr.RunStatus.COMPLETED, "what has ended is only succeeded"
        holder = await pr.get_workflow_run_by_idempotency_key("k")
        assert holder is not None
        assert holder.run_id == third


async def test_of_many_that_replace_one_another_one_is_left() -> None:
    async with WorkflowEnvironment() as environment:
        starter = pr.start.options(idempotency_key="k", conflict="replace")
        runs = await asyncio.gather(*(starter(waits_a_day, str(number)) for number in range(8)))
        outcomes = await asyncio.gather(*runs, return_exceptions=True)
        left = [outcome for outcome in outcomes if isinstance(outcome, str)]
        assert len(left) == 1
        assert sum(isinstance(outcome, pr.CancellationError) for outcome in outcomes) == 7
        holder = await pr.get_workflow_run_by_idempotency_key("k")
        assert holder is not None
        assert holder.input_args == left
        assert environment.now()


@pr.workflow
async def polls(stage: int) -> str:
    """Continues, cancelled or not, when it is told to."""
    if stage > 1:
        return f"stage {stage}"
    with contextlib.suppress(pr.CancellationError):
        await pr.receive("never")
    await pr.receive("go")
    return pr.continue_as_new(2)


async def test_a_replaced_run_that_continues_leaves_the_key_to_the_new_one() -> None:
    async with WorkflowEnvironment() as environment:
        starter = pr.start.options(idempotency_key="k", conflict="replace")
        first = await starter(polls, 1)
        await environment.settle()
        second = await starter(polls, 3)
        await environment.settle()
        await first.signal("go")
        assert await first.result(timeout=60) == "stage 2"
        assert await second == "stage 3"


async def test_options_that_say_nothing_sensible_are_refused() -> None:
    with pytest.raises(pr.ConfigurationError, match="conflict is 'ignore'"):
        pr.start.options(conflict="ignore")
    with pytest.raises(pr.ConfigurationError, match="give one of them"):
        pr.start.options(delay="1h", start_at=datetime.now(UTC))
    with pytest.raises(ValueError, match="soon"):
        pr.start.options(delay="soon")


# --- starts that are put off ----------------------------------------------------------------------


async def test_a_start_that_is_put_off_waits_on_the_virtual_clock(tmp_path: Path) -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await pr.start.options(delay="30d")(tells_when, str(tmp_path))
        await environment.advance("29d")
        assert await run.status() is pr.RunStatus.PENDING
        assert (await run.events(), notes(tmp_path)) == ([], [])
        await environment.advance("2d")
        assert notes(tmp_path) == ["started"]
        record = await run.refresh()
        assert record.started_at is not None
        assert abs(record.started_at - await run) < timedelta(seconds=1)
        assert record.started_at - record.created_at > timedelta(days=29)


async def test_time_skips_to_a_start_that_somebody_waits_for() -> None:
    async with WorkflowEnvironment() as environment:
        begun = environment.now()
        run = await pr.start.options(start_at=begun + timedelta(days=365))(tells_when)
        assert await run - begun >= timedelta(days=365)


async def test_a_start_in_the_past_is_a_start_now() -> None:
    async with WorkflowEnvironment() as environment:
        for at in (datetime(2020, 1, 1), datetime(2020, 1, 1, tzinfo=UTC)):
            run = await pr.start.options(start_at=at)(tells_when)
            assert abs(await run - environment.now()) < timedelta(minutes=1)


async def test_a_delay_counts_from_the_time_of_the_environment() -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        await environment.advance("10d")
        run = await pr.start.options(delay="1h")(tells_when)
        await environment.advance("59m")
        assert await run.status() is pr.RunStatus.PENDING
        await environment.advance("2m")
        assert await run.status() is pr.RunStatus.COMPLETED


async def test_a_start_that_is_put_off_keeps_its_key_and_its_inbox() -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        starter = pr.start.options(idempotency_key="k", delay="1d")
        run = await starter(hears)
        assert await starter(hears) == run
        await run.signal("word", "early")
        await asyncio.wait_for(environment.settle(), 60)
        assert await run.status() is pr.RunStatus.PENDING
        await environment.advance("25h")
        assert await run == "early"


@pr.workflow
async def hears() -> Any:
    return await pr.receive("word")


async def test_a_start_that_was_put_off_can_be_replaced() -> None:
    async with WorkflowEnvironment() as environment:
        first = await pr.start.options(idempotency_key="k", delay="30d")(waits_a_day, "a")
        await environment.settle()
        second = await pr.start.options(idempotency_key="k", conflict="replace")(waits_a_day, "b")
        with pytest.raises(pr.CancellationError):
            await first.result(timeout=60)
        assert await second == "b"


# --- limits ---------------------------------------------------------------------------------------


@pr.workflow
async def goes_on_and_on(rounds: int) -> int:
    for number in range(rounds):
        await pr.sleep(1)
        if number == 2:
            pr.set_attributes(reached=True)
    return rounds


async def test_a_history_that_grows_too_long_ends_its_run() -> None:
    async with WorkflowEnvironment(event_soft_limit=20, event_hard_limit=40) as environment:
        assert await environment.run(goes_on_and_on, 10) == 10
        with pytest.raises(pr.EventLimitExceededError, match="the limit is 40") as caught:
            await environment.run(goes_on_and_on, 100)
        run = pr.RunHandle[int](caught.value.run_id)
        record = await run.refresh()
        assert record.status is pr.RunStatus.FAILED
        assert 40 <= caught.value.event_count <= 42
        assert (await types(run))[-1] == "workflow.failed"


async def test_a_hard_limit_below_the_soft_one_holds_too() -> None:
    async with WorkflowEnvironment(event_hard_limit=40) as environment:
        with pytest.raises(pr.EventLimitExceededError):
            await environment.run(goes_on_and_on, 100)


@pytest.mark.parametrize(("recover", "allowed"), [(True, 0), (True, 2), (False, 2)])
async def test_a_run_recovers_as_often_as_it_may(recover: bool, allowed: int, tmp_path: Path) -> None:
    """Its owner is lost again and again, and it gets no further meanwhile."""
    url = str(tmp_path / "lost.db")
    pr.configure(default_runtime="local", storage=url, suspend_after="30ms")
    pr.configure(default_recover_on_worker_loss=recover, default_max_recovery_attempts=allowed)
    run = await pr.start(waits_a_day)
    interrupted = 0
    with Storage(url) as storage:
        while not (await run.status()).is_terminal:
            await _lose(storage, run)
            interrupted += 1
            assert interrupted <= allowed + 1, "and no oftener"
    assert await run.status() is pr.RunStatus.FAILED
    assert interrupted == (allowed if recover else 0) + 1
    assert (await types(run)).count("workflow.interrupted") == interrupted - 1
    with pytest.raises(pr.WorkerDiedError, match="went away"):
        await run


async def _lose(storage: Storage, run: str) -> None:
    """Have a process hold the run that is gone, and a coordinator of the same name come back."""
    await storage.write(claim(run, "lost", 60.0, force_from="coordinator-0"))
    engine = EngineSettings("", suspend_after=timedelta(milliseconds=30))
    coordinator = Coordinator("coordinator-0", engine, storage=storage)
    await coordinator.open()
    await coordinator.end_of(run)
    await coordinator.close()


async def test_a_start_under_the_key_of_a_chain_finds_it_by_its_first_input() -> None:
    async with WorkflowEnvironment() as environment:
        run = await pr.start.options(idempotency_key="chained")(polls, 1)
        await environment.settle()
        await run.cancel()
        await run.signal("go")
        assert await run == "stage 2"
        again = await pr.start.options(idempotency_key="chained")(polls, 1)
        assert again != run
        assert await again == "stage 2"
        with pytest.raises(pr.WorkflowAlreadyRunningError):
            await pr.start.options(idempotency_key="chained")(polls, 2)


async def test_in_process_a_start_that_is_put_off_returns_at_once(tmp_path: Path) -> None:
    pr.configure(default_runtime="local", storage=tmp_path / "later.db")
    asked_at = datetime.now(UTC)
    run = await pr.start.options(delay="1s")(tells_when)
    assert await run.status() is pr.RunStatus.PENDING
    assert await run - asked_at >= timedelta(milliseconds=999)
