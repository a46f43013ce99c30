"""What locks promise: transactions that lock the same rows lock them in one order, whatever their works are.

Each test here has two transactions that would wait for each other if they locked rows as their works come.
The first one stops in the middle until the second one waits for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import Connection

from pyworkflow_ray.actors.schedulers import fire_due
from pyworkflow_ray.exceptions import StorageError
from pyworkflow_ray.recurrences.specs import ScheduleSpec
from pyworkflow_ray.statuses import OverlapPolicy, RunStatus
from pyworkflow_ray.storage.histories import UnreadError, append
from pyworkflow_ray.storage.hooks import Delivery, NewHook, create_hook, deliver_all, get_hook
from pyworkflow_ray.storage.inboxes import move_unread, post, unread
from pyworkflow_ray.storage.leases import claim_placed, renew_leases
from pyworkflow_ray.storage.placements import Placement, place
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.schedules import create_schedule, get_schedule
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.transactions import PostgreSQLSession
from tests.storage.builders import accepted, claimed, new_append, new_run, read, write
from tests.storage.test_writers import one_group

END = {"status": RunStatus.COMPLETED, "result": "1"}


class Gate:
    """A work of a group that stops its transaction until the gate is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, _: Connection) -> None:
        self.reached.set()
        assert self.opened.wait(60)


@pytest.fixture
def two(postgresql_url: str) -> Iterator[tuple[Storage, Storage]]:
    with Storage(postgresql_url) as first, Storage(postgresql_url) as second:
        accepted(first, "warm")
        read(second, get_run, "warm")
        yield first, second


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each transaction that writes. A deadlock would cost more of them."""
    transactions: list[int] = []
    begin = PostgreSQLSession.begin

    def noting(self: PostgreSQLSession) -> None:
        transactions.append(1)
        begin(self)

    monkeypatch.setattr(PostgreSQLSession, "begin", noting)
    return transactions


@contextmanager
def stopped(storage: Storage, *works: Any) -> Iterator[list[Any]]:
    """The futures of these works, one of which is a `Gate`; in the block, their transaction stands there."""
    (gate,) = (each for each in works if isinstance(each, Gate))
    with one_group(storage):
        futures = [storage.submit(each) for each in works]
    assert gate.reached.wait(30)
    try:
        yield futures
    finally:
        gate.opened.set()


def until_waiting(url: str, is_done: Callable[[], bool] = lambda: False) -> None:
    """Returns when a transaction waits for another one's lock, or when there is no need to wait for that."""
    with psycopg.connect(url, autocommit=True) as connection:
        while not is_done():
            waiting = connection.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone()
            if waiting is not None:
                return


def test_placing_many_runs_does_not_get_in_the_way_of_a_group_that_appends(
    two: tuple[Storage, Storage], postgresql_url: str, begun: list[int]
) -> None:
    first, second = two
    runs = {name: claimed(first, name) for name in ("run_1", "run_2")}
    begun.clear()
    gate = Gate()
    works = (append(new_append(runs["run_2"], "x")), gate, append(new_append(runs["run_1"], "x")))
    with stopped(first, *works) as futures:
        placing = second.submit(place(["run_2", "run_1"], Placement()))
        until_waiting(postgresql_url)
    for future in futures:
        future.result(30)
    assert placing.result(30) == {}  # they are held
    assert len(begun) == 3  # what held the writer up, the group, and the placing


def test_an_opening_coordinator_claims_in_the_order_in_which_others_lock(
    two: tuple[Storage, Storage], postgresql_url: str, begun: list[int]
) -> None:
    """The rows lie in the table in another order than that of their ids."""
    first, second = two
    names = ("run_3", "run_2", "run_1")
    runs = {name: claimed(first, accepted(first, name, coordinator="c-0").run_id, "c-0:1") for name in names}
    begun.clear()
    gate = Gate()
    appends = [append(new_append(runs[name], "x")) for name in ("run_2", "run_1")]
    with stopped(first, appends[0], gate, appends[1]) as futures:
        claiming = second.submit(claim_placed("c-0", "c-0:2", 30.0))
        until_waiting(postgresql_url)
    for future in futures:
        future.result(30)
    assert {run.run_id for run in claiming.result(30)} == set(names)
    assert len(begun) == 3


