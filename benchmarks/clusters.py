"""The Ray cluster of one benchmark's process, and the engines on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

OBJECT_STORE = 200 * 2**20


def start_ray() -> None:
    """Start a local cluster with this machine's CPUs. It ends with this process."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from loguru import logger

    logger.remove()
    ray.init(
        num_cpus=os.cpu_count(),
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=OBJECT_STORE,
        namespace="benchmarks",
    )


class EngineSettings:
    """The settings of one engine, which has its own namespace and database.

    Several engines share the cluster, so that variants can be measured in turns. Their actors and workers
    stay warm during the whole benchmark.

    Args:
        name: The namespace.
        storage: A database URL or path.
        settings: Any further setting of `configure`.
    """

    def __init__(self, name: str, storage: str | Path, **settings: Any) -> None:
        self.name = name
        self._settings = {
            "default_runtime": "ray",
            "coordinators": None,
            "coordinator_ttl": "10m",
            "worker_ttl": "10m",
            **settings,
            "namespace": name,
            "storage": str(storage),
        }

    def use(self) -> None:
        """Make everything that is started from now on run on this engine."""
        from pyworkflow_ray import configure

        configure(**self._settings)
