"""Runs that are ended without their code: their histories replay to the same end, from every prefix."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import pyworkflow_ray as pr
from pyworkflow_ray.actors.coordinator import Coordinator
from pyworkflow_ray.actors.recoveries import allowed_recoveries
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.client.lookups import read_record
from pyworkflow_ray.client.sessions import session
from pyworkflow_ray.storage.inboxes import post
from pyworkflow_ray.storage.leases import claim
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.testing import WorkflowEnvironment, replay
from pyworkflow_ray.values.failures import error_type_name
from tests.local.notes import types

DUE_HERE = "start_at = NULL, coordinator = 'coordinator-0'"


@pr.step(local=True)
async def costs() -> int:
    return 7


@pr.workflow
async def calls_and_waits(turns: int = 0) -> int:
    pr.set_query_handler("turns", lambda: turns)
    total = 0
    for _ in range(3):
        total += await costs()
        try:
            await pr.sleep("1d")
        except pr.CancellationError:
            await costs()  # which code that is not asked does not do
            raise
    if turns:
        await pr.continue_as_new(turns - 1)
    return total


@pr.step(local=True, idempotent=False)
async def runs_once() -> int:
    return 1


@pr.workflow
async def costs_and_runs_once() -> int:
    return await costs() + await runs_once()


@pr.workflow
async def begins_with_a_step() -> int:
    return await costs()


@pr.workflow
async def cleans_up_for_long() -> None:
    try:
        await pr.sleep("1d")
    finally:
        await pr.receive("clean")
        await costs()


@pr.workflow
async def waits_for_a_signal() -> int:
    return int(await pr.receive("item"))


async def assert_replays(run: Any) -> None:
    """Today's code replays the history and each of its prefixes, and the run answers queries."""
    events = await pr.get_workflow_events(run)
    for length in range(1, len(events) + 1):
        replay(events[:length], workflow=(await read_record(session(), str(run))).workflow_name)
    replay(run)
    with pytest.raises(pr.WorkflowError, match="answers no query 'nothing'"):
        await pr.query(run, "nothing")


def _set(connection: Any, run: str, changes: str) -> None:
    connection.execute(text(f"UPDATE runs SET {changes} WHERE run_id = :run"), {"run": str(run)})


async def test_a_run_that_was_cancelled_before_it_began_replays_and_answers_queries() -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await pr.start.options(delay="30d")(begins_with_a_step)
        await environment.settle()
        await run.cancel("no longer wanted")
        with pytest.raises(pr.CancellationError):
            await run.result(timeout=60)
        assert await types(run) == ["workflow.started", "cancellation.requested", "workflow.cancelled"]
        await assert_replays(run)


async def _lose(storage: Storage, run: str) -> None:
    """Have a process hold the run that is gone, and a coordinator of the same name come back."""
    await storage.write(claim(run, "lost", 60.0, force_from="coordinator-0"))
    coordinator = Coordinator("coordinator-0", EngineSettings("", suspend_after=timedelta()), storage=storage)
    await coordinator.open()
    await coordinator.end_of(run)
    await coordinator.close()


async def test_a_run_whose_code_is_missing_is_cancelled_from_its_start(tmp_path: Path) -> None:
    pr.configure(default_runtime="local", storage=tmp_path / "local.db")
    run = await pr.start.options(delay="1d")(begins_with_a_step)
    with Storage(tmp_path / "local.db") as storage:
        code = storage.read(_code_of(run))
        await storage.write(partial(_set, run=run, changes=f"code_hash = 'none', {DUE_HERE}"))
        await _lose(storage, run)
        assert await run.status() is pr.RunStatus.INTERRUPTED
        await run.cancel("nobody has it")
        await _lose(storage, run)
        assert await run.status() is pr.RunStatus.CANCELLED
        await storage.write(partial(_set, run=run, changes=f"code_hash = '{code}'"))
    assert await types(run) == ["workflow.started", "cancellation.requested", "workflow.cancelled"]
    await assert_replays(run)


def _code_of(run: str) -> Any:
    def read(connection: Any) -> Any:
        return connection.execute(
            text("SELECT code_hash FROM runs WHERE run_id = :run"), {"run": str(run)}
        ).scalar_one()

    return read


