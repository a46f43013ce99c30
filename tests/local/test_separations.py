"""A run answers for the deaths that it alone can have caused. Others cost it time, and never its end."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.actors import run_codes
from pyworkflow_ray.actors.coordinator import Coordinator
from pyworkflow_ray.actors.names import alone_with, coordinator_of
from pyworkflow_ray.actors.recoveries import (
    LONGEST_PAUSE,
    Loss,
    counts_after,
    loss_of,
    pause_before,
    recovery_of,
)
from pyworkflow_ray.actors.separations import MOST_ALONE, PARTS, losses_of, separated, suspects
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.engine.events import WorkflowInterrupted
from pyworkflow_ray.storage.leases import GAVE_UP, SET_APART, SET_ASIDE, WAS_ALONE, claim_name, owner_of
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.testing.clocks import VirtualClock
from tests.local.notes import types
from tests.storage.builders import accepted

DEAD = owner_of("coordinator-0", "10.0.0.1:6379", "00000000")
HERE = owner_of("coordinator-0", "10.0.0.1:6379", "11111111")


def lost(run: RunRecord, previous_owner: str | None = claim_name(DEAD, 3), **fields: Any) -> RunRecord:
    """The run as its row is after a claim."""
    import msgspec

    row = {"previous_owner": previous_owner, "position": 2, "coordinator": "coordinator-0", **fields}
    return msgspec.structs.replace(run, **row)


@pytest.fixture
def run() -> Any:
    with Storage("memory") as storage:
        yield accepted(storage)


def test_only_the_death_of_a_process_that_had_no_other_run_is_a_runs_own(run: RunRecord) -> None:
    assert loss_of(lost(run, None), HERE, 0) is Loss.NONE
    assert loss_of(lost(run), HERE, 0) is Loss.ALONE
    assert loss_of(lost(run), HERE, 5) is Loss.SHARED
    assert loss_of(lost(run), HERE, None) is Loss.SHARED
    assert loss_of(lost(run, claim_name(DEAD, 3) + WAS_ALONE), HERE, None) is Loss.ALONE
    assert loss_of(lost(run, claim_name(HERE, 3) + WAS_ALONE), HERE, None) is Loss.STALLED
    assert loss_of(lost(run, claim_name(HERE, 3)), HERE, None) is Loss.STALLED
    assert loss_of(lost(run, claim_name(HERE, 3) + GAVE_UP), HERE, None) is Loss.ALONE
    assert loss_of(lost(run, claim_name(DEAD, 3) + SET_APART), HERE, 0) is Loss.SET_APART
    assert loss_of(lost(run, claim_name(DEAD, 3) + SET_ASIDE), HERE, 0) is Loss.SET_ASIDE


def test_a_run_that_no_process_may_have_seen_was_not_lost(run: RunRecord) -> None:
    """It was accepted under its coordinator's name. Whoever accepted it died, and others claim it."""
    for coordinator in ("coordinator-0", "coordinator-1"):
        unseen = lost(run, "coordinator-0", position=0, coordinator=coordinator)
        assert loss_of(unseen, HERE, None) is Loss.NONE
        assert loss_of(unseen, HERE, 0) is Loss.NONE
        assert loss_of(unseen, HERE, 3) is Loss.SHARED, "it may have begun, and be to blame"
    assert loss_of(lost(run, "coordinator-0", position=1), HERE, 0) is Loss.ALONE


def test_a_run_in_its_own_process_is_known_to_have_been_alone(run: RunRecord) -> None:
    own = lost(run, claim_name(owner_of(alone_with("run_1"), "10.0.0.1:6379", "00000000"), 0))
    (how,) = losses_of([own], [], HERE, can_set_apart=True)
    assert how == (own, Loss.ALONE)
    (how,) = losses_of([own], ["run_1", "child"], HERE, can_set_apart=True)
    assert how == (own, Loss.SHARED), "its child was there"
    (how,) = losses_of([lost(run)], ["run_1", "other"], HERE, can_set_apart=False)
    assert how[1] is Loss.ALONE, "each answers for itself where runs cannot be set apart"


@pytest.mark.parametrize("loss", [Loss.SHARED, Loss.STALLED, Loss.SET_APART, Loss.SET_ASIDE])
def test_a_run_never_fails_for_what_others_may_have_done(run: RunRecord, loss: Loss) -> None:
    counted = lost(run, recovery_attempts=3, shared_recoveries=100)
    recovery = recovery_of(counted, loss, HERE)
    assert isinstance(recovery, WorkflowInterrupted)
    assert counts_after(counted, loss) == {
        "recovery_attempts": 3,
        "shared_recoveries": 101 if loss is Loss.SHARED else 100,
    }


