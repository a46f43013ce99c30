"""A run survives the death of any process: each test kills a real one."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray

import pyworkflow_ray as pr
from pyworkflow_ray.storage.histories import Append, FencedError, append
from pyworkflow_ray.storage.leases import claim
from pyworkflow_ray.storage.runs import get_run
from tests.ray.conftest import EngineUnderTest, eventually, kill_ray_process


@pr.step
def mark(folder: str, name: str, seconds: float = 0.0) -> str:
    """Leaves a line for each attempt that began, and one for each that ended."""
    attempt = pr.get_context().attempt
    path = Path(folder) / name
    with path.open("a") as file:
        file.write(f"began {attempt} {os.getpid()}\n")
    time.sleep(seconds)
    with path.open("a") as file:
        file.write(f"ended {attempt} {os.getpid()}\n")
    return f"{name}:{attempt}"


def lines(folder: Path, name: str) -> list[list[str]]:
    path = folder / name
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def began(folder: Path, name: str) -> list[int]:
    """The process ids of the attempts that have begun."""
    return [int(pid) for verb, _, pid in lines(folder, name) if verb == "began"]


@pr.workflow
async def three_steps(folder: str, seconds: float) -> list[str]:
    return [
        await mark(folder, "first"),
        await mark(folder, "second", seconds),
        await mark(folder, "third"),
    ]


def assert_counted_once(run: pr.RunHandle[Any]) -> list[pr.Event]:
    """Every step has one outcome in the history, and positions have no gaps."""
    events = run.events_sync()
    assert [event.sequence for event in events] == list(range(len(events)))
    outcomes = Counter(
        event.data["step_id"] for event in events if event.type in ("step.completed", "step.failed")
    )
    scheduled = [event.data["step_id"] for event in events if event.type == "step.started"]
    assert outcomes == Counter(scheduled)
    return events


def types(run: pr.RunHandle[Any]) -> list[str]:
    return [event.type for event in run.events_sync()]


def test_a_killed_worker_costs_an_attempt_and_not_a_retry(engine: EngineUnderTest, tmp_path: Path) -> None:
    run = pr.start_sync(three_steps, str(tmp_path), 3.0)
    pid = eventually(lambda: began(tmp_path, "second"))[0]
    kill_ray_process(pid)
    assert run.wait(timeout=60) == ["first:1", "second:2", "third:1"]
    events = assert_counted_once(run)
    retrying = [event.data for event in events if event.type == "step.retrying"]
    assert [data["cause"] for data in retrying] == ["worker_died"]
    assert "workflow.interrupted" not in types(run)


@pr.workflow
async def careful(folder: str) -> str:
    try:
        return await mark.options(idempotent=False)(folder, "once", 5.0)
    except pr.WorkerDiedError:
        return "told"


def test_a_step_that_must_not_run_twice_fails_when_its_worker_dies(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    run = pr.start_sync(careful, str(tmp_path))
    kill_ray_process(eventually(lambda: began(tmp_path, "once"))[0])
    assert run.wait(timeout=60) == "told"
    assert len(began(tmp_path, "once")) == 1


def test_a_coordinator_killed_while_a_step_runs_comes_back_and_goes_on(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    run = pr.start_sync(three_steps, str(tmp_path), 2.0)
    eventually(lambda: began(tmp_path, "second"))
    engine.kill("coordinator-0")
    assert run.wait(timeout=60)[::2] == ["first:1", "third:1"]
    assert_counted_once(run)
    assert types(run).count("workflow.interrupted") == 1
    assert len(began(tmp_path, "first")) == 1, "a recorded result is not asked for again"
    assert run.status_sync() is pr.RunStatus.COMPLETED


@pr.workflow
async def dies_before_dispatch(folder: str) -> list[str]:
    first = await mark(folder, "first")
    pr.side_effect(_die_before_next_dispatch)
    return [first, await mark(folder, "second"), await mark(folder, "third")]


def _die_before_next_dispatch() -> None:
    from pyworkflow_ray.actors.drives import Drive

    async def die(self: Any, activation: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    Drive._act = die  # type: ignore[method-assign]


def test_a_step_committed_and_not_dispatched_runs_after_recovery(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    """1. The commit that schedules `second` goes through. 2. The process dies before it dispatches."""
    run = pr.start_sync(dies_before_dispatch, str(tmp_path))
    assert run.wait(timeout=60) == ["first:1", "second:2", "third:1"]
    assert_counted_once(run)
    assert types(run).count("workflow.interrupted") == 1
    assert len(began(tmp_path, "second")) == 1, "the first attempt was never dispatched"


@pr.workflow
async def naps(folder: str, seconds: float) -> list[str]:
    first = await mark(folder, "first")
    await pr.sleep(seconds)
    return [first, await mark(folder, "second")]


def test_a_coordinator_killed_while_its_run_is_suspended_is_not_missed(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    run = pr.start_sync(naps, str(tmp_path), 5.0)
    eventually(lambda: run.status_sync() is pr.RunStatus.SUSPENDED)
    engine.kill("coordinator-0")
    assert run.wait(timeout=60) == ["first:1", "second:1"]
    assert "workflow.interrupted" not in types(run), "nobody held it"


def test_a_killed_timer_wakes_runs_all_the_same(engine: EngineUnderTest, tmp_path: Path) -> None:
    run = pr.start_sync(naps, str(tmp_path), 4.0)
    eventually(lambda: run.status_sync() is pr.RunStatus.SUSPENDED)
    engine.kill("timer")
    assert run.wait(timeout=60) == ["first:1", "second:1"]


def test_a_suspended_run_is_in_no_process(engine: EngineUnderTest, tmp_path: Path) -> None:
    run = pr.start_sync(naps, str(tmp_path), 600)
    eventually(lambda: run.status_sync() is pr.RunStatus.SUSPENDED)
    status = ray.get(engine.actor("coordinator-0").status.remote())
    assert status["runs"] == []
    record = engine.storage.read(get_run(run))
    assert record is not None
    assert record.owner is None
    assert record.wake_at is not None


def test_a_coordinator_with_nothing_to_do_ends_its_process(engine: EngineUnderTest, tmp_path: Path) -> None:
    pr.configure(coordinator_ttl="1s")
    run = pr.start_sync(naps, str(tmp_path), 8.0)
    eventually(lambda: run.status_sync() is pr.RunStatus.SUSPENDED)
    eventually(lambda: engine.coordinators() == [])
    assert run.wait(timeout=60) == ["first:1", "second:1"], "a new one wakes the run"


@pr.workflow(max_recovery_attempts=1)
async def poisonous(folder: str) -> None:
    await mark(folder, "before")
    await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_that_kills_its_coordinator_every_time_ends_as_failed(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    run = pr.start_sync(poisonous, str(tmp_path))
    with pytest.raises(pr.WorkerDiedError, match="went away"):
        run.wait(timeout=90)
    assert types(run).count("workflow.interrupted") == 1
    assert len(began(tmp_path, "before")) == 1


@pr.workflow(recover_on_worker_loss=False)
async def unrecovered(folder: str) -> str:
    return await mark(folder, "only", 10.0)


@pr.workflow
async def careful_too(folder: str) -> str:
    try:
        return await mark.options(idempotent=False)(folder, "once", 6.0)
    except pr.WorkerDiedError:
        return "told"


def test_a_step_that_must_not_run_twice_fails_when_its_coordinator_dies(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    run = pr.start_sync(careful_too, str(tmp_path))
    eventually(lambda: began(tmp_path, "once"))
    engine.kill("coordinator-0")
    assert run.wait(timeout=60) == "told"
    assert len(began(tmp_path, "once")) == 1


def test_a_run_that_must_not_recover_fails_when_its_coordinator_dies(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    run = pr.start_sync(unrecovered, str(tmp_path))
    eventually(lambda: began(tmp_path, "only"))
    engine.kill("coordinator-0")
    with pytest.raises(pr.WorkerDiedError):
        run.wait(timeout=60)


def test_the_append_of_a_coordinator_that_was_replaced_is_refused(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    """1. A coordinator drives a run. 2. Another claims it. 3. The first one's next append is refused."""
    run = pr.start_sync(three_steps, str(tmp_path), 2.0)
    eventually(lambda: began(tmp_path, "second"))
    storage = engine.storage
    place = {"force_from": engine.name_of("coordinator-0"), "cluster": ray.get_runtime_context().gcs_address}
    usurper = storage.submit(claim(run, "usurper", 2.0, **place)).result()
    assert usurper is not None
    stale = Append(run_id=run, epoch=usurper.epoch - 1, position=usurper.position, changes={"error": "x"})
    with pytest.raises(FencedError):
        storage.submit(append(stale)).result()
    # The usurper never comes back: its lease runs out, and the sweep gives the run to a coordinator.
    assert run.wait(timeout=60)[0] == "first:1"
    assert_counted_once(run)
    storage.close()


