"""What acceptance promises: a run exists once, with its code, whoever asks twice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy.engine import Connection

from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage import placements
from pyworkflow_ray.storage.acceptances import accept
from pyworkflow_ray.storage.codes import Code, load_code
from pyworkflow_ray.storage.histories import FencedError, append
from pyworkflow_ray.storage.placements import Placement
from pyworkflow_ray.storage.runs import get_by_idempotency_key, get_run, list_runs
from pyworkflow_ray.storage.storages import Storage
from tests.storage.builders import NOON, accepted, appended, claimed, new_append, new_run, read, write


def test_an_accepted_run_is_pending_with_all_that_was_given(storage: Storage) -> None:
    given = {
        "input_args": '[1,{"a":"ü\\u0000"}]',
        "input_kwargs": '{"b":2.5}',
        "input_hash": "abc",
        "code_hash": "c0de",
        "metadata": "{}",
        "attributes": '{"customer":"x"}',
        "tags": '["t"]',
        "max_duration": 2.5,
        "durable": False,
        "recover_on_worker_loss": False,
        "max_recovery_attempts": 7,
        "parent_run_id": "run_0",
        "root_run_id": "run_root",
        "nesting_depth": 2,
        "child_id": "refund#1",
        "continued_from_run_id": "run_before",
        "idempotency_key": "key",
        "start_at": NOON,
        "wake_at": NOON + timedelta(microseconds=1),
        "created_at": NOON,
        "coordinator": "coordinator-7",
        "environment": "env",
    }

    result = write(storage, accept, new_run(**given))

    assert result.is_new
    assert {name: getattr(result.run, name) for name in given} == given
    assert result.run.status is RunStatus.PENDING
    assert (result.run.position, result.run.epoch, result.run.owner) == (0, 0, None)
    assert read(storage, get_run, "run_1") == result.run


def test_a_top_level_run_is_its_own_root_and_is_dated_by_the_database(storage: Storage) -> None:
    run = accepted(storage)
    assert run.root_run_id == "run_1"
    assert run.created_at == run.updated_at
    assert run.created_at.utcoffset() == timedelta(0)


def test_an_accept_whose_commit_was_lost_is_still_new(storage: Storage) -> None:
    new = new_run(idempotency_key="key", input_hash="a", code=Code(hash="c", kind="value", python="3.11"))
    first = write(storage, accept, new)

    again = write(storage, accept, new)

    assert again == first
    assert again.is_new


def test_a_run_is_accepted_with_what_else_is_written_or_not_at_all(storage: Storage) -> None:
    run = claimed(storage, "parent")

    def start_child(connection: Connection, position: int) -> None:
        accept(new_run("child", parent_run_id="parent", child_id="refund#1")).on(connection)
        append(new_append(run, "child.started", position=position)).on(connection)

    with pytest.raises(FencedError):
        write(storage, start_child, 7)
    assert read(storage, get_run, "child") is None

    write(storage, start_child, 0)
    child = read(storage, get_run, "child")
    assert child is not None
    assert child.child_id == "refund#1"


def test_an_idempotency_key_gives_the_run_that_holds_it(storage: Storage) -> None:
    accepted(storage, "run_1", idempotency_key="key", input_hash="a")

    second = write(storage, accept, new_run("run_2", idempotency_key="key", input_hash="b"))
    other = write(storage, accept, new_run("run_3", idempotency_key="key", workflow_name="refund"))

    assert (second.run.run_id, second.is_new, second.run.input_hash) == ("run_1", False, "a")
    assert (other.run.run_id, other.is_new) == ("run_3", True)
    assert read(storage, get_run, "run_2") is None
    found = read(storage, get_by_idempotency_key, "key", "order")
    assert found is not None
    assert found.run_id == "run_1"
    newest = read(storage, get_by_idempotency_key, "key")
    assert newest is not None
    assert newest.run_id in ("run_1", "run_3")
    assert read(storage, get_by_idempotency_key, "no such key") is None


def test_a_custom_run_id_in_use_is_not_new(storage: Storage) -> None:
    accepted(storage, "nightly", input_hash="a", created_at=NOON)

    same_input_later = new_run("nightly", input_hash="a", created_at=NOON + timedelta(seconds=1))
    for other in (new_run("nightly", input_hash="b", created_at=NOON), same_input_later):
        assert not write(storage, accept, other).is_new
    assert write(storage, accept, new_run("nightly", input_hash="a", created_at=NOON)).is_new


def test_a_run_brings_its_code(storage: Storage) -> None:
    code = Code(hash="c", kind="value", python="3.11", data=b"\0\1", reference="m:f", source_hash="s")
    accepted(storage, code=code, code_hash="c")
    assert read(storage, load_code, "c") == code
    assert read(storage, load_code, "other") is None


def test_concurrent_duplicates_in_threads_give_one_run(storage: Storage) -> None:
    def start(number: int) -> tuple[str, bool]:
        result = write(storage, accept, new_run(f"run_{number}", idempotency_key="key"))
        return result.run.run_id, result.is_new

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(start, range(32)))

    assert len({run_id for run_id, _ in results}) == 1
    assert sum(is_new for _, is_new in results) == 1


_START = """
import sys
from pyworkflow_ray.storage.acceptances import accept
from pyworkflow_ray.storage.storages import Storage
from tests.storage.builders import new_run
with Storage(sys.argv[1]) as storage:
    for number in range(20):
        new = new_run(f"run_{sys.argv[2]}_{number}", idempotency_key=f"key-{number}")
        print(storage.submit(accept(new)).result().is_new)
