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
    GAVE_UP,
    SET_APART,
    SET_ASIDE,
    WAS_ALONE,
    Holder,
    claim,
    claim_name,
    claim_placed,
    give_up,
    held_with,
    holder_of,
    lost_leases,
    owner_of,
    regain,
    release,
    renew_leases,
    set_apart,
)
from pyworkflow_ray.storage.placements import Placement, locate, place
from pyworkflow_ray.storage.records import RunRecord
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
    assert partial_regain(storage, run, "process-2") is None
    epoch = partial_regain(storage, run, "process-1")
    assert epoch == run.epoch + 1
    assert partial_regain(storage, run, "process-1") == epoch, "the answer may have been lost"
    held = read(storage, get_run, run.run_id)
    assert partial_regain(storage, held, "process-1") is None, "it is held again"


def test_a_run_that_was_placed_elsewhere_lives_with_the_owner_that_goes_on_with_it(storage: Storage) -> None:
    run = claimed(storage, owner="process-1", ttl=0)
    write(storage, place, [run.run_id], Placement(prefix="elsewhere-", slots=1))
    assert partial_regain(storage, run, "process-1") is not None
    assert read(storage, get_run, run.run_id).coordinator == "coordinator-0"
    assert write(storage, claim, run.run_id, "process-2", 60, force_from="elsewhere-0") is None


def partial_regain(storage: Storage, run: RunRecord, owner: str) -> int | None:
    return storage.submit(regain(run.run_id, owner, run.epoch, 60, coordinator="coordinator-0")).result()


PROCESS = owner_of("coordinator-0", "10.0.0.1:6379", "0a1b2c3d")


def claim_of_process(storage: Storage, number: int, run_id: str = "run_1") -> RunRecord | None:
    """A claim of one process, of the coordinator that the run is placed with."""
    mine = {"force_from": "coordinator-0", "cluster": "10.0.0.1:6379"}
    return write(storage, claim, run_id, claim_name(PROCESS, number), 60, **mine)


def test_a_process_that_claims_again_what_a_sweep_took_from_it_takes_it_over(storage: Storage) -> None:
    """1. A process stalls. 2. Its lease runs out, and the sweep places the run. 3. It claims it again."""
    accepted(storage, coordinator="coordinator-0")
    first = write(storage, claim, "run_1", claim_name(PROCESS, 1), 0)
    assert write(storage, place, ["run_1"], Placement(slots=1)) == {"run_1": "coordinator-0"}

    again = claim_of_process(storage, 2)

    assert again is not None
    assert holder_of(again.previous_owner or "") == Holder(PROCESS, WAS_ALONE)
    with pytest.raises(FencedError):
        write(storage, append, new_append(first, "step.started"))


def test_a_process_that_claims_again_what_it_holds_takes_it_over(storage: Storage) -> None:
    """1. A process loses its drive of a run. 2. Its lease is there yet. 3. A wake claims the run again."""
    accepted(storage, coordinator="coordinator-0")
    first = claim_of_process(storage, 1)
    again = claim_of_process(storage, 2)
    assert first is not None
    assert again is not None
    assert not first.was_interrupted
    assert holder_of(again.previous_owner or "") == Holder(PROCESS)
    assert partial_regain(storage, first, claim_name(PROCESS, 1)) is None, "another claim has the run"


def test_a_claim_whose_commit_was_lost_interrupts_nothing_by_itself(storage: Storage) -> None:
    """Of a run that never ran, and of one that was suspended."""
    accepted(storage, coordinator="coordinator-0")
    _asleep(storage, "run_2", coordinator="coordinator-0")
    for run_id in ("run_1", "run_2"):
        for _ in range(2):
            run = claim_of_process(storage, 1, run_id)
            assert run is not None
            assert not run.was_interrupted


def test_a_run_that_is_set_aside_with_attempts_under_way_is_taken_over(storage: Storage) -> None:
    for run_id, leaves_attempts in (("run_1", True), ("run_2", False)):
        run = claimed(storage, run_id, owner=claim_name(PROCESS, 1))
        aside = {"changes": {"status": RunStatus.INTERRUPTED}, "release": True}
        left = appended(storage, run, **aside, leaves_attempts=leaves_attempts)
        assert left.lease_expires_at is None
        write(storage, place, [run_id], Placement(slots=1))
        taken = claim_of_process(storage, 2, run_id)
        assert taken is not None
        assert taken.was_interrupted == leaves_attempts
        if leaves_attempts:
            assert holder_of(taken.previous_owner or "") == Holder(PROCESS, SET_ASIDE)