def test_a_run_that_was_alone_too_often_fails(run: RunRecord) -> None:
    for attempts in range(3):
        recovery = recovery_of(lost(run, recovery_attempts=attempts), Loss.ALONE, HERE)
        assert isinstance(recovery, WorkflowInterrupted)
        assert recovery.recovery_attempt == attempts + 1
    failed = recovery_of(lost(run, recovery_attempts=3, shared_recoveries=2), Loss.ALONE, HERE)
    assert isinstance(failed, pr.WorkerDiedError)
    assert "went away 4 time(s) in a row" in str(failed)


def test_a_run_that_must_not_be_recovered_fails_however_it_was_lost(run: RunRecord) -> None:
    for fields in ({"recover_on_worker_loss": False}, {"max_recovery_attempts": 0}, {"durable": False}):
        for loss in (Loss.ALONE, Loss.SHARED, Loss.STALLED):
            assert isinstance(recovery_of(lost(run, **fields), loss, HERE), pr.WorkerDiedError)
        assert recovery_of(lost(run, None, **fields), Loss.NONE, HERE) is None


def test_the_pauses_before_recoveries_grow_and_the_first_one_has_none(run: RunRecord) -> None:
    def pause(alone: int, shared: int, loss: Loss) -> float:
        counts = {"recovery_attempts": alone, "shared_recoveries": shared, "max_recovery_attempts": 100}
        return pause_before(lost(run, **counts), loss).total_seconds()

    assert [pause(n, 0, Loss.ALONE) for n in range(4)] == [0, 1, 2, 4]
    assert [pause(0, n, Loss.SHARED) for n in range(4)] == [0, 1, 2, 4]
    assert pause(0, 2, Loss.SET_APART) == 1, "the present loss is counted already"
    assert pause(1, 2, Loss.ALONE) == 4
    assert pause(50, 5000, Loss.ALONE) == LONGEST_PAUSE.total_seconds()
    assert pause(3, 3, Loss.STALLED) == pause(3, 3, Loss.NONE) == 0


def test_runs_are_set_apart_when_processes_die_again(run: RunRecord) -> None:
    first, again = lost(run), lost(run, shared_recoveries=1)
    assert suspects([(first, Loss.SHARED)]) == []
    assert suspects([(again, Loss.SHARED)]) == [again]
    assert suspects([(again, Loss.ALONE), (again, Loss.STALLED), (again, Loss.SET_APART)]) == []


def test_suspects_get_fewer_and_fewer_others_and_at_last_a_process_each(run: RunRecord) -> None:
    together = [lost(run, run_id=f"run_{number}") for number in range(1000)]
    coordinator, sizes = "coordinator-0", []
    while len(together) > 1:
        places = separated(coordinator, together)
        assert len(set(places.values())) <= max(PARTS, MOST_ALONE)
        coordinator = places[together[0].run_id]
        together = [one for one in together if places[one.run_id] == coordinator]
        sizes.append(len(together))
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) <= 6
    assert coordinator == alone_with("run_0")
    assert separated(coordinator, together) == {}, "it is where it belongs"


def test_a_run_with_a_coordinator_of_its_own_keeps_it_and_its_children_are_set_apart(run: RunRecord) -> None:
    family = [lost(run), lost(run, run_id="child")]
    assert separated(coordinator_of("run_1"), family) == {"child": alone_with("child")}


# --- whole processes, as far as they can be had in one ------------------------------------------------


@pr.workflow(max_recovery_attempts=1)
async def lives_in_village(token: str) -> Any:
    return await pr.hook("payload", token=token)


class House(Coordinator):
    """A coordinator in a village of others."""

    def __init__(self, village: Village, name: str) -> None:
        super().__init__(name, village.engine, storage=village.storage, clock=village.clock)
        self._village = village

    can_set_apart = True

    def send_apart(self, runs: list[tuple[RunRecord, str]]) -> None:
        for run, coordinator in runs:
            self._village.called.append((coordinator, run.run_id))


