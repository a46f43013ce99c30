"""What is sent to runs, and who dies meanwhile, where the history is in PostgreSQL: some tests of others."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

import pyworkflow_ray as pr
from tests.ray.conftest import EngineUnderTest, make_engine
from tests.ray.test_cancellations import test_a_request_outlives_the_coordinator_that_was_told_of_it
from tests.ray.test_children import test_a_parent_and_its_children_survive_their_coordinator
from tests.ray.test_continuations import (
    test_a_key_that_is_taken_is_told_shared_or_taken_over,
    test_signals_to_a_chain_are_each_read_once_though_its_coordinator_dies,
)
from tests.ray.test_hooks import (
    test_a_payload_given_as_an_actor_dies_reaches_its_run,
    test_deliveries_under_way_when_the_registry_dies_all_arrive,
)

__all__ = [
    "test_a_key_that_is_taken_is_told_shared_or_taken_over",
    "test_a_parent_and_its_children_survive_their_coordinator",
    "test_a_payload_given_as_an_actor_dies_reaches_its_run",
    "test_a_request_outlives_the_coordinator_that_was_told_of_it",
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
