"""Each example runs as it stands, in a process and a folder of its own, and shows what its text says.

One Ray head serves them all: starting one costs as much as an example. Each has its own namespace, and so
its own actors and its own database.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
HEAD = """
import ray, sys
ray.init(num_cpus=4, resources={"scanner": 2}, include_dashboard=False, log_to_driver=False,
         object_store_memory=80 * 2**20)
print("address", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""

Run = Callable[..., str]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray head of its own process, which ends with its standard input."""
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD],
        cwd=tmp_path_factory.mktemp("head"),
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert head.stdout is not None
    line = next((line for line in head.stdout if line.startswith("address ")), None)
    assert line is not None, "the Ray head did not start"
    yield line.split()[1]
    head.communicate("", timeout=60)


def environment(address: str, folder: Path) -> dict[str, str]:
    return {**os.environ, "RAY_ADDRESS": address, "PYWORKFLOW_NAMESPACE": folder.name}


@pytest.fixture
def run(address: str, tmp_path: Path) -> Run:
    """Runs an example in an empty folder; its standard output."""

    def run(name: str, *args: str) -> str:
        done = subprocess.run(
            [sys.executable, EXAMPLES / f"{name}.py", *args],
            cwd=tmp_path,
            env=environment(address, tmp_path),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        assert (tmp_path / ".pyworkflow" / "pyworkflow.db").is_file()
        return done.stdout

    return run


def test_every_example_has_a_test() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


def test_hello(run: Run) -> None:
    assert "HELLO, WORLD!" in run("hello").splitlines()  # Ray may add lines of its own


def test_order(run: Run) -> None:
    output = run("order")
    assert re.search(r"payment of 12\.50 under run_\w{16}:charge#1, attempt 3", output)
    assert "box of pears is on its way" in output
    assert "was declined" in output
    assert "box of plums is back on its shelf" in output


def test_retries(run: Run) -> None:
    line = re.compile(r"^(.+?)#1 +(\d+)  (\w+) +(.+)$", re.MULTILINE)
    told = {
        name: (int(attempts), end, pauses) for name, attempts, end, pauses in line.findall(run("retries"))
    }
    assert told.pop("unreliable")[:2] == (4, "completed")  # its pauses have jitter
    assert told == {
        "a duration": (3, "completed", "0.20 s, 0.20 s"),
        "seconds": (2, "completed", "0.30 s"),
        "a list": (4, "completed", "0.10 s, 0.40 s, 0.40 s"),
        "a RetryPolicy": (4, "completed", "0.10 s, 0.30 s, 0.50 s"),
        "rate_limited": (2, "completed", "0.70 s"),
        "hopeless": (1, "failed", "-"),
        "picky": (1, "failed", "-"),
        "fixed": (3, "completed", "60.00 s, 60.00 s"),
        "an hour": (2, "completed", "3600.00 s"),
    }


def test_long_sleep(run: Run) -> None:
    output = run("long_sleep")
    # The example looks ten times a second, and may miss that the run is awake before it has ended.
    seen = re.findall(r"(running|suspended|completed)$", output, re.MULTILINE)
    assert [status for status in seen if status != "running"] == ["suspended", "completed"]
    assert re.search(r"coordinator-code\.[0-9a-f]{16}-0 has 0 runs in memory", output)
    assert re.search(r"30 days in \d+ ms: .*2592000 s later", output)


def test_fan_out(run: Run) -> None:
    output = run("fan_out")
    assert output.count("the sum of 200 squares is 2646700") == 3
    assert len(re.findall(r"^first_come: (?:quick|middling|slow) in process \d+$", output, re.MULTILINE)) == 3


def test_ray_resources(run: Run) -> None:
    output = run("ray_resources")
    assert "a book of 6 pages" in output
    assert len(re.findall(r"scan#\d +node \w{8} pid \d+ +asked .*'scanner': 1", output)) == 6
    assert re.search(r"bind#1 .*asked {'num_cpus': 0\.1}", output)


def test_event_log(run: Run) -> None:
    by_python, _, by_sql = run("event_log").partition("with SQL:")
    for told in (by_python, by_sql):
        types = re.findall(r"^ +\d  \S+  (\S+\.\S+)", told, re.MULTILINE)
        assert types == [
            "workflow.started",
            "step.started",
            "step.retrying",
            "step.completed",
            "sleep.started",
            "sleep.completed",
            "step.started",
            "step.completed",
            "workflow.completed",
        ]


def test_crash_and_recover(run: Run) -> None:
    output = run("crash_and_recover")
    assert output.count("kill -9") == 2
    assert "the run is completed: 6 results" in output
    assert "workflow.interrupted" in output
    table = dict(re.findall(r"^(\w+) +\d+ +(\d+)$", output, re.MULTILINE))
    assert table == dict.fromkeys(("reserve", "charge", "pack", "label", "ship", "notify"), "1")


def test_approval_by_hook(run: Run) -> None:
    output = run("approval_by_hook")
    assert "refused: The payload does not fit hook 'approval': approved:" in output
    assert re.search(r"hook approval#1 of run_\w{16} has its payload", output)
    assert "too late: Hook 'approval#1' has received its payload already." in output
    assert "'The far side of the moon' is published, as Ada has decided" in output


def test_an_approval_comes_from_a_second_terminal(run: Run, address: str, tmp_path: Path) -> None:
    waiting = subprocess.Popen(
        [sys.executable, EXAMPLES / "approval_by_hook.py", "wait"],
        cwd=tmp_path,
        env=environment(address, tmp_path),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert waiting.stdout is not None
    told = (re.search(r" resume (\S+) --yes$", line) for line in waiting.stdout)
    token = next(found.group(1) for found in told if found is not None)
    assert "has its payload" in run("approval_by_hook", "resume", token, "--no")
    output, _ = waiting.communicate(timeout=60)
    assert "stays a draft, as Ada has decided" in output


def test_order_saga(run: Run) -> None:
    output = run("order_saga")
    done = re.findall(r"^  (the run|\w+) +(\S.*)$", output, re.MULTILINE)
    assert [name for name, _ in done] == [
        *("reserve", "charge", "ship"),
        *("reserve", "charge", "ship", "refund", "release", "apologize", "the run"),
    ]
    assert ("refund", "payment of 12.50 for A-18 is given back") in done
    assert "A-18 failed: the parcel for A-18 fell off a lorry" in output


def test_parent_and_children(run: Run) -> None:
    output = run("parent_and_children")
    assert "1. IT SHINES" in output
    assert "3. IT SETS" in output
    assert re.search(
        r"^-- run_\w{16} failed: ValueError: what is meant by 'it \?\?\?'\?$", output, re.MULTILINE
    )
    children = re.findall(r"^  run_\w{16}  (\w+) +(\w+)$", output, re.MULTILINE)
    assert sorted(children)[:3] == [("chapter", "completed"), ("chapter", "completed"), ("chapter", "failed")]
    assert "and later: the index of 'The moon'" in output


def test_monitor_loop(run: Run) -> None:
    output = run("monitor_loop")
    assert re.search(r"^90 °C at look 10, in run_\w{16}$", output, re.MULTILINE)
    chain = re.findall(r"from look (\d+)  (\d+) events  (\w+)$", output, re.MULTILINE)
    assert chain == [
        ("1", "18", "continued_as_new"),
        ("5", "18", "continued_as_new"),
        ("9", "8", "completed"),
    ]


def test_scheduled_report(run: Run) -> None:
    output = run("scheduled_report")
    fires = re.findall(
        r"^  for (\S+)  completed  pears and plums: 15 orders until (\S+)$", output, re.MULTILINE
    )
    assert len(fires) >= 4
    first, second, third = (datetime.fromisoformat(at) for at, _ in fires[:3])
    assert third - second == second - first == timedelta(seconds=1)
    assert all(f"T{told}" in at for at, told in fires)
    assert re.search(r"^by hand: pears and plums: 15 orders", output, re.MULTILINE)
    events = re.findall(r"^  \d\d:\d\d:\d\d  schedule\.(\w+)", output, re.MULTILINE)
    assert (events[0], events[-1]) == ("created", "deleted")


def test_cancel_with_cleanup(run: Run) -> None:
    first, second = run("cancel_with_cleanup").split("asked again: False")[:2]
    for told in (first, second):
        assert "asked to cancel: True" in told
        assert "cancelled: the film is too long" in told
    events = [re.findall(r"^  \d+  (\S+) +(\S+#1)", told, re.MULTILINE) for told in (first, second)]
    assert events[0] == [
        *(("step.started", "open_scratch#1"), ("step.completed", "open_scratch#1")),
        *(("step.started", "render#1"), ("step.failed", "render#1")),
        *(("step.started", "delete_scratch#1"), ("step.completed", "delete_scratch#1")),
    ]
    assert events[1] == [("step.started", "bill#1"), ("step.completed", "bill#1")]


def test_agent_loop(run: Run) -> None:
    output = run("agent_loop")
    said = re.findall(r"^(?:Ada|tool|agent): .*$", output, re.MULTILINE)
    assert said == [
        *("Ada: hello", "agent: I sell pears and plums."),
        *("Ada: what do plums cost?", "tool: 1.80", "agent: They cost 1.80."),
        *("Ada: and pears?", "tool: 2.50", "agent: They cost 2.50."),
    ]
    assert "8 lines; attributes {'customer': 'Ada', 'turns': 3}" in output
    assert "the last line was ['agent: They cost 2.50.']" in output


def test_two_scripts(run: Run) -> None:
    started = run("two_scripts/start").splitlines()
    assert [line for line in started if line.startswith("order-")] == [
        f"order-A-{number} waits for an answer" for number in (17, 18)
    ]
    answered = run("two_scripts/answer")
    assert "A-17 is on its way, approved by Ada\nDeclinedError: Ada has declined A-18\n" in answered
