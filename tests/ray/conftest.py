"""One Ray cluster for all tests; an engine of its own for each that breaks things."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

import pyworkflow_ray as pr
from pyworkflow_ray.storage.storages import Storage

CPUS = 4


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """A local cluster that outlives every driver subprocess; its address."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    context = ray.init(
        num_cpus=CPUS,
        include_dashboard=False,
        log_to_driver=False,
        namespace="tests",
        object_store_memory=80 * 2**20,
        _temp_dir=folder,
    )
    yield context.address_info["address"]
    ray.shutdown()


@dataclass
class EngineUnderTest:
    """An engine: its namespace, its database, and how to hurt it."""

    namespace: str
    url: str
    address: str

    @property
    def storage(self) -> Storage:
        return Storage(self.url)

    def coordinators(self) -> list[str]:
        named = ray.util.list_named_actors(all_namespaces=True)
        return [
            actor["name"]
            for actor in named
            if actor["namespace"] == self.namespace and actor["name"].startswith("coordinator")
        ]

    def actor(self, name: str) -> Any:
        return ray.get_actor(self.name_of(name), namespace=self.namespace)

    def name_of(self, name: str) -> str:
        """The actor's whole name: those of coordinators hold the hash of the code that they run."""
        kind, _, slot = name.rpartition("-")
        if kind != "coordinator":
            return name
        ours = [each for each in self.coordinators() if each.endswith(f"-{slot}")]
        return max(ours, key=len, default=name)

    def pid_of(self, name: str) -> int:
        return int(ray.get(self.actor(name).pid.remote(), timeout=60))

    def kill(self, name: str) -> int:
        """`kill -9` an actor's process; its pid."""
        pid = self.pid_of(name)
        kill_ray_process(pid)
        return pid

    def environment(self) -> dict[str, str]:
        """For a driver in a subprocess."""
        return {
            **os.environ,
            "RAY_ADDRESS": self.address,
            "PYWORKFLOW_STORAGE": self.url,
            "PYWORKFLOW_NAMESPACE": self.namespace,
            "PYWORKFLOW_LEASE_TTL": "3s",
            "PYWORKFLOW_SWEEP_INTERVAL": "1s",
            "PYWORKFLOW_SUSPEND_AFTER": "500ms",
        }

    def close(self) -> None:
        for actor in ray.util.list_named_actors(all_namespaces=True):
            if actor["namespace"] == self.namespace:
                with contextlib.suppress(Exception):
                    ray.kill(ray.get_actor(actor["name"], namespace=self.namespace))


def kill_ray_process(pid: int) -> None:
    """`kill -9` a worker or actor, after checking that it is one."""
    command = Path(f"/proc/{pid}/cmdline").read_text()
    assert command.startswith("ray::"), f"{pid} is {command!r}"
    os.kill(pid, signal.SIGKILL)


def make_engine(address: str, url: str, **settings: Any) -> EngineUnderTest:
    engine = EngineUnderTest(f"t{uuid.uuid4().hex[:8]}", url, address)
    pr.reset_config()
    chosen: dict[str, Any] = {
        "lease_ttl": "3s",
        "sweep_interval": "1s",
        "suspend_after": "500ms",
        "coordinators": 1,
        **settings,
    }
    pr.configure(storage=url, namespace=engine.namespace, **chosen)
    return engine


@pytest.fixture
def engine(cluster: str, tmp_path: Path) -> Iterator[EngineUnderTest]:
    """An engine of this test's own, with short leases, on SQLite."""
    made = make_engine(cluster, str(tmp_path / "engine.db"))
    yield made
    made.close()
    pr.reset_config()


@pytest.fixture(scope="module")
def shared_engine(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
    """An engine that the tests of a module share, since they leave it whole."""
    made = make_engine(cluster, str(tmp_path_factory.mktemp("engine") / "engine.db"))
    yield made
    made.close()
    pr.reset_config()


def eventually(condition: Callable[[], Any], timeout: float = 60.0) -> Any:
    """What the condition gives once it gives something."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not so after {timeout} s: {condition}")
        time.sleep(0.05)
