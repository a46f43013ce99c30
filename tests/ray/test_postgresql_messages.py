"""What is sent to runs, and who dies meanwhile, where the history is in PostgreSQL: some tests of others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import pyworkflow_ray as pr
from tests.ray import test_cancellations, test_hooks
from tests.ray.conftest import EngineUnderTest, make_engine
from tests.ray.test_continuations import (
    test_a_key_that_is_taken_is_told_shared_or_taken_over,
    test_signals_to_a_chain_are_each_read_once_though_its_coordinator_dies,
)
from tests.ray.test_hooks import test_deliveries_under_way_when_the_registry_dies_all_arrive

__all__ = [
    "test_a_key_that_is_taken_is_told_shared_or_taken_over",
    "test_deliveries_under_way_when_the_registry_dies_all_arrive",
    "test_signals_to_a_chain_are_each_read_once_though_its_coordinator_dies",
]

pytestmark = pytest.mark.usefixtures("shared_engine")


@pytest.fixture(scope="module")
def shared_engine(cluster: str, postgresql_server: str) -> Iterator[EngineUnderTest]:
    """An engine of this module's own, in a schema of its own."""
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA messages")
    made = make_engine(cluster, f"{postgresql_server}&options=-csearch_path%3Dmessages")
    yield made
    made.close()
    pr.reset_config()


def test_a_payload_given_as_both_actors_die_reaches_its_run(shared_engine: EngineUnderTest) -> None:
    killed = ["coordinator-0", "hook-registry"]
    test_hooks.test_a_payload_given_as_an_actor_dies_reaches_its_run(shared_engine, killed)


def test_a_request_outlives_the_coordinator(shared_engine: EngineUnderTest, tmp_path: Path) -> None:
    test_cancellations.test_a_request_outlives_the_coordinator_that_was_told_of_it(
        shared_engine, 2.0, tmp_path
    )
