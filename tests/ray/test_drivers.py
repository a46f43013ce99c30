"""Drivers come and go; runs stay."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.storage.runs import get_run
from tests.ray.conftest import EngineUnderTest, eventually

WORKFLOW = """
    import os, sys, time
    import pyworkflow_ray as pr
    import shop

    @pr.step
    def work(number: int) -> float:
        shop.touch(number)
        return time.time()

    @pr.workflow
    async def job(steps: int, pause: float) -> list[float]:
        ended = []
        for number in range(steps):
            ended.append(await work(number))
            if number == 0:
                await pr.sleep(pause)
        return ended
"""
SHOP = """
    import os
    FOLDER = os.environ["SHOP_FOLDER"]

    def touch(number):
        open(f"{FOLDER}/step{number}", "a").close()
"""


def write_project(folder: Path, main: str, output: Path) -> Path:
    """A script with a module beside it, as people have them."""
    folder.mkdir()
    shop = textwrap.dedent(SHOP).replace('os.environ["SHOP_FOLDER"]', repr(str(output)))
    (folder / "shop.py").write_text(shop)
    (folder / "driver.py").write_text(textwrap.dedent(WORKFLOW) + textwrap.dedent(main))
    return folder / "driver.py"


def drive(script: Path, engine: EngineUnderTest, *args: str, **environment: str) -> str:
    """Run a driver to its end; the last line it printed."""
    done = subprocess.run(
        [sys.executable, script.name, *args],
        cwd=script.parent,
        env={**engine.environment(), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


START_AND_EXIT = """
    if __name__ == "__main__":
        print(pr.start_sync(job, {steps}, {pause}), flush=True)
        os._exit(0)
"""


def test_a_run_completes_after_a_driver_that_exits_at_once(engine: EngineUnderTest, tmp_path: Path) -> None:
    """And its steps stay fast, although Ray ends the idle workers of a job that has ended."""
    script = write_project(tmp_path / "project", START_AND_EXIT.format(steps=12, pause=3), tmp_path)
    run: pr.RunHandle[list[float]] = pr.RunHandle(drive(script, engine))
    ended = run.wait(timeout=90)
    assert len(ended) == 12
    # After the pause the driver has long been gone. A new worker process for each step would take most of
    # a second each; this is no benchmark, so anything far below that will do.
    gaps = sorted(later - earlier for earlier, later in pairwise(ended[2:]))
    assert gaps[len(gaps) // 2] < 0.4


def test_a_run_resumes_after_its_drivers_directory_is_gone(engine: EngineUnderTest, tmp_path: Path) -> None:
    script = write_project(tmp_path / "project", START_AND_EXIT.format(steps=3, pause=4), tmp_path)
    run: pr.RunHandle[list[float]] = pr.RunHandle(drive(script, engine))
    eventually(lambda: run.status_sync() is pr.RunStatus.SUSPENDED)
    shutil.rmtree(script.parent)
    engine.kill("coordinator-0")
    assert len(run.wait(timeout=90)) == 3
    assert (tmp_path / "step2").exists()


KILLED = """
    if __name__ == "__main__":
        run = pr.start_sync(job, 3, 1)
        print(run, flush=True)
        time.sleep(600)
"""


def test_a_run_completes_after_its_driver_was_killed(engine: EngineUnderTest, tmp_path: Path) -> None:
    script = write_project(tmp_path / "project", KILLED, tmp_path)
    driver = subprocess.Popen(
        [sys.executable, script.name],
        cwd=script.parent,
        env=engine.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    run: pr.RunHandle[list[float]] = pr.RunHandle(driver.stdout.readline().strip())
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert len(run.wait(timeout=90)) == 3


WHOLE_CLUSTER = """
    if __name__ == "__main__":
        run = pr.start_sync(job, 3, {pause}) if len(sys.argv) < 2 else pr.RunHandle(sys.argv[1])
        print(run, flush=True)
        if len(sys.argv) < 2:
            time.sleep(600)
        print(len(run.wait(timeout=90)), flush=True)
"""


@pytest.mark.timeout(240)
def test_a_run_goes_on_after_the_whole_cluster_was_killed(tmp_path: Path) -> None:
    """A driver with a cluster of its own: every process of it is killed, and a second one goes on."""
    script = write_project(tmp_path / "project", WHOLE_CLUSTER.format(pause=2), tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {
        "PYWORKFLOW_STORAGE": str(tmp_path / "engine.db"),
        "PYWORKFLOW_LEASE_TTL": "3s",
        "PYWORKFLOW_SWEEP_INTERVAL": "1s",
        # Not the cluster of the other tests, which `ray.init()` would find.
        "PYWORKFLOW_ADDRESS": "local",
    }
    first = subprocess.Popen(
        [sys.executable, script.name],
        cwd=script.parent,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert first.stdout is not None
    run = first.stdout.readline().strip()
    assert run.startswith("run_")
    eventually((tmp_path / "step0").exists)
    kill_tree(first.pid)
    first.wait()
    second = subprocess.run(
        [sys.executable, script.name, run],
        cwd=script.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert second.returncode == 0, second.stderr[-3000:]
    assert second.stdout.splitlines()[-1] == "3"


def kill_tree(pid: int) -> None:
    """`kill -9` a process and all that descend from it."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for child in children.read_text().split() if children.exists() else []:
        kill_tree(int(child))
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        time.sleep(0)


