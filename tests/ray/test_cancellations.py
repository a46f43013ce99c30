"""A run is cancelled wherever it is, cleans up, and undoes what it did, whoever dies on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pyworkflow_ray as pr
from tests.ray.conftest import EngineUnderTest, eventually, make_engine
from tests.ray.test_crashes import began, lines, mark, types
from tests.ray.test_hooks import kill_all, living, suspended

pytestmark = pytest.mark.usefixtures("shared_engine")


def cancelled(run: pr.RunHandle[Any], reason: str | None = None, timeout: float = 60) -> None:
    """The run ends as cancelled, and says why."""
    with pytest.raises(pr.CancellationError) as caught:
        run.wait(timeout=timeout)
    assert caught.value.reason == reason
    assert run.status_sync() is pr.RunStatus.CANCELLED
    told = types(run)
    assert told[-1] == "workflow.cancelled"
    assert told.count("cancellation.requested") == 1


def cancel(run: pr.RunHandle[Any], reason: str | None = None) -> bool:
    return pr.run_sync(run.cancel(reason))


@pr.step(max_retries=5, retry_delay="1h")
def refuses(folder: str, name: str) -> None:
    (Path(folder) / name).touch()
    raise ConnectionError("down")


@pr.workflow
async def sleeping_one(folder: str, name: str) -> None:
    try:
        await pr.sleep("10d")
    finally:
        await mark(folder, f"{name}-cleanup")


@pr.workflow
async def is_somewhere(folder: str, where: str) -> None:
    try:
        match where:
            case "sleep":
                await pr.sleep("10d")
            case "hook":
                await pr.hook("never_answered")
            case "signal":
                await pr.receive("never_sent")
            case "backoff":
                await refuses(folder, "refused")
            case "child":
                await pr.start_child_workflow(sleeping_one, folder, "child")
    except pr.CancellationError as error:
        await mark(folder, f"cleaned up after {error.reason}")
        await pr.sleep(0.1)
        raise
    finally:
        await mark(folder, "finally")


@pytest.mark.parametrize("where", ["sleep", "hook", "signal", "backoff"])
def test_a_suspended_run_is_cancelled_and_cleans_up(where: str, tmp_path: Path) -> None:
    run = pr.start_sync(is_somewhere, str(tmp_path), where)
    suspended(run)
    assert cancel(run, "the test") is True
    cancelled(run, "the test")
    assert len(began(tmp_path, "cleaned up after the test")) == 1
    assert len(began(tmp_path, "finally")) == 1
    assert cancel(run) is False, "it has ended"


def test_a_run_that_waits_for_its_child_is_cancelled_with_it(tmp_path: Path) -> None:
    run = pr.start_sync(is_somewhere, str(tmp_path), "child")
    (child,) = eventually(lambda: pr.run_sync(pr.get_children(run)))
    assert cancel(run, "all of it") is True
    cancelled(run, "all of it")
    cancelled(pr.RunHandle(child.run_id), "its parent no longer waits for it")
    assert len(began(tmp_path, "child-cleanup")) == 1
    assert len(began(tmp_path, "finally")) == 1


def test_a_run_that_cleans_up_is_not_cancelled_again(tmp_path: Path) -> None:
    run = pr.start_sync(cleans_slowly, str(tmp_path))
    suspended(run)
    assert cancel(run, "first")
    eventually(lambda: began(tmp_path, "slow-cleanup"))
    assert cancel(run, "second") is True, "it will learn of it, and knows already"
    cancelled(run, "first")
    assert [verb for verb, _, _ in lines(tmp_path, "slow-cleanup")] == ["began", "ended"]


@pr.workflow
async def cleans_slowly(folder: str) -> None:
    try:
        await pr.sleep("10d")
    finally:
        await mark(folder, "slow-cleanup", 1.0)


# --- steps under way ------------------------------------------------------------------------------


@pr.step(max_retries=0, num_cpus=0.1)
def waits_for_release(folder: str, name: str, obeys: bool) -> None:
    """Ends when there is a file that releases it, or when it is interrupted and obeys."""
    path = Path(folder) / name
    _add(path, "began")
    is_released = False
    while not is_released:
        try:  # an interruption comes at any line
            time.sleep(0.02)
            is_released = path.with_suffix(".released").exists()
        except BaseException:
            _add(path, "interrupted")
            if obeys:
                raise
    _add(path, "ended")


def _add(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(f"{line}\n")


def told(folder: Path, name: str) -> list[str]:
    path = folder / name
    return path.read_text().splitlines() if path.exists() else []


@pr.workflow
async def at_work(folder: str, name: str, on_cancel: str, obeys: bool) -> None:
    try:
        await waits_for_release.options(on_cancel=on_cancel)(folder, name, obeys)
    finally:
        await mark.options(num_cpus=0.1)(folder, f"{name}-cleanup")


def test_a_step_under_way_is_waited_for_interrupted_killed_or_abandoned(tmp_path: Path) -> None:
    """All at once: what takes long is to see that a step which ignores its interruption is ended."""
    policies = {
        "waited": ("wait", True),
        "interrupted": ("interrupt", True),
        "not-killed": ("interrupt", False),
        "killed": ("kill", False),
        "abandoned": ("abandon", True),
    }
    runs = {name: pr.start_sync(at_work, str(tmp_path), name, *how) for name, how in policies.items()}
    for name in runs:
        eventually(lambda name=name: told(tmp_path, name))
    for run in runs.values():
        assert cancel(run, "enough")
    for name, run in runs.items():
        if name != "waited":
            cancelled(run, "enough")
    assert not runs["waited"].status_sync().is_terminal
    for name in ("waited", "abandoned"):
        (tmp_path / f"{name}.released").touch()
    cancelled(runs["waited"], "enough")
    for name in runs:
        assert len(began(tmp_path, f"{name}-cleanup")) == 1
    assert told(tmp_path, "waited") == ["began", "ended"]
    assert types(runs["waited"]).count("step.completed") == 2
    assert told(tmp_path, "interrupted") == ["began", "interrupted"]
    assert types(runs["interrupted"]).count("step.cancelled") == 1
    eventually(lambda: told(tmp_path, "abandoned") == ["began", "ended"])
    eventually(lambda: len(_workers_of("at_work")) == 1)
    assert told(tmp_path, "killed") == ["began", "interrupted"]
    (tmp_path / "not-killed.released").touch()
    eventually(lambda: told(tmp_path, "not-killed") == ["began", "interrupted", "ended"])


def _workers_of(workflow: str) -> list[str]:
    """The processes in which steps of a workflow run; Ray names them after their tasks."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_text()
        except OSError:
            continue
        if command.startswith(f"ray::{workflow}/"):
            found.append(command)
    return found


