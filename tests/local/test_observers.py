"""What observers see of runs, and that they disturb none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from loguru import logger

import pyworkflow_ray as pr
from pyworkflow_ray.actors.coordinator import Coordinator
from pyworkflow_ray.actors.observers import (
    AppendCommitted,
    AttemptDispatched,
    AttemptEnded,
    LogObserver,
    Moment,
    Observer,
    RunAccepted,
    RunClaimed,
    RunEnded,
    RunLost,
    RunRecovered,
    RunReplayed,
    RunSuspended,
    RunTimerFired,
)
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.storage.leases import claim
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.testing import WorkflowEnvironment
from pyworkflow_ray.testing.clocks import VirtualClock

EVERYTHING = get_args(Moment)


class Recorder:
    """Keeps the moments that it sees."""

    def __init__(self, moments: Iterable[type[Moment]] = EVERYTHING) -> None:
        self.moments = moments
        self.seen: list[Moment] = []

    def observe(self, moment: Moment) -> None:
        self.seen.append(moment)

    def of(self, kind: type[Moment]) -> list[Any]:
        return [moment for moment in self.seen if type(moment) is kind]

    def names(self) -> list[str]:
        return [type(moment).__name__ for moment in self.seen]


class Raising(Recorder):
    """Raises at every moment."""

    def observe(self, moment: Moment) -> None:
        super().observe(moment)
        raise RuntimeError("the metrics' server is away")


@pr.step(local=True)
async def seen_step() -> int:
    return 1


@pr.step(local=True, max_retries=0)
async def failing_step() -> int:
    raise ValueError("of no use")


@pr.workflow
async def seen_nap() -> int:
    first = await seen_step()
    await pr.sleep("1h")
    return first + await seen_step()


@pr.workflow
async def seen_failure() -> str:
    try:
        await failing_step()
    except ValueError:
        return "failed"
    return "not failed"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "local.db"
    pr.configure(default_runtime="local", storage=path, suspend_after="50ms")
    return path


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hangs observers up at the coordinators that this process makes from now on."""

    def hang(*observers: Observer) -> None:
        plain = Coordinator.__init__

        def watched(self: Coordinator, *args: Any, **options: Any) -> None:
            plain(self, *args, **options, observers=observers)

        monkeypatch.setattr(Coordinator, "__init__", watched)

    return hang


async def test_an_observer_sees_the_story_of_a_run(watch: Any) -> None:
    recorder = Recorder()
    watch(recorder)
    async with WorkflowEnvironment() as environment:
        run = await environment.start(seen_nap)
        assert await run == 2
    assert recorder.names() == [
        "RunAccepted",
        "AppendCommitted",  # the start, and the step that it asks for
        "AttemptDispatched",
        "AttemptEnded",
        "AppendCommitted",  # the step's outcome, and the timer
        "RunTimerFired",
        "AppendCommitted",
        "AttemptDispatched",
        "AttemptEnded",
        "AppendCommitted",
        "RunEnded",
    ]
    (ended,) = recorder.of(RunEnded)
    assert (ended.run_id, ended.workflow, ended.status, ended.events) == (run, "seen_nap", "completed", 8)
    (fired,) = recorder.of(RunTimerFired)
    assert fired.late >= timedelta(0)
    first, second = recorder.of(AttemptDispatched)
    assert (first.step_id, second.step_id, second.step, second.attempt) == (
        "seen_step#1",
        "seen_step#2",
        "seen_step",
        1,
    )


async def test_an_observer_sees_a_run_leave_memory_and_come_back(path: Path, watch: Any) -> None:
    recorder = Recorder([RunAccepted, RunClaimed, RunReplayed, RunSuspended])
    watch(recorder)
    run = await pr.start(seen_nap)
    assert recorder.names() == ["RunAccepted", "RunSuspended"]
    await pr.resume(run)  # it has nothing to do yet, and is suspended again
    assert recorder.names()[2:] == ["RunClaimed", "RunReplayed", "RunSuspended"]
    (claimed,) = recorder.of(RunClaimed)
    assert (claimed.run_id, claimed.was_interrupted) == (run, False)
    (replayed,) = recorder.of(RunReplayed)
    assert replayed.events == 4
    before, after = recorder.of(RunSuspended)
    assert before.wake_at == after.wake_at is not None


async def test_moments_say_how_long_things_took_and_how_they_went(path: Path, watch: Any) -> None:
    recorder = Recorder()
    watch(recorder)
    assert await (await pr.start(seen_failure)) == "failed"
    (ended,) = recorder.of(AttemptEnded)
    assert (ended.step_id, ended.outcome) == ("failing_step#1", "error")
    assert ended.duration > timedelta(0)
    assert all(moment.duration > timedelta(0) for moment in recorder.of(AppendCommitted))
    assert sum(moment.events for moment in recorder.of(AppendCommitted)) == 4


async def test_an_observer_sees_the_moments_that_it_names_and_no_other(path: Path, watch: Any) -> None:
    starts, ends = Recorder([RunAccepted]), Recorder([RunEnded])
    watch(starts, ends)
    assert await (await pr.start(seen_failure)) == "failed"
    assert (starts.names(), ends.names()) == (["RunAccepted"], ["RunEnded"])


async def test_an_observer_that_raises_disturbs_no_run_and_is_complained_of_once(
    path: Path, watch: Any
) -> None:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), level="ERROR", format="{message}")
    raising, recorder = Raising(), Recorder()
    watch(raising, recorder)
    try:
        assert await (await pr.start(seen_failure)) == "failed"
    finally:
        logger.remove(sink)
    assert len(raising.seen) > 1
    assert raising.seen == recorder.seen
    assert [line for line in lines if "Raising" in line] == [
        "The observer Raising failed at RunAccepted: RuntimeError: the metrics' server is away. "
        "Runs go on. This is said once.\n"
    ]


async def test_a_recovery_and_a_loss_are_seen(path: Path) -> None:
    """1. A process claims a suspended run and dies. 2. Another one goes on with it. 3. A third claims it."""
    run = await pr.start(seen_nap)
    assert await run.status() is pr.RunStatus.SUSPENDED
    recorder = Recorder([RunClaimed, RunRecovered, RunLost, RunSuspended, RunEnded])
    clock = VirtualClock()
    settings = EngineSettings(str(path), suspend_after=None)
    with Storage(path) as storage:
        survivor = Coordinator("coordinator-0", settings, storage=storage, clock=clock, observers=[recorder])
        await storage.write(claim(run, "dead", 0.0))
        await survivor.wake([run])
        while len(recorder.seen) < 2:
            await asyncio.sleep(0.01)
        claimed, recovered = recorder.seen
        assert isinstance(claimed, RunClaimed)
        assert claimed.was_interrupted
        assert recovered == RunRecovered(run_id=run, workflow="seen_nap", recovery_attempt=1)
        assert await storage.write(claim(run, "third", 60.0, force_from="coordinator-0")) is not None
        clock.set_forward(clock.now() + timedelta(hours=2))  # what is due now asks for an append
        end = await survivor.end_of(run)
        assert end is not None
        assert end.status == "lost"
        await survivor.close()
    assert recorder.names() == ["RunClaimed", "RunRecovered", "RunLost"]


def test_the_log_wants_nothing_that_is_frequent() -> None:
    frequent = {AttemptDispatched, AttemptEnded, AppendCommitted, RunTimerFired}
    assert not frequent & set(LogObserver.moments)
