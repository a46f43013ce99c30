"""The director: brings a storm up, keeps its drivers alive, waits until it is quiet, and checks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from storm import ledger
from storm.checks import check_all
from storm.clusters import new_cluster, prepare_environment
from storm.databases import PostgreSQL, SQLite, open_database
from storm.evidence import Broken, Evidence
from storm.plans import Plan
from storm.records import connect, read_records, rows_of
from storm.report import Report

PROGRESS_EVERY = 3.0
LAST_ATTEMPTS = 15.0
"""Seconds in which attempts of runs that have ended must end too."""
LAST_WAITS = 25.0
"""Seconds in which whoever waits for a run that has ended must be told."""


class Director:
    """One storm.

    Args:
        patience: Seconds without any new event after which runs that have not ended count as stuck.
        quiet_limit: Seconds that all runs together get to end, once faults have ended.
    """

    def __init__(self, plan: Plan, *, patience: float, quiet_limit: float, replay_seconds: float) -> None:
        self._plan = plan
        self._patience, self._quiet_limit, self._replay_seconds = patience, quiet_limit, replay_seconds
        self._drivers: dict[int, subprocess.Popen[bytes]] = {}
        self._begun_at: dict[int, float] = {}
        self._monkey: subprocess.Popen[bytes] | None = None
        self._reader = ledger.Reader(plan.ledger)
        self._counts: Counter[str] = Counter()
        self._tried: set[str] = set()
        self._started_programs: set[str] = set()
        self._seen: set[str] = set()
        self._began = time.monotonic()
        self._shown_at = 0.0

    def run(self) -> Report:
        """Let it storm, and check."""
        database = self._bring_up()
        try:
            try:
                self._storm()
                self._calm()
                broken = [*self._own_troubles(), *self._leftover_attempts()]
                self._wait_for_waiters()
            finally:
                self._take_down()
            self._say("checking")
            report = check(self._plan, broken, self._replay_seconds)
        finally:
            database.close()
        if report.is_whole and isinstance(database, PostgreSQL):
            database.delete()
        return report

    def _bring_up(self) -> SQLite | PostgreSQL:
        prepare_environment()
        plan = self._plan
        # What the database starts must find our modules too.
        os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
        database = open_database(plan.database, plan.folder)
        cluster = new_cluster()
        self._plan = replace(
            plan,
            url=database.url,
            checked_url=database.checked_url,
            victim=database.told(),
            cluster_folder=str(cluster.folder),
            port=cluster.port,
        )
        self._plan.write()
        self._plan.enter_environment()
        try:
            cluster.start(plan.folder / "ray.log")
        except BaseException:
            cluster.lose()
            database.close()
            raise
        self._say(f"seed {plan.seed}, {plan.database}, folder {plan.folder}")
        return database

    def _storm(self) -> None:
        while self._count_of("runs", "status = 'completed'") <= 0:
            self._look_after_drivers()
            self._show("before the storm")
            if time.monotonic() - self._began > self._quiet_limit:
                raise RuntimeError(f"no run ends, and nothing was done to any; see {self._plan.folder}")
            time.sleep(0.3)
        ends = time.monotonic() + 60 * self._plan.minutes
        if self._plan.with_faults:
            self._monkey = self._started("storm.monkey", "monkey.log")
        while time.monotonic() < ends:
            self._look_after_drivers()
            self._show("storm")
            time.sleep(0.3)
        if self._monkey is not None:
            self._monkey.send_signal(signal.SIGTERM)
            while self._monkey.poll() is None:
                self._look_after_drivers()
                self._show("the last fault")
                time.sleep(0.3)
        self._plan.mark("calm")

    def _calm(self) -> None:
        """Wait until all runs have ended, or until it is clear that they do not."""
        deadline = time.monotonic() + self._quiet_limit
        last, last_at = "", time.monotonic()
        while time.monotonic() < deadline:
            self._look_after_drivers()
            self._show("quiet")
            pending = self._count_of("runs", _NOT_ENDED)
            if pending == 0 and self._counts["starting"] == 0:
                return
            now = f"{self._count_of('events')} {self._counts}"
            if now != last:
                last, last_at = now, time.monotonic()
            if time.monotonic() - last_at > self._patience:
                break
            time.sleep(0.5)
        self._say("some runs do not end")

    def _own_troubles(self) -> list[Broken]:
        """What went wrong with the storm itself: a storm that did nothing must not pass."""
        if self._monkey is None or self._monkey.returncode == 0:
            return []
        what = f"the monkey ended with {self._monkey.returncode}; see monkey.log"
        return [Broken("the storm itself goes on", "", what)]

    def _leftover_attempts(self) -> list[Broken]:
        deadline = time.monotonic() + LAST_ATTEMPTS
        while time.monotonic() < deadline:
            going = [each for each in self._plan.cluster.processes() if each.kind == "worker"]
            if not going:
                return []
            time.sleep(0.5)
        return [
            Broken("no attempt outlives its run", "", f"{each.pid} still carries out {each.title}")
            for each in going
        ]

    def _wait_for_waiters(self) -> None:
        deadline = time.monotonic() + LAST_WAITS
        while time.monotonic() < deadline:
            self._look_after_drivers()
            self._show("waiters")
            if self._counts["waiting"] == 0:
                break
            time.sleep(0.5)
        self._plan.mark("over")
        for driver in self._drivers.values():
            with suppress(subprocess.TimeoutExpired):
                driver.wait(10)

    def _take_down(self) -> None:
        processes = [*self._drivers.values(), *([self._monkey] if self._monkey else [])]
        for process in processes:
            process.kill()
            process.wait()
        left = self._plan.cluster.lose()
        if left:
            self._say(f"these outlived the cluster: {left}")
        self._plan.cluster.forget()

    # --- its processes ------------------------------------------------------------------------------

    def _look_after_drivers(self) -> None:
        for number in range(self._plan.drivers):
            driver = self._drivers.get(number)
            if driver is not None and driver.poll() is None:
                continue
            if time.monotonic() - self._begun_at.get(number, -10.0) > 2.0:
                self._begun_at[number] = time.monotonic()
                self._drivers[number] = self._started("storm.drivers", f"driver-{number}.log", str(number))

    def _started(self, module: str, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._plan.folder / log).open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", module, str(self._plan.folder), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    # --- progress -----------------------------------------------------------------------------------

    def _show(self, phase: str) -> None:
        for line in self._reader.read():
            kind = str(line.get("kind"))
            match line["what"]:
                case "begin":
                    self._counts["attempts"] += 1
                case "fault":
                    self._counts["faults"] += 1
                case "done":
                    self._counts[kind] += 1
            self._note_programs(line)
        self._counts["starting"] = len(self._tried - self._started_programs)
        self._counts["waiting"] = len(self._started_programs - self._seen)
        if time.monotonic() - self._shown_at < PROGRESS_EVERY:
            return
        self._shown_at = time.monotonic()
        words = ("start", "payload", "rejection", "signal", "cancel", "attempts", "faults")
        counts = ", ".join(f"{self._counts[word]} {word}" for word in words if self._counts[word])
        self._say(
            f"{phase}: {self._count_of('runs', _NOT_ENDED)} of {self._count_of('runs')} runs go on; {counts}"
        )

    def _note_programs(self, line: ledger.Line) -> None:
        if line["what"] == "try" and line["kind"] == "start":
            self._tried.add(line["program"])
        elif line["what"] == "done" and line["kind"] == "start":
            self._started_programs.add(line["program"])
        elif line["what"] == "saw":
            self._seen.add(line["program"])

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:6.1f} s] {text}", file=sys.stderr, flush=True)

    def _count_of(self, table: str, condition: str = "1 = 1") -> int:
        """How many rows there are; -1 when the database does not say at the moment."""
        try:
            with closing(connect(self._plan.checked_url, timeout=1.0)) as connection:
                (row,) = rows_of(connection, f"SELECT count(*) AS n FROM {table} WHERE {condition}")
                return int(row["n"])
        except Exception:
            return -1


_NOT_ENDED = "status NOT IN ('completed', 'failed', 'cancelled', 'continued_as_new')"


def check(plan: Plan, broken: list[Broken], replay_seconds: float) -> Report:
    """Check what a storm has left in its folder and its database."""
    evidence = Evidence(read_records(plan.checked_url), ledger.read(plan.ledger))
    found = [*broken, *check_all(evidence)]
    replays = _replays(plan, replay_seconds)
    found += [
        Broken("histories replay from every prefix", each["run"], each["what"], each["program"])
        for each in replays
        if "what" in each
    ]
    return Report(plan, evidence, found, replays[-1] if replays and "replayed" in replays[-1] else {})


def _replays(plan: Plan, seconds: float) -> list[dict[str, Any]]:
    with (plan.folder / "replays.log").open("ab") as log:
        ended = subprocess.run(
            [sys.executable, "-m", "storm.replays", str(plan.folder), str(seconds)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            timeout=seconds + 60,
            check=False,
        )
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith(b"{")]
    if ended.returncode != 0:
        lines.insert(0, {"run": "", "program": "", "what": f"replays ended with {ended.returncode}"})
    return lines
