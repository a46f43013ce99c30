"""The storm's own Ray cluster: started, lost, started anew at the same address."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from storm.processes import Process, kill_all, of_cluster

OBJECT_STORE = 150 * 2**20


@dataclass(frozen=True)
class Cluster:
    """Where a cluster is. Every process of the storm can be told so.

    Args:
        folder: Its folder for temporary files, whose path is short and used by nothing else.
        port: On which it listens.
    """

    folder: Path
    port: int
    cpus: int = 4

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, log: Path) -> None:
        """Start it.

        Raises:
            RuntimeError: It did not start; the log says why.
        """
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={self.port}",
            "--node-ip-address=127.0.0.1", f"--num-cpus={self.cpus}", "--include-dashboard=false",
            f"--object-store-memory={OBJECT_STORE}", f"--temp-dir={self.folder}", "--disable-usage-stats",
        ]  # fmt: skip
        with log.open("ab") as file:
            started = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=90, check=False
            )
        if started.returncode != 0:
            raise RuntimeError(f"the cluster at {self.address} did not start; see {log}")

    def processes(self) -> list[Process]:
        """What belongs to it now."""
        return of_cluster(self.folder, self.port)

    def lose(self) -> list[Process]:
        """Kill all of it; what is left."""
        left: list[Process] = []
        for _ in range(3):  # what was just being made is found in the next look
            found = self.processes()
            if not found:
                return []
            left = kill_all(found)
        return left

    def forget(self) -> None:
        """Delete its folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def new_cluster() -> Cluster:
    """A cluster that has not been started, at a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    return Cluster(Path(tempfile.mkdtemp(prefix="st", dir="/tmp")), port)


def prepare_environment() -> None:
    """What every process of the storm has in its environment."""
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_AUTO_CONNECT": "0",
    }
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