"""


def test_concurrent_duplicates_in_processes_give_one_run(
    shared_url: str, open_storage: Callable[..., Storage]
) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", _START, shared_url, str(number)], stdout=subprocess.PIPE)
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]

    assert [process.returncode for process in processes] == [0, 0]
    runs, _ = read(open_storage(shared_url), list_runs)
    assert len(runs) == 20
    assert sum(output.count(b"True") for output in outputs) == 20


def test_a_placed_run_can_be_born_held_by_its_coordinator(storage: Storage) -> None:
    run = accepted(storage, placement=Placement(slots=2, environment="e1"), owner_lease=60)

    assert (run.coordinator, run.environment) == ("coordinator-e1-0", "e1")
    assert (run.owner, run.epoch, run.status) == ("coordinator-e1-0", 1, RunStatus.PENDING)
    assert run.lease_expires_at is not None
    assert timedelta(seconds=50) < run.lease_expires_at - run.created_at < timedelta(seconds=70)
    after = appended(storage, run, "workflow.started", changes={"status": RunStatus.RUNNING})
    assert after.position == 1


@pytest.fixture(params=["asked for each time", "remembered"])
def loads(request: pytest.FixtureRequest, storage: Storage) -> placements.Loads | None:
    """What a process knows of the coordinators' loads."""
    return storage.loads if request.param == "remembered" else None


def test_runs_take_the_lowest_empty_slot_then_the_lowest_that_is_not_full(
    storage: Storage, loads: placements.Loads | None
) -> None:
    placement = Placement(slots=3)

    def coordinator_of(run_id: str) -> str | None:
        found: str | None = write(
            storage, accept, new_run(run_id, placement=placement), loads
        ).run.coordinator
        return found

    names = [coordinator_of(f"run_{number}") for number in range(4)]
    assert names == ["coordinator-0", "coordinator-1", "coordinator-2", "coordinator-0"]

    for number in (1, 2):
        run = claimed(storage, f"run_{number}")
        status = RunStatus.COMPLETED if number == 1 else RunStatus.SUSPENDED
        appended(storage, run, changes={"status": status}, release=True)

    assert coordinator_of("run_5") == "coordinator-1"
    assert coordinator_of("run_6") == "coordinator-2"
    assert coordinator_of("run_7") == "coordinator-0"


