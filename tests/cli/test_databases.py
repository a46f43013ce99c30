"""`pyworkflow-ray db`: the version of the tables, and bringing it up."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyworkflow_ray.storage.migrations import newest_version
from pyworkflow_ray.storage.storages import Storage
from tests.cli.conftest import Call


def test_looking_at_the_version_makes_nothing(cli: Call, tmp_path: Path) -> None:
    answer = cli("db", "current", "--output", "json")
    assert answer.code == 0
    assert (answer.json["exists"], answer.json["schema_version"]) == (False, 0)
    assert "db upgrade" in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_tables_are_made_and_brought_up_once(
    cli: Call, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path / "new.db") if kind == "sqlite" else request.getfixturevalue("postgresql_url")
    newest = newest_version()
    made = cli("db", "upgrade", "--storage", url, "--output", "json")
    assert made.json["schema_version"] == newest
    assert "version 0" in made.err
    again = cli("db", "upgrade", "--storage", url)
    assert "already" in again.err
    answer = cli("db", "current", "--storage", url, "--output", "json")
    assert answer.err == ""
    with Storage(url) as storage:
        assert answer.json["storage_id"] == storage.facts()["storage_id"]


def test_a_storage_in_memory_has_nothing_to_upgrade(cli: Call) -> None:
    answer = cli("db", "upgrade", "--storage", "memory")
    assert answer.code == 1
    assert "memory" in answer.err
