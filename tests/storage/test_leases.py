"""What a lease promises: one holder at a time, by the database's clock."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest

from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage import leases
from pyworkflow_ray.storage.histories import FencedError, append
from pyworkflow_ray.storage.leases import (
    claim,
    claim_placed,
    give_up,
    lost_leases,
    owner_of,
    regain,
    release,
    renew_leases,
)
from pyworkflow_ray.storage.placements import Placement, locate, place
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.storages import Storage
from tests.storage.builders import NOON, accepted, appended, claimed, new_append, read, write


def test_a_claim_raises_the_epoch_and_starts_the_run(storage: Storage) -> None:
    before = accepted(storage)

    run = write(storage, claim, "run_1", "process-1", 30)

    assert run is not None
    assert (run.epoch, run.owner, run.status) == (before.epoch + 1, "process-1", RunStatus.RUNNING)
    assert not run.was_interrupted
    assert run.lease_expires_at is not None
    assert run.lease_expires_at - run.updated_at == pytest.approx(
        timedelta(seconds=30), abs=timedelta(seconds=1)
    )
    assert read(storage, get_run, "run_1") == run


def test_a_held_run_cannot_be_claimed(storage: Storage) -> None:
    claimed(storage, owner="process-1")
    assert write(storage, claim, "run_1", "process-2", 30) is None


def test_two_claims_at_once_give_one_owner(shared_url: str) -> None:
    """Two processes (here two writers) find the same orphan."""
    with Storage(shared_url) as first, Storage(shared_url) as second, ThreadPoolExecutor(2) as pool:
        for number in range(20):
            accepted(first, f"run_{number}")
        for number in range(20):
            futures = [
                pool.submit(write, storage, claim, f"run_{number}", owner, 30)
                for storage, owner in ((first, "process-1"), (second, "process-2"))
            ]
            assert sum(future.result() is not None for future in futures) == 1


def test_a_run_whose_lease_has_run_out_is_claimed_as_interrupted(storage: Storage) -> None:
    stale = claimed(storage, owner="process-1", ttl=0.05)
    deadline = time.monotonic() + 10
    run = None
    while run is None and time.monotonic() < deadline:
        run = write(storage, claim, "run_1", "process-2", 30)

    assert run is not None
    assert (run.previous_owner, run.epoch) == ("process-1", stale.epoch + 1)
    assert run.was_interrupted
    assert not appended(storage, run, "workflow.interrupted").was_interrupted


def test_a_claim_whose_commit_was_lost_still_tells_of_the_interruption(storage: Storage) -> None:
    claimed(storage, owner="process-1", ttl=0)
    first = write(storage, claim, "run_1", "process-2", 30)

    again = write(storage, claim, "run_1", "process-2", 30)

    assert first is not None
    assert again is not None
    assert again.previous_owner == "process-1"
    assert again.epoch == first.epoch + 1


def test_a_new_incarnation_claims_at_once_what_its_predecessor_held(storage: Storage) -> None:
    accepted(storage, coordinator="coordinator-0")
    claimed(storage, owner="coordinator-0/pid-1")

    assert write(storage, claim, "run_1", "other", 30, force_from="coordinator-1") is None
    run = write(storage, claim, "run_1", "coordinator-0/pid-2", 30, force_from="coordinator-0")

    assert run is not None
    assert run.previous_owner == "coordinator-0/pid-1"


def test_an_ended_or_unknown_run_is_never_claimed(storage: Storage) -> None:
    for status in RunStatus:
        if status.is_terminal:
            run = claimed(storage, status.value)
            appended(storage, run, changes={"status": status}, release=True)
            assert write(storage, claim, status.value, "process-1", 30) is None
    assert write(storage, claim, "no such run", "process-1", 30) is None


def test_a_suspended_run_can_be_claimed_without_interruption(storage: Storage) -> None:
    run = claimed(storage)
    appended(storage, run, changes={"status": RunStatus.SUSPENDED}, release=True)

    again = write(storage, claim, "run_1", "process-2", 30)

    assert again is not None
    assert (again.status, again.was_interrupted) == (RunStatus.RUNNING, False)


def test_a_coordinator_claims_all_that_is_placed_with_it(storage: Storage) -> None:
    for number in range(3):
        accepted(storage, f"run_{number}", coordinator="coordinator-0", owner_lease=60)
    accepted(storage, "elsewhere", coordinator="coordinator-1")
    accepted(storage, "later", coordinator="coordinator-0", start_at=NOON)
    ended = claimed(storage, "run_3")
    appended(storage, ended, changes={"status": RunStatus.COMPLETED}, release=True)

    runs = write(storage, claim_placed, "coordinator-0", "process-1", 30)

    assert [run.run_id for run in runs] == ["run_0", "run_1", "run_2"]
    assert {(run.owner, run.epoch) for run in runs} == {("process-1", 2)}


def test_renewal_keeps_the_runs_that_are_driven(storage: Storage) -> None:
    runs = [claimed(storage, f"run_{number}", ttl=30) for number in range(3)]
    claimed(storage, "other", owner="process-2")

    write(storage, renew_leases, [(run.run_id, run.epoch) for run in runs], 90)

    for run in runs:
        after = read(storage, get_run, run.run_id)
        assert after is not None
        assert after.lease_expires_at is not None
        assert run.lease_expires_at is not None
        assert after.lease_expires_at - run.lease_expires_at > timedelta(seconds=55)
        assert after.epoch == run.epoch


def test_a_release_ends_only_ones_own_lease(storage: Storage) -> None:
    stale = claimed(storage, owner="process-1", ttl=0)
    current = claimed(storage, owner="process-2")

    assert not write(storage, release, "run_1", stale.epoch)
    assert write(storage, release, "run_1", current.epoch)
    assert write(storage, claim, "run_1", "process-3", 30) is not None


def test_a_lease_is_measured_by_the_databases_clock(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WrongClock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(1999, 1, 1, tzinfo=tz)  # type: ignore[arg-type]

    monkeypatch.setattr(time, "time", lambda: 0.0)
    for module in (leases, __import__("pyworkflow_ray.storage.dialects", fromlist=["dialects"])):
        monkeypatch.setattr(module, "datetime", WrongClock, raising=False)

    run = claimed(storage, ttl=60)

    assert run.lease_expires_at is not None
    assert run.lease_expires_at.year >= 2020
    assert write(storage, claim, "run_1", "process-2", 60) is None


def test_placing_wakes_a_suspended_run_and_counts_it(storage: Storage) -> None:
    for number in range(2):
        run = claimed(storage, f"run_{number}")
        appended(storage, run, changes={"status": RunStatus.SUSPENDED, "wake_at": NOON}, release=True)

    placed = write(storage, place, ["run_0", "run_1", "no such run"], Placement(slots=2))

    assert placed == {"run_0": "coordinator-0", "run_1": "coordinator-1"}
    again = write(storage, claim, "run_0", "process-1", 30, force_from="coordinator-0")
    assert again is not None
    assert not again.was_interrupted


def test_two_who_wake_a_run_at_once_name_the_same_coordinator(storage: Storage) -> None:
    run = claimed(storage)
    appended(storage, run, changes={"status": RunStatus.SUSPENDED}, release=True)

    first = write(storage, place, ["run_1"], Placement(slots=4))
    second = write(storage, place, ["run_1"], Placement(slots=4))

    assert first == second == {"run_1": "coordinator-0"}


def test_held_and_ended_runs_are_not_placed(storage: Storage) -> None:
    claimed(storage, "held")
    ended = claimed(storage, "ended")
    appended(storage, ended, changes={"status": RunStatus.FAILED}, release=True)
    assert write(storage, place, ["held", "ended"], Placement(slots=2)) == {}


def test_an_owner_that_comes_back_cannot_touch_a_run_that_was_placed_elsewhere(storage: Storage) -> None:
    """1. Its lease runs out. 2. The sweep places the run elsewhere. 3. It breathes again, and appends."""
    run = claimed(storage, owner="process-1", ttl=0)
    assert write(storage, place, ["run_1"], Placement(slots=1)) == {"run_1": "coordinator-0"}

    write(storage, renew_leases, [(run.run_id, run.epoch)], 60)
    assert read(storage, get_run, "run_1").lease_expires_at is None
    with pytest.raises(FencedError):
        write(storage, append, new_append(run, "step.started"))

    taken = write(storage, claim, "run_1", "process-2", 60)
    assert taken is not None
    assert taken.previous_owner == "process-1"


def test_who_claims_a_run_is_where_it_lives_from_then_on(storage: Storage) -> None:
    """1. A run is placed with one. 2. It is slow, and the run is placed with another. 3. The first claims it.
    4. The other must not take it from under the first for being placed with it."""
    run = claimed(storage, ttl=0)
    write(storage, place, [run.run_id], Placement(slots=1))
    assert write(storage, claim, run.run_id, "process-0", 60, force_from="coordinator-7") is not None
    assert read(storage, get_run, run.run_id).coordinator == "coordinator-7"
    assert write(storage, claim, run.run_id, "process-1", 60, force_from="coordinator-0") is None


def test_an_owner_goes_on_with_a_run_that_was_placed_with_it_again(storage: Storage) -> None:
    run = claimed(storage, owner="process-1", ttl=0)
    write(storage, place, [run.run_id], Placement(slots=1))
    assert partial_regain(storage, run.run_id, "process-2") is None
    epoch = partial_regain(storage, run.run_id, "process-1")
    assert epoch == run.epoch + 1
    assert partial_regain(storage, run.run_id, "process-1") is None, "it is held again"


def partial_regain(storage: Storage, run_id: str, owner: str) -> int | None:
    return storage.submit(regain(run_id, owner, 60, born_owner="coordinator-0")).result()


def test_a_run_that_was_given_up_is_an_interrupted_one_to_the_next(storage: Storage) -> None:
    run = claimed(storage, owner="process-1", ttl=60)
    assert write(storage, give_up, run.run_id, run.epoch)
    assert not write(storage, give_up, run.run_id, run.epoch), "the epoch has gone on"
    taken = write(storage, claim, run.run_id, "process-1", 60)
    assert taken is not None
    assert taken.was_interrupted


def _asleep(storage: Storage, run_id: str, **fields: object) -> None:
    accepted(storage, run_id, **fields)
    run = claimed(storage, run_id)
    appended(storage, run, changes={"status": RunStatus.SUSPENDED}, release=True)


def test_a_child_is_placed_with_its_root_while_that_is_awake(storage: Storage) -> None:
    accepted(storage, "root", coordinator="coordinator-7", owner_lease=60)
    family = {"root_run_id": "root", "parent_run_id": "root"}
    for number in range(2):
        _asleep(storage, f"child_{number}", coordinator="coordinator-1", **family)
    _asleep(storage, "elsewhere", environment="env", **family)
    placement = Placement(slots=1)

    placed = write(storage, place, ["child_0", "elsewhere"], placement)
    assert placed == {"child_0": "coordinator-7", "elsewhere": "coordinator-0"}

    root = read(storage, get_run, "root")
    assert root is not None
    appended(storage, root, changes={"status": RunStatus.SUSPENDED}, release=True)
    assert write(storage, place, ["child_1"], placement) == {"child_1": "coordinator-0"}
    assert write(storage, place, ["child_0"], placement) == {"child_0": "coordinator-7"}, "placed just now"


def test_a_root_without_a_coordinator_has_its_children_placed_as_others(storage: Storage) -> None:
    claimed(storage, "root")
    _asleep(storage, "child", root_run_id="root", parent_run_id="root")
    _asleep(storage, "orphan", root_run_id="deleted", parent_run_id="deleted")
    placed = write(storage, place, ["child", "orphan"], Placement(slots=1))
    assert placed == {"child": "coordinator-0", "orphan": "coordinator-0"}


def test_locating_places_what_nobody_holds_and_names_the_holder_of_the_rest(storage: Storage) -> None:
    accepted(storage, "held", coordinator="coordinator-7", owner_lease=60)
    claimed(storage, "held by who has no name")
    _asleep(storage, "asleep", coordinator="coordinator-5")
    accepted(storage, "ended", coordinator="coordinator-5")
    appended(storage, claimed(storage, "ended"), changes={"status": RunStatus.FAILED}, release=True)
    before = read(storage, get_run, "held")
    wanted = ["held", "held by who has no name", "asleep", "ended", "no such run"]

    for _ in range(2):
        located = write(storage, locate, wanted, Placement(slots=1))
        assert located == {"held": "coordinator-7", "asleep": "coordinator-0"}

    assert read(storage, get_run, "held") == before


@pytest.mark.parametrize("claim_all", [False, True])
def test_a_name_is_followed_within_its_cluster_alone(storage: Storage, claim_all: bool) -> None:
    """Two clusters on one database each have a coordinator-0."""
    accepted(storage, coordinator="coordinator-0")
    first = owner_of("coordinator-0", "10.0.0.1:6379", "1")
    assert write(storage, claim, "run_1", first, 60.0, force_from="coordinator-0") is not None

    def take(cluster: str) -> list[str]:
        owner = owner_of("coordinator-0", cluster, "2")
        if claim_all:
            found = write(storage, claim_placed, "coordinator-0", owner, 60.0, cluster)
        else:
            found = [write(storage, claim, "run_1", owner, 60.0, force_from="coordinator-0", cluster=cluster)]
        return [run.owner for run in found if run is not None]

    assert take("10.0.0.2:6379") == []
    assert take("10.0.0.1:6379") == [owner_of("coordinator-0", "10.0.0.1:6379", "2")]


def test_a_run_that_was_born_held_is_its_drivers_once_it_was_renewed(storage: Storage) -> None:
    run = accepted(storage, coordinator="coordinator-0", owner_lease=60)
    owner = owner_of("coordinator-0", "10.0.0.1:6379", "1")
    write(storage, renew_leases, [(run.run_id, run.epoch)], 60.0, owner)
    renewed = read(storage, get_run, run.run_id)
    assert renewed is not None
    assert (renewed.owner, renewed.epoch) == (owner, 1)
    assert write(storage, claim_placed, "coordinator-0", "other", 60.0, "10.0.0.2:6379") == []


def test_a_lease_is_lost_when_another_process_has_the_run(storage: Storage) -> None:
    runs = [claimed(storage, f"run_{number}", ttl=0) for number in range(4)]
    write(storage, claim, "run_1", "process-2", 60)
    write(storage, place, ["run_2"], Placement())  # nobody has claimed it: it may be placed here again
    held = [(run.run_id, run.epoch) for run in runs]
    assert write(storage, renew_leases, [*held, ("gone", 1)], 60) == ["run_0", "run_3"]
    assert read(storage, lost_leases, [*held, ("gone", 1)], "process-1") == ["run_1", "gone"]