def test_ends_of_runs_of_the_same_schedules_in_opposite_order_pass_each_other(
    two: tuple[Storage, Storage], postgresql_url: str, begun: list[int]
) -> None:
    first, second = two
    for schedule_id in ("s-1", "s-2"):
        _schedule(first, schedule_id)

    def end(number: int, schedule_id: str) -> Any:
        run = claimed(first, accepted(first, f"run_{number}", schedule_id=schedule_id).run_id)
        return append(new_append(run, "end", changes=END, release=True, schedule_id=schedule_id))

    ends = [end(1, "s-1"), end(2, "s-2"), end(3, "s-2"), end(4, "s-1")]
    begun.clear()
    with stopped(first, ends[0], Gate(), ends[1]) as futures:
        with one_group(second):
            others = [second.submit(each) for each in ends[2:]]
        until_waiting(postgresql_url)
    for future in (*futures, *others):
        future.result(30)
    assert len(begun) == 4
    for schedule_id in ("s-1", "s-2"):
        assert read(first, get_schedule, schedule_id).successful_runs == 2


def test_a_fire_that_cancels_waits_for_no_run_while_it_holds_its_schedule(
    two: tuple[Storage, Storage], postgresql_url: str, begun: list[int]
) -> None:
    """1. A run of a schedule continues as new. 2. The schedule fires, and is to cancel it. 3. It ends."""
    first, second = two
    _schedule(first, "s-1", OverlapPolicy.CANCEL_OTHER)
    run = claimed(first, accepted(first, "run_1", schedule_id="s-1").run_id)
    accepted(first, "run_2", schedule_id="s-1", continued_from_run_id="run_1")
    _make_due(second, "s-1")
    begun.clear()
    changes = {"status": RunStatus.CONTINUED_AS_NEW, "continued_to_run_id": "run_2"}
    end = append(new_append(run, "end", changes=changes, release=True, schedule_id="s-1"))
    firing = threading.Thread(target=lambda: looked.append(asyncio.run(fire_due(second, "", 1.0))))
    looked: list[Any] = []
    with stopped(first, move_unread("run_1", "run_2"), Gate(), end) as futures:
        firing.start()
        until_waiting(postgresql_url)
    for future in futures:
        future.result(30)
    firing.join(30)
    assert len(begun) == 3
    assert "run_2" in looked[0].cancelled
    assert [row.kind for row in read(first, unread, "run_2")] == ["cancellation.requested"]


def test_answers_to_hooks_pass_the_ends_of_their_runs(
    two: tuple[Storage, Storage], postgresql_url: str, begun: list[int]
) -> None:
    """A delivery changes the hook and looks at the run; an end changes the run and lets go of the hook."""
    first, second = two
    runs = {name: claimed(first, name) for name in ("run_1", "run_2")}
    for name in runs:
        write(first, create_hook, name, NewHook(hook_id="h#1", token=f"token-{name}", name="h"))
    begun.clear()
    ends = [append(new_append(runs[name], "end", changes=END, release=True)) for name in ("run_2", "run_1")]
    deliveries = [Delivery(f"token-{name}", "key", '{"payload":1}') for name in ("run_2", "run_1")]
    with stopped(first, ends[0], Gate(), ends[1]) as futures:
        delivering = second.submit(deliver_all(deliveries))
        until_waiting(postgresql_url)
    for future in futures:
        future.result(30)
    assert all(isinstance(each, Exception) for each in delivering.result(30))  # they have ended
    assert len(begun) == 3
    assert read(first, get_hook, "token-run_1").received_at is None


def test_after_a_deadlock_the_halves_of_the_group_run_at_once_on_the_same_connection(
    two: tuple[Storage, Storage], postgresql_url: str, begun: list[int]
) -> None:
    """The other transaction is not ours, and follows no order of ours."""
    first, _ = two
    for name in ("run_1", "run_2"):
        claimed(first, name)
    before = first.submit(_backend).result(30)
    begun.clear()
    with psycopg.connect(postgresql_url) as other:
        other.execute("SET deadlock_timeout = '60s'")  # so that it is ours that finds out
        other.execute(_touching("run_2"))
        others = threading.Thread(target=lambda: (other.execute(_touching("run_1")), other.commit()))
        touches = [lambda c, name=name: c.exec_driver_sql(_touching(name)) for name in ("run_1", "run_2")]
        with stopped(first, touches[0], Gate(), touches[1]) as futures:
            others.start()
            until_waiting(postgresql_url)
        for future in futures:
            future.result(30)
        others.join(30)
    assert len(begun) == 4  # what held the writer up, the group, and its halves
    assert first.submit(_backend).result(30) == before


def _touching(run_id: str) -> str:
    return f"UPDATE runs SET tags = '[]' WHERE run_id = '{run_id}'"


def _backend(connection: Connection) -> Any:
    return connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()


