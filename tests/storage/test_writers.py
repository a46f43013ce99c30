"""What the writer promises: committed when told, in order, the guilty alone, nothing lost in an outage."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import Connection

from pyworkflow_ray.exceptions import StorageError
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.acceptances import accept
from pyworkflow_ray.storage.databases import Database
from pyworkflow_ray.storage.histories import FencedError, append, count_events
from pyworkflow_ray.storage.runs import get_run, get_runs
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.transactions import PostgreSQLSession, Session, SQLiteSession
from tests.storage.builders import accepted, claimed, new_append, new_run, read, write


@contextmanager
def one_group(storage: Storage) -> Iterator[None]:
    """Holds the writer up, so that all that is submitted in the block is committed as one group."""
    entered, gate = threading.Event(), threading.Event()

    def hold(_: Connection) -> None:
        entered.set()
        assert gate.wait(30)

    held = storage.submit(hold)
    assert entered.wait(30)
    try:
        yield
    finally:
        gate.set()
    held.result(30)


def _count_commits(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each transaction."""
    transactions: list[int] = []
    for session in (SQLiteSession, PostgreSQLSession):
        monkeypatch.setattr(session, "begin", _noting(session.begin, transactions))
    return transactions


def _noting(method: Callable[[Any], None], calls: list[int]) -> Callable[[Any], None]:
    def noting(self: Any) -> None:
        calls.append(1)
        method(self)

    return noting


