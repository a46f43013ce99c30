"""Each check finds the fault that it is there for, in a history broken by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from storm.checks import check_all
from storm.evidence import Evidence
from storm.records import Event, Run
from tests.storm.histories import (
    WORK,
    begin,
    completed,
    done,
    evidence_of,
    node,
    run_of,
    scheduled,
    started,
    step,
    whole,
)

RUN = "run-p1x1"


def promises(evidence: Evidence) -> list[str]:
    return sorted({broken.promise for broken in check_all(evidence)})


def test_a_storm_without_fault_breaks_no_promise() -> None:
    assert check_all(whole()) == []


def run_in(evidence: Evidence) -> Run:
    return evidence.records.runs[RUN]


def put(evidence: Evidence, position: int, type_: str, data: dict[str, Any]) -> None:
    """Put one more event into the history, at its place."""
    run = run_in(evidence)
    run.events.insert(position, Event(position, type_, 100.5, data))
    for number, event in enumerate(run.events):
        run.events[number] = replace(event, position=number)
    run.row["position"] = len(run.events)


def drop(evidence: Evidence, type_: str) -> None:
    """Take an event out of the history as if it had never been."""
    events = run_in(evidence).events
    events[:] = [event for event in events if event.type != type_]
    for number, event in enumerate(events):
        events[number] = replace(event, position=number)
    run_in(evidence).row["position"] = len(events)


def lose_row(evidence: Evidence) -> None:
    evidence.records.runs.clear()


def never_end(evidence: Evidence) -> None:
    drop(evidence, "workflow.completed")
    run_in(evidence).row["status"] = "running"


def give_another_result(evidence: Evidence) -> None:
    run_in(evidence).events[-1].data["result"][0] = "p1x1.7"
    evidence.lines[-1]["outcome"][0] = "p1x1.7"


def tell_the_waiter_otherwise(evidence: Evidence) -> None:
    evidence.lines[-1]["status"] = "failed"


def let_the_waiter_wait(evidence: Evidence) -> None:
    evidence.lines[-1] |= {"what": "still waiting", "at": 200.0}


def lose_payload(evidence: Evidence) -> None:
    drop(evidence, "hook.received")


def lose_signal(evidence: Evidence) -> None:
    drop(evidence, "signal.received")


def double_signal(evidence: Evidence) -> None:
    put(evidence, 5, "signal.received", {"name": "p1x1.3", "payload": "p1x1.3/0"})


def lose_cancel(evidence: Evidence) -> None:
    evidence.lines.append(done("cancel"))


def make_a_gap(evidence: Evidence) -> None:
    del run_in(evidence).events[3]


def forget_an_event(evidence: Evidence) -> None:
    run_in(evidence).row["position"] += 1


def end_twice(evidence: Evidence) -> None:
    put(evidence, 7, "workflow.cancelled", {})


def see_nothing_in_the_middle(evidence: Evidence) -> None:
    run_in(evidence).events[4].data["is_unseen"] = True


def see_nothing_of_a_run_that_goes_on(evidence: Evidence) -> None:
    never_end(evidence)
    run_in(evidence).events[-1].data["is_unseen"] = True


def go_on_after_the_end(evidence: Evidence) -> None:
    put(evidence, 7, "sleep.started", {"sleep_id": "sleep#1"})


def continue_twice(evidence: Evidence) -> None:
    for name in ("a", "b"):
        evidence.records.runs[name] = run_of(WORK, run_id=name, status="pending", continued_from_run_id=RUN)


def complete_twice(evidence: Evidence) -> None:
    put(evidence, 3, *completed(WORK, "storm.work#1"))


def complete_unasked(evidence: Evidence) -> None:
    put(evidence, 3, *completed(WORK, "storm.work#2"))


def receive_after_expiry(evidence: Evidence) -> None:
    put(evidence, 5, "hook.expired", {"hook_id": "h#1"})


def begin_twice(evidence: Evidence) -> None:
    evidence.lines.append(begin(WORK, "storm.work#1"))


def begin_another_attempt_of_what_must_run_once(evidence: Evidence) -> None:
    evidence.lines[1]["once"] = True
    evidence.lines.append(begin(step("p1x1.1", idempotent=False), "storm.work#1", attempt=2))


def never_begin(evidence: Evidence) -> None:
    del evidence.lines[1]


def keep_lease(evidence: Evidence) -> None:
    run_in(evidence).row["lease_expires_at"] = "2026-01-01"


def keep_hook(evidence: Evidence) -> None:
    evidence.records.hooks[0]["status"] = "pending"


def keep_unread(evidence: Evidence) -> None:
    evidence.records.inbox[0]["read_position"] = None


def orphan_blob(evidence: Evidence) -> None:
    evidence.records.run_blobs.clear()


def lose_blob(evidence: Evidence) -> None:
    evidence.records.blobs.clear()


def accept_a_payload_twice(evidence: Evidence) -> None:
    evidence.lines.append({"what": "note", "at": 1.0, "kind": "accepted twice", "text": "p1x1.2@0"})


BREAKS: list[tuple[Callable[[Evidence], None], str]] = [
    (lose_row, "accepted runs exist"),
    (never_end, "accepted runs end"),
    (give_another_result, "runs end as their programs allow"),
    (tell_the_waiter_otherwise, "waiters get the run's end"),
    (let_the_waiter_wait, "waiters get the run's end"),
    (lose_payload, "what was acknowledged is recorded once"),
    (lose_signal, "what was acknowledged is recorded once"),
    (double_signal, "what was acknowledged is recorded once"),
    (lose_cancel, "what was acknowledged is recorded once"),
    (make_a_gap, "histories have no gap and no fork"),
    (forget_an_event, "histories have no gap and no fork"),
    (end_twice, "histories have no gap and no fork"),
    (see_nothing_in_the_middle, "histories have no gap and no fork"),
    (see_nothing_of_a_run_that_goes_on, "histories have no gap and no fork"),
    (go_on_after_the_end, "histories have no gap and no fork"),
    (continue_twice, "histories have no gap and no fork"),
    (complete_twice, "one outcome each"),
    (complete_unasked, "one outcome each"),
    (receive_after_expiry, "one outcome each"),
    (begin_twice, "an attempt begins once"),
    (begin_another_attempt_of_what_must_run_once, "what is not idempotent begins once"),
    (never_begin, "a result comes from its attempt"),
    (keep_lease, "nothing is left behind"),
    (keep_hook, "nothing is left behind"),
    (keep_unread, "nothing is left behind"),
    (orphan_blob, "nothing is left behind"),
    (lose_blob, "nothing is left behind"),
    (accept_a_payload_twice, "clients are told the truth"),
]


def test_what_came_as_a_run_ended_breaks_no_promise() -> None:
    """A request to cancel that nobody has seen, and whose sender was told that the run would get it."""
    evidence = whole()
    evidence.lines.append(done("cancel"))
    put(evidence, len(run_in(evidence).events) - 1, "cancellation.requested", {"is_unseen": True})
    assert check_all(evidence) == []
    del run_in(evidence).events[-2].data["is_unseen"]
    assert promises(evidence) == ["runs end as their programs allow"]


def test_a_run_that_is_cancelled_over_a_request_that_its_code_has_not_seen_is_found() -> None:
    run = run_of(
        node("sequence", WORK),
        started(),
        ("cancellation.requested", {"is_unseen": True}),
        ("workflow.cancelled", {}),
        status="cancelled",
    )
    assert promises(evidence_of(run)) == ["runs end as their programs allow"]
    run.events[-1].data["is_without_code"] = True
    assert promises(evidence_of(run)) == []


@pytest.mark.parametrize(("break_it", "promise"), BREAKS, ids=[each.__name__ for each, _ in BREAKS])
def test_a_broken_promise_is_found(break_it: Callable[[Evidence], None], promise: str) -> None:
    evidence = whole()
    break_it(evidence)
    assert promise in promises(evidence)


LOST = {"step_id": "storm.work#1", "step_name": "storm.work", "cause": "worker_died", "attempt": 2}
FAILURE = {"error": "gone", "error_type": "pyworkflow_ray.exceptions.WorkerDiedError"}


def lost_after(losses: int, node_: dict[str, Any] = WORK) -> Evidence:
    """A run whose step has lost so many attempts, and failed with the next."""
    events = [started(), scheduled(node_, "storm.work#1")]
    events += [("step.retrying", LOST)] * losses
    events += [("step.failed", LOST | FAILURE), ("workflow.failed", FAILURE)]
    return evidence_of(run_of(node("sequence", node_), *events, status="failed"))


def test_a_step_that_gives_up_for_a_lost_worker_too_soon_is_found() -> None:
    assert promises(lost_after(2)) == ["losses are counted"]
    assert promises(lost_after(3)) == []
    assert promises(lost_after(0, step("p1x1.1", idempotent=False))) == []


def given_up(faults: int) -> Evidence:
    error = {"error": "4 recoveries are allowed", "error_type": "WorkerDiedError"}
    run = run_of(node("sequence", WORK), started(), ("workflow.failed", error), status="failed")
    fault = {"what": "fault", "at": 100.5, "kind": "kill coordinator"}
    return evidence_of(run, lines=[fault] * faults)


def test_a_run_that_is_given_up_for_losses_of_others_is_found() -> None:
    assert promises(given_up(3)) == ["a run is given up for its own losses"]
    assert promises(given_up(4)) == []


def test_a_run_that_is_given_up_beside_one_that_ends_its_process_is_told_so() -> None:
    evidence = given_up(0)
    ended = ("workflow.failed", {"error": "x", "error_type": "WorkerDiedError"})
    deadly = run_of(node("sequence", {"do": "die", "id": "p1x2.1"}), ended, run_id="deadly", status="failed")
    evidence.records.runs["deadly"] = deadly
    deadly.events[0] = replace(deadly.events[0], at=500.0)  # it had no history before
    deadly.row["created_at"] = "1970-01-01 00:01:40.000000"
    (broken,) = (each for each in check_all(evidence) if each.run_id == RUN)
    assert "beside deadly, which ends its process" in broken.what


def saga(*undone: str) -> Evidence:
    """A run that has booked twice, has failed, and has then undone so."""
    first, second = step("p1x1.1", compensated=True), step("p1x1.2", compensated=True)
    fatal = step("p1x1.3", act="fatal")
    failure = {"error": "p1x1.3", "error_type": "pyworkflow_ray.exceptions.FatalError"}
    events = [started()]
    for number, each in enumerate((first, second), 1):
        events += [scheduled(each, f"storm.work#{number}"), completed(each, f"storm.work#{number}")]
    events += [scheduled(fatal, "storm.work#3"), ("step.failed", {"step_id": "storm.work#3", **failure})]
    of = {"p1x1.1": first, "p1x1.2": second}
    for number, name in enumerate(undone, 1):
        step_id = f"storm.undo#{number}"
        events += [scheduled(of[name], step_id, "storm.undo"), completed(of[name], step_id)]
    events += [("workflow.failed", failure)]
    run = run_of(node("saga", first, second, fatal), *events, status="failed")
    begun = [begin(WORK, event.data["step_id"]) for event in run.of("step.completed")]
    return evidence_of(run, lines=begun)


def test_a_saga_that_undoes_too_little_or_in_another_order_is_found() -> None:
    assert promises(saga("p1x1.2", "p1x1.1")) == []
    assert promises(saga("p1x1.1", "p1x1.2")) == ["what was done is undone"]
    assert promises(saga("p1x1.2")) == ["what was done is undone"]


def test_a_parent_that_was_told_another_end_of_its_child_is_found() -> None:
    child = run_of(WORK, started(), ("workflow.cancelled", {}), run_id="c", status="cancelled")
    parent = run_of(
        {"do": "child", "id": "p1x1.5", "how": "wait", "part": WORK},
        started(),
        ("child_workflow.started", {"child_id": "c#1", "child_run_id": "c", "args": [{"id": "p1x1.5"}]}),
        ("child_workflow.completed", {"child_id": "c#1", "child_run_id": "c", "result": "p1x1.1"}),
        ("workflow.completed", {"result": {"child": "p1x1.1"}}),
    )
    assert "parents are told the truth" in promises(evidence_of(parent, child))


def test_a_signal_that_a_run_passes_on_to_its_successor_counts_once() -> None:
    tree = {"do": "again", "id": "p1x1.9", "times": 2, "part": WORK}
    received = ("signal.received", {"name": "s", "payload": "s/0"})
    args = {"args": [{"id": "p1x1"}, 1, ["p1x1.1"]]}
    first = run_of(
        tree,
        started(),
        received,
        ("workflow.continued_as_new", args),
        status="continued_as_new",
        continued_to_run_id="second",
    )
    second = run_of(
        tree,
        started(),
        received,
        ("workflow.completed", {"result": ["p1x1.1", "p1x1.1"]}),
        run_id="second",
        carried=[1, ["p1x1.1"]],
        continued_from_run_id=RUN,
    )
    assert promises(evidence_of(first, second, lines=[done("signal", payload="s/0")])) == []
