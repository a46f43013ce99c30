"""What the inbox promises: each thing once, in the order of arrival."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from sqlalchemy.engine import Connection

from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.acceptances import accept
from pyworkflow_ray.storage.histories import FencedError, UnreadError, append
from pyworkflow_ray.storage.inboxes import move_unread, post, runs_with_unread, unread
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.storages import Storage
from tests.storage.builders import accepted, appended, claimed, new_append, new_run, read, write


def test_rows_are_unread_in_the_order_of_arrival(storage: Storage) -> None:
    accepted(storage)
    for number in range(5):
        assert write(storage, post, "run_1", f"key-{number}", "signal.received", f'{{"n":{number}}}'.encode())

    rows = read(storage, unread, "run_1")

    assert [(row.dedup_key, row.data) for row in rows] == [(f"key-{n}", f'{{"n":{n}}}') for n in range(5)]
    assert read(storage, unread, "run_2") == []


def test_a_dedup_key_takes_effect_once(storage: Storage) -> None:
    accepted(storage, "run_1")
    accepted(storage, "run_2")
    with ThreadPoolExecutor(8) as pool:
        posted = list(pool.map(lambda _: write(storage, post, "run_1", "key", "hook", "{}"), range(16)))

    assert sum(posted) == 1
    assert write(storage, post, "run_2", "key", "hook", "{}")


def test_a_dedup_key_holds_also_after_it_was_read(storage: Storage) -> None:
    run = claimed(storage)
    write(storage, post, "run_1", "key", "hook", "{}")
    appended(storage, run, "hook.received", read_inbox=[row.id for row in read(storage, unread, "run_1")])

    assert not write(storage, post, "run_1", "key", "hook", "{}")
    assert read(storage, unread, "run_1") == []


def test_an_ended_run_takes_nothing_and_leaves_nothing_unread(storage: Storage) -> None:
    run = claimed(storage)
    write(storage, post, "run_1", "too late", "signal.received", "{}")
    appended(storage, run, "workflow.completed", changes={"status": RunStatus.COMPLETED}, release=True)

    assert read(storage, unread, "run_1") == []
    assert not write(storage, post, "run_1", "key", "signal.received", "{}")


def test_posting_to_no_run_has_no_effect(storage: Storage) -> None:
    assert not write(storage, post, "no such run", "key", "hook", "{}")


def test_the_runs_with_unread_inboxes_are_those_that_can_still_read_them(storage: Storage) -> None:
    for number in range(4):
        claimed(storage, f"run_{number}")
    for number in (0, 1, 2):
        for key in ("a", "b"):
            write(storage, post, f"run_{number}", key, "signal.received", "{}")
    ids = [row.id for row in read(storage, unread, "run_1")]
    appended(storage, claimed(storage, "run_1"), "signal.received", read_inbox=ids)
    appended(storage, claimed(storage, "run_2"), changes={"status": RunStatus.FAILED}, release=True)
    accepted(storage, "later")
    write(storage, post, "later", "a", "cancel", "{}")

    assert sorted(read(storage, runs_with_unread)) == ["later", "run_0"]
    assert len(read(storage, runs_with_unread, 1)) == 1


def _continue(connection: Connection, run: RunRecord, successor: str) -> None:
    accept(new_run(successor, continued_from_run_id=run.run_id)).on(connection)
    move_unread(run.run_id, successor).on(connection)
    changes = {"status": RunStatus.CONTINUED_AS_NEW, "continued_to_run_id": successor}
    append(new_append(run, "workflow.continued_as_new", changes=changes, release=True)).on(connection)


def test_what_a_run_has_not_read_its_successor_reads_in_the_same_order(storage: Storage) -> None:
    run = claimed(storage)
    for key in ("read", "c", "a", "b"):
        write(storage, post, "run_1", key, "signal.received", f'{{"key":"{key}"}}')
    first = read(storage, unread, "run_1")[0]
    run = appended(storage, run, "signal.received", read_inbox=[first.id])

    for _ in range(2):  # The second time is that of a commit whose answer was lost.
        write(storage, _continue, run, "run_2")

    assert read(storage, unread, "run_1") == []
    write(storage, post, "run_2", "d", "signal.received", "{}")
    rows = read(storage, unread, "run_2")
    assert [row.dedup_key for row in rows] == ["c", "a", "b", "d"]
    assert rows[0].data == '{"key":"c"}'
    assert not write(storage, post, "run_2", "a", "signal.received", "{}"), "its key has moved with it"


def test_what_is_unread_stays_when_the_run_does_not_end(storage: Storage) -> None:
    stale = claimed(storage, ttl=0)
    claimed(storage, owner="process-2")
    write(storage, post, "run_1", "a", "signal.received", "{}")

    with pytest.raises(FencedError):
        write(storage, _continue, stale, "run_2")

    assert len(read(storage, unread, "run_1")) == 1
    assert read(storage, unread, "run_2") == []


def test_a_successor_is_not_told_again_what_it_was_told_itself_nor_what_came_for_a_hook(
    storage: Storage,
) -> None:
    accepted(storage, "run_1")
    accepted(storage, "run_2")
    write(storage, post, "run_1", "key", "signal.received", "{}")
    write(storage, post, "run_1", "hook:approval#1", "hook.received", "{}")
    write(storage, post, "run_2", "key", "signal.received", '{"its":"own"}')

    write(storage, move_unread, "run_1", "run_2")

    assert [row.data for row in read(storage, unread, "run_2")] == ['{"its":"own"}']


def test_what_comes_while_a_run_is_continued_is_not_lost(shared_url: str) -> None:
    """1. The coordinator has moved the mail. 2. Somebody posts. 3. The coordinator commits."""
    with Storage(shared_url) as coordinator, Storage(shared_url) as client, ThreadPoolExecutor(2) as pool:
        run = claimed(coordinator)
        moved = Event()

        def slowly(connection: Connection) -> None:
            accept(new_run("run_2")).on(connection)
            move_unread("run_1", "run_2").on(connection)
            moved.set()
            time.sleep(0.3)
            changes = {"status": RunStatus.CONTINUED_AS_NEW}
            append(new_append(run, changes=changes, release=True)).on(connection)

        continuation = pool.submit(write, coordinator, slowly)
        assert moved.wait(30)
        assert not write(client, post, "run_1", "key", "cancel", "{}"), "the sender learns, and asks again"
        continuation.result(timeout=30)
        assert write(client, post, "run_2", "key", "cancel", "{}")


def test_a_run_does_not_end_over_what_its_holder_has_not_read(storage: Storage) -> None:
    run = claimed(storage)
    write(storage, post, "run_1", "key", "signal.received", "{}")
    end = {"changes": {"status": RunStatus.COMPLETED}, "release": True}
    with pytest.raises(UnreadError):
        write(storage, append, new_append(run, "end", known_unread=0, **end))
    assert read(storage, get_run, "run_1") == run
    known = new_append(run, "end", known_unread=1, **end)
    for _ in range(2):  # and again, when the first answer is lost
        assert write(storage, append, known) is False
    assert read(storage, unread, "run_1") == []


def test_what_moves_to_the_successor_keeps_no_run_from_continuing(storage: Storage) -> None:
    run = claimed(storage)
    end = {"changes": {"status": RunStatus.CONTINUED_AS_NEW}, "release": True, "known_unread": 0}
    write(storage, post, "run_1", "signal", "signal.received", "{}")
    write(storage, post, "run_1", "hook", "hook.received", "{}")
    with pytest.raises(UnreadError):
        write(storage, append, new_append(run, "end", **end))
    assert write(storage, append, new_append(run, "end", **end | {"known_unread": 1})) is False