@pr.step(max_retries=0)
def watchful(folder: str) -> None:
    _add(Path(folder) / "watchful", "began")
    for _ in range(3000):
        time.sleep(0.02)
        try:
            pr.get_context().check_cancellation()
        except pr.CancellationError:
            _add(Path(folder) / "watchful", "noticed")
            raise
    _add(Path(folder) / "watchful", "ended")


@pr.workflow
async def runs_a_watchful_step(folder: str) -> None:
    try:
        await watchful(folder)
    finally:
        await mark(folder, "cleanup")


def test_a_remote_step_may_ask_whether_its_run_is_cancelled(tmp_path: Path) -> None:
    run = pr.start_sync(runs_a_watchful_step, str(tmp_path))
    eventually(lambda: told(tmp_path, "watchful"))
    assert cancel(run, "look up")
    cancelled(run, "look up")
    assert told(tmp_path, "watchful") == ["began", "noticed"]
    assert len(began(tmp_path, "cleanup")) == 1


# --- coordinators that die ------------------------------------------------------------------------


@pr.workflow
async def works_or_sleeps(folder: str, seconds: float) -> None:
    try:
        if seconds:
            await mark(folder, "work", seconds)
        await pr.sleep("10d")
    finally:
        await mark(folder, "cleanup")


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_a_request_outlives_the_coordinator_that_was_told_of_it(
    shared_engine: EngineUnderTest, seconds: float, tmp_path: Path
) -> None:
    run = pr.start_sync(works_or_sleeps, str(tmp_path), seconds)
    if seconds:
        eventually(lambda: began(tmp_path, "work"))
    else:
        suspended(run)
    pid = living(shared_engine, "coordinator-0")
    assert cancel(run, "and then it died")
    kill_all([pid])
    cancelled(run, "and then it died")
    assert [verb for verb, _, _ in lines(tmp_path, "cleanup")][-1] == "ended"


