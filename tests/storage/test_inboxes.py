"""What the inbox promises: each thing once, in the order of arrival."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.inboxes import post, unread
from pyworkflow_ray.storage.storages import Storage
from tests.storage.builders import accepted, appended, claimed, read, write


def test_rows_are_unread_in_the_order_of_arrival(storage: Storage) -> None:
    accepted(storage)
    for number in range(5):
        assert write(storage, post, "run_1", f"key-{number}", "signal", f'{{"n":{number}}}'.encode())

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
    write(storage, post, "run_1", "too late", "signal", "{}")
    appended(storage, run, "workflow.completed", changes={"status": RunStatus.COMPLETED}, release=True)

    assert read(storage, unread, "run_1") == []
    assert not write(storage, post, "run_1", "key", "signal", "{}")


def test_posting_to_no_run_has_no_effect(storage: Storage) -> None:
    assert not write(storage, post, "no such run", "key", "hook", "{}")
