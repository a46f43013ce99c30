"""The monkey: a process that hurts the others, by a seed.

As a program (``python -m storm.monkey FOLDER``). It does one thing after another with short pauses; only
stopped processes stay stopped meanwhile. When it is told to end, it ends what it is doing and continues all
that it has stopped. Each fault is in the ledger before it happens.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from storm import ledger
from storm.clusters import Cluster
from storm.databases import File, Server, victim_of
from storm.plans import LEASE_TTL, Plan
from storm.processes import Process, of_program
from storm.records import connect, rows_of

FIRST_LOSS_AFTER = 35.0
"""Seconds until the cluster is lost for the first time; again after a minute and a half."""


class Monkey:
    """Hurts a storm's processes and its database.

    Args:
        is_asked_to_end: Asked between faults.
    """

    def __init__(self, plan: Plan, is_asked_to_end: Callable[[], bool]) -> None:
        self._plan, self._is_asked_to_end = plan, is_asked_to_end
        self._cluster: Cluster = plan.cluster
        self._random = Random(f"monkey:{plan.seed}")
        self._victim = victim_of(plan.victim)
        self._stopped: list[tuple[float, Process, str]] = []
        self._reader = ledger.Reader(plan.ledger)
        self._runs_of_pid: dict[int, str] = {}
        """The run of the attempt that a process has begun last."""
        self._actors: dict[int, str] = {}
        """The names of actors, by their pids, as drivers have seen them."""

    def run(self) -> None:
        began = time.monotonic()
        losses = [FIRST_LOSS_AFTER + 90.0 * number for number in range(100)]
        faults = self._faults()
        while not self._is_asked_to_end():
            # Now and then it waits long enough to see the runs go on.
            is_long = self._random.random() < 0.2
            self._pause(self._random.uniform(9.0, 13.0) if is_long else self._random.uniform(0.8, 3.5))
            if self._is_asked_to_end():
                break
            if time.monotonic() - began > losses[0]:
                losses.pop(0)
                self._lose_cluster()
                continue
            fault = self._random.choices(list(faults), [weight for _, weight in faults.values()])[0]
            rank = self._random.random()
            try:
                faults[fault][0](rank)
            except Exception as error:
                ledger.write("note", kind="monkey", text=f"{fault}: {type(error).__name__}: {error}")
        self._continue_stopped(all_of_them=True)

    def _faults(self) -> dict[str, tuple[Callable[[float], None], int]]:
        faults: dict[str, tuple[Callable[[float], None], int]] = {
            "kill worker": (self._killing("worker"), 6),
            "kill coordinator": (self._killing("coordinator"), 4),
            "kill timer": (self._killing("timer"), 2),
            "kill hook_registry": (self._killing("hook_registry"), 2),
            "kill driver": (self._kill_driver, 1),
            "stop coordinator": (self._stopping("coordinator"), 3),
            "stop worker": (self._stopping("worker"), 2),
            "stop timer": (self._stopping("timer"), 1),
            "stop hook_registry": (self._stopping("hook_registry"), 1),
        }
        match self._victim:
            case File():
                faults["lock database"] = (self._lock_database, 3)
            case Server():
                faults |= {
                    "stop database": (self._stop_database, 2),
                    "cut connections": (self._cut, 2),
                    "lose commits": (self._lose_commits, 4),
                    "hold connections": (self._hold, 1),
                }
        return faults

    # --- processes ----------------------------------------------------------------------------------

    def _chosen(self, kind: str, rank: float) -> Process | None:
        found = [each for each in self._cluster.processes() if each.kind == kind]
        stopped = {process.pid for _, process, _ in self._stopped}
        found = [each for each in found if each.pid not in stopped]
        return found[int(rank * len(found))] if found else None

    def _killing(self, kind: str) -> Callable[[float], None]:
        def kill(rank: float) -> None:
            victim = self._chosen(kind, rank)
            if victim is not None:
                self._write(f"kill {kind}", victim)
                victim.send(signal.SIGKILL)

        return kill

    def _stopping(self, kind: str) -> Callable[[float], None]:
        def stop(rank: float) -> None:
            # Drawn in any case: what a seed decides later must not depend on what was found.
            seconds = LEASE_TTL + 1.0 + 5.0 * self._random.random()
            victim = self._chosen(kind, rank)
            if victim is not None:
                self._write(f"stop {kind}", victim, seconds=round(seconds, 2))
                victim.send(signal.SIGSTOP)
                self._stopped.append((time.monotonic() + seconds, victim, f"stop {kind}"))

        return stop

    def _kill_driver(self, rank: float) -> None:
        found = _drivers(self._plan.folder)
        if found:
            victim = found[int(rank * len(found))]
            self._write("kill driver", victim)
            victim.send(signal.SIGKILL)

    def _lose_cluster(self) -> None:
        """All of the cluster is gone, with the drivers on it. A new one comes up at its address."""
        self._write("lose cluster", None)
        for driver in _drivers(self._plan.folder):
            driver.send(signal.SIGKILL)
        left = self._cluster.lose()
        ledger.write("note", kind="monkey", text="the cluster is gone")
        self._stopped.clear()
        if left:
            ledger.write("note", kind="monkey", text=f"these outlived their cluster: {left}")
        time.sleep(1.5)
        for _ in range(3):
            try:
                self._cluster.start(self._plan.folder / "ray.log")
                break
            except Exception as error:
                ledger.write("note", kind="monkey", text=f"the cluster does not start: {error}")
                self._cluster.lose()
        ledger.write("over", kind="lose cluster")

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._is_asked_to_end():
            self._continue_stopped()
            time.sleep(0.1)

    def _continue_stopped(self, *, all_of_them: bool = False) -> None:
        for stopped in list(self._stopped):
            at, process, kind = stopped
            if all_of_them or time.monotonic() >= at:
                process.send(signal.SIGCONT)
                ledger.write("over", kind=kind, victim=process.pid)
                self._stopped.remove(stopped)

    # --- databases ----------------------------------------------------------------------------------

    def _lock_database(self, rank: float) -> None:
        assert isinstance(self._victim, File)
        seconds = 1.0 + 7.0 * rank
        self._write("lock database", None, seconds=round(seconds, 2))
        self._victim.lock(seconds)
        ledger.write("over", kind="lock database")

    def _stop_database(self, rank: float) -> None:
        assert isinstance(self._victim, Server)
        self._write("stop database", None)
        try:
            self._victim.stop("immediate")
            time.sleep(4.0 * rank)
        finally:
            self._victim.start()
        ledger.write("over", kind="stop database")

    def _cut(self, rank: float) -> None:
        self._tell("cut connections", "cut")

    def _lose_commits(self, rank: float) -> None:
        self._tell("lose commits", f"lose {1 + int(4 * rank)}")

    def _hold(self, rank: float) -> None:
        self._tell("hold connections", f"hold {1.0 + 7.0 * rank:.1f}")

    def _tell(self, kind: str, command: str) -> None:
        assert isinstance(self._victim, Server)
        self._write(kind, None, command=command)
        self._victim.tell(command)

    # --- what it notes ------------------------------------------------------------------------------

    def _write(self, kind: str, victim: Process | None, **more: Any) -> None:
        """Write a fault into the ledger, with the runs that it concerns as far as they are known."""
        if victim is not None:
            more |= {"victim": victim.pid, "title": victim.title[:80]}
        runs: list[str] = []
        try:
            runs = self._concerned(kind, victim)
        except Exception as error:  # the database or the control store does not answer at the moment
            more["unknown"] = f"{type(error).__name__}: {error}"[:100]
        ledger.write("fault", kind=kind, runs=runs, **more)

    def _concerned(self, kind: str, victim: Process | None) -> list[str]:
        for line in self._reader.read():
            match line["what"]:
                case "begin" | "end":
                    self._runs_of_pid[line["pid"]] = line["run"] if line["what"] == "begin" else ""
                case "actor":
                    self._actors[line["process"]] = line["name"]
        if kind == "kill driver":
            return []  # no run depends on it
        if kind.endswith("worker") and victim is not None:
            return [run for run in [self._runs_of_pid.get(victim.pid)] if run]
        if kind.endswith("coordinator") and victim is not None:
            name = self._actors.get(victim.pid)
            return [] if name is None else self._running(f"owner = '{name}' OR owner LIKE '{name}@%'")
        if kind.endswith("timer"):
            return self._running("1 = 1", status="'suspended'")
        if kind.endswith("hook_registry"):
            return []  # what it concerns is seen in the drivers' calls
        return self._running("owner IS NOT NULL")

    def _running(self, condition: str, status: str = "'pending', 'running'") -> list[str]:
        query = f"SELECT run_id FROM runs WHERE status IN ({status}) AND ({condition})"
        with contextlib.closing(connect(self._plan.checked_url, timeout=2.0)) as connection:
            return [row["run_id"] for row in rows_of(connection, query)]


def _drivers(folder: Path) -> list[Process]:
    return of_program("storm.drivers", folder)


def main() -> None:
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ending.append(number))
    plan = Plan.read(Path(sys.argv[1]))
    Monkey(plan, lambda: bool(ending) or plan.is_calm).run()


if __name__ == "__main__":
    main()
