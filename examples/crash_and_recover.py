"""Kill the processes that run a workflow, and see that the run still ends with every result.

    python examples/crash_and_recover.py

A driver process starts an order of six steps and exits. Then this script sends `kill -9` twice: to the worker
process in which a step is running, and to the process of the actor that drives the run. The step is tried
again. The actor comes back, replays the run's history and goes on. At the end every step has exactly one
recorded result, although two steps ran more than once.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from textwrap import shorten

import ray

from pyworkflow_ray import (
    Event,
    RunHandle,
    configure,
    get_config,
    get_context,
    run_sync,
    start_sync,
    step,
    workflow,
)

BEGAN = time.time()
STEPS = ("reserve", "charge", "pack", "label", "ship", "notify")


@step
def do(work: str, order: str, diary: str) -> str:
    """One second of work. It writes a line to a diary, which shows what ran, where, and how often."""
    context = get_context()
    with Path(diary).open("a") as lines:
        lines.write(f"{work} {context.attempt} {os.getpid()}\n")
    time.sleep(1)
    return f"{work} {order}: done"


@workflow
async def process_order(order: str, diary: str) -> list[str]:
    return [await do.options(name=work)(work, order, diary) for work in STEPS]


def drive(address: str, diary: str) -> None:
    """The driver: start the run, write down its id, and exit."""
    configure(address=address)
    run = start_sync(process_order, "A-17", diary)
    Path(diary).with_name("run").write_text(run)


def main() -> None:
    ray.init(include_dashboard=False, log_to_driver=False)  # the cluster outlives the driver
    address = ray.get_runtime_context().gcs_address
    configure(address=address)
    diary = Path(tempfile.mkdtemp()) / "diary"
    diary.touch()

    subprocess.run([sys.executable, __file__, address, str(diary)], check=True)
    run: RunHandle[list[str]] = RunHandle(diary.with_name("run").read_text())
    say(f"the driver has started {run} and exited")

    pid = wait_for(diary, "charge", attempt=1)
    say(f"step 'charge' is running in process {pid}: kill -9")
    kill(pid)
    pid = wait_for(diary, "charge", attempt=2)
    say(f"step 'charge' is running again, in process {pid}")

    coordinator, pid = coordinator_of(run)
    wait_for(diary, "label", attempt=1)
    say(f"step 'label' is running, the run is driven by {coordinator}, process {pid}: kill -9")
    kill(pid)
    pid = wait_for(diary, "label", attempt=2)
    say(f"step 'label' is running again, in process {pid}")
    say(f"{coordinator} is process {coordinator_of(run)[1]} now")

    result = run.wait(timeout=60)
    say(f"the run is {run.status_sync().value}: {len(result)} results")
    report(run.events_sync(), diary)


def say(text: str) -> None:
    print(f"{time.time() - BEGAN:6.2f} s  {text}", flush=True)


def wait_for(diary: Path, work: str, attempt: int) -> int:
    """The process in which this attempt runs. Waits until the attempt has begun."""
    for _ in range(600):
        for line in diary.read_text().splitlines():
            if line.startswith(f"{work} {attempt} "):
                return int(line.split()[2])
        time.sleep(0.05)
    raise SystemExit(f"attempt {attempt} of step {work!r} has not begun within 30 s")


def coordinator_of(run: RunHandle[list[str]]) -> tuple[str, int]:
    """The name of the actor that drives the run, and its process."""
    name = run_sync(run.refresh()).coordinator
    assert name is not None
    actor = ray.get_actor(name, namespace=get_config().namespace)
    return name, ray.get(actor.pid.remote())


def kill(pid: int) -> None:
    """`kill -9`, but only if the process is one of Ray's."""
    command = Path(f"/proc/{pid}/cmdline")
    if command.exists() and not command.read_bytes().startswith(b"ray::"):
        raise SystemExit(f"process {pid} is not one of Ray's: {command.read_bytes()!r}")
    os.kill(pid, signal.SIGKILL)


def report(events: list[Event], diary: Path) -> None:
    """Show the history, and for each step how often it ran and how many results are recorded."""
    print("\nthe history:")
    for event in events:
        data = event.data
        note = shorten(data.get("error") or data.get("step_id") or data.get("reason") or "", 66)
        attempt = f"attempt {data['attempt']}" if "attempt" in data else ""
        seconds = event.timestamp.timestamp() - BEGAN
        print(f"{event.sequence:>3} {seconds:6.2f} s  {event.type:<20} {attempt:<10} {note}".rstrip())

    runs = Counter(line.split()[0] for line in diary.read_text().splitlines())
    results = Counter(event.data["step_name"] for event in events if event.type == "step.completed")
    print(f"\n{'step':<8} times run  results recorded")
    for work in STEPS:
        print(f"{work:<8} {runs[work]:>9}  {results[work]:>16}")
    if any(results[work] != 1 for work in STEPS):
        raise SystemExit("a result was lost or counted twice")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        drive(*sys.argv[1:])
    else:
        main()
