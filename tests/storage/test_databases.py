"""What opening promises: one migration, no silent new database, no password told."""

from __future__ import annotations

import pickle
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import inspect
from sqlalchemy.engine import Connection

from pyworkflow_ray.exceptions import StorageError
from pyworkflow_ray.storage import migrations, schema
from pyworkflow_ray.storage.databases import Database
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.storages import Storage
from tests.storage.builders import accepted, claimed, new_append, read

_OPEN = """
import sys
from pyworkflow_ray.storage.storages import Storage
sys.stdin.readline()
with Storage(sys.argv[1]) as storage:
    print(storage.facts()["storage_id"])
"""


def test_processes_that_open_a_new_database_at_once_migrate_it_once(shared_url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _OPEN, shared_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    outputs = {process.communicate(timeout=60)[0] for process in processes}

    assert [process.returncode for process in processes] == [0] * 3
    assert len(outputs) == 1


def test_threads_that_open_a_new_database_at_once_migrate_it_once(shared_url: str) -> None:
    databases = [Database(shared_url) for _ in range(10)]
    barrier = threading.Barrier(10)

    def open_(database: Database) -> dict[str, str]:
        barrier.wait()
        with database.snapshot() as connection:
            return migrations.read_facts(connection)

    with ThreadPoolExecutor(10) as pool:
        facts = list(pool.map(open_, databases))
    for database in databases:
        database.close()
    assert len({fact["storage_id"] for fact in facts}) == 1


def test_an_older_database_is_brought_up_keeping_its_rows(
    shared_url: str, open_storage: Callable[..., Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Storage(shared_url) as old:
        accepted(old)
        identity = old.facts()["storage_id"]

    def add_column(connection: Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE schedules ADD COLUMN remark TEXT")

    monkeypatch.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, add_column])
    storage = open_storage(shared_url)

    assert read(storage, get_run, "run_1") is not None
    assert storage.facts() == {"storage_id": identity, "schema_version": str(migrations.newest_version())}
    storage.read(lambda c: c.exec_driver_sql("SELECT remark FROM schedules").fetchall())


def test_a_database_of_the_first_version_gets_the_tables_of_a_new_one(
    shared_url: str, open_storage: Callable[..., Storage]
) -> None:
    with Storage(shared_url) as storage:
        accepted(storage)
        storage.submit(_as_version_1).result()

    upgraded = open_storage(shared_url)

    assert upgraded.facts()["schema_version"] == str(migrations.newest_version())
    for table in schema.metadata.sorted_tables:
        columns = upgraded.read(
            lambda c, of=table.name: {each["name"] for each in inspect(c).get_columns(of)}
        )
        assert columns == {column.name for column in table.columns}
    run = read(upgraded, get_run, "run_1")
    assert (run.recovery_attempts, run.shared_recoveries) == (0, 0)


def _as_version_1(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE runs DROP COLUMN shared_recoveries")
    connection.exec_driver_sql("ALTER TABLE code DROP COLUMN bundle")
    connection.exec_driver_sql("DROP TABLE bundles")
    connection.exec_driver_sql("UPDATE engine SET value = '1' WHERE key = 'schema_version'")


def test_a_migration_that_fails_leaves_the_old_version_whole(
    shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Storage(shared_url) as old:
        accepted(old)

    def half(connection: Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE schedules ADD COLUMN remark TEXT")
        raise RuntimeError("the power goes")

    with monkeypatch.context() as patch, Storage(shared_url) as failing:
        patch.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, half])
        with pytest.raises(RuntimeError, match="power"):
            failing.facts()

    with Storage(shared_url) as storage:
        assert read(storage, get_run, "run_1") is not None
        assert storage.facts()["schema_version"] == str(migrations.newest_version())


def test_a_database_newer_than_the_code_is_refused(shared_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, lambda connection: None])
        with Storage(shared_url) as newer:
            newer.facts()
    with Storage(shared_url) as storage, pytest.raises(StorageError, match="newer release"):
        storage.facts()


def test_a_missing_file_is_told_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Storage("missing.db", create=False) as storage:
        with pytest.raises(StorageError, match=str(tmp_path / "missing.db")):
            storage.facts()
        with pytest.raises(StorageError, match=str(tmp_path / "missing.db")):
            storage.submit(lambda c: None).result(10)
    assert list(tmp_path.iterdir()) == []


def test_a_database_without_tables_is_not_filled_unasked(shared_url: str) -> None:
    if shared_url.startswith("sqlite"):
        Path(shared_url.removeprefix("sqlite:///")).touch()
    with (
        Storage(shared_url, create=False) as storage,
        pytest.raises(StorageError, match="no pyworkflow_ray tables"),
    ):
        storage.facts()


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary, " * 100)
    with Storage(path) as storage, pytest.raises(StorageError, match=r"notes\.txt.*not a database"):
        storage.facts()


def test_missing_directories_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "runs with 100% ümlaut?.db"
    with Storage(path) as storage:
        accepted(storage)
        assert Database(storage.database.secret_url).path == path
    assert path.stat().st_size > 0


@pytest.mark.parametrize("form", ["path", "text", "url", "driver"])
def test_the_same_file_is_meant_by_each_form(tmp_path: Path, form: str) -> None:
    path = tmp_path / "runs.db"
    forms: dict[str, str | Path] = {
        "path": path,
        "text": str(path),
        "url": f"sqlite:///{path}",
        "driver": f"sqlite+aiosqlite:///{path}",
    }
    assert Database(forms[form]).path == path


def test_each_memory_database_is_its_own() -> None:
    with Storage("memory") as first, Storage("memory") as second:
        accepted(first)
        assert read(second, get_run, "run_1") is None


def test_readers_and_the_writer_of_a_memory_database_take_turns() -> None:
    with Storage("memory") as storage, ThreadPoolExecutor(8) as pool:
        accepted(storage, "run_0")

        def work(number: int) -> bool:
            accepted(storage, f"run_{number}")
            return read(storage, get_run, f"run_{number}") is not None

        assert all(pool.map(work, range(1, 60)))
        nested = storage.read(lambda _: read(storage, get_run, "run_0"))
        assert nested is not None


def test_what_a_reader_writes_is_not_kept(url: str, open_storage: Callable[..., Storage]) -> None:
    storage = open_storage(url)
    accepted(storage)
    with suppress(StorageError):
        storage.read(lambda c: c.exec_driver_sql("DELETE FROM runs"))
    assert read(storage, get_run, "run_1") is not None


def test_sqlite_is_durable_and_keeps_its_references(
    tmp_path: Path, open_storage: Callable[..., Storage]
) -> None:
    def pragmas(connection: Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    full = open_storage(tmp_path / "full.db")
    assert full.submit(pragmas).result(10) == ["wal", 2, 1]
    assert full.read(pragmas) == ["wal", 2, 1]
    normal = open_storage(tmp_path / "normal.db", synchronous="normal")
    assert normal.submit(pragmas).result(10) == ["wal", 1, 1]
    with pytest.raises(StorageError, match="synchronous"):
        Database("memory", synchronous="OFF; DROP TABLE runs")


_SECRET = "s3cret-p4ss"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ada:{_SECRET}@127.0.0.1:1/runs",
        f"postgresql+psycopg2://ada:{_SECRET}@127.0.0.1:1/runs?connect_timeout=1",
        f"postgres://127.0.0.1:1/runs?user=ada&password={_SECRET}",
    ],
)
def test_the_password_is_never_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyworkflow_ray.storage.databases._OPEN_PATIENCE", 0.1)
    with Storage(url) as storage:
        assert _SECRET not in repr(storage) + repr(storage.database) + storage.url
        assert _SECRET in storage.database.secret_url
        for failing in (storage.facts, lambda: storage.submit(lambda c: None).result(30)):
            with pytest.raises(StorageError, match=r"127\.0\.0\.1:1/runs.*cannot be opened") as caught:
                failing()
            assert _SECRET not in "".join(traceback.format_exception(caught.value))
        assert storage.health_check() is False


@pytest.mark.parametrize(
    "url", [f"postgresql://ada:{_SECRET}@host:port/runs", f"mysql://ada:{_SECRET}@host/runs", f"://{_SECRET}"]
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        Storage(url)
    assert _SECRET not in "".join(traceback.format_exception(caught.value)).replace(f"Storage({url!r})", "")


def test_payloads_are_not_told_in_errors(storage: Storage) -> None:
    run = claimed(storage)

    def twice(connection: Connection) -> None:
        for _ in range(2):
            connection.exec_driver_sql(
                "INSERT INTO engine (key, value) VALUES ('the-secret-token', 'the-secret-payload')"
            )

    with pytest.raises(StorageError) as caught:
        storage.submit(twice).result(10)
    assert "the-secret" not in str(caught.value)
    assert run.run_id == new_append(run).run_id


def test_storage_errors_survive_pickling(tmp_path: Path) -> None:
    with Storage(tmp_path / "missing.db", create=False) as storage, pytest.raises(StorageError) as caught:
        storage.facts()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_locked_database_that_is_up_to_date_opens_at_once(tmp_path: Path) -> None:
    with Storage(tmp_path / "runs.db") as storage:
        accepted(storage)
    with sqlite3.connect(tmp_path / "runs.db", isolation_level=None) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with Storage(tmp_path / "runs.db") as other:
            assert read(other, get_run, "run_1") is not None
        holder.execute("ROLLBACK")