@pytest.mark.parametrize("times", [0, 2])
async def test_a_run_that_was_set_aside_on_its_way_replays_once_cancelled(times: int, tmp_path: Path) -> None:
    pr.configure(default_runtime="local", storage=tmp_path / "local.db", suspend_after="10ms")
    run = await pr.start(calls_and_waits)
    while await run.status() is not pr.RunStatus.SUSPENDED:
        await asyncio.sleep(0.01)
    with Storage(tmp_path / "local.db") as storage:
        for _ in range(times):  # its coordinator is lost
            await _lose(storage, run)
        code = storage.read(_code_of(run))
        await storage.write(partial(_set, run=run, changes="code_hash = 'none'"))
        await pr.resume(run)
        assert await run.status() is pr.RunStatus.INTERRUPTED
        await run.cancel("nobody has it")
        while not (await run.status()).is_terminal:
            await asyncio.sleep(0.01)
        await storage.write(partial(_set, run=run, changes=f"code_hash = '{code}'"))
    assert (await types(run))[-2:] == ["cancellation.requested", "workflow.cancelled"]
    assert (await types(run)).count("workflow.interrupted") == times
    await assert_replays(run)
    if times:
        return
    for kept in (1, len(await types(run)) - 2):
        forked = await pr.fork(run, from_position=kept)
        while await forked.status() is not pr.RunStatus.SUSPENDED:
            await asyncio.sleep(0.01)
        assert await pr.query(forked, "turns") == 0
    with pytest.raises(pr.WorkflowError, match="can keep 1 to"):
        await pr.fork(run, from_position=len(await types(run)) - 1)


async def _set_aside_in_its_clean_up(storage: Storage) -> tuple[Any, Any]:
    """A run that was asked to cancel, and whose code is missing while it cleans up; and its code."""
    run = await pr.start(cleans_up_for_long)
    await run.cancel("enough")
    while "cancellation.requested" not in await types(run) or (await read_record(session(), run)).owner:
        await asyncio.sleep(0.01)
    code = storage.read(_code_of(run))
    await storage.write(partial(_set, run=run, changes="code_hash = 'none'"))
    await pr.resume(run)
    assert await run.status() is pr.RunStatus.INTERRUPTED
    return run, code


async def test_a_run_that_was_set_aside_as_it_cleaned_up_can_be_cancelled_again(tmp_path: Path) -> None:
    pr.configure(default_runtime="local", storage=tmp_path / "local.db", suspend_after="10ms")
    with Storage(tmp_path / "local.db") as storage:
        run, code = await _set_aside_in_its_clean_up(storage)
        assert await run.cancel("and now really")
        while not (await run.status()).is_terminal:
            await asyncio.sleep(0.01)
        await storage.write(partial(_set, run=run, changes=f"code_hash = '{code}'"))
    assert (await types(run))[-2:] == ["cancellation.requested", "workflow.cancelled"]
    assert not await run.cancel()
    with pytest.raises(pr.CancellationError, match="and now really"):
        await run
    await assert_replays(run)


async def test_a_run_that_was_set_aside_as_it_cleaned_up_goes_on_with_its_code(tmp_path: Path) -> None:
    pr.configure(default_runtime="local", storage=tmp_path / "local.db", suspend_after="10ms")
    with Storage(tmp_path / "local.db") as storage:
        run, code = await _set_aside_in_its_clean_up(storage)
        await storage.write(partial(_set, run=run, changes=f"code_hash = '{code}'"))
        assert await run.cancel("again: it changes nothing, since the code can go on")
        while "cancellation.requested" not in (await types(run))[-2:]:
            await asyncio.sleep(0.01)
        await pr.signal(run, "clean")
        with pytest.raises(pr.CancellationError, match="enough"):
            await run
    assert (await types(run))[-3:] == ["step.started", "step.completed", "workflow.cancelled"]
    await assert_replays(run)


