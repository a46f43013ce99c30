"""Replays: the histories of a storm, run through the code again from prefixes of every length.

As a program (``python -m storm.replays FOLDER SECONDS``), in a process of its own, since the code of a
program may end its process. It prints a line of JSON for each history that does not replay, and at last how
many it has tried.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from random import Random

import pyworkflow_ray as pr
from pyworkflow_ray.testing import replay
from storm.interpreter import SPARE, storm
from storm.plans import Plan

ALL_PREFIXES_TO = 30
"""Histories of so many events are replayed from all of their prefixes."""
SAMPLE = 8


def lengths_of(count: int, random: Random) -> list[int]:
    """The lengths of the prefixes to replay of a history of so many events, the whole first."""
    shorter = list(range(1, count))
    if count > ALL_PREFIXES_TO:
        shorter = sorted(random.sample(shorter, SAMPLE))
    return [count, *shorter]


def replay_run(run_id: str, random: Random) -> str | None:
    """Replay one run; what went wrong first, or None."""
    events = pr.run_sync(pr.get_workflow_events(run_id))
    for length in lengths_of(len(events), random) if events else ():
        try:
            replay(events[:length], storm)
        except Exception as error:
            return f"its first {length} of {len(events)} events: {type(error).__name__}: {error}"[:600]
    return None


def main() -> None:
    os.environ[SPARE] = "1"
    plan = Plan.read(Path(sys.argv[1]))
    deadline = time.monotonic() + float(sys.argv[2])
    pr.configure(storage=plan.checked_url)
    random = Random(f"replays:{plan.seed}")
    replayed, cursor = 0, None
    while True:
        runs, cursor = pr.run_sync(pr.list_runs(limit=100, cursor=cursor))
        for run in runs:
            if time.monotonic() > deadline:
                print(json.dumps({"replayed": replayed, "is_whole": False}), flush=True)
                return
            what = replay_run(run.run_id, random)
            replayed += 1
            if what is not None:
                program = run.input_args[0]["id"] if run.input_args else ""
                print(json.dumps({"run": run.run_id, "program": program, "what": what}), flush=True)
        if cursor is None:
            break
    print(json.dumps({"replayed": replayed, "is_whole": True}), flush=True)


if __name__ == "__main__":
    main()
