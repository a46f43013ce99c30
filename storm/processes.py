"""The processes of a storm's cluster, found in /proc. No other process is ever touched.

A process belongs to the cluster if its command line names the cluster's own folder for temporary files or its
address, or if its parent is such a process: workers and actors change their titles, and are children of their
raylet.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

KINDS = ("coordinator", "timer", "hook_registry", "worker", "idle", "ray")


@dataclass(frozen=True)
class Process:
    """A process: `born` tells it from a later one with the same pid."""

    pid: int
    born: int
    parent: int
    title: str

    @property
    def kind(self) -> str:
        """What it is, of `KINDS`: a worker carries out a step just now."""
        title = self.title
        if not title.startswith("ray::"):
            return "ray"
        if "CoordinatorActor" in title:
            return "coordinator"
        if "TimerActor" in title:
            return "timer"
        if "HookRegistryActor" in title:
            return "hook_registry"
        if title.startswith("ray::storm/"):
            return "worker"
        return "idle" if title.startswith("ray::IDLE") else "ray"

    def send(self, number: signal.Signals) -> bool:
        """Send it a signal; whether it was still there."""
        if _read(self.pid) is None or _born(self.pid) != self.born:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            return True
        return False

    def is_there(self) -> bool:
        """Whether it has not ended."""
        found = _read(self.pid)
        return found is not None and found.born == self.born


def of_cluster(folder: Path, port: int) -> list[Process]:
    """The processes of the cluster that has this folder for temporary files, and listens on this port."""
    everyone = {found.pid: found for found in map(_read, _pids()) if found is not None}
    ours = {pid for pid, each in everyone.items() if str(folder) in each.title and pid != os.getpid()}
    # Only Ray's own processes name the folder so; a program of ours names it as the value of an option.
    ours = {pid for pid in ours if "storm." not in everyone[pid].title}
    raylets = {pid for pid in ours if "raylet/raylet" in everyone[pid].title}
    # The server for remote clients names the cluster's address alone.
    server = re.compile(rf"ray\.util\.client\.server .*--address=\S+:{port}( |$)")
    ours |= {pid for pid, each in everyone.items() if server.search(each.title)}
    children = {pid for pid, each in everyone.items() if each.parent in raylets}
    return [everyone[pid] for pid in sorted(ours | children)]


def of_program(module: str, folder: Path) -> list[Process]:
    """The processes that run a module of ours for the storm in this folder."""
    found = [each for each in map(_read, _pids()) if each is not None]
    return [each for each in found if f" -m {module} {folder} " in f"{each.title} "]


def kill_all(processes: list[Process], patience: float = 10.0) -> list[Process]:
    """Kill them; those that are left after a while."""
    for each in processes:
        each.send(signal.SIGKILL)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        left = [each for each in processes if each.is_there()]
        if not left:
            return []
        time.sleep(0.1)
    return left


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read(pid: int) -> Process | None:
    """The process of this id; None if there is none, or only what is left of one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        title = (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        )
    except OSError:
        return None
    if fields[0] == "Z":
        return None
    return Process(pid, int(fields[19]), int(fields[1]), title)


def _born(pid: int) -> int | None:
    found = _read(pid)
    return None if found is None else found.born