@pr.step
def gives_back(folder: str, what: str, result: str) -> None:
    _add(Path(folder) / "undone", f"began {what} of {result}")
    time.sleep(1.0)
    _add(Path(folder) / "undone", f"ended {what}")


@pr.step(compensate=gives_back, max_retries=0)
def takes(folder: str, what: str) -> str:
    if what == "too much":
        raise ValueError("there is no more")
    return f"receipt of {what}"


@pr.workflow
async def takes_several(folder: str) -> None:
    for what in ("bread", "wine", "too much"):
        await takes(folder, what)


def test_what_is_to_be_undone_is_undone_though_the_coordinator_dies(
    shared_engine: EngineUnderTest, tmp_path: Path
) -> None:
    run = pr.start_sync(takes_several, str(tmp_path))
    eventually(lambda: told(tmp_path, "undone"))
    kill_all([living(shared_engine, "coordinator-0")])
    with pytest.raises(ValueError, match="there is no more"):
        run.wait(timeout=60)
    undone = told(tmp_path, "undone")
    assert set(undone) == {
        "began wine of receipt of wine",
        "ended wine",
        "began bread of receipt of bread",
        "ended bread",
    }
    assert undone[-2:] == ["began bread of receipt of bread", "ended bread"]
    assert undone.count("ended bread") == 1
    assert types(run).count("workflow.interrupted") == 1
    assert run.status_sync() is pr.RunStatus.FAILED


# --- time and size --------------------------------------------------------------------------------


@pr.workflow(max_duration="2s")
async def takes_long(folder: str) -> None:
    try:
        await pr.sleep("10d")
    finally:
        await mark(folder, "cleanup")


def test_a_suspended_run_fails_when_its_max_duration_is_over(tmp_path: Path) -> None:
    run = pr.start_sync(takes_long, str(tmp_path))
    suspended(run)
    with pytest.raises(pr.WorkflowTimeoutError, match="0:00:02"):
        run.wait(timeout=60)
    assert run.status_sync() is pr.RunStatus.FAILED
    assert len(began(tmp_path, "cleanup")) == 1


# --- an engine whose leases last and whose histories are short --------------------------------------


@pytest.fixture(scope="module")
def slow_engine(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
    url = str(tmp_path_factory.mktemp("slow") / "engine.db")
    made = make_engine(cluster, url, lease_ttl="300s", event_soft_limit=20, event_hard_limit=40)
    yield made
    made.close()
    pr.reset_config()


def test_a_run_that_has_not_begun_is_cancelled_at_once(slow_engine: EngineUnderTest, tmp_path: Path) -> None:
    """And not only when its coordinator renews its lease and looks into all inboxes."""
    run = pr.run_sync(pr.start.options(delay="1d")(sleeping_one, str(tmp_path), "unborn"))
    assert run.status_sync() is pr.RunStatus.PENDING
    assert cancel(run, "no longer wanted")
    cancelled(run, "no longer wanted", timeout=60)
    assert types(run) == ["workflow.started", "cancellation.requested", "workflow.cancelled"]
    assert lines(tmp_path, "unborn-cleanup") == [], "none of its code has run"


@pr.workflow
async def grows(rounds: int) -> int:
    for _ in range(rounds):
        await pr.sleep(0.001)
    return rounds


def test_a_history_that_grows_too_long_ends_its_run(slow_engine: EngineUnderTest) -> None:
    run = pr.start_sync(grows, 1000)
    with pytest.raises(pr.EventLimitExceededError, match="the limit is 40"):
        run.wait(timeout=60)
    assert run.status_sync() is pr.RunStatus.FAILED
    assert len(run.events_sync()) < 50
