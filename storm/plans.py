"""The plan of a storm: what all of its processes must know, as a file in its folder."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storm import ledger
from storm.clusters import Cluster

LEASE_TTL = 6.0
NAMESPACE = "storm"


@dataclass(frozen=True)
class Plan:
    """What a storm is.

    Args:
        minutes: For how long faults happen.
        at_once: How many programs of one driver are under way at once.
        url: The database, as the library uses it.
        victim: The database, as the monkey hurts it (`databases.victim_of`).
    """

    folder: Path
    seed: int
    minutes: float
    database: str
    drivers: int = 2
    at_once: int = 5
    with_deadly: bool = True
    with_faults: bool = True
    url: str = ""
    checked_url: str = ""
    victim: dict[str, Any] = field(default_factory=dict)
    cluster_folder: str = ""
    port: int = 0

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.jsonl"

    @property
    def cluster(self) -> Cluster:
        return Cluster(Path(self.cluster_folder), self.port)

    @property
    def is_calm(self) -> bool:
        """Whether faults have ended, and no more programs are started."""
        return (self.folder / "calm").exists()

    @property
    def is_over(self) -> bool:
        """Whether drivers are to end."""
        return (self.folder / "over").exists()

    def mark(self, word: str) -> None:
        """Tell all processes: "calm" or "over"."""
        (self.folder / word).touch()

    def write(self) -> None:
        """Write it into its folder."""
        plain = {**asdict(self), "folder": str(self.folder)}
        (self.folder / "plan.json").write_text(json.dumps(plain, indent=2))

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """The plan in a folder."""
        plain = json.loads((folder / "plan.json").read_text())
        return cls(**{**plain, "folder": folder})

    def enter_environment(self) -> None:
        """Set what every process has in its environment. How many recoveries are allowed stays as it is."""
        root = Path(__file__).resolve().parent.parent
        for name in [name for name in os.environ if name.startswith(("PYWORKFLOW_", "RAY_ADDRESS"))]:
            del os.environ[name]
        os.environ |= {
            ledger.VARIABLE: str(self.ledger),
            "PYTHONPATH": str(root),
            "RAY_ADDRESS": self.cluster.address,
            "PYWORKFLOW_STORAGE": self.url,
            "PYWORKFLOW_NAMESPACE": NAMESPACE,
            "PYWORKFLOW_LEASE_TTL": f"{LEASE_TTL}s",
            "PYWORKFLOW_SWEEP_INTERVAL": "1s",
            "PYWORKFLOW_COORDINATORS": "3",
            "PYWORKFLOW_WORKER_TTL": "20s",
            "PYWORKFLOW_COORDINATOR_TTL": "20s",
            "PYWORKFLOW_LOG_LEVEL": "INFO",
            "PYWORKFLOW_LOG_FILE": str(self.folder / "engine.log"),
        }
