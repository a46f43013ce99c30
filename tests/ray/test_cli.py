"""The command line as people use it: processes of its own, and an engine on Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyworkflow_ray as pr
from tests.ray.conftest import EngineUnderTest, eventually

FLOW = """
import pyworkflow_ray as pr

@pr.step
def cli_ray_step(number: int) -> int:
    print("at work")
    return number * 2

@pr.workflow
async def cli_ray_flow(numbers: list[int]) -> list[int]:
    return [await cli_ray_step(number) for number in numbers]

@pr.workflow
async def cli_ray_asks() -> str:
    return "heard " + await pr.hook("cli_ray_ear")
"""


def call(engine: EngineUnderTest, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    (folder / "cli_ray_flows.py").write_text(FLOW)
    return subprocess.run(
        [sys.executable, "-m", "pyworkflow_ray", *args],
        cwd=folder,
        env={**engine.environment(), "PYWORKFLOW_MODULE": "cli_ray_flows"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    """What it told as JSON."""
    return json.loads(done.stdout)


def test_a_run_is_shown_line_by_line_to_its_end(engine: EngineUnderTest, tmp_path: Path) -> None:
    done = call(
        engine, tmp_path, "workflows", "run", "cli_ray_flow", "-a", "numbers=[1, 2]", "--output", "json"
    )
    assert done.returncode == 0, done.stderr
    assert answer(done)["result"] == [2, 4]
    told = [line[10:].split()[:2] for line in done.stderr.splitlines() if line[2:3] == ":"]
    assert told == [
        ["▶", "cli_ray_flow"],
        ["✓", "cli_ray_step#1"],
        ["✓", "cli_ray_step#2"],
        ["■", "completed"],
    ]


def test_a_run_that_nobody_waits_for_is_woken_by_an_answer(engine: EngineUnderTest, tmp_path: Path) -> None:
    started = call(engine, tmp_path, "workflows", "run", "cli_ray_asks", "--no-wait", "--output", "plain")
    run: pr.RunHandle[str] = pr.RunHandle(started.stdout.strip())
    (hook,) = eventually(lambda: pr.run_sync(pr.list_hooks(run))[0])
    done = call(engine, tmp_path, "hooks", "resume", hook.token, "-p", '"you"')
    assert done.returncode == 0, done.stderr
    assert run.wait(60) == "heard you"


def test_an_engine_is_brought_up_found_well_and_taken_down(engine: EngineUnderTest, tmp_path: Path) -> None:
    up = call(engine, tmp_path, "up", "--output", "json")
    assert up.returncode == 0, up.stderr
    assert {actor["name"]: actor["is_new"] for actor in answer(up)} == {
        "timer": True,
        "hook-registry": True,
        "coordinator-0": True,
    }
    well = call(engine, tmp_path, "doctor", "--output", "json")
    assert well.returncode == 0, well.stderr
    assert {check["status"] for check in answer(well)} == {"ok"}, well.stdout
    down = call(engine, tmp_path, "down", "--output", "json")
    assert sorted(answer(down)) == ["coordinator-0", "hook-registry", "timer"]
    eventually(lambda: not engine.coordinators())
