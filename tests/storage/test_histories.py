"""What an append promises: all or nothing, one writer, never twice, read as it was written."""

from __future__ import annotations

import time

import pytest

from pyworkflow_ray.exceptions import StorageError, UnreadableRowError
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.blobs import load_blob
from pyworkflow_ray.storage.histories import (
    FencedError,
    append,
    count_events,
    latest_event,
    read_events,
)
from pyworkflow_ray.storage.inboxes import post, unread
from pyworkflow_ray.storage.leases import claim
from pyworkflow_ray.storage.runs import delete_run, get_run
from pyworkflow_ray.storage.storages import Storage
from tests.storage.builders import NOON, accepted, appended, claimed, events, new_append, read, write


def test_events_come_back_as_they_were_appended(storage: Storage) -> None:
    run = claimed(storage)
    appended(storage, run, "workflow.started", "step.started")

    rows = read(storage, read_events, run.run_id)

    assert rows == [
        (position, timestamp, type_, data.decode())
        for position, (timestamp, type_, data) in enumerate(events("workflow.started", "step.started"))
    ]
    assert rows[1][1].microsecond == NOON.microsecond + 1
    assert rows[1][1].utcoffset() is not None


def test_an_append_changes_history_and_row_together(storage: Storage) -> None:
    run = claimed(storage)

    after = appended(
        storage,
        run,
        "workflow.started",
        "workflow.completed",
        changes={"status": RunStatus.COMPLETED, "result": b'{"total":3}', "completed_at": NOON},
        release=True,
    )

    assert (after.status, after.result, after.completed_at) == (RunStatus.COMPLETED, '{"total":3}', NOON)
    assert (after.position, after.owner, after.lease_expires_at) == (2, None, None)
    assert after.updated_at == events("a", "b")[1][0]


def test_a_failing_append_leaves_neither_events_nor_changes(storage: Storage) -> None:
    run = claimed(storage)
    wrong = new_append(run, "workflow.started", changes={"status": RunStatus.SUSPENDED})
    broken = [*wrong.events, (NOON.replace(tzinfo=None), "step.started", b"{}")]

    with pytest.raises(Exception, match=r"."):
        write(
            storage,
            append,
            new_append(run, events=[*broken, (NOON, None, b"{}")], changes={"status": RunStatus.SUSPENDED}),
        )

    assert read(storage, count_events, run.run_id) == 0
    assert read(storage, get_run, run.run_id) == run


def test_stale_epoch_append_is_refused(storage: Storage) -> None:
    stale = claimed(storage, owner="process-1", ttl=0)
    current = claimed(storage, owner="process-2")

    with pytest.raises(FencedError) as caught:
        write(storage, append, new_append(stale, "step.started", changes={"status": RunStatus.FAILED}))

    assert (caught.value.run_id, caught.value.epoch) == (stale.run_id, stale.epoch)
    assert isinstance(caught.value, StorageError)
    assert read(storage, count_events, stale.run_id) == 0
    assert read(storage, get_run, stale.run_id) == current


def test_append_whose_commit_was_lost_is_not_doubled(storage: Storage) -> None:
    run = claimed(storage)
    new = new_append(run, "workflow.started", "step.started", changes={"wake_at": NOON})
    write(storage, append, new)

    write(storage, append, new)  # The writer runs it again: it does not know of its success.

    assert read(storage, count_events, run.run_id) == 2
    after = read(storage, get_run, run.run_id)
    assert after is not None
    assert after.position == 2


def test_another_append_at_a_taken_position_is_refused(storage: Storage) -> None:
    run = claimed(storage)
    write(storage, append, new_append(run, "workflow.started"))

    with pytest.raises(FencedError, match="position 1"):
        write(storage, append, new_append(run, "step.started"))


def test_an_ended_run_gets_no_second_ending(storage: Storage) -> None:
    run = claimed(storage)
    ended = appended(storage, run, "workflow.failed", changes={"status": RunStatus.FAILED})

    with pytest.raises(FencedError):
        write(
            storage, append, new_append(ended, "workflow.completed", changes={"status": RunStatus.COMPLETED})
        )
    with pytest.raises(FencedError):
        write(storage, append, new_append(ended, changes={"status": RunStatus.COMPLETED}))

    after = read(storage, get_run, run.run_id)
    assert after is not None
    assert after.status is RunStatus.FAILED


