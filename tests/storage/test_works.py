"""What a unit of work promises: its answers, what is undone with it, and what it commits when."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import Connection

from pyworkflow_ray.exceptions import StorageError
from pyworkflow_ray.storage.statements import RefusedError, Statement
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.works import Steps, Work, ask, called, last, together, work
from tests.storage.test_writers import one_group

_SET = Statement(
    "INSERT INTO engine (key, value) VALUES (:key, :value) ON CONFLICT (key) DO UPDATE SET value = :value"
)
_ADD = Statement("INSERT INTO engine (key, value) VALUES (:key, :value)")
_MOVE = Statement("UPDATE engine SET value = :new WHERE key = :key AND value = :old")
_GET = Statement("SELECT value FROM engine WHERE key = :key")


@work
def put(key: str, value: str) -> Steps[int]:
    (changed,) = yield last(_SET.change(key=key, value=value))
    return int(changed)


@work
def get(key: str) -> Steps[str | None]:
    (row,) = yield last(_GET.find(key=key))
    return None if row is None else str(row[0])


@work
def move(key: str, old: str, new: str, seen: list[str] | None = None) -> Steps[str]:
    """Moves a value on; beside it a trace that must be there exactly if it moved."""
    try:
        yield last(_MOVE.require(key=key, old=old, new=new), _SET.change(key=f"{key}-trace", value=new))
    except RefusedError:
        if seen is not None:
            seen.append("refused")
        return f"refused at {yield from get(key)}"
    return "moved"


def done(storage: Storage, task: Work[Any] | Callable[[Connection], Any]) -> Any:
    return storage.submit(task).result(30)


def test_a_work_is_sent_the_answers_to_its_statements_in_their_order(storage: Storage) -> None:
    @work
    def several() -> Steps[list[Any]]:
        return (
            yield last(
                _SET.change(key="a", value="1"),
                _SET.change_each([{"key": "b", "value": "2"}, {"key": "c", "value": "3"}]),
                _SET.change_each([]),
                _GET.find(key="b"),
                _GET.find(key="absent"),
                _GET.find_all(key="c"),
                _GET.find_all(key="absent"),
            )
        )

    changed, each, nothing, found, absent, all_, none = done(storage, several())
    assert (changed, each, nothing) == (1, None, None)
    assert (tuple(found), absent, [tuple(row) for row in all_], none) == (("2",), None, [("3",)], [])


def test_a_statement_that_must_change_a_row_undoes_its_work_when_it_finds_none(storage: Storage) -> None:
    done(storage, put("k", "1"))
    assert done(storage, move("k", "1", "2")) == "moved"
    assert done(storage, move("k", "1", "3")) == "refused at 2"
    assert done(storage, get("k-trace")) == "2", "what stood beside the refused statement is undone, too"


def test_what_was_written_before_the_refusal_is_undone(storage: Storage) -> None:
    @work
    def late() -> Steps[str]:
        yield ask(_SET.change(key="early", value="1"))
        try:
            yield last(_MOVE.require(key="absent", old="", new=""))
        except RefusedError:
            yield last(_SET.change(key="instead", value="1"))
        return "done"

    assert done(storage, late()) == "done"
    assert done(storage, get("early")) is None
    assert done(storage, get("instead")) == "1"


def test_a_refusal_in_a_group_harms_no_other_work(storage: Storage) -> None:
    done(storage, put("k", "1"))
    seen: list[str] = []
    with one_group(storage):
        futures = [
            storage.submit(each)
            for each in (
                put("a", "1"),
                move("k", "9", "10", seen),
                put("b", "1"),
                move("k", "1", "2"),
                get("k"),
            )
        ]
    assert [future.result(30) for future in futures] == [1, "refused at 1", 1, "moved", "2"]
    assert seen == ["refused"]


def test_a_refusal_is_one_when_the_server_answers_during_the_sending(
    open_storage: Callable[..., Storage], postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the driver may find the answer to a statement before it has done with sending it."""
    execute = psycopg.Cursor.execute

    def slow(cursor: Any, *args: Any, **kwargs: Any) -> Any:
        execute(cursor, *args, **kwargs)
        pipeline = cursor.connection._pipeline
        if pipeline is not None:
            cursor.connection.wait(pipeline._fetch_gen(flush=True))
        return cursor

    storage = open_storage(postgresql_url)
    done(storage, put("k", "1"))
    monkeypatch.setattr(psycopg.Cursor, "execute", slow)
    assert done(storage, move("k", "9", "10")) == "refused at 1"
    with one_group(storage):
        futures = [
            storage.submit(each)
            for each in (put("a", "1"), move("k", "9", "10"), put("b", "1"), move("k", "1", "2"))
        ]
    assert [future.result(30) for future in futures] == [1, "refused at 1", 1, "moved"]