async def test_a_run_that_is_given_up_at_its_start_replays(tmp_path: Path) -> None:
    pr.configure(default_runtime="local", storage=tmp_path / "local.db")
    run = await pr.start.options(delay="1d")(begins_with_a_step)
    allowed = allowed_recoveries(await read_record(session(), run))
    with Storage(tmp_path / "local.db") as storage:
        often = f"{DUE_HERE}, recovery_attempts = {allowed + 1}"
        await storage.write(partial(_set, run=run, changes=often))
        await _lose(storage, run)
    assert (await read_record(session(), run)).error_type == error_type_name(pr.WorkerDiedError)
    assert await types(run) == ["workflow.started", "workflow.failed"]
    await assert_replays(run)


async def test_a_run_that_is_given_up_on_its_way_replays() -> None:
    async with WorkflowEnvironment() as environment:
        environment.crash_at("before_commit", "sleep.completed", times=None)
        run = await environment.start(calls_and_waits)
        with pytest.raises(pr.WorkerDiedError):
            await run
        await assert_replays(run)


async def test_a_step_that_only_the_code_of_today_asks_for_is_not_lost_in_a_takeover(tmp_path: Path) -> None:
    """The history is cut as if code had been added to its end, and the coordinator is lost."""
    pr.configure(default_runtime="local", storage=tmp_path / "local.db")
    run = await pr.start(costs_and_runs_once)
    assert await run == 8
    cut = (
        "status = 'running', position = 3, completed_at = NULL, result = NULL, coordinator = 'coordinator-0'"
    )
    with Storage(tmp_path / "local.db") as storage:
        await storage.write(partial(_set, run=run, changes=cut))
        await storage.write(partial(_cut, run=run, position=3))
        await _lose(storage, run)
    assert await run.status() is pr.RunStatus.COMPLETED
    events = await run.events()
    assert [event.type for event in events][-4:] == [
        "step.started",
        "workflow.interrupted",
        "step.completed",
        "workflow.completed",
    ]
    assert events[-2].data["attempt"] == 1
    await assert_replays(run)


def _cut(connection: Any, run: str, position: int) -> None:
    connection.execute(
        text("DELETE FROM events WHERE run_id = :run AND position >= :position"),
        {"run": str(run), "position": position},
    )


async def test_what_lies_in_the_inbox_of_a_run_that_is_given_up_is_in_its_history(tmp_path: Path) -> None:
    pr.configure(default_runtime="local", storage=tmp_path / "local.db")
    run = await pr.start.options(delay="1d")(begins_with_a_step)
    allowed = allowed_recoveries(await read_record(session(), run))
    with Storage(tmp_path / "local.db") as storage:
        await storage.write(post(run, "signal:1", "signal.received", '{"name":"item","payload":1}'))
        await storage.write(post(run, "cancel", "cancellation.requested", '{"reason":"enough"}'))
        often = f"{DUE_HERE}, recovery_attempts = {allowed + 1}"
        await storage.write(partial(_set, run=run, changes=often))
        await _lose(storage, run)
    assert await types(run) == [
        "workflow.started",
        "signal.received",
        "cancellation.requested",
        "workflow.failed",
    ]
    await assert_replays(run)


async def test_a_signal_over_which_a_run_is_lost_again_and_again_is_in_its_history() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(waits_for_a_signal)
        losses = allowed_recoveries(await read_record(session(), run)) + 1
        environment.crash_at("before_commit", "signal.received", times=losses)
        await run.signal("item", 1)
        with pytest.raises(pr.WorkerDiedError):
            await run
        assert (await types(run))[-2:] == ["signal.received", "workflow.failed"]
        await assert_replays(run)


async def test_a_run_that_grew_too_long_replays() -> None:
    async with WorkflowEnvironment(event_hard_limit=6) as environment:
        run = await environment.start(calls_and_waits)
        with pytest.raises(pr.EventLimitExceededError):
            await run
        await assert_replays(run)


async def test_runs_that_continued_as_new_and_were_interrupted_replay() -> None:
    async with WorkflowEnvironment() as environment:
        environment.crash_at("after_commit", "step.completed", times=2)
        run = await environment.start(calls_and_waits, 2)
        assert await run == 21
        chain = [record.run_id for record in await pr.get_workflow_chain(run)]
        assert len(chain) == 3
        for run_id in chain:
            await assert_replays(run_id)