def test_the_runs_that_a_process_held_to_its_end_are_known_to_its_successor(storage: Storage) -> None:
    for number in range(2):
        accepted(storage, f"run_{number}", coordinator="coordinator-0")
        claim_of_process(storage, number, f"run_{number}")
    accepted(storage, "born", coordinator="coordinator-0", owner_lease=60)
    accepted(storage, "placed", coordinator="coordinator-0")
    accepted(storage, "elsewhere", coordinator="coordinator-1", owner_lease=60)
    accepted(storage, "taken", coordinator="coordinator-0")
    write(storage, claim, "taken", claim_name(PROCESS, 9), 0)
    write(storage, place, ["taken"], Placement(slots=1))

    held = write(storage, held_with, "coordinator-0", "10.0.0.1:6379")

    assert sorted(held) == ["born", "run_0", "run_1"]
    assert write(storage, held_with, "coordinator-0", "10.0.0.2:6379") == ["born"]


def test_a_sweep_notes_of_a_run_whether_it_was_alone_in_its_process(storage: Storage) -> None:
    def lost(*run_ids: str) -> list[RunRecord]:
        for number, run_id in enumerate(run_ids):
            accepted(storage, run_id, coordinator="coordinator-0")
            write(storage, claim, run_id, claim_name(PROCESS, number), 0)
        write(storage, place, run_ids, Placement(slots=4))
        return [read(storage, get_run, run_id) for run_id in run_ids]

    assert {holder_of(run.owner).mark for run in lost("run_1", "run_2", "run_3")} == {""}
    for run_id in ("run_1", "run_2", "run_3"):
        other = write(storage, claim, run_id, "other:0a1b2c3d/1", 60)
        appended(storage, other, changes={"status": RunStatus.COMPLETED}, release=True)
    accepted(storage, "elsewhere", coordinator="coordinator-1", owner_lease=60)
    (alone,) = lost("run_4")
    assert holder_of(alone.owner) == Holder(PROCESS, WAS_ALONE)
    again = regain("run_4", claim_name(PROCESS, 0), alone.epoch, 60, coordinator="coordinator-0")
    assert storage.submit(again).result() == alone.epoch
    assert read(storage, get_run, "run_4").owner == claim_name(PROCESS, 0)


def test_a_run_that_is_set_apart_stays_apart_until_it_is_suspended(storage: Storage) -> None:
    accepted(storage, coordinator="coordinator-0")
    write(storage, claim, "run_1", claim_name(PROCESS, 1), 0)
    run = write(storage, claim, "run_1", "successor/1", 60, force_from="coordinator-0")
    for _ in range(2):  # and again, when the first answer is lost
        write(storage, set_apart, [("run_1", run.epoch, "coordinator-0~2")])
    with pytest.raises(FencedError):
        write(storage, append, new_append(run, "step.started"))

    def age() -> None:
        storage.submit(
            lambda c: c.exec_driver_sql("UPDATE runs SET updated_at = '2020-01-01 00:00:00.000000'")
        ).result()

    age()
    assert write(storage, locate, ["run_1"], Placement(slots=1)) == {"run_1": "coordinator-0~2"}
    taken = write(storage, claim, "run_1", "apart/1", 60, force_from="coordinator-0~2")
    assert taken.shared_recoveries == 1
    assert holder_of(taken.previous_owner) == Holder(PROCESS, SET_APART)

    appended(storage, taken, changes={"status": RunStatus.SUSPENDED}, release=True)
    age()
    assert write(storage, locate, ["run_1"], Placement(slots=1)) == {"run_1": "coordinator-0"}


@pytest.mark.parametrize("coordinator", ["coordinator-0", "coordinator-run/1 (gave up)", "coordinator-a:b"])
def test_a_name_says_which_process_made_the_claim(coordinator: str) -> None:
    for cluster in ("", "10.0.0.1:6379"):
        process = owner_of(coordinator, cluster, "0a1b2c3d")
        assert holder_of(process) == Holder(process)
        for mark in ("", WAS_ALONE, GAVE_UP, SET_APART, SET_ASIDE):
            holder = holder_of(claim_name(process, 17) + mark)
            assert holder == Holder(process, mark)
            assert holder.is_process
    assert not holder_of("coordinator-0").is_process


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
    named = [(run_id, epoch, {"process-1"}) for run_id, epoch in [*held, ("gone", 1)]]
    assert read(storage, lost_leases, named) == ["run_1", "gone"]