def test_what_queues_up_during_a_commit_is_committed_together(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted(storage, "first")
    transactions = _count_commits(storage, monkeypatch)
    with one_group(storage):
        futures = [storage.submit(accept(new_run(f"run_{n}"))) for n in range(100)]
    assert all(future.result(30).is_new for future in futures)
    assert len(transactions) == 2  # The one that held the writer up, and the group.


def test_writes_are_run_in_the_order_in_which_they_were_submitted(storage: Storage) -> None:
    seen: list[int] = []
    with one_group(storage):
        futures = [storage.submit(lambda _, n=n: seen.append(n)) for n in range(1200)]
    for future in futures:
        future.result(30)
    assert seen == list(range(1200))


def test_group_commit_isolates_the_guilty_write(storage: Storage) -> None:
    run = claimed(storage, "run_0")

    def guilty(connection: Connection) -> None:
        accept(new_run("never")).on(connection)
        raise RuntimeError("guilty")

    def broken(connection: Connection) -> None:
        accept(new_run("never either")).on(connection)
        connection.exec_driver_sql("INSERT INTO no_such_table VALUES (1)")

    with one_group(storage):
        before = storage.submit(accept(new_run("run_1")))
        errors: list[Future[Any]] = [storage.submit(guilty), storage.submit(broken)]
        fenced = storage.submit(append(new_append(run, "x", epoch=99)))
        after = storage.submit(accept(new_run("run_2")))

    assert before.result(30).is_new
    assert after.result(30).is_new
    with pytest.raises(RuntimeError, match="guilty"):
        errors[0].result(30)
    with pytest.raises(StorageError, match="no_such_table"):
        errors[1].result(30)
    with pytest.raises(FencedError):
        fenced.result(30)
    found = read(storage, get_runs, ["run_0", "run_1", "run_2", "never", "never either"])
    assert set(found) == {"run_0", "run_1", "run_2"}


def test_a_write_sees_what_earlier_ones_of_its_group_wrote(storage: Storage) -> None:
    with one_group(storage):
        storage.submit(accept(new_run("run_1")))
        seen = storage.submit(get_run("run_1"))
    assert seen.result(30) is not None


def test_a_future_is_resolved_only_after_the_commit(shared_url: str) -> None:
    with Storage(shared_url) as storage, Storage(shared_url) as other:
        for number in range(20):
            accepted(storage, f"run_{number}")
            assert read(other, get_run, f"run_{number}") is not None


def test_a_write_cancelled_before_it_began_is_not_done(storage: Storage) -> None:
    with one_group(storage):
        dropped = storage.submit(accept(new_run("run_1")))
        assert dropped.cancel()
        kept = storage.submit(accept(new_run("run_2")))
    kept.result(30)
    assert set(read(storage, get_runs, ["run_1", "run_2"])) == {"run_2"}


def test_closing_writes_what_is_queued_and_refuses_the_rest(
    shared_url: str, open_storage: Callable[..., Storage]
) -> None:
    storage = open_storage(shared_url)
    futures = [storage.submit(accept(new_run(f"run_{n}"))) for n in range(50)]
    storage.close()
    assert all(future.result(0).is_new for future in futures)
    with pytest.raises(StorageError, match="closed"):
        storage.submit(lambda c: None)


def test_a_commit_whose_answer_was_lost_is_run_again_without_doubling(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The group is committed. 2. Its answer is lost. 3. The writer runs the same group again."""
    run = claimed(storage)
    original = Database.session
    losses: list[int] = []

    @contextmanager
    def losing(self: Database) -> Iterator[Session]:
        with original(self) as session:
            yield session
            if not losses:
                losses.append(1)
                raise _lost(storage)

    monkeypatch.setattr(Database, "session", losing)
    with one_group(storage):
        pass
    losses.clear()
    new = new_append(run, "workflow.started", changes={"status": RunStatus.SUSPENDED}, release=True)

    write(storage, append, new)

    assert losses
    assert read(storage, count_events, run.run_id) == 1


def _lost(storage: Storage) -> Exception:
    if "postgresql" in storage.url:
        return psycopg.OperationalError("server closed the connection unexpectedly")
    import sqlite3

    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = 10
    return error


_HOLD = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""


def _locker(path: Path, seconds: float) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(path), str(seconds)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_database_locked_for_seconds_delays_but_loses_nothing(
    tmp_path: Path, open_storage: Callable[..., Storage]
) -> None:
    storage = open_storage(tmp_path / "runs.db")
    accepted(storage, "before")
    process = _locker(tmp_path / "runs.db", 2.5)

    futures = [storage.submit(accept(new_run(f"run_{n}"))) for n in range(10)]
    assert read(storage, get_run, "before") is not None  # Readers do not wait.
    assert not any(future.done() for future in futures)

    assert all(future.result(30).is_new for future in futures)
    assert process.wait(10) == 0
    assert len(read(storage, get_runs, [f"run_{n}" for n in range(10)])) == 10


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for the lock a tenth of a second at a time, not two."""
    monkeypatch.setattr("pyworkflow_ray.storage.dialects._LOCK_PATIENCE", 0.1)


@pytest.mark.usefixtures("impatient")
def test_a_writer_that_may_give_up_does(tmp_path: Path, open_storage: Callable[..., Storage]) -> None:
    storage = open_storage(tmp_path / "runs.db", give_up_after=0.1)
    accepted(storage, "before")
    process = _locker(tmp_path / "runs.db", 1.5)
    with pytest.raises(StorageError, match="locked"):
        accepted(storage, "run_1")
    process.wait(10)
    accepted(storage, "run_2")


@pytest.mark.usefixtures("impatient")
def test_closing_during_an_outage_fails_what_waits(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "runs.db")
    accepted(storage, "before")
    process = _locker(tmp_path / "runs.db", 1.5)
    waiting = storage.submit(accept(new_run("run_1")))
    storage.close(timeout=0.2)
    with pytest.raises(StorageError, match="locked"):
        waiting.result(10)
    process.wait(10)


def test_a_killed_postgresql_connection_is_replaced(
    postgresql_url: str, open_storage: Callable[..., Storage]
) -> None:
    """The connection dies before a write, in the midst of one, and under a reader."""
    storage = open_storage(postgresql_url)
    run = claimed(storage)
    killed: list[int] = []

    def kill() -> None:
        with psycopg.connect(postgresql_url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'pyworkflow' AND datname = current_database()"
            )

    def dying(connection: Connection) -> None:
        append(new_append(run, "workflow.started")).on(connection)
        if not killed:
            killed.append(1)
            kill()

    kill()
    write(storage, dying)
    kill()

    assert read(storage, count_events, run.run_id) == 1
    after = read(storage, get_run, run.run_id)
    assert after is not None
    assert after.position == 1


def test_two_writers_at_once_do_not_stall_each_other(tmp_path: Path) -> None:
    """A client starts runs while a coordinator of another process (here another writer) keeps committing."""
    with Storage(tmp_path / "runs.db") as busy, Storage(tmp_path / "runs.db") as client:
        accepted(busy, "before")
        stop = threading.Event()

        def keep_busy() -> None:
            while not stop.is_set():
                write(busy, lambda c: c.exec_driver_sql("UPDATE engine SET value = value").rowcount)

        thread = threading.Thread(target=keep_busy)
        thread.start()
        durations = []
        for number in range(50):
            started = time.perf_counter()
            accepted(client, f"run_{number}")
            durations.append(time.perf_counter() - started)
        stop.set()
        thread.join()
    assert sorted(durations)[25] < 0.25