def test_many_guilty_works_of_a_group_are_each_alone(storage: Storage) -> None:
    done(storage, put("taken", "1"))

    @work
    def take(key: str) -> Steps[str]:
        yield last(_ADD.change(key=key, value="mine"))
        return key

    with one_group(storage):
        futures = [storage.submit(take("taken" if n % 3 == 0 else f"free-{n}")) for n in range(10)]
    for n, future in enumerate(futures):
        if n % 3 == 0:
            with pytest.raises(StorageError, match="refused"):
                future.result(30)
        else:
            assert future.result(30) == f"free-{n}"
            assert done(storage, get(f"free-{n}")) == "mine"


def test_a_work_s_own_error_before_the_commit_undoes_it(storage: Storage) -> None:
    @work
    def failing() -> Steps[None]:
        yield ask(_SET.change(key="never", value="1"))
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        done(storage, failing())
    with one_group(storage):
        futures = [storage.submit(put("a", "1")), storage.submit(failing()), storage.submit(put("b", "1"))]
    assert futures[0].result(30) == futures[2].result(30) == 1
    with pytest.raises(KeyError, match="mine"):
        futures[1].result(30)
    assert done(storage, get("never")) is None


def test_what_a_work_raises_after_its_last_batch_undoes_nothing(storage: Storage) -> None:
    @work
    def failing() -> Steps[None]:
        (changed,) = yield last(_SET.change(key="kept", value="1"))
        raise KeyError(f"after {changed}")

    for key in ("alone", "in a group"):
        with one_group(storage):
            future = storage.submit(failing())
            if key == "in a group":
                storage.submit(put("beside", "1"))
        with pytest.raises(KeyError, match="after 1"):
            future.result(30)
        assert done(storage, get("kept")) == "1"


def test_a_work_may_go_on_after_its_last_batch(storage: Storage) -> None:
    @work
    def in_two() -> Steps[str]:
        (found,) = yield last(_GET.find(key="first"))
        yield last(_SET.change(key="second", value="none" if found is None else found[0]))
        return "done"

    with one_group(storage):
        futures = [storage.submit(each) for each in (put("first", "1"), in_two(), put("other", "1"))]
    assert [future.result(30) for future in futures] == [1, "done", 1]
    assert done(storage, get("second")) == "1"


def test_as_a_part_a_work_commits_nothing(storage: Storage) -> None:
    @work
    def whole() -> Steps[None]:
        assert (yield from put("part", "1")) == 1
        raise KeyError("whole")

    with pytest.raises(KeyError, match="whole"):
        done(storage, whole())
    assert done(storage, get("part")) is None


def test_works_run_together_each_get_their_own_answers(storage: Storage) -> None:
    @work
    def slow(key: str) -> Steps[str | None]:
        yield ask(_SET.change(key=key, value="slow"))
        return (yield from get(key).at_end())

    @work
    def whole() -> Steps[list[Any]]:
        return (
            yield from together(put("a", "1"), slow("b"), get("a"), together(), move("no", "", "")).at_end()
        )

    with pytest.raises(RefusedError):
        done(storage, whole())
    results = done(storage, together(put("a", "1"), slow("b"), get("a"), together()))
    assert results == [1, "slow", "1", []]
    assert done(storage, together()) == []


def test_a_function_with_the_connection_sees_what_came_before_it_in_its_group(storage: Storage) -> None:
    def look(connection: Connection) -> str:
        return str(connection.exec_driver_sql("SELECT value FROM engine WHERE key = 'seen'").scalar())

    with one_group(storage):
        futures = [
            storage.submit(each)
            for each in (put("seen", "1"), look, put("seen", "2"), called(look), get("seen"))
        ]
    assert [future.result(30) for future in futures] == [1, "1", 1, "2", "2"]


def test_a_read_sees_one_state_of_the_database(shared_url: str) -> None:
    """1. A reader asks. 2. Another writes. 3. The reader asks again, and sees nothing of it."""
    between = threading.Event()

    @work
    def twice(other: Storage) -> Steps[tuple[str | None, str | None]]:
        before = yield from get("k")
        if not between.is_set():
            between.set()
            done(other, put("k", "2"))
        return before, (yield from get("k"))

    with Storage(shared_url) as storage, Storage(shared_url) as other:
        done(other, put("k", "1"))
        assert storage.read(twice(other)) == ("1", "1")
        assert storage.read(get("k")) == "2"


def test_a_read_writes_nothing(storage: Storage) -> None:
    @work
    def sly() -> Steps[None]:
        yield ask(_GET.find(key="k"))
        yield last(_SET.change(key="k", value="1"), _GET.find(key="k"))

    with pytest.raises(StorageError) if storage.url != "sqlite://" else pytest.MonkeyPatch.context():
        storage.read(sly())
    assert done(storage, get("k")) is None