class Village:
    """Coordinators in this process. One of their runs kills whichever of them it runs in."""

    def __init__(self, path: Path) -> None:
        self.engine = EngineSettings(str(path), lease_ttl=timedelta(hours=1), suspend_after=None)
        self.storage, self.clock = Storage(path), VirtualClock()
        self.houses: dict[str, House] = {}
        self.called: list[tuple[str, str]] = []

    async def open(self, name: str) -> House:
        if name not in self.houses:
            self.houses[name] = House(self, name)
        await self.houses[name].open()
        while self.called:
            coordinator, run_id = self.called.pop()
            await (await self.open(coordinator)).wake([run_id])
        return self.houses[name]

    def of(self, run: str) -> House | None:
        return next((house for house in self.houses.values() if house.is_driving(run)), None)

    async def runs_again(self, run: str) -> House | None:
        """The house in which the run's code has run once more; None if the run has ended."""
        while True:
            record = self.storage.read(get_run(run))
            assert record is not None
            if record.status.is_terminal:
                return None
            house = self.of(run)
            if house is not None:
                (drive,) = (drive for drive in house.drives if drive.run_id == run)
                if drive.execution is not None:
                    return house
            self.clock.set_forward(self.clock.now() + timedelta(minutes=1))
            await asyncio.sleep(0.01)

    async def die(self, house: House) -> None:
        """Let the house fall with all that is in it, and have another one in its place."""
        del self.houses[house.name]
        await house.close()
        await self.open(house.name)

    async def close(self) -> None:
        await asyncio.gather(*(house.close() for house in self.houses.values()))
        self.storage.close()


async def test_a_run_that_kills_its_process_fails_and_its_neighbours_do_not(tmp_path: Path) -> None:
    path = tmp_path / "local.db"
    pr.configure(default_runtime="local", storage=path, suspend_after="10ms")
    runs = [await pr.start(lives_in_village, f"token-{number}") for number in range(13)]
    guilty, *innocents = runs
    village = Village(path)
    await (await village.open("coordinator-0")).wake(runs)

    company = []
    while (house := await village.runs_again(guilty)) is not None:
        company.append(len(house.drives) - 1)
        await village.die(house)

    assert company[0] == company[1] == 12, "a process may die once for another reason"
    assert company[-2:] == [0, 0]
    assert company == sorted(company, reverse=True)
    with pytest.raises(pr.WorkerDiedError, match="went away 2 time"):
        await guilty

    for number, run in enumerate(innocents, 1):
        house = await village.runs_again(run)
        assert house is not None
        await pr.resume_hook(f"token-{number}", number)
        house.deliver(run)
        end = await house.end_of(run)
        assert end is not None
        assert end.status == "completed"
    counts = Counter([(await types(run)).count("workflow.interrupted") for run in innocents])
    assert max(counts) <= len(company) - 2
    await village.close()


async def test_a_process_that_is_killed_from_outside_keeps_its_runs_together(tmp_path: Path) -> None:
    path = tmp_path / "local.db"
    pr.configure(default_runtime="local", storage=path, suspend_after="10ms")
    runs = [await pr.start(lives_in_village, f"token-{number}") for number in range(3)]
    village = Village(path)
    await (await village.open("coordinator-0")).wake(runs)
    for _ in range(1):
        house = village.houses["coordinator-0"]
        for run in runs:
            assert await village.runs_again(run) is house
        await village.die(house)
    for run in runs:
        assert await village.runs_again(run) is village.houses["coordinator-0"]
        record = village.storage.read(get_run(run))
        assert record is not None
        assert (record.recovery_attempts, record.shared_recoveries) == (0, 1)
    await village.close()


async def test_code_that_kills_its_process_while_it_is_loaded_is_not_loaded_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "local.db"
    pr.configure(default_runtime="local", storage=path, suspend_after="10ms")
    run = await pr.start(lives_in_village, "token")
    loads, is_over = [], threading.Event()

    def load(services: Any, record: RunRecord) -> None:
        loads.append(record.run_id)
        is_over.wait()
        raise pr.WorkflowError("the test is over")

    monkeypatch.setattr(run_codes, "load_definition", load)
    village = Village(path)
    await (await village.open("coordinator-0")).wake([run])
    deaths = 0
    while not (await run.status()).is_terminal:
        if len(loads) > deaths:
            deaths += 1
            await village.die(village.houses["coordinator-0"])
        village.clock.set_forward(village.clock.now() + timedelta(minutes=1))
        await asyncio.sleep(0.01)
    assert deaths == 3, "it was allowed one recovery, and one more to be failed as others are"
    with pytest.raises(pr.WorkerDiedError, match="went away 3 time"):
        await run
    is_over.set()
    await village.close()
