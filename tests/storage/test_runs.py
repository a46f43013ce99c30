"""What listing promises: every run once, newest first, whatever the page's size."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.engine import Connection

from pyworkflow_ray.exceptions import UnreadableRowError
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage import schema
from pyworkflow_ray.storage.acceptances import accept
from pyworkflow_ray.storage.blobs import load_blob
from pyworkflow_ray.storage.histories import count_events
from pyworkflow_ray.storage.hooks import NewHook, create_hook
from pyworkflow_ray.storage.inboxes import post
from pyworkflow_ray.storage.runs import (
    delete_run,
    get_chain,
    get_children,
    get_run,
    get_runs,
    get_tree,
    list_runs,
    purge,
    releasing_key,
)
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.works import Steps, last, work
from tests.storage.builders import NOON, accepted, appended, claimed, new_append, new_run, read, write


@work
def release_key(run_id: str) -> Steps[bool]:
    (changed,) = yield last(releasing_key(run_id))
    return bool(changed == 1)


def _ids(storage: Storage, **options: object) -> list[str]:
    return [run.run_id for run in read(storage, list_runs, **options)[0]]


def test_runs_that_share_a_timestamp_are_all_listed(storage: Storage) -> None:
    expected = {f"run_{number}" for number in range(23)}
    for run_id in expected:
        accepted(storage, run_id, created_at=NOON)

    seen: list[str] = []
    cursor = None
    while True:
        runs, cursor = read(storage, list_runs, limit=5, cursor=cursor)
        seen += [run.run_id for run in runs]
        if cursor is None:
            break

    assert len(seen) == 23
    assert set(seen) == expected


def test_several_statuses_are_paged_as_one_list(storage: Storage) -> None:
    for number in range(9):
        accepted(storage, f"run_{'aBé_'[number % 4]}{number}", created_at=NOON)
    for run, _ in zip(read(storage, list_runs)[0], range(4), strict=False):
        claimed(storage, run.run_id)
    everything = _ids(storage)

    seen: list[str] = []
    cursor = None
    while True:
        runs, cursor = read(
            storage, list_runs, limit=2, cursor=cursor, status=[RunStatus.PENDING, RunStatus.RUNNING]
        )
        seen += [run.run_id for run in runs]
        if cursor is None:
            break

    assert seen == everything == sorted(everything, reverse=True)


def test_the_newest_run_comes_first_and_the_last_page_has_no_cursor(storage: Storage) -> None:
    for number in range(4):
        accepted(storage, f"run_{number}", created_at=NOON + timedelta(microseconds=number))

    runs, cursor = read(storage, list_runs, limit=4)

    assert [run.run_id for run in runs] == ["run_3", "run_2", "run_1", "run_0"]
    assert cursor is None
    assert read(storage, list_runs, limit=3)[1] is not None


def test_runs_that_come_between_two_pages_do_not_disturb(storage: Storage) -> None:
    for number in range(4):
        accepted(storage, f"run_{number}", created_at=NOON + timedelta(seconds=number))
    first, cursor = read(storage, list_runs, limit=2)
    accepted(storage, "newer", created_at=NOON + timedelta(hours=1))
    write(storage, delete_run, "run_2")
    second, _ = read(storage, list_runs, limit=2, cursor=cursor)
    assert [run.run_id for run in [*first, *second]] == ["run_3", "run_2", "run_1", "run_0"]


@pytest.mark.parametrize(
    "cursor", ["nonsense", "bm9uc2Vuc2U=", "%%%", "MjAzMS0wNS0wNCAxMjowMDowMC4xMjM0NTZ8", "ü"]
)
def test_a_bad_cursor_is_a_value_error(storage: Storage, cursor: str) -> None:
    with pytest.raises(ValueError, match="cursor"):
        read(storage, list_runs, cursor=cursor)


def test_filters_narrow_the_list(storage: Storage) -> None:
    accepted(storage, "run_a", workflow_name="Order_1", created_at=NOON, idempotency_key="50%")
    accepted(storage, "run_b", workflow_name="refund", created_at=NOON + timedelta(seconds=1))
    accepted(
        storage,
        "run_c",
        workflow_name="refund",
        created_at=NOON + timedelta(seconds=2),
        parent_run_id="run_b",
    )
    claimed(storage, "run_c")

    assert _ids(storage, query="order_") == ["run_a"]
    assert _ids(storage, query="RUN_B") == ["run_b"]
    assert _ids(storage, query="50%") == ["run_a"]
    assert _ids(storage, query="%") == ["run_a"]
    assert _ids(storage, status=RunStatus.RUNNING) == ["run_c"]
    assert _ids(storage, status=[RunStatus.PENDING, RunStatus.FAILED]) == ["run_b", "run_a"]
    assert _ids(storage, status=[]) == []
    assert _ids(storage, workflow="refund", status={RunStatus.PENDING}) == ["run_b"]
    assert _ids(storage, start_time=NOON + timedelta(seconds=1)) == ["run_c", "run_b"]
    assert _ids(storage, end_time=NOON + timedelta(seconds=1)) == ["run_a"]
    assert _ids(storage, parent="run_b") == ["run_c"]


def test_attributes_are_compared_by_value_and_type(storage: Storage) -> None:
    accepted(
        storage, "run_1", attributes='{"n": 1, "s": "x", "b": true, "l": [1, 2], "o.dd \\"key\\"": null}'
    )
    accepted(storage, "run_2", attributes='{"n": "1", "s": "y", "b": 1, "l": [2, 1], "nul": "\\u0000"}')
    accepted(storage, "run_3")

    assert _ids(storage, attributes={"n": "1"}) == ["run_1"]
    assert _ids(storage, attributes={"n": '"1"'}) in ([], ["run_2"])  # PostgreSQL cannot look beside a NUL.
    assert _ids(storage, attributes={"s": '"x"', "b": "true"}) == ["run_1"]
    assert _ids(storage, attributes={"s": '"x"', "b": "false"}) == []
    assert _ids(storage, attributes={"l": "[1,2]"}) == ["run_1"]
    assert _ids(storage, attributes={'o.dd "key"': "null"}) == ["run_1"]
    assert _ids(storage, attributes={"' OR 1=1 --": "1"}) == []


def test_runs_are_found_by_their_ids(storage: Storage) -> None:
    for number in range(3):
        accepted(storage, f"run_{number}")
    found = read(storage, get_runs, ["run_0", "run_2", "run_9", *(f"absent_{n}" for n in range(1000))])
    assert set(found) == {"run_0", "run_2"}
    assert read(storage, get_run, "run_9") is None


def test_children_come_oldest_first(storage: Storage) -> None:
    for number in range(3):
        accepted(storage, f"run_{number}", parent_run_id="root", created_at=NOON - timedelta(seconds=number))
    assert [run.run_id for run in read(storage, get_children, "root")] == ["run_2", "run_1", "run_0"]


def test_a_chain_is_found_from_any_of_its_runs(storage: Storage) -> None:
    before = None
    for number in range(5):
        accepted(storage, f"run_{number}", continued_from_run_id=before)
        if before is not None:
            run = claimed(storage, before)
            changes = {"status": RunStatus.CONTINUED_AS_NEW, "continued_to_run_id": f"run_{number}"}
            appended(storage, run, changes=changes, release=True)
        before = f"run_{number}"

    for number in (0, 2, 4):
        chain = read(storage, get_chain, f"run_{number}")
        assert [run.run_id for run in chain] == [f"run_{each}" for each in range(5)]
    assert read(storage, get_chain, "unknown") == []


def test_deleting_a_run_takes_all_that_is_its_own(storage: Storage) -> None:
    run = claimed(storage)
    appended(storage, run, "workflow.started", blobs=[("hash", b"data")])
    write(storage, post, "run_1", "key", "hook", "{}")
    write(storage, create_hook, "run_1", NewHook(hook_id="h#1", token="token", name="h"))

    assert write(storage, delete_run, "run_1") is True
    assert write(storage, delete_run, "run_1") is False
    assert set(storage.read(_row_counts).values()) == {0}


def _row_counts(connection: Connection) -> dict[str, int]:
    tables = (schema.runs, schema.events, schema.inbox, schema.hooks, schema.blobs, schema.run_blobs)
    return {table.name: connection.scalar(select(func.count()).select_from(table)) or 0 for table in tables}


def _ended(
    storage: Storage,
    run_id: str,
    completed_at: datetime | None,
    status: RunStatus = RunStatus.COMPLETED,
    **fields: Any,
) -> None:
    accepted(storage, run_id, created_at=NOON - timedelta(days=1))
    changes = {"status": status, "completed_at": completed_at, "updated_at": NOON}
    run = claimed(storage, run_id)
    appended(storage, run, "workflow.completed", changes=changes, release=True, **fields)


def test_a_purge_takes_what_ended_before_and_nothing_else(storage: Storage) -> None:
    _ended(storage, "old", NOON - timedelta(seconds=1), blobs=[("own", b"1"), ("shared", b"2")])
    _ended(storage, "at that time", NOON, blobs=[("shared", None)])
    _ended(storage, "without a time", None)
    _ended(storage, "failed", NOON - timedelta(hours=1), RunStatus.FAILED)
    accepted(storage, "pending", created_at=NOON - timedelta(days=1))

    def purged(older_than: datetime, *statuses: RunStatus) -> int:
        return write(storage, purge, older_than=older_than, statuses=statuses)

    assert purged(NOON) == 0
    assert purged(NOON, RunStatus.COMPLETED, RunStatus.CANCELLED) == 1
    assert _ids(storage) == ["without a time", "pending", "failed", "at that time"]
    with pytest.raises(UnreadableRowError, match="the row is missing"):
        read(storage, load_blob, "own")
    assert read(storage, load_blob, "shared") == b"2"
    assert read(storage, count_events, "old") == 0
    every = {status for status in RunStatus if status.is_terminal}
    assert purged(NOON + timedelta(microseconds=1), *every) == 3
    assert _ids(storage) == ["pending"]


def test_a_purge_takes_no_more_at_once_than_it_may(storage: Storage) -> None:
    for number in range(3):
        _ended(storage, f"run_{number}", NOON - timedelta(hours=1))
        _ended(storage, f"failed_{number}", NOON - timedelta(hours=1), RunStatus.FAILED)

    statuses = [RunStatus.COMPLETED, RunStatus.FAILED]
    counts = [write(storage, purge, older_than=NOON, statuses=statuses, limit=4) for _ in range(3)]

    assert counts == [4, 2, 0]
    assert set(storage.read(_row_counts).values()) == {0}


def test_a_thousand_runs_are_purged_in_one_call(storage: Storage) -> None:
    def accept_all(connection: Connection) -> None:
        for number in range(1001):
            accept(new_run(f"run_{number}", created_at=NOON)).on(connection)
        connection.execute(update(schema.runs).values(status="completed", completed_at=NOON))

    write(storage, accept_all)
    after = NOON + timedelta(days=1)
    assert write(storage, purge, older_than=after, statuses=[RunStatus.COMPLETED], limit=5000) == 1001


@pytest.mark.parametrize("status", [status for status in RunStatus if not status.is_terminal])
def test_runs_that_have_not_ended_cannot_be_purged(storage: Storage, status: RunStatus) -> None:
    accepted(storage)
    with pytest.raises(ValueError, match=status.value):
        write(storage, purge, older_than=NOON, statuses=[RunStatus.COMPLETED, status])
    assert _ids(storage) == ["run_1"]


def test_a_released_key_is_free_for_another_run(storage: Storage) -> None:
    accepted(storage, "run_1", idempotency_key="key")

    for _ in range(2):
        assert write(storage, release_key, "run_1")

    assert accepted(storage, "run_2", idempotency_key="key").run_id == "run_2"
    assert read(storage, get_run, "run_1").idempotency_key is None
    assert not write(storage, release_key, "no such run")


def test_a_tree_is_a_run_and_all_below_it_oldest_first(storage: Storage) -> None:
    accepted(storage, "root", created_at=NOON)
    below = {"root_run_id": "root", "created_at": NOON}
    accepted(storage, "a grandchild", parent_run_id="child", nesting_depth=2, **below)
    accepted(storage, "child", parent_run_id="root", nesting_depth=1, **below)
    accepted(storage, "later", root_run_id="root", created_at=NOON + timedelta(seconds=1))
    accepted(storage, "other", created_at=NOON)

    tree = [run.run_id for run in read(storage, get_tree, "root")]

    assert tree == ["root", "child", "a grandchild", "later"]
    assert [run.run_id for run in read(storage, get_tree, "child")] == ["child"]
    assert read(storage, get_tree, "unknown") == []


def test_a_read_sees_one_snapshot(shared_url: str) -> None:
    with Storage(shared_url) as storage:
        run = claimed(storage)

        def twice(connection: Connection) -> tuple[object, object]:
            before = get_run("run_1").on(connection)
            write(storage, _append, run)
            return before, get_run("run_1").on(connection)

        before, after = storage.read(twice)
        assert before == after
        current = read(storage, get_run, "run_1")
        assert current is not None
        assert current.position == 1


def _append(connection: Connection, run: object) -> None:
    from pyworkflow_ray.storage.histories import append
    from pyworkflow_ray.storage.records import RunRecord

    assert isinstance(run, RunRecord)
    append(new_append(run, "step.started")).on(connection)