def test_a_locked_database_delays_and_loses_nothing(engine: EngineUnderTest, tmp_path: Path) -> None:
    run = pr.start_sync(three_steps, str(tmp_path), 1.0)
    eventually(lambda: began(tmp_path, "second"))
    script = textwrap.dedent(f"""
        import sqlite3, time
        connection = sqlite3.connect({engine.url!r}, isolation_level=None, timeout=30)
        connection.execute("BEGIN IMMEDIATE")
        print("locked", flush=True)
        time.sleep(5)
        connection.execute("ROLLBACK")
    """)
    locker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert locker.stdout is not None
    assert locker.stdout.readline() == "locked\n"
    assert run.wait(timeout=60) == ["first:1", "second:1", "third:1"]
    assert locker.wait() == 0
    assert_counted_once(run)


def test_a_coordinator_that_comes_back_while_its_database_is_away_waits_for_it(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    run = pr.start_sync(three_steps, str(tmp_path), 1.0)
    eventually(lambda: began(tmp_path, "second"))
    files = list(Path(engine.url).parent.glob("engine.db*"))
    away = tmp_path / "away"
    away.mkdir()
    first = engine.pid_of("coordinator-0")
    for path in files:
        path.rename(away / path.name)
    kill_ray_process(first)
    eventually(lambda: _answering_pid(engine) not in (None, first))
    time.sleep(4)  # longer than it takes to find that the file is not there
    for path in files:
        (away / path.name).rename(path)
    assert run.wait(timeout=60)[::2] == ["first:1", "third:1"]
    assert_counted_once(run)


def _answering_pid(engine: EngineUnderTest) -> int | None:
    try:
        return engine.pid_of("coordinator-0")
    except ray.exceptions.RayActorError:
        return None


@pr.workflow
async def pauses(folder: str) -> list[str]:
    marks = [await mark(folder, f"step{number}") for number in range(3)]
    await asyncio.sleep(0.2)
    pair = await asyncio.gather(mark(folder, "left"), mark(folder, "right"))
    return [*marks, *pair]


def test_every_prefix_of_a_recorded_history_resumes_to_the_same_result(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    """Whole activations, as commits leave them, in the database of a run that a crash has cut short."""
    run = pr.start_sync(pauses, str(tmp_path))
    expected = [name.split(":")[0] for name in run.wait(timeout=60)]
    events = run.events_sync()
    outcomes = ("workflow.started", "step.completed", "sleep.completed")
    cuts = [event.sequence for event in events if event.type in outcomes and event.sequence > 0]
    copies = [_cut(engine.url, run, cut) for cut in cuts]
    for copy in copies:
        resumed: pr.RunHandle[list[str]] = pr.RunHandle(copy)
        assert [name.split(":")[0] for name in resumed.wait(timeout=60)] == expected
        assert_counted_once(resumed)


def _cut(database: str, run_id: str, length: int) -> str:
    """A copy of the run, as if its coordinator had died when the history had this length."""
    copy = f"run_{length:016x}"
    with sqlite3.connect(database, timeout=30) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(runs)")]
        changed = {
            "run_id": f"'{copy}'",
            "root_run_id": f"'{copy}'",
            "status": "'running'",
            "position": str(length),
            "owner": "'coordinator-0:gone'",
            "coordinator": "'coordinator-0'",
            "lease_expires_at": "'2020-01-01 00:00:00.000000'",
            "result": "NULL",
            "completed_at": "NULL",
            "epoch": "7",
        }
        chosen = ", ".join(changed.get(column, column) for column in columns)
        connection.execute(
            f"INSERT INTO runs ({', '.join(columns)}) SELECT {chosen} FROM runs WHERE run_id = ?", (run_id,)
        )
        connection.execute(
            "INSERT INTO events (run_id, position, type, timestamp, data) "
            f"SELECT '{copy}', position, type, timestamp, data FROM events WHERE run_id = ? AND position < ?",
            (run_id, length),
        )
    return copy
