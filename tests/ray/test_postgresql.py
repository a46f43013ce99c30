"""The same promises where the history is in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import pyworkflow_ray as pr
from tests.ray.conftest import EngineUnderTest, eventually, make_engine
from tests.ray.test_crashes import assert_counted_once, began, naps, three_steps


@pytest.fixture
def engine(cluster: str, postgresql_url: str) -> Iterator[EngineUnderTest]:
    made = make_engine(cluster, postgresql_url)
    yield made
    made.close()
    pr.reset_config()


def test_a_run_survives_its_coordinator_and_its_database_connections(
    engine: EngineUnderTest, postgresql_server: str, tmp_path: Path
) -> None:
    run = pr.start_sync(three_steps, str(tmp_path), 2.0)
    eventually(lambda: began(tmp_path, "second"))
    engine.kill("coordinator-0")
    eventually(lambda: len(began(tmp_path, "second")) == 2)
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND backend_type = 'client backend'"
        )
    assert run.wait(timeout=60) == ["first:1", "second:2", "third:1"]
    assert_counted_once(run)


def test_a_suspended_run_is_woken_by_the_timer(engine: EngineUnderTest, tmp_path: Path) -> None:
    run = pr.start_sync(naps, str(tmp_path), 3.0)
    eventually(lambda: run.status_sync() is pr.RunStatus.SUSPENDED)
    assert run.wait(timeout=60) == ["first:1", "second:1"]


def test_a_database_that_is_not_there_is_told_clearly(cluster: str) -> None:
    made = make_engine(cluster, "postgresql://someone:secret@127.0.0.1:1/nothing")
    with pytest.raises(pr.StorageError) as caught:
        pr.start_sync(three_steps, "x", 0.0)
    assert "127.0.0.1:1" in str(caught.value)
    assert "secret" not in str(caught.value)
    made.close()
    pr.reset_config()
