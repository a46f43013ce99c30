"""Throw faults at random workflow programs, and check every promise.

    python storm/run.py --minutes 2 --seed 7 --database sqlite

Exit code 0: every promise held. 1: one did not, and the folder with database, ledger and logs stays.
README.md says more.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from storm.clusters import prepare_environment
from storm.databases import File, victim_of
from storm.director import Director, check
from storm.plans import Plan
from storm.programs import make_program
from storm.report import Report


def main() -> int:
    """The command; its exit code."""
    arguments = _parser().parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(10**6)
    if arguments.show is not None:
        program = make_program(seed, arguments.show, with_deadly=not arguments.without_deadly)
        print(json.dumps(asdict(program), indent=2))
        return 0
    if arguments.check is not None:
        return _finish(_checked_again(arguments.check, arguments.replay_seconds), arguments.json, keep=True)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="storm-", dir="/tmp"))
    folder.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        folder=folder.resolve(),
        seed=seed,
        minutes=arguments.minutes,
        database=arguments.database,
        at_once=arguments.at_once,
        with_deadly=not arguments.without_deadly,
        with_faults=not arguments.without_faults,
    )
    # Whoever ends this process, by a time limit perhaps, leaves no cluster and no server behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    director = Director(
        plan,
        patience=arguments.patience,
        quiet_limit=arguments.quiet,
        replay_seconds=arguments.replay_seconds,
    )
    return _finish(director.run(), arguments.json, keep=arguments.keep)


def _checked_again(folder: Path, replay_seconds: float) -> Report:
    """What the checks find in what an earlier storm has left."""
    prepare_environment()
    plan = Plan.read(folder)
    plan.enter_environment()
    victim = victim_of(plan.victim)
    if isinstance(victim, File):
        return check(plan, [], replay_seconds)
    victim.start()
    try:
        return check(plan, [], replay_seconds)
    finally:
        victim.stop("fast")


def _finish(report: Report, path: Path | None, *, keep: bool) -> int:
    print(report.text())
    if path is not None:
        path.write_text(json.dumps(report.plain(), indent=2))
    if report.is_whole and not keep:
        shutil.rmtree(report.plan.folder, ignore_errors=True)
    return 0 if report.is_whole else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=2.0, help="for how long faults happen (default 2)")
    add("--seed", type=int, help="decides programs and faults (default: a random one)")
    add("--database", choices=("sqlite", "postgresql"), default="sqlite")
    add("--at-once", type=int, default=5, help="programs of each driver that are under way at once")
    add("--json", type=Path, help="write the report to this file as well, as JSON")
    add("--folder", type=Path, help="for database, ledger and logs (default: a new one in /tmp)")
    add("--keep", action="store_true", help="keep the folder in any case")
    add("--quiet", type=float, default=150.0, help="seconds that runs get to end after the faults")
    add("--patience", type=float, default=60.0, help="seconds without an event after which runs are stuck")
    add("--replay-seconds", type=float, default=60.0, help="how long to replay histories")
    add("--without-deadly", action="store_true", help="no programs that end the process that drives them")
    add("--without-faults", action="store_true", help="programs alone, to see that the model is right")
    add("--show", type=int, metavar="NUMBER", help="print the program of this number and seed, and end")
    add("--check", type=Path, metavar="FOLDER", help="check a kept folder again, and end")
    return parser
