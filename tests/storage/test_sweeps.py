"""What the sweep promises: nothing that should go on is forgotten, nothing that is cared for is disturbed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.inboxes import post
from pyworkflow_ray.storage.placements import Placement, place
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.sweeps import due, orphans
from tests.storage.builders import NOON, accepted, appended, claimed, read, write


def _sleeping(storage: Storage, run_id: str, wake_at: datetime | None) -> None:
    run = claimed(storage, run_id)
    appended(storage, run, changes={"status": RunStatus.SUSPENDED, "wake_at": wake_at}, release=True)


def _orphans(storage: Storage, **options: float) -> dict[str, str]:
    return {orphan.run_id: orphan.reason for orphan in read(storage, orphans, **options)}


def test_sleeping_runs_are_due_within_the_horizon_earliest_first(storage: Storage) -> None:
    now = datetime.now(UTC)
    _sleeping(storage, "soon", now + timedelta(seconds=30))
    _sleeping(storage, "past", now - timedelta(hours=1))
    _sleeping(storage, "far", now + timedelta(days=1))
    _sleeping(storage, "waiting for a hook", None)

    assert [run.run_id for run in read(storage, due, 0)] == ["past"]
    found = read(storage, due, 60)
    assert [run.run_id for run in found] == ["past", "soon"]
    assert found[1].wake_at == now + timedelta(seconds=30)
    assert found[1].seconds_until == pytest.approx(30, abs=10)
    assert [run.run_id for run in read(storage, due, 60, 1)] == ["past"]


def test_a_test_that_owns_the_time_asks_by_its_own_clock(storage: Storage) -> None:
    _sleeping(storage, "run_1", NOON + timedelta(days=30))

    assert read(storage, due, 0, now=NOON) == []
    (found,) = read(storage, due, 60, now=NOON + timedelta(days=30, seconds=-20))
    assert found.seconds_until == pytest.approx(20)


def test_a_run_that_starts_later_is_due_then_and_no_orphan_before(storage: Storage) -> None:
    start_at = datetime.now(UTC) + timedelta(seconds=30)
    accepted(storage, start_at=start_at, wake_at=start_at)

    assert _orphans(storage, grace=0) == {}
    assert [run.run_id for run in read(storage, due, 60)] == ["run_1"]
    write(storage, place, ["run_1"], Placement(slots=1))
    claimed(storage)
    assert read(storage, due, 60) == []


def test_a_run_that_nobody_picked_up_is_an_orphan_after_a_while(storage: Storage) -> None:
    accepted(storage)
    assert _orphans(storage) == {}
    assert _orphans(storage, grace=-1) == {"run_1": "never_picked_up"}


def test_a_run_whose_lease_ran_out_is_an_orphan(storage: Storage) -> None:
    claimed(storage, "dead", ttl=0)
    claimed(storage, "alive", ttl=60)
    assert _orphans(storage, grace=-1) == {"dead": "lease_expired"}


def test_a_run_born_held_whose_coordinator_never_came_is_an_orphan(storage: Storage) -> None:
    accepted(storage, coordinator="coordinator-0", owner_lease=0)
    assert _orphans(storage) == {"run_1": "lease_expired"}


def test_a_suspended_run_with_an_unread_inbox_is_an_orphan(storage: Storage) -> None:
    _sleeping(storage, "run_1", None)
    _sleeping(storage, "quiet", None)
    write(storage, post, "run_1", "key", "hook", "{}")
    assert _orphans(storage) == {"run_1": "unread_inbox"}


def test_a_run_that_starts_later_is_an_orphan_once_it_has_something_unread(storage: Storage) -> None:
    start_at = datetime.now(UTC) + timedelta(days=1)
    accepted(storage, "later", start_at=start_at, wake_at=start_at)
    accepted(storage, "held", coordinator="coordinator-0", owner_lease=60)
    assert _orphans(storage, grace=-1) == {}

    for run_id in ("later", "held"):
        write(storage, post, run_id, "cancel", "cancel", "{}")

    assert _orphans(storage, grace=-1) == {"later": "unread_inbox"}


def test_a_run_that_was_set_aside_is_no_orphan_for_its_inbox(storage: Storage) -> None:
    appended(storage, claimed(storage), changes={"status": RunStatus.INTERRUPTED}, release=True)
    write(storage, post, "run_1", "key", "signal.received", "{}")
    assert _orphans(storage, grace=-1) == {}


def test_a_run_that_was_set_aside_is_an_orphan_once_it_is_to_be_cancelled(storage: Storage) -> None:
    appended(storage, claimed(storage), changes={"status": RunStatus.INTERRUPTED}, release=True)
    write(storage, post, "run_1", "cancel", "cancellation.requested", "{}")
    assert _orphans(storage, grace=-1) == {"run_1": "unread_inbox"}


def test_a_placed_run_that_nobody_claims_becomes_an_orphan_again(storage: Storage) -> None:
    _sleeping(storage, "run_1", None)
    write(storage, place, ["run_1"], Placement(slots=1))
    assert _orphans(storage) == {}
    assert _orphans(storage, grace=-1) == {"run_1": "never_picked_up"}


def test_ended_runs_are_neither_due_nor_orphans(storage: Storage) -> None:
    run = claimed(storage)
    write(storage, post, "run_1", "key", "hook", "{}")
    changes = {"status": RunStatus.COMPLETED, "wake_at": NOON - timedelta(days=9999)}
    appended(storage, run, changes=changes, release=True)
    assert read(storage, due, 60) == []
    assert _orphans(storage, grace=-1) == {}