def test_a_burst_of_runs_fills_one_slot_after_another(
    storage: Storage, loads: placements.Loads | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placements, "PACK", 30)
    placement = Placement(slots=4)
    names = []
    for start in (0, 50):  # Two transactions and more: what the first placed counts in the next.
        futures = [
            storage.submit(accept(new_run(f"run_{number}", placement=placement), loads))
            for number in range(start, start + 50)
        ]
        names += [future.result(timeout=30).run.coordinator for future in futures]
    assert names[:4] == [f"coordinator-{slot}" for slot in range(4)], "each has a run of its own first"
    # A pack for each of the first three, in their order, and what is left for the last.
    assert [names.count(f"coordinator-{slot}") for slot in range(4)] == [30, 30, 30, 10]


def test_a_burst_does_not_take_the_slots_that_its_first_runs_leave(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placements, "_BURST_SEARCHES", 5)
    monkeypatch.setattr(placements, "_BURST_PAUSE", 60.0)
    placement = Placement(slots=3)
    names = []
    for number in range(9):
        run = write(storage, accept, new_run(f"run_{number}", placement=placement), storage.loads).run
        names.append(run.coordinator)
        if run.coordinator != "coordinator-0":  # a short one: it ends at once
            held = claimed(storage, run.run_id)
            appended(storage, held, changes={"status": RunStatus.COMPLETED}, release=True)
    assert names[:5] == ["coordinator-0", *["coordinator-1"] * 4]
    assert set(names[5:]) == {"coordinator-0"}

    monkeypatch.setattr(placements, "_BURST_PAUSE", 0.0)  # the next run is no part of it
    after = write(storage, accept, new_run("after", placement=placement), storage.loads).run
    assert after.coordinator == "coordinator-1"


def test_full_slots_share_what_comes(storage: Storage) -> None:
    placement = Placement(slots=1000)  # So many that each is counted to two only.
    futures = [storage.submit(accept(new_run(f"run_{number}", placement=placement))) for number in range(20)]
    assert len({future.result(timeout=30).run.coordinator for future in futures}) == 20


def test_environments_do_not_share_coordinators(storage: Storage) -> None:
    first = accepted(storage, "run_1", placement=Placement(slots=2, environment="e1"))
    second = accepted(storage, "run_2", placement=Placement(slots=2, environment="e2"))
    third = accepted(storage, "run_3", placement=Placement(slots=2))
    assert [run.coordinator for run in (first, second, third)] == [
        "coordinator-e1-0",
        "coordinator-e2-0",
        "coordinator-0",
    ]


def test_runs_that_follow_one_another_stay_at_the_first_slot(storage: Storage) -> None:
    """What a process remembers of the loads is older than the end of its own last run."""
    placement = Placement(slots=3)
    for number in range(5):
        run = write(storage, accept, new_run(f"run_{number}", placement=placement), storage.loads).run
        assert run.coordinator == "coordinator-0"
        held = claimed(storage, run.run_id)
        appended(storage, held, changes={"status": RunStatus.COMPLETED}, release=True)


def test_what_a_process_remembers_of_loads_is_read_again_after_a_while(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has filled the first slots since this one looked."""
    monkeypatch.setattr(placements, "PACK", 2)
    placement = Placement(slots=2)
    names = []
    for number in range(2):  # the slots are busy from here on
        write(storage, accept, new_run(f"first_{number}", placement=placement), storage.loads)
    for number in range(3):
        accepted(storage, f"other_{number}", coordinator="coordinator-0")
    monkeypatch.setattr(placements, "_KNOWN_FOR", 0.0)
    for number in range(2):  # the first one brings what the second goes by
        new = new_run(f"last_{number}", placement=placement)
        names.append(write(storage, accept, new, storage.loads).run.coordinator)
    assert names[-1] == "coordinator-1"
