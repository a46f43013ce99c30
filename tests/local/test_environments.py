"""The in-process runtime, and the environment that owns its clock."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.testing import WorkflowEnvironment, replay
from tests.local.waits import until_due


@pr.step
def add(a: int, b: int) -> int:
    return a + b


@pr.step(max_retries=5, retry_delay="1h")
async def flaky() -> int:
    attempt: int = pr.get_context().attempt
    if attempt < 4:
        raise ConnectionError(attempt)
    return attempt


@pr.workflow
async def month() -> int:
    total = 0
    for day in range(30):
        await pr.sleep("1d")
        total = await add(total, day)
    return total


@pr.workflow
async def stubborn() -> int:
    return await flaky()


@pr.workflow
async def racing() -> str:
    sleeper = asyncio.create_task(pr.sleep("2h"))
    done, _ = await pr.wait([sleeper, asyncio.create_task(pr.sleep("1h"))], return_when="FIRST_COMPLETED")
    return "slow" if sleeper in done else "quick"


async def test_a_month_of_sleep_takes_milliseconds() -> None:
    begun = time.perf_counter()
    async with WorkflowEnvironment(start_time=datetime(2026, 1, 1, tzinfo=UTC)) as environment:
        assert await environment.run(month) == sum(range(30))
        assert environment.now() - datetime(2026, 1, 1, tzinfo=UTC) >= timedelta(days=30)
    assert time.perf_counter() - begun < 30


async def test_time_stands_still_until_the_test_advances_it() -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(month)
        await environment.advance("10d")
        events = await run.events()
        assert [event.type for event in events].count("step.completed") == 10
        assert not (await run.status()).is_terminal
        await environment.advance("20d")
        assert await run == sum(range(30))


async def test_retries_wait_on_the_same_clock() -> None:
    async with WorkflowEnvironment() as environment:
        begun = environment.now()
        assert await environment.run(stubborn) == 4
        assert environment.now() - begun >= timedelta(hours=3)


async def test_a_race_has_the_winner_that_was_due_first() -> None:
    async with WorkflowEnvironment() as environment:
        assert await environment.run(racing) == "quick"


async def test_many_runs_share_an_environment() -> None:
    async with WorkflowEnvironment() as environment:
        runs = [await environment.start(month) for _ in range(20)]
        assert await asyncio.gather(*runs) == [sum(range(30))] * 20


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "local.db"
    pr.configure(default_runtime="local", storage=path, suspend_after="50ms")
    return path


async def test_start_drives_a_run_in_process_to_its_end(local: Path) -> None:
    run = await pr.start(stub, 2)
    assert await run.status() is pr.RunStatus.COMPLETED
    assert await run == 4


@pr.workflow
async def stub(x: int) -> int:
    return await add(x, 2)


@pr.workflow
async def fails() -> None:
    await add("one", "two")  # type: ignore[arg-type]


async def test_start_in_process_raises_what_the_run_raised_with_its_id(local: Path) -> None:
    with pytest.raises(pr.StepValidationError) as caught:
        await pr.start(fails)
    run_id = caught.value.run_id  # type: ignore[attr-defined]
    assert (await pr.RunHandle(run_id).refresh()).status is pr.RunStatus.FAILED


@pr.workflow
async def rests() -> str:
    await add(1, 1)
    await pr.sleep(1)  # long enough to be seen suspended on a busy machine
    return "rested"


async def test_a_run_suspended_in_process_goes_on_with_resume(local: Path) -> None:
    run = await pr.start(rests)
    assert await run.status() is pr.RunStatus.SUSPENDED
    await until_due(run)
    await pr.resume(run)
    assert await run == "rested"
    with pytest.raises(pr.WorkflowError, match="nothing to resume"):
        await pr.resume(run)


def test_another_event_loop_goes_on_with_what_the_first_one_left(local: Path) -> None:
    run = asyncio.run(_start(rests))
    asyncio.run(until_due(run))

    async def go_on() -> str:
        await pr.resume(run)
        return await run.result()

    assert asyncio.run(go_on()) == "rested"


async def _start(workflow: pr.WorkflowFunction[[], str]) -> pr.RunHandle[str]:
    return await pr.start(workflow)


async def test_todays_code_is_held_against_a_recorded_history(local: Path) -> None:
    run = await pr.start(stub, 2)
    replay(run)
    replay(await run.events(), stub)

    async def other(x: int) -> int:
        return await add.options(name="plus")(x, 2)

    with pytest.raises(pr.NonDeterminismError, match=r"recorded StepScheduled\('add#1'\)"):
        replay(run, pr.WorkflowFunction(other, "stub", stub.workflow_options))


async def test_runs_are_listed_newest_first_by_page_and_by_attribute(local: Path) -> None:
    for number in range(5):
        await pr.start.options(attributes={"customer": number % 2})(stub, number)
    first, cursor = await pr.list_runs(workflow="stub", limit=3)
    second, end = await pr.list_runs(workflow="stub", limit=3, cursor=cursor)
    assert [run.input_args for run in first + second] == [[4], [3], [2], [1], [0]]
    assert end is None
    odd, _ = await pr.list_runs(attributes={"customer": 1}, status="completed")
    assert [run.input_args for run in odd] == [[3], [1]]
    with pytest.raises(ValueError, match="not a cursor"):
        await pr.list_runs(cursor="nonsense")
    with pytest.raises(ValueError, match="status is 'done'"):
        await pr.list_runs(status="done")


async def test_an_option_that_is_also_a_parameter_must_say_which_it_is(local: Path) -> None:
    @pr.workflow
    async def moves(storage: str) -> str:
        return storage

    with pytest.raises(pr.ConfigurationError, match=r"start\.options"):
        await pr.start(moves, storage="shed")
    assert await (await pr.start.options()(moves, storage="shed")) == "shed"


class Turned:
    """Keeps payloads out of sight; a real one would encrypt them."""

    def encode(self, data: bytes) -> bytes:
        return data[::-1]

    def decode(self, data: bytes) -> bytes:
        return data[::-1]


turned = Turned()


@pr.workflow(tags=["quiet"])
async def secretive(word: str) -> str:
    pr.set_attributes(length=len(word))
    return word * 2


async def test_payloads_are_sealed_and_labels_can_be_searched(local: Path) -> None:
    pr.configure(payload_codec="tests.local.test_environments:turned")
    run = await pr.start.options(attributes={"customer": "c1"})(secretive, "psst")
    assert await run == "psstpsst"
    shown = await run.refresh()
    assert (shown.tags, shown.attributes) == (("quiet",), {"customer": "c1", "length": 4})
    assert "psst" not in str(shown.to_dict())
    assert "psst" not in "".join(event.stored for event in await run.events())
    found, _ = await pr.list_runs(attributes={"length": 4})
    assert found == [shown]


async def test_a_purge_counts_by_the_environments_clock() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(stub, 2)
        assert await run == 4
        assert await pr.purge("30d") == 0
        await environment.advance("31d")
        assert await pr.purge("30d") == 1
        assert await pr.get_workflow_run(run) is None
