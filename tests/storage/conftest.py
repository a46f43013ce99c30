"""The databases that the storage's contract is tested on: SQLite in a file, in memory, and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyworkflow_ray.storage.storages import Storage


@pytest.fixture(params=["sqlite", "memory", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new, empty database, one of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'runs.db'}"
    if request.param == "memory":
        return "memory"
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture(params=["sqlite", "postgresql"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """As `url`, of the databases that several processes can open."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'runs.db'}"
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture
def open_storage() -> Iterator[Callable[..., Storage]]:
    """Opens storages, and closes them when the test ends."""
    storages: list[Storage] = []

    def open_(url: str | Path, **options: object) -> Storage:
        storages.append(Storage(url, **options))  # type: ignore[arg-type]
        return storages[-1]

    yield open_
    for storage in storages:
        storage.close(timeout=5)


@pytest.fixture
def storage(url: str, open_storage: Callable[..., Storage]) -> Storage:
    """A storage on a new database of each kind."""
    return open_storage(url, synchronous="OFF")  # A promise does not depend on how long the disk takes.
