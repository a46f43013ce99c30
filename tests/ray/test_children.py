"""Children live and end as their parents have been told, whoever dies on the way."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import pyworkflow_ray as pr
from tests.ray.conftest import EngineUnderTest, eventually
from tests.ray.test_crashes import assert_counted_once, began, lines, mark, types
from tests.ray.test_hooks import kill_all, living, suspended

pytestmark = pytest.mark.usefixtures("shared_engine")

CHILDREN = 200
"""A thousand pass as well; it takes five times as long."""


@pr.step(local=True)
async def times_two(number: int) -> int:
    return 2 * number


@pr.workflow
async def little_one(number: int) -> int:
    return await times_two(number)


@pr.workflow
async def mother_of_many(count: int) -> int:
    handles = [
        await pr.start_child_workflow(little_one, number, wait_for_completion=False)
        for number in range(count)
    ]
    return sum(await asyncio.gather(*(handle.result() for handle in handles)))


def children_of(run: str) -> list[pr.WorkflowRun]:
    return pr.run_sync(pr.get_children(run))


def test_a_parent_has_many_children() -> None:
    run = pr.start_sync(mother_of_many, CHILDREN)
    assert run.wait(timeout=120) == sum(2 * number for number in range(CHILDREN))
    children = children_of(run)
    assert len({child.run_id for child in children}) == CHILDREN
    assert {child.status for child in children} == {pr.RunStatus.COMPLETED}
    told = Counter(types(run))
    assert (told["child_workflow.started"], told["child_workflow.completed"]) == (CHILDREN, CHILDREN)


class Naughty(Exception):
    def __init__(self, what: str, *, times: int) -> None:
        super().__init__(f"{what} {times} times")
        self.times = times


@pr.step(max_retries=0)
def misbehaves() -> None:
    raise Naughty("lied", times=3)


@pr.workflow
async def naughty_child() -> None:
    await misbehaves()


@pr.workflow
async def patient_parent() -> list[Any]:
    try:
        await pr.start_child_workflow(naughty_child)
    except pr.ChildWorkflowFailedError as error:
        cause = error.__cause__
        return [error.child_workflow_name, error.error_type, type(cause).__name__, str(cause)]
    return []


def test_a_childs_own_error_reaches_its_parent() -> None:
    run = pr.start_sync(patient_parent)
    name, error_type, cause, text = run.wait(timeout=60)
    assert (name, cause, text) == ("naughty_child", "Naughty", "lied 3 times")
    assert error_type.endswith("Naughty")


@pr.workflow
async def sleeper(folder: str, name: str, seconds: float) -> str:
    """Sleeps, or waits for a signal if it is to sleep for 0 seconds."""
    try:
        await mark(folder, f"{name}-before")
        await (pr.sleep(seconds) if seconds else pr.receive("wake up"))
        await mark(folder, f"{name}-after")
    except pr.CancellationError:
        await mark(folder, f"{name}-cleanup")
        raise
    return name


@pr.workflow
async def parent_of(folder: str, names: list[str], seconds: float, parent_close: str = "cancel") -> list[str]:
    calls = (
        pr.start_child_workflow(sleeper, folder, name, seconds, parent_close=parent_close) for name in names
    )
    try:
        return list(await asyncio.gather(*calls))
    finally:
        await mark(folder, "parent-finally")


def wake(child: pr.WorkflowRun) -> None:
    pr.run_sync(pr.signal(child.run_id, "wake up"))


def test_a_child_that_slept_gives_its_result(tmp_path: Path) -> None:
    run = pr.start_sync(parent_of, str(tmp_path), ["napper"], 2.0)
    eventually(lambda: [child.status for child in children_of(run)] == [pr.RunStatus.SUSPENDED])
    assert run.wait(timeout=60) == ["napper"]


def test_a_parent_is_suspended_while_its_child_is_and_woken_by_its_end(tmp_path: Path) -> None:
    run = pr.start_sync(parent_of, str(tmp_path), ["dozer"], 0)
    suspended(run)
    (child,) = children_of(run)
    wake(child)
    assert run.wait(timeout=60) == ["dozer"]


def test_a_parent_and_its_children_survive_their_coordinator(
    shared_engine: EngineUnderTest, tmp_path: Path
) -> None:
    """It is killed while they work, and again while they wait."""
    names = [f"child-{number}" for number in range(3)]
    run = pr.start_sync(parent_of, str(tmp_path), names, 0)
    eventually(lambda: began(tmp_path, "child-0-before"))
    kill_all([living(shared_engine, "coordinator-0")])
    eventually(lambda: Counter(child.status for child in children_of(run))[pr.RunStatus.SUSPENDED] == 3)
    kill_all([living(shared_engine, "coordinator-0")])
    for child in children_of(run):
        wake(child)
    assert run.wait(timeout=90) == names
    assert_counted_once(run)
    assert len(children_of(run)) == 3
    for child in children_of(run):
        assert_counted_once(pr.RunHandle(child.run_id))
    for name in names:
        assert [verb for verb, _, _ in lines(tmp_path, f"{name}-after")].count("ended") == 1
    assert Counter(types(run))["child_workflow.completed"] == 3


@pytest.mark.parametrize("parent_close", ["cancel", "abandon", "wait"])
def test_the_children_of_a_cancelled_parent_do_as_parent_close_says(
    parent_close: str, tmp_path: Path
) -> None:
    run = pr.start_sync(parent_of, str(tmp_path), ["left"], 0, parent_close)
    eventually(lambda: began(tmp_path, "left-before"))
    assert pr.run_sync(run.cancel("the test"))
    (child,) = children_of(run)
    left: pr.RunHandle[str] = pr.RunHandle(child.run_id)
    if parent_close == "wait":
        suspended(left)
        assert not run.status_sync().is_terminal
        wake(child)
    with pytest.raises(pr.CancellationError):
        run.wait(timeout=60)
    assert len(began(tmp_path, "parent-finally")) == 1
    if parent_close == "cancel":
        assert left.status_sync() is pr.RunStatus.CANCELLED
        assert len(began(tmp_path, "left-cleanup")) == 1
        assert began(tmp_path, "left-after") == []
        return
    if parent_close == "abandon":
        assert not left.status_sync().is_terminal
        wake(child)
    assert left.wait(timeout=60) == "left"
    assert began(tmp_path, "left-cleanup") == []


@pr.workflow
async def learns_of_it(folder: str) -> str:
    try:
        await pr.start_child_workflow(sleeper, folder, "stray", 864_000.0)
    except pr.ChildWorkflowFailedError as error:
        return f"{error.error_type}: {getattr(error.__cause__, 'reason', None)}"
    return "?"


def test_a_child_that_somebody_cancels_wakes_its_parent(
    shared_engine: EngineUnderTest, tmp_path: Path
) -> None:
    run = pr.start_sync(learns_of_it, str(tmp_path))
    (child,) = eventually(lambda: children_of(run))
    suspended(pr.RunHandle(child.run_id))
    kill_all([living(shared_engine, "coordinator-0")])
    assert pr.run_sync(pr.cancel_workflow(child.run_id, "not needed"))
    assert run.wait(timeout=60) == "CancellationError: not needed"
    assert len(began(tmp_path, "stray-cleanup")) == 1


@pr.workflow
async def deep(folder: str, levels: int) -> int:
    if levels:
        return 1 + int(await pr.start_child_workflow(deep, folder, levels - 1))
    await mark(folder, "bottom", 2.0)
    return 0


def test_children_of_children_survive_their_coordinator(
    shared_engine: EngineUnderTest, tmp_path: Path
) -> None:
    run = pr.start_sync(deep, str(tmp_path), 3)
    eventually(lambda: began(tmp_path, "bottom"))
    kill_all([living(shared_engine, "coordinator-0")])
    assert run.wait(timeout=60) == 3
    assert_counted_once(run)
