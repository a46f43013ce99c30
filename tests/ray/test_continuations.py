"""Chains of runs, signals and queries on their way, forks, and starts that are put off or contested."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyworkflow_ray as pr
from tests.ray.conftest import EngineUnderTest, eventually
from tests.ray.test_crashes import began, mark, types
from tests.ray.test_hooks import at_most, kill_all, living, suspended

pytestmark = pytest.mark.usefixtures("shared_engine")

LINKS = 100
SIGNALS_OF_EACH_LINK = 2


def chain_of(run: str) -> list[pr.WorkflowRun]:
    return pr.run_sync(pr.get_workflow_chain(run))


# --- continue_as_new ------------------------------------------------------------------------------


@pr.step(local=True)
async def link_done(folder: str, number: int) -> None:
    with (Path(folder) / "links").open("a") as file:
        file.write(f"{number}\n")


@pr.workflow
async def long_chain(folder: str, number: int) -> int:
    await link_done(folder, number)
    if number < LINKS:
        pr.continue_as_new(folder, number + 1)
    return number


def test_a_run_continues_a_hundred_times(tmp_path: Path) -> None:
    run = pr.run_sync(pr.start.options(idempotency_key="the chain")(long_chain, str(tmp_path), 1))
    assert run.wait(timeout=90) == LINKS
    assert (tmp_path / "links").read_text().split() == [str(number) for number in range(1, LINKS + 1)]
    chain = chain_of(run)
    assert [each.status.value for each in chain] == ["continued_as_new"] * (LINKS - 1) + ["completed"]
    assert [each.input_args[1] for each in chain] == list(range(1, LINKS + 1))
    assert chain_of(chain[LINKS // 2].run_id) == chain
    holder = pr.run_sync(pr.get_workflow_run_by_idempotency_key("the chain"))
    assert holder is not None
    assert holder.run_id == chain[-1].run_id


@pr.workflow
async def reading_chain(read: list[int], links: int) -> list[int]:
    read = read + [await pr.receive("number") for _ in range(SIGNALS_OF_EACH_LINK)]
    if len(read) < links * SIGNALS_OF_EACH_LINK:
        pr.continue_as_new(read, links)
    return read


async def test_signals_to_a_chain_are_each_read_once_though_its_coordinator_dies(
    shared_engine: EngineUnderTest,
) -> None:
    run = await pr.start(reading_chain, [], LINKS)
    count = LINKS * SIGNALS_OF_EACH_LINK
    sending = asyncio.create_task(at_most(20, (_signal(run, number) for number in range(count))))
    async with asyncio.timeout(30):
        while len(await pr.get_workflow_chain(run)) < LINKS // 4:
            await asyncio.sleep(0.02)
    kill_all([await asyncio.to_thread(living, shared_engine, "coordinator-0")])
    read = await run.result(timeout=60)
    await sending
    assert sorted(read) == list(range(count))
    assert len(await pr.get_workflow_chain(run)) == LINKS


def _signal(run: pr.RunHandle[Any], number: int) -> Callable[[], Any]:
    return lambda: run.signal("number", number)


# --- queries --------------------------------------------------------------------------------------


@pr.workflow
async def answers_queries(folder: str) -> int:
    seen: list[int] = []
    pr.set_query_handler("seen", lambda: seen)
    pr.set_query_handler("sum", lambda start=0: sum(seen, start))
    await mark(folder, "once")
    while (number := await pr.receive("number")) != 0:
        seen.append(number)
        if number < 0:
            await mark(folder, f"slow{number}", 1.0)
    return sum(seen)


def ask(run: pr.RunHandle[Any], name: str, *args: Any) -> Any:
    return pr.run_sync(run.query(name, *args))


def tell(run: pr.RunHandle[Any], number: int) -> None:
    pr.run_sync(run.signal("number", number))


def test_a_query_is_answered_in_every_state_and_leaves_no_event(tmp_path: Path) -> None:
    run = pr.start_sync(answers_queries, str(tmp_path))
    tell(run, 5)
    tell(run, -1)
    eventually(lambda: began(tmp_path, "slow-1"))
    at_work = run.events_sync()
    assert (ask(run, "seen"), ask(run, "sum", 10)) == ([5, -1], 14)
    assert run.events_sync()[: len(at_work)] == at_work
    suspended(run)
    before = run.events_sync(), pr.run_sync(run.refresh())
    assert (ask(run, "seen"), ask(run, "sum")) == ([5, -1], 4)
    with pytest.raises(pr.WorkflowError, match="answers no query 'product'"):
        ask(run, "product")
    with pytest.raises(TypeError):
        ask(run, "sum", "text")
    assert (run.events_sync(), pr.run_sync(run.refresh())) == before, "nobody has woken it"
    tell(run, 0)
    assert run.wait(timeout=60) == 4
    ended = run.events_sync()
    assert ask(run, "seen") == [5, -1]
    assert run.events_sync() == ended
    assert len(began(tmp_path, "once")) == 1


# --- fork and rerun -------------------------------------------------------------------------------


def pipeline(is_mended: bool) -> pr.WorkflowFunction[[str], list[str]]:
    """The workflow as it was deployed at first, and as it is after the bug was found."""

    @pr.step(name="finishes_pipeline", max_retries=0)
    def finish(folder: str, before: list[str]) -> str:
        if not is_mended:
            raise ZeroDivisionError("a bug")
        (Path(folder) / "finished").touch()
        return f"finished {len(before)}"

    @pr.workflow(name="mended_pipeline")
    async def workflow(folder: str) -> list[str]:
        before = [await mark(folder, f"part-{number}") for number in range(3)]
        return [*before, await finish(folder, before)]

    return workflow


def test_a_failed_run_is_finished_with_mended_code_and_repeats_nothing(tmp_path: Path) -> None:
    run = pr.start_sync(pipeline(is_mended=False), str(tmp_path))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run.wait(timeout=60)
    pipeline(is_mended=True)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        pr.run_sync(pr.fork(run)).wait(timeout=60)
    forked = pr.run_sync(pr.fork(run, code="current"))
    assert forked.wait(timeout=60) == ["part-0:1", "part-1:1", "part-2:1", "finished 3"]
    for number in range(3):
        assert len(began(tmp_path, f"part-{number}")) == 1
    assert run.status_sync() is pr.RunStatus.FAILED
    partly = pr.run_sync(pr.fork(forked, from_step="mark#3"))
    assert partly.wait(timeout=60)[-1] == "finished 3"
    assert [len(began(tmp_path, f"part-{number}")) for number in range(3)] == [1, 1, 2]
    again = pr.run_sync(pr.rerun(forked))
    assert again.wait(timeout=60)[-1] == "finished 3"
    assert [len(began(tmp_path, f"part-{number}")) for number in range(3)] == [2, 2, 3]


# --- starts ---------------------------------------------------------------------------------------


DRIVER = """
    import asyncio, os, pathlib, sys, time
    import pyworkflow_ray as pr

    @pr.workflow
    async def put_off(folder: str) -> str:
        return await leaves_a_file(folder)

    @pr.step
    def leaves_a_file(folder: str) -> str:
        pathlib.Path(folder, "put_off").write_text(repr(time.time()))
        return "it has run"

    @pr.workflow
    async def contested(name: str) -> str:
        await pr.sleep(1)
        return name

    async def main(folder: str) -> None:
        begun = time.time()
        run = await pr.start.options(delay="4s")(put_off, folder)
        print(run, begun, flush=True)
        while not pathlib.Path(folder, "go").exists():
            await asyncio.sleep(0.001)
        keyed = pr.start.options(idempotency_key="contested")
        runs = await asyncio.gather(*(keyed(contested, "winner") for _ in range(10)))
        print(" ".join(set(runs)), flush=True)
        os._exit(0)

    asyncio.run(main(sys.argv[1]))
