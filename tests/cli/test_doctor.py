"""`pyworkflow-ray doctor`: each thing that is wrong, and how to mend it. The cluster here is made up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.client.engine_actors import EngineActor, EngineState, Node
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.storages import Storage
from tests.cli import flows
from tests.cli.conftest import Call
from tests.storage.builders import appended, claimed

TIMER = EngineActor("timer", 7)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, local: Path) -> Any:
    """Makes the doctor see a cluster."""

    def see(*actors: EngineActor, url: str | None = str(local / "cli.db"), nodes: int = 1) -> None:
        state = EngineState("10.0.0.7:6379", "2.60.0", [Node("n", 4, 0)] * nodes, list(actors), url)

        async def join(*, may_start: bool = False) -> bool:
            return False

        async def inspect(namespace: str) -> EngineState:
            return state

        monkeypatch.setattr("pyworkflow_ray.cli.doctors.join", join)
        monkeypatch.setattr("pyworkflow_ray.cli.doctors.inspect_engine", inspect)

    return see


def checks(cli: Call, *options: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit code, and state and text of each check."""
    answer = cli("doctor", "--output", "json", *options)
    return answer.code, {
        each["name"]: (each["status"], f"{each['found']} {each['mend']}") for each in answer.json
    }


def test_without_ray_and_storage_the_doctor_works_and_makes_nothing(
    cli: Call, no_cluster: None, tmp_path: Path
) -> None:
    code, found = checks(cli)
    assert code == 0
    assert {name: status for name, (status, _) in found.items()} == {
        "versions": "ok",
        "Ray": "warning",
        "storage": "warning",
    }
    assert "ray start --head" in found["Ray"][1]
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_is_named_and_away_is_a_problem(cli: Call, no_cluster: None) -> None:
    answer = cli("doctor", "--address", "10.0.0.7:6379")
    assert answer.code == 1
    assert "✗ Ray" in answer.out
    assert "1 problem." in answer.err


def test_all_is_well_where_an_engine_uses_the_same_storage(cli: Call, cluster: Any, local: Path) -> None:
    pr.start_sync(flows.cli_counts, 3)
    cluster(TIMER, EngineActor("coordinator-0", 8, runs=2))
    code, found = checks(cli)
    assert (code, {status for status, _ in found.values()}) == (0, {"ok"})
    assert "coordinator-0 (2 runs)" in found["engine"][1]
    assert "wal" in found["storage"][1]


def test_an_engine_with_another_storage_is_a_problem(cli: Call, cluster: Any, local: Path) -> None:
    pr.start_sync(flows.cli_counts, 3)
    with Storage(local / "other.db") as other:
        other.facts()
    cluster(TIMER, url=str(local / "other.db"))
    code, found = checks(cli)
    assert code == 1
    assert found["engine's storage"][0] == "problem"
    assert "other.db" in found["engine's storage"][1]


def test_where_no_storage_is_named_it_is_the_engines(cli: Call, cluster: Any, local: Path) -> None:
    pr.start_sync(flows.cli_counts, 3)
    cluster(TIMER, url=str(local / "cli.db"))
    pr.reset_config()
    code, found = checks(cli, "--address", "10.0.0.7:6379")
    assert code == 0
    assert "cli.db" in found["storage"][1]


def test_a_storage_that_cannot_be_read_is_a_problem_and_the_rest_is_reported(
    cli: Call, cluster: Any, local: Path
) -> None:
    (local / "cli.db").write_text("no database" * 100)
    cluster(TIMER)
    code, found = checks(cli)
    assert code == 1
    assert found["storage"][0] == "problem"
    assert found["Ray"][0] == "ok"


def test_an_engine_that_is_away_or_deaf_is_reported(cli: Call, cluster: Any, local: Path) -> None:
    pr.start_sync(flows.cli_counts, 3)
    cluster(url=None)
    code, found = checks(cli)
    assert (code, found["engine"][0]) == (0, "warning")
    assert "pyworkflow-ray up" in found["engine"][1]
    cluster(TIMER, EngineActor("hook-registry", None), nodes=2)
    code, found = checks(cli)
    assert (code, found["engine"][0], found["nodes"][0]) == (1, "problem", "warning")
    assert "hook-registry" in found["engine"][1]


def test_runs_that_are_stuck_are_named(cli: Call, cluster: Any, local: Path) -> None:
    past = datetime.now(UTC) - timedelta(minutes=5)
    with Storage(local / "cli.db") as storage:
        for run_id, status in (("late", RunStatus.SUSPENDED), ("aside", RunStatus.INTERRUPTED)):
            wake_at = past if run_id == "late" else None
            run = claimed(storage, run_id)
            appended(storage, run, changes={"status": status, "wake_at": wake_at}, release=True)
        claimed(storage, "lost", ttl=0.0)
    cluster(url=None)
    code, found = checks(cli)
    assert code == 0, "without an engine they wait for one"
    assert found["runs that should be awake"] == ("warning", "1: late pyworkflow-ray up")
    assert found["runs set aside"][0] == "warning"
    assert "lost" in found["runs that nobody drives"][1]
    cluster(TIMER)
    code, found = checks(cli)
    assert (code, found["runs that should be awake"][0]) == (1, "problem")