def test_two_storages_in_one_namespace_are_an_error(engine: EngineUnderTest, tmp_path: Path) -> None:
    main = """
        if __name__ == "__main__":
            try:
                pr.start_sync(job, 1, 0)
            except pr.ConfigurationError as error:
                print("refused", pr.run_sync(pr.list_runs())[0], flush=True)
    """
    script = write_project(tmp_path / "first", START_AND_EXIT.format(steps=1, pause=0), tmp_path)
    drive(script, engine)
    script = write_project(tmp_path / "second", main, tmp_path)
    refused = drive(script, engine, PYWORKFLOW_STORAGE=str(tmp_path / "other.db"))
    assert refused == "refused []"


def test_a_driver_that_names_no_storage_takes_the_running_engines(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    main = """
        if __name__ == "__main__":
            run = pr.start_sync(job, 1, 0)
            run.wait()
            print(len(pr.run_sync(pr.list_runs())[0]), os.path.exists(".pyworkflow"))
    """
    script = write_project(tmp_path / "first", START_AND_EXIT.format(steps=1, pause=0), tmp_path)
    drive(script, engine)
    script = write_project(tmp_path / "second", main, tmp_path)
    assert drive(script, engine, PYWORKFLOW_STORAGE="") == "2 False"


def test_a_cluster_of_ones_own_lasts_beyond_the_event_loop_that_started_it(tmp_path: Path) -> None:
    """Its processes end with the thread that has started them: it must not be one of the loop's."""
    main = """
        import asyncio

        if __name__ == "__main__":
            first = asyncio.run(pr.start(job, 1, 0))
            asyncio.run(first.result(timeout=60))
            print(len(asyncio.run(pr.start(job, 2, 0)).wait(timeout=60)), flush=True)
    """
    script = write_project(tmp_path / "project", main, tmp_path)
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=script.parent,
        env={**os.environ, "RAY_ADDRESS": "local", "PYWORKFLOW_STORAGE": str(tmp_path / "x.db")},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.stdout.split() == ["2"], done.stderr[-2000:]


def test_a_cluster_that_is_not_there_is_told_clearly(tmp_path: Path) -> None:
    main = """
        if __name__ == "__main__":
            try:
                pr.start_sync(job, 1, 0)
            except pr.ConfigurationError as error:
                print(str(error).replace(chr(10), " "), flush=True)
    """
    script = write_project(tmp_path / "project", main, tmp_path)
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1", "PYWORKFLOW_STORAGE": str(tmp_path / "x.db")}
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=script.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "127.0.0.1:1 cannot be joined" in done.stdout, done.stderr[-2000:]
    assert "ray start --head" in done.stdout


FLAVOURED = """
    import os
    import ray
    import pyworkflow_ray as pr

    @pr.step(local=True)
    def flavour() -> str:
        return os.environ.get("FLAVOUR", "plain")

    @pr.step
    def remote_flavour() -> str:
        return os.environ.get("FLAVOUR", "plain")

    @pr.workflow
    async def tasted() -> list[str]:
        before = await flavour()
        await pr.sleep(4)
        return [before, await flavour(), await remote_flavour()]

    if __name__ == "__main__":
        ray.init(runtime_env={"env_vars": {"FLAVOUR": "lemon"}}, namespace="tests")
        run = pr.start_sync(tasted)
        while run.status_sync() is not pr.RunStatus.SUSPENDED:
            pass
        print(run, flush=True)
        os._exit(0)
"""


def test_a_run_wakes_in_the_environment_of_its_job(engine: EngineUnderTest, tmp_path: Path) -> None:
    """The timer, which has another, makes the coordinator anew."""
    pr.configure(coordinator_ttl="1s")
    pr.start_sync(nothing).wait(timeout=60)  # the timer is made by this process, without a runtime_env
    script = tmp_path / "flavoured.py"
    script.write_text(textwrap.dedent(FLAVOURED))
    run_id = drive(script, engine, PYWORKFLOW_COORDINATOR_TTL="1s")
    eventually(lambda: engine.coordinators() == [], timeout=30)
    assert pr.RunHandle(run_id).wait(timeout=60) == ["lemon"] * 3
    run = engine.storage.read(get_run(run_id))
    assert run is not None
    assert run.environment


@pr.workflow
async def nothing() -> None:
    pass


@pr.step
def plain_flavour() -> str:
    return os.environ.get("FLAVOUR", "plain")


@pr.workflow
async def plainly_tasted() -> list[str]:
    await pr.sleep(4)
    return [await plain_flavour(), await plain_flavour.options(local=True)()]


def test_a_run_does_not_wake_in_the_environment_of_another_job(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    """Nobody of its own environment is left to make its coordinator, but the timer."""
    script = tmp_path / "flavoured.py"
    script.write_text(textwrap.dedent(FLAVOURED))
    flavoured = drive(script, engine, PYWORKFLOW_COORDINATOR_TTL="1s")
    pr.configure(coordinator_ttl="1s")
    run = pr.start_sync(plainly_tasted)
    eventually(lambda: run.status_sync() is pr.RunStatus.SUSPENDED)
    assert run.wait(timeout=60) == ["plain", "plain"]
    assert pr.RunHandle(flavoured).wait(timeout=60) == ["lemon"] * 3
