"""What listing promises: every run once, newest first, whatever the page's size."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.engine import Connection

from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage import schema
from pyworkflow_ray.storage.inboxes import post
from pyworkflow_ray.storage.runs import delete_run, get_chain, get_children, get_run, get_runs, list_runs
from pyworkflow_ray.storage.storages import Storage
from tests.storage.builders import NOON, accepted, appended, claimed, new_append, read, write


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

    assert write(storage, delete_run, "run_1") is True
    assert write(storage, delete_run, "run_1") is False

    def rows(connection: Connection) -> dict[str, int]:
        tables = (schema.runs, schema.events, schema.inbox, schema.hooks, schema.blobs, schema.run_blobs)
        return {
            table.name: connection.scalar(select(func.count()).select_from(table)) or 0 for table in tables
        }

    assert set(storage.read(rows).values()) == {0}


def test_a_read_sees_one_snapshot(shared_url: str) -> None:
    with Storage(shared_url) as storage:
        run = claimed(storage)

        def twice(connection: Connection) -> tuple[object, object]:
            before = get_run(connection, "run_1")
            write(storage, _append, run)
            return before, get_run(connection, "run_1")

        before, after = storage.read(twice)
        assert before == after
        current = read(storage, get_run, "run_1")
        assert current is not None
        assert current.position == 1


def _append(connection: Connection, run: object) -> None:
    from pyworkflow_ray.storage.histories import append
    from pyworkflow_ray.storage.records import RunRecord

    assert isinstance(run, RunRecord)
    append(connection, new_append(run, "step.started"))