"""


@pr.workflow
async def contested(name: str) -> str:
    await pr.sleep(1)
    return name


async def test_starts_in_two_processes_make_one_run_and_a_start_put_off_needs_no_driver(
    shared_engine: EngineUnderTest, tmp_path: Path
) -> None:
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    other = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(tmp_path), env=shared_engine.environment(), stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    run_id, begun = (await other.stdout.readline()).decode().split()
    put_off: pr.RunHandle[str] = pr.RunHandle(run_id)
    assert await put_off.status() is pr.RunStatus.PENDING
    (tmp_path / "go").touch()
    keyed = pr.start.options(idempotency_key="contested")
    mine = await asyncio.gather(*(keyed(contested, "winner") for _ in range(20)))
    theirs = (await other.stdout.readline()).decode().split()
    await other.wait()
    assert set(mine) == set(theirs)
    assert len(set(mine)) == 1
    assert await mine[0].result(timeout=60) == "winner"
    with pytest.raises(pr.WorkflowAlreadyRunningError):
        await keyed(contested, "another")
    assert await put_off.result(timeout=60) == "it has run"
    assert float((tmp_path / "put_off").read_text()) - float(begun) >= 4


def test_a_key_that_is_taken_is_told_shared_or_taken_over(tmp_path: Path) -> None:
    def started(conflict: str) -> pr.RunHandle[Any]:
        options = pr.start.options(idempotency_key="conflict", conflict=conflict)
        return pr.run_sync(options(answers_queries, str(tmp_path)))

    first = started("fail")
    with pytest.raises(pr.WorkflowAlreadyRunningError) as caught:
        started("fail")
    assert caught.value.run_id == first
    assert started("use_existing") == first
    suspended(first)
    second = started("replace")
    with pytest.raises(pr.CancellationError, match="cancelled") as replaced:
        first.wait(timeout=60)
    assert replaced.value.reason == f"it was replaced by {second}"
    tell(second, 7)
    tell(second, 0)
    assert second.wait(timeout=60) == 7
    assert types(first)[-1] == "workflow.cancelled"
