"""Nodes come and go; runs stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pyworkflow_ray as pr

# A cluster of two nodes, and a driver at its head. `kept` has its coordinator on the head, the only node when
# it starts, and `moved` on the other; both have a step there. That node is lost, and a new one comes.
SCRIPT = """
    import json, sys, time
    from pathlib import Path

    import ray
    from ray.cluster_utils import Cluster
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    import pyworkflow_ray as pr
    from pyworkflow_ray.actors import cluster as actors

    FOLDER = Path(sys.argv[1])
    MEMORY = 80 * 2**20
    QUICK = {  # to find that a node is lost: 15 s by default
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 4,
    }

    def node() -> str:
        return ray.get_runtime_context().get_node_id()

    @pr.step(local=True)
    def coordinators_node() -> str:
        return node()

    @pr.step(num_cpus=0, resources={"far": 0.1})
    def far() -> str:
        context = pr.get_context()
        if context.attempt == 1:
            (FOLDER / context.run_id).write_text(node())
            time.sleep(600)
        return node()

    @pr.workflow
    async def journey() -> list[str]:
        return [await coordinators_node(), await far(), await coordinators_node()]

    def start() -> pr.RunHandle:
        return pr.start_sync(journey)

    def start_on(place: str) -> pr.RunHandle:
        # Soft, so that Ray may start it elsewhere; and an actor that takes nothing goes to any node it likes.
        strategy = NodeAffinitySchedulingStrategy(place, soft=True)
        there = {"num_cpus": 0.001, "scheduling_strategy": strategy}
        plain = actors.Cluster._options
        actors.Cluster._options = lambda *args: plain(*args) | there
        return start()

    def wait_for_step(run: str) -> None:
        for _ in range(1200):
            if (FOLDER / run).exists():
                return
            time.sleep(0.05)
        raise SystemExit(f"the step of {run} has not begun: {pr.RunHandle(run).events_sync()}")

    def add_far() -> object:
        return cluster.add_node(num_cpus=1, resources={"far": 1}, object_store_memory=MEMORY)

    cluster = Cluster()
    try:
        cluster.add_node(
            num_cpus=1, include_dashboard=False, object_store_memory=MEMORY, _system_config=QUICK
        )
        ray.init(address=cluster.address, namespace="tests", log_to_driver=False)
        kept = start()
        first = add_far()
        moved = start_on(first.node_id)
        wait_for_step(kept)
        wait_for_step(moved)
        cluster.remove_node(first, allow_graceful=False)
        second = add_far()
        (FOLDER / "told").write_text(json.dumps({
            "lost": first.node_id,
            "fresh": second.node_id,
            "kept": {"run": kept, "result": kept.wait(timeout=90)},
            "moved": {"run": moved, "result": moved.wait(timeout=90)},
        }))
    finally:
        ray.shutdown()
        cluster.shutdown()
"""


def test_a_lost_node_costs_a_step_an_attempt_and_a_coordinator_an_interruption(
    postgresql_url: str, tmp_path: Path
) -> None:
    """1. Two runs have a step on the node, one also its coordinator. 2. All its processes are killed.

    A subprocess has the cluster, since this process has joined another.
    """
    told = lose_a_node(postgresql_url, tmp_path)
    kept, moved = told["kept"], told["moved"]
    pr.configure(storage=postgresql_url)

    home, where, still_home = kept["result"]
    assert where == told["fresh"]
    assert home == still_home != told["lost"]
    events = history(kept["run"])
    lost = [event.data for event in events if event.type == "step.retrying"]
    assert {(data["step_id"], data["cause"]) for data in lost} == {("far#1", "worker_died")}
    assert "workflow.interrupted" not in [event.type for event in events]

    before, where, after = moved["result"]
    assert where == told["fresh"]
    assert before == told["lost"] != after
    assert "workflow.interrupted" in [event.type for event in history(moved["run"])]


def lose_a_node(storage: str, folder: Path) -> dict[str, Any]:
    """Run the script; what it tells of its nodes and runs."""
    script = folder / "lose_a_node.py"
    script.write_text(textwrap.dedent(SCRIPT))
    # A folder of its own, so that no `ray.init()` elsewhere finds this cluster; sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {
            "RAY_TMPDIR": ray_folder,
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYWORKFLOW_STORAGE": storage,
            "PYWORKFLOW_COORDINATORS": "per_run",
            "PYWORKFLOW_LEASE_TTL": "3s",
            "PYWORKFLOW_SWEEP_INTERVAL": "1s",
        }
        done = subprocess.run(
            [sys.executable, script.name, str(folder)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads((folder / "told").read_text())
    return told


def history(run_id: str) -> list[pr.Event]:
    """The run's events, after a look that it has completed with every step counted once."""
    run: pr.RunHandle[list[str]] = pr.RunHandle(run_id)
    assert run.status_sync() is pr.RunStatus.COMPLETED
    events = run.events_sync()
    outcomes = [event.data["step_id"] for event in events if event.type == "step.completed"]
    assert sorted(outcomes) == ["coordinators_node#1", "coordinators_node#2", "far#1"]
    return events