def _schedule(storage: Storage, schedule_id: str, policy: OverlapPolicy = OverlapPolicy.BUFFER_ALL) -> None:
    spec = ScheduleSpec(interval=timedelta(hours=1))
    write(storage, create_schedule, schedule_id, new_run(""), spec, policy, 86400.0)


def _make_due(storage: Storage, schedule_id: str) -> None:
    def change(connection: Connection) -> None:
        connection.exec_driver_sql(
            "UPDATE schedules SET next_fire_at = next_fire_at - interval '2 hours', "
            "look_at = look_at - interval '2 hours', anchor_at = anchor_at - interval '2 hours' "
            f"WHERE schedule_id = '{schedule_id}'"
        )

    storage.submit(change).result(30)


# --- the end of a run, and what comes for it ------------------------------------------------------


def test_what_is_posted_while_the_end_commits_is_refused(
    two: tuple[Storage, Storage], postgresql_url: str
) -> None:
    first, second = two
    run = claimed(first, "run_1")
    end = append(new_append(run, "end", changes=END, release=True))
    with stopped(first, end, Gate()):
        posting = second.submit(post("run_1", "key", "signal.received", "{}"))
        until_waiting(postgresql_url, posting.done)
    assert posting.result(30) is False
    assert read(first, unread, "run_1") == []


def test_posts_to_a_run_do_not_wait_for_its_appends(two: tuple[Storage, Storage]) -> None:
    first, second = two
    run = claimed(first, "run_1")
    with stopped(first, append(new_append(run, "x")), Gate()):
        assert second.submit(post("run_1", "key", "signal.received", "{}")).result(30) is True
    assert len(read(first, unread, "run_1")) == 1


def test_an_end_waits_for_what_is_being_posted_and_is_refused_then(
    two: tuple[Storage, Storage], postgresql_url: str
) -> None:
    first, second = two
    run = claimed(first, "run_1")
    with stopped(second, post("run_1", "key", "signal.received", "{}"), Gate()) as futures:
        ending = first.submit(append(new_append(run, "end", changes=END, release=True, known_unread=0)))
        until_waiting(postgresql_url)
    assert futures[0].result(30) is True
    with pytest.raises(UnreadError):
        ending.result(30)
    assert len(read(first, unread, "run_1")) == 1


# --- leases ---------------------------------------------------------------------------------------


def test_a_renewal_waits_for_no_group_and_for_no_row(two: tuple[Storage, Storage]) -> None:
    """The writer of this process stands in the middle of a group, and holds one of the rows."""
    first, _ = two
    runs = {name: claimed(first, name) for name in ("run_1", "run_2")}
    held = [(run.run_id, run.epoch) for run in runs.values()]
    with stopped(first, append(new_append(runs["run_1"], "x")), Gate()) as futures:
        assert first.write_aside(renew_leases(held, 90.0)) == ["run_2"]
    for future in futures:
        future.result(30)
    assert first.write_aside(renew_leases(held, 90.0)) == ["run_1", "run_2"]


def test_a_renewal_that_the_server_refuses_is_an_error_and_the_next_one_goes_through(
    two: tuple[Storage, Storage],
) -> None:
    first, _ = two
    run = claimed(first, "run_1")
    with pytest.raises(StorageError):
        first.write_aside(renew_leases([("run_1", run.epoch)], float("nan")))
    assert first.write_aside(renew_leases([("run_1", run.epoch)], 90.0)) == ["run_1"]


def test_a_work_whose_rows_cannot_be_named_is_refused_alone(two: tuple[Storage, Storage]) -> None:
    """A token that no text of PostgreSQL can hold is refused when the locks are taken."""
    first, _ = two
    run = claimed(first, "run_1")
    with one_group(first):
        before = first.submit(append(new_append(run, "x")))
        refused = first.submit(deliver_all([Delivery("no\0text", "key", "{}")]))
        after = first.submit(post("run_1", "key", "signal.received", "{}"))
    assert before.result(30) is False
    assert after.result(30) is True
    with pytest.raises((StorageError, ValueError)):
        refused.result(30)


def test_works_that_each_change_one_run_are_run_in_the_order_of_the_runs(
    two: tuple[Storage, Storage],
) -> None:
    """Their own statements lock the rows in order then. Nothing is locked beforehand."""
    first, _ = two
    runs = [claimed(first, f"run_{number}") for number in (2, 3, 1)]
    works = [append(new_append(run, "x")) for run in runs]
    with first.database.session() as session:
        session.begin()
        assert session.lock(works) == [2, 0, 1]
        session.rollback()
