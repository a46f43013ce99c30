"""Actors that live and do not answer: each test stops real processes, which then wait for a signal."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import pyworkflow_ray as pr
from pyworkflow_ray.storage.runs import get_run
from tests.ray.conftest import EngineUnderTest, eventually, make_engine

Make = Callable[..., EngineUnderTest]


@pytest.fixture
def engine(cluster: str, tmp_path: Path) -> Iterator[Make]:
    """Makes an engine, once."""
    made: list[EngineUnderTest] = []

    def make(**settings: Any) -> EngineUnderTest:
        made.append(make_engine(cluster, str(tmp_path / "engine.db"), suspend_after="10m", **settings))
        return made[0]

    yield make
    for each in made:
        each.close()
    pr.reset_config()


@contextlib.contextmanager
def stopped(engine: EngineUnderTest, *names: str) -> Iterator[dict[str, int]]:
    """Stop the processes of these actors; their ids. At the end those that are still there go on."""
    pids = {name: engine.pid_of(name) for name in names}
    for pid in pids.values():
        assert Path(f"/proc/{pid}/cmdline").read_text().startswith("ray::")
        os.kill(pid, signal.SIGSTOP)
    try:
        yield pids
    finally:
        for pid in pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def is_another(engine: EngineUnderTest, name: str, old: int) -> bool:
    """Whether another process answers under the actor's name."""
    try:
        return bool(engine.actor(name).pid.remote().future().result(timeout=2) != old)
    except (ray.exceptions.RayError, TimeoutError):
        return False


@pr.workflow
async def asks_by_hook(token: str) -> Any:
    pr.set_query_handler("name", lambda: token)
    return await pr.hook("payload", token=token)


def begun(token: str) -> pr.RunHandle[Any]:
    """A run that waits for its hook, in its coordinator's memory."""
    run: pr.RunHandle[Any] = pr.start_sync(asks_by_hook, token)
    eventually(lambda: pr.run_sync(pr.get_hook(token)))
    return run


def test_a_hung_actor_blocks_no_client(engine: Make) -> None:
    """Nobody replaces the hung actors here. Everything that a client asks for comes some other way.

    1. Two runs have a coordinator each. The first coordinator and the hook registry are stopped.
    2. A third run is placed with the stopped one. It is accepted, and its start returns.
    3. Query, answer and request to cancel return.
    4. The first coordinator's lease runs out, and the other one goes on. The wait at the first one returns.
    """
    it = engine(coordinators=2, hung_after="1h")
    first, second = begun("first"), begun("second")
    with contextlib.suppress(pr.HookNotFoundError):
        pr.resume_hook_sync("nobody's")  # the registry is made when it is first needed
    with stopped(it, "coordinator-0", "hook-registry"):
        third: pr.RunHandle[Any] = pr.start_sync(asks_by_hook, "third")
        row = it.storage.read(get_run(str(third)))
        assert row is not None
        assert row.coordinator == it.name_of("coordinator-0")
        assert pr.run_sync(first.query("name")) == "first", "another coordinator replays what is recorded"
        assert pr.run_sync(pr.cancel_workflow(third)) is True
        assert pr.resume_hook_sync("first", 1).run_id == first
        assert pr.resume_hook_sync("second", 2).run_id == second
        assert first.wait(timeout=90) == 1
        assert second.wait(timeout=90) == 2
        with pytest.raises(pr.CancellationError):
            third.wait(timeout=90)


def test_a_hung_actor_is_replaced_long_before_its_lease_ends(engine: Make) -> None:
    """Nobody asks for anything here. The timer looks after the others, and they look after the timer."""
    it = engine(lease_ttl="1h", hung_after="2s")
    run = begun("replaced")
    with contextlib.suppress(pr.HookNotFoundError):
        pr.resume_hook_sync("nobody's")
    with stopped(it, "coordinator-0", "hook-registry") as pids:
        for name, pid in pids.items():
            eventually(lambda name=name, pid=pid: is_another(it, name, pid))
    with stopped(it, "timer") as pids:
        eventually(lambda: is_another(it, "timer", pids["timer"]))
    pr.resume_hook_sync("replaced", "given")
    assert run.wait(timeout=60) == "given"
    assert [event.type for event in run.events_sync()].count("workflow.interrupted") == 1


LEAVES = """
    import asyncio, sys, time
    import ray
    import pyworkflow_ray as pr

    @pr.step
    def works() -> str:
        time.sleep(3.0)
        return "done"

    @pr.workflow
    async def job() -> str:
        return await works()

    async def main() -> None:
        run = await pr.start(job)
        waiting = asyncio.create_task(run.result())
        await asyncio.sleep(1.0)  # it waits at the coordinator
        await asyncio.to_thread(ray.shutdown)
        try:
            print(await waiting)
        except pr.NoAnswerError as error:
            print("NoAnswerError")
        print(ray.is_initialized())

    if __name__ == "__main__":
        asyncio.run(main())
"""


@pytest.mark.parametrize(("is_own", "end"), [(False, "done"), (True, "NoAnswerError")])
def test_a_wait_outlives_ray_shutdown_and_starts_no_cluster(
    engine: Make, tmp_path: Path, is_own: bool, end: str
) -> None:
    """In a cluster that lasts, the rows tell how the run ends. A cluster of one's own takes it along."""
    (tmp_path / "driver.py").write_text(textwrap.dedent(LEAVES))
    environment = engine().environment() | ({"RAY_ADDRESS": ""} if is_own else {})
    done = subprocess.run(
        [sys.executable, "driver.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines()[-2:] == [end, "False"], done.stderr[-3000:]
