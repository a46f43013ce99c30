"""The end of a run that takes with it what lies in its inbox: nothing that was acknowledged is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from pyworkflow_ray.actors.activations import Activation
from pyworkflow_ray.actors.commits import append_of
from pyworkflow_ray.actors.payloads import Payloads
from pyworkflow_ray.engine.events import StepCompleted, WorkflowCompleted
from pyworkflow_ray.storage.histories import FencedError, append, read_events
from pyworkflow_ray.storage.inboxes import post, unread
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.values.codec import Values
from tests.storage.builders import NOON, appended, claimed, new_append, read, write
from tests.storage.test_locks import Gate, stopped, two, until_waiting
from tests.storage.test_writers import one_group

__all__ = ["two"]

PAYLOADS = Payloads(Values(), lambda digest: b"", 1000)
FIRST = ("a", "signal.received", '{"name":"item","payload":1}')
SECOND = ("cancel", "cancellation.requested", '{"reason":"enough"}')


def ending() -> Activation:
    """The end of a run, with the outcome that its code has ended over."""
    activation = Activation("run_1")
    completed = StepCompleted(step_id="s#1", step_name="s", result=Raw(b"1"), attempt=1)
    for event in (completed, WorkflowCompleted(result=Raw(b"1"))):
        activation.record(event, NOON, PAYLOADS, {})
    activation.rest_with = PAYLOADS
    return activation


def end_of(activation: Activation, run: RunRecord) -> Any:
    """The work that ends the run."""
    new = append_of(run, run.position, activation)
    assert new is not None
    return activation.write(new)


def history(storage: Storage) -> list[tuple[str, bool]]:
    """The types of the run's events, and whether its code has seen them."""
    rows = read(storage, read_events, "run_1")
    assert [position for position, *_ in rows] == list(range(len(rows)))
    return [(type_, not json.loads(data).get("is_unseen")) for _, _, type_, data in rows]


REST = [("signal.received", False), ("cancellation.requested", False)]
OWN = [("step.completed", True), ("workflow.completed", True)]


def test_an_end_records_what_nobody_has_read(storage: Storage) -> None:
    run = claimed(storage)
    for each in (FIRST, SECOND):
        assert write(storage, post, "run_1", *each)
    activation = ending()
    for _ in range(3):  # and again, when answers are lost
        assert storage.submit(end_of(activation, run)).result(30) is False
    assert history(storage) == [OWN[0], *REST, OWN[1]]
    assert activation.appended == read(storage, get_run, "run_1").position == 4
    assert read(storage, unread, "run_1") == []


def test_an_end_with_nothing_to_record_is_written_again_to_no_effect(storage: Storage) -> None:
    run = claimed(storage)
    activation = ending()
    for _ in range(3):
        assert storage.submit(end_of(activation, run)).result(30) is False
    assert history(storage) == OWN
    assert not write(storage, post, "run_1", *FIRST)


def test_an_end_records_what_came_between_two_tries(storage: Storage) -> None:
    """1. A try fails before its commit. 2. Something more comes. 3. The next try, whose answer is lost."""
    run = claimed(storage)
    write(storage, post, "run_1", *FIRST)
    activation = ending()

    def failing(connection: Any) -> None:
        end_of(activation, run).on(connection)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(storage, failing)
    assert history(storage) == []
    write(storage, post, "run_1", *SECOND)
    for _ in range(2):
        storage.submit(end_of(activation, run)).result(30)
    assert history(storage) == [OWN[0], *REST, OWN[1]]


def test_a_row_that_cannot_be_read_keeps_no_run_from_its_end(storage: Storage) -> None:
    run = claimed(storage)
    write(storage, post, "run_1", "x", "no.such.kind", "{}")
    write(storage, post, "run_1", "y", "signal.received", "no JSON")
    write(storage, post, "run_1", *FIRST)
    storage.submit(end_of(ending(), run)).result(30)
    assert history(storage) == [OWN[0], REST[0], OWN[1]]


def test_who_was_replaced_ends_nothing_and_reads_nothing(storage: Storage) -> None:
    run = claimed(storage, ttl=0)
    claimed(storage, owner="process-2")
    write(storage, post, "run_1", *FIRST)
    with pytest.raises(FencedError):
        storage.submit(end_of(ending(), run)).result(30)
    assert len(read(storage, unread, "run_1")) == 1


def test_an_end_that_was_refused_is_not_taken_for_one_that_went_through(storage: Storage) -> None:
    """1. An end is not written. 2. The run is claimed again. 3. The same end, under the new lease."""
    run = claimed(storage, ttl=0)
    write(storage, post, "run_1", *FIRST)
    activation = ending()
    again = claimed(storage, owner="process-2")
    with pytest.raises(FencedError):
        storage.submit(end_of(activation, run)).result(30)
    storage.submit(end_of(activation, again)).result(30)
    assert history(storage) == [OWN[0], REST[0], OWN[1]]


def test_what_goes_through_in_the_same_transaction_is_recorded_or_refused(storage: Storage) -> None:
    run = claimed(storage)
    with one_group(storage):
        first = storage.submit(post("run_1", *FIRST))
        end = storage.submit(end_of(ending(), run))
        second = storage.submit(post("run_1", *SECOND))
    assert (first.result(30), end.result(30), second.result(30)) == (True, False, False)
    assert history(storage) == [OWN[0], REST[0], OWN[1]]


def test_an_end_waits_for_what_is_being_posted_and_records_it(
    two: tuple[Storage, Storage], postgresql_url: str
) -> None:
    first, second = two
    run = appended(first, claimed(first, "run_1"), "workflow.started")
    with stopped(second, post("run_1", *FIRST), Gate()) as futures:
        end = first.submit(end_of(ending(), run))
        until_waiting(postgresql_url)
    assert futures[0].result(30) is True
    assert end.result(30) is False
    assert history(first) == [("workflow.started", True), OWN[0], REST[0], OWN[1]]


def test_what_is_posted_while_an_end_takes_the_rest_is_refused(
    two: tuple[Storage, Storage], postgresql_url: str
) -> None:
    first, second = two
    run = claimed(first, "run_1")
    write(first, post, "run_1", *FIRST)
    with stopped(first, end_of(ending(), run), Gate()):
        posting = second.submit(post("run_1", *SECOND))
        until_waiting(postgresql_url)
    assert posting.result(30) is False
    assert history(first) == [OWN[0], REST[0], OWN[1]]


def test_an_append_that_is_no_end_takes_nothing(storage: Storage) -> None:
    run = claimed(storage)
    write(storage, post, "run_1", *FIRST)
    write(storage, append, new_append(run, "x"))
    assert len(read(storage, unread, "run_1")) == 1
