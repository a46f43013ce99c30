"""Looking at a database as it is: nothing is made, and nothing is migrated."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyworkflow_ray.exceptions import StorageError
from pyworkflow_ray.storage.inspections import ids_that_begin, inspect_database, workflow_names
from pyworkflow_ray.storage.migrations import newest_version
from pyworkflow_ray.storage.storages import Storage
from tests.storage.builders import accepted, read


def test_a_database_is_told_as_it_is(shared_url: str) -> None:
    before = inspect_database(shared_url)
    assert (before.schema_version, before.storage_id) == (0, None)
    assert inspect_database(shared_url).schema_version == 0, "looking made no tables"
    with Storage(shared_url) as storage:
        facts = storage.facts()
    found = inspect_database(shared_url)
    assert found.exists
    assert (found.schema_version, found.newest_version) == (newest_version(), newest_version())
    assert found.storage_id == facts["storage_id"]
    assert abs(found.clock_ahead) < 5
    assert found.mode == "wal" or found.mode[0].isdigit()


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert not inspect_database(str(tmp_path / "none.db")).exists
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_database_is_told_without_a_password(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(StorageError, match=r"text\.db cannot be read"):
        inspect_database(str(tmp_path / "text.db"))
    with pytest.raises(StorageError) as caught:
        inspect_database("postgresql://user:s3cret@127.0.0.1:1/nothing?connect_timeout=1")
    assert "s3cret" not in str(caught.value)


def test_ids_are_found_by_their_beginning(storage: Storage) -> None:
    for run_id in ("run_ab", "run_abc", "run_b", "order%1", "Run_a"):
        accepted(storage, run_id)
    assert read(storage, ids_that_begin, "run_a") == ["run_ab", "run_abc"]
    assert read(storage, ids_that_begin, "run_", 2) == ["run_ab", "run_abc"]
    assert read(storage, ids_that_begin, "order%") == ["order%1"]
    assert read(storage, ids_that_begin, "%") == []


def test_the_names_of_workflows_with_runs_are_listed_once(storage: Storage) -> None:
    assert read(storage, workflow_names) == []
    for number, name in enumerate(["order", "bill", "order", "Album"]):
        accepted(storage, f"run_{number}", workflow_name=name)
    assert read(storage, workflow_names) == ["Album", "bill", "order"]
    assert read(storage, workflow_names, 2) == ["Album", "bill"]