def test_appending_to_a_deleted_run_is_refused(storage: Storage) -> None:
    run = claimed(storage)
    write(storage, delete_run, run.run_id)

    with pytest.raises(FencedError):
        write(storage, append, new_append(run, "step.started"))


def test_an_append_reads_the_inbox_rows_that_it_records(storage: Storage) -> None:
    run = claimed(storage)
    for key in ("a", "b"):
        write(storage, post, run.run_id, key, "signal", "{}")
    first, second = read(storage, unread, run.run_id)

    appended(storage, run, "signal.received", read_inbox=[first.id])

    assert read(storage, unread, run.run_id) == [second]


def test_a_release_tells_of_rows_that_arrived_meanwhile(storage: Storage) -> None:
    """1. The coordinator decides to suspend. 2. A payload is posted. 3. The suspension is committed."""
    run = claimed(storage)
    write(storage, post, run.run_id, "payload", "hook", "{}")

    suspension = new_append(run, changes={"status": RunStatus.SUSPENDED}, release=True)
    assert write(storage, append, suspension) is True

    again = write(storage, claim, run.run_id, "process-1", 60)
    assert again is not None
    (row,) = read(storage, unread, run.run_id)
    suspension = new_append(
        again, "hook.received", changes={"status": RunStatus.SUSPENDED}, release=True, read_inbox=[row.id]
    )
    assert write(storage, append, suspension) is False


def test_columns_that_fence_cannot_be_changed_by_an_append(storage: Storage) -> None:
    run = claimed(storage)
    for name in ("epoch", "owner", "position", "run_id", "no_such_column; DROP TABLE runs"):
        with pytest.raises(ValueError, match="cannot change"):
            write(storage, append, new_append(run, changes={name: 7}))


def test_an_error_text_that_no_database_takes_still_ends_the_run(storage: Storage) -> None:
    run = claimed(storage)

    after = appended(
        storage, run, changes={"status": RunStatus.FAILED, "error": "nul \0, surrogate \udc80, ü"}
    )

    assert after.error is not None
    assert after.error.startswith("nul ")
    assert after.error.endswith("ü")


def test_history_is_read_in_parts_and_by_type(storage: Storage) -> None:
    run = claimed(storage)
    appended(storage, run, *["step.started", "step.completed"] * 5)

    def positions(**options: object) -> list[int]:
        return [row[0] for row in read(storage, read_events, run.run_id, **options)]

    assert positions(after=6) == [7, 8, 9]
    assert positions(types=["step.completed"]) == [1, 3, 5, 7, 9]
    assert positions(types={"step.completed", "step.started"}, after=2, limit=2) == [3, 4]
    assert positions(types=[]) == []
    latest = read(storage, latest_event, run.run_id)
    assert latest is not None
    assert latest[0] == 9
    assert read(storage, count_events, run.run_id) == 10


def test_a_run_without_events_has_an_empty_history(storage: Storage) -> None:
    accepted(storage)
    assert read(storage, read_events, "run_1") == []
    assert read(storage, latest_event, "run_1") is None


def test_blobs_live_as_long_as_the_last_run_that_needs_them(storage: Storage) -> None:
    first, second = claimed(storage, "run_1"), claimed(storage, "run_2")
    appended(storage, first, "step.completed", blobs=[("hash-1", b"\0large"), ("hash-2", b"other")])
    appended(storage, second, "step.completed", blobs=[("hash-1", None)])

    write(storage, delete_run, "run_1")

    assert read(storage, load_blob, "hash-1") == b"\0large"
    with pytest.raises(UnreadableRowError, match="hash-2"):
        read(storage, load_blob, "hash-2")
    write(storage, delete_run, "run_2")
    with pytest.raises(UnreadableRowError, match="hash-1"):
        read(storage, load_blob, "hash-1")


def test_fifty_thousand_events_are_read_in_half_a_second(storage: Storage) -> None:
    run = claimed(storage)
    write(storage, append, new_append(run, *["step.completed"] * 50_000))

    started = time.thread_time()  # Not the clock's: the machine may be busy with something else.
    rows = read(storage, read_events, run.run_id)

    assert len(rows) == 50_000
    assert time.thread_time() - started < 0.5
