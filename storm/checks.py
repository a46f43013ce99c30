"""The promises, each a function that gives what breaks it: over the rows of the database and the ledger."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from storm import ledger
from storm.evidence import (
    Broken,
    Evidence,
    began,
    is_deadly,
    is_given_up,
    judge,
    outcome_of,
    overlap,
    program_id,
    program_of,
)
from storm.ledger import Line
from storm.model import CANCELLED
from storm.records import ENDINGS, Run

LOSSES_ALLOWED = 3
"""So many attempts of a step, and so many coordinators of a run, may be lost (the package's default)."""
WAITERS_PATIENCE = 20.0
"""Seconds after a run's end within which whoever waits for it must be told."""
TAKES_COORDINATORS = ("kill coordinator", "stop coordinator", "lose cluster")


def every_accepted_run_ends(evidence: Evidence) -> Iterator[Broken]:
    """Every start that was acknowledged has a run, and every run has ended."""
    runs = evidence.records.runs
    for program, run_id in evidence.started.items():
        if run_id not in runs:
            yield Broken(
                "accepted runs exist", run_id, "its start was acknowledged, and it has no row", program
            )
    for run in runs.values():
        if not run.has_ended:
            last = run.events[-1].type if run.events else "nothing"
            yield Broken(
                "accepted runs end", run.id, f"it is {run.status}; last came {last}", program_id(run)
            )


def runs_end_as_the_model_allows(evidence: Evidence) -> Iterator[Broken]:
    """A run has ended as its program allows."""
    for run in evidence.records.runs.values():
        if run.has_ended:
            why = judge(evidence, run)
            if why is not None:
                yield Broken("runs end as their programs allow", run.id, why, program_id(run))


def waiters_see_the_end(evidence: Evidence) -> Iterator[Broken]:
    """Who waited for a run got the end that its history has."""
    for line in ledger.of(evidence.lines, "saw"):
        if not line["status"]:
            continue  # it has only looked
        chain = evidence.records.chain_of(line["run"])
        if not chain or not chain[-1].has_ended:
            continue
        status, outcome = chain[-1].status, outcome_of(chain[-1])
        wanted = CANCELLED if status == "cancelled" else outcome
        if line["status"] != status or line["outcome"] != wanted:
            told = f"a waiter was told {line['status']} {line['outcome']!r}, and it is {status} {wanted!r}"
            yield Broken("waiters get the run's end", line["run"], told, line["program"])
    for line in ledger.of(evidence.lines, "still waiting"):
        chain = evidence.records.chain_of(line["run"])
        if chain and chain[-1].has_ended and line["at"] - chain[-1].events[-1].at > WAITERS_PATIENCE:
            late = line["at"] - chain[-1].events[-1].at
            told = f"it ended {late:.0f} s ago, and its waiter still waits"
            yield Broken("waiters get the run's end", line["run"], told, line["program"])
    for line in ledger.of(evidence.lines, "note"):
        if line["kind"] in ("two runs", "accepted twice", "wrong answer"):
            told = f"{line['kind']}: {line['text']}"
            yield Broken("clients are told the truth", "", told, line.get("program", ""))


def what_was_acknowledged_is_recorded_once(evidence: Evidence) -> Iterator[Broken]:
    """A payload, a signal, a request to cancel that was acknowledged is in the histories once."""
    records = evidence.records
    for line in _unique(ledger.of(evidence.lines, "done", "payload"), "token", "payload"):
        yield from _once(evidence, line, _received(records.runs.get(line["run"]), line))
    for line in _unique(ledger.of(evidence.lines, "done", "rejection"), "token"):
        run = records.runs.get(line["run"])
        found = [event for event in _hook_events(run, line) if event.data.get("failure")]
        yield from _once(evidence, line, len(found))
    for line in _unique(ledger.of(evidence.lines, "done", "signal"), "payload"):
        # What a run has received and not read goes to its successor, and is in the history of both.
        counts = [
            sum(event.data["payload"] == line["payload"] for event in run.of("signal.received"))
            for run in records.chain_of(line["run"])
        ]
        yield from _once(evidence, line, max(counts, default=0))
    for line in _unique(ledger.of(evidence.lines, "done", "cancel"), "run"):
        found_in = records.chain_of(line["run"])
        count = sum(1 for run in found_in for _ in run.of("cancellation.requested"))
        yield from _once(evidence, line, count)


def _once(evidence: Evidence, line: Line, count: int) -> Iterator[Broken]:
    if count == 1:
        return
    what = {key: line[key] for key in ("token", "payload") if key in line}
    chain = evidence.records.chain_of(line["run"])
    ends = [run.events[-1].at for run in chain[-1:] if run.events and run.has_ended]
    when = f"; its run ended {ends[0] - line['at']:+.3f} s from then" if ends else ""
    told = f"an acknowledged {line['kind']} {what} is in the history {count} times{when}"
    yield Broken("what was acknowledged is recorded once", line["run"], told, line.get("program", ""))


def _hook_events(run: Run | None, line: Line) -> list[Any]:
    if run is None:
        return []
    hooks = {
        event.data["hook_id"] for event in run.of("hook.created") if event.data["token"] == line["token"]
    }
    return [event for event in run.of("hook.received") if event.data["hook_id"] in hooks]


def _received(run: Run | None, line: Line) -> int:
    return sum(event.data.get("payload") == line["payload"] for event in _hook_events(run, line))


def _unique(lines: Iterable[Line], *keys: str) -> list[Line]:
    return list({tuple(line[key] for key in keys): line for line in lines}.values())


def histories_have_no_gap_and_no_fork(evidence: Evidence) -> Iterator[Broken]:
    """Positions count from 0, the row agrees with the history, and nothing follows an ending."""
    for run in evidence.records.runs.values():
        wrong = list(_wrongs_of(run))
        if wrong:
            yield Broken("histories have no gap and no fork", run.id, "; ".join(wrong), program_id(run))
    followers = Counter(
        run.row["continued_from_run_id"]
        for run in evidence.records.runs.values()
        if run.row["continued_from_run_id"]
    )
    for run_id, count in followers.items():
        if count > 1:
            yield Broken("histories have no gap and no fork", run_id, f"{count} runs continue it")


def _wrongs_of(run: Run) -> Iterator[str]:
    positions = [event.position for event in run.events]
    if positions != list(range(len(positions))):
        yield f"its positions are {positions}"
    if run.row["position"] != len(positions):
        yield f"its row says {run.row['position']} events, and there are {len(positions)}"
    endings = [event for event in run.events if event.type in ENDINGS]
    if run.has_ended and [ENDINGS[event.type] for event in endings] != [run.status]:
        yield f"it is {run.status}, and its endings are {[event.type for event in endings]}"
    if endings and run.events[-1] is not endings[-1]:
        yield f"{run.events[-1].type} follows its ending"
    unseen = [event.position for event in run.events if event.is_unseen and event.position]
    if unseen and unseen != list(range(unseen[0], len(positions) - 1)):
        yield f"its code has not seen {unseen}, and these are not all that is before its end"
    if unseen and not endings:
        yield f"its code has not seen {unseen}, and it has not ended"
    starts = [event.position for event in run.of("workflow.started")]
    if run.events and starts != [0]:
        yield f"it starts at {starts}"
    if run.status == "continued_as_new" and not run.row["continued_to_run_id"]:
        yield "it continues as no run"


OUTCOMES = {
    "step_id": (("step.completed", "step.failed"), "step.started"),
    "sleep_id": (("sleep.completed",), "sleep.started"),
    "hook_id": (("hook.received", "hook.expired"), "hook.created"),
    "child_id": (
        ("child_workflow.completed", "child_workflow.failed", "child_workflow.cancelled"),
        "child_workflow.started",
    ),
}


def what_code_waits_for_ends_once(evidence: Evidence) -> Iterator[Broken]:
    """A step, a sleep, a hook, a child has at most one recorded outcome, and none that was not asked for."""
    for run in evidence.records.runs.values():
        for key, (outcomes, command) in OUTCOMES.items():
            asked = Counter(event.data[key] for event in run.of(command))
            ended = Counter(event.data[key] for event in run.of(*outcomes))
            for name in asked | ended:
                if asked[name] != 1 or ended[name] > 1:
                    told = f"{name} was asked for {asked[name]} times and has {ended[name]} outcomes"
                    yield Broken("one outcome each", run.id, told, program_id(run))


def attempts_begin_once(evidence: Evidence) -> Iterator[Broken]:
    """No attempt begins twice, and a step that is not idempotent begins once."""
    begins = ledger.of(evidence.lines, "begin")
    attempts = Counter((line["run"], line["step"], line["attempt"]) for line in begins)
    for (run_id, step_id, attempt), count in attempts.items():
        if count > 1:
            told = f"attempt {attempt} of {step_id} began {count} times"
            yield Broken("an attempt begins once", run_id, told, program_of(evidence, run_id))
    once = defaultdict(list)
    for line in begins:
        if line["once"]:
            once[line["run"], line["step"]].append(line)
    for (run_id, step_id), of_step in once.items():
        if len(of_step) > 1:
            pauses = [round(line["at"] - of_step[0]["at"], 2) for line in of_step[1:]]
            numbers = [line["attempt"] for line in of_step]
            told = f"{step_id} is not idempotent and began as attempts {numbers}, {pauses} s after the first"
            yield Broken("what is not idempotent begins once", run_id, told, program_of(evidence, run_id))
    for run in evidence.records.runs.values():
        for event in run.of("step.completed"):
            if (run.id, event.data["step_id"], event.data["attempt"]) not in attempts:
                told = (
                    f"attempt {event.data['attempt']} of {event.data['step_id']} has a result and never began"
                )
                yield Broken("a result comes from its attempt", run.id, told, program_id(run))


def losses_are_counted(evidence: Evidence) -> Iterator[Broken]:
    """A step or a run fails for lost processes only after as many losses as are allowed."""
    takes = [line["at"] for line in ledger.of(evidence.lines, "fault") if line["kind"] in TAKES_COORDINATORS]
    deadly = [run for run in evidence.records.runs.values() if is_deadly(run)]
    for run in evidence.records.runs.values():
        steps = run.steps()
        retried = Counter(
            event.data["step_id"]
            for event in run.of("step.retrying")
            if event.data.get("cause") in ("worker_died", "out_of_memory")
        )
        for event in run.of("step.failed"):
            step_id = event.data["step_id"]
            is_lost = event.data.get("cause") in ("worker_died", "out_of_memory")
            if is_lost and steps[step_id].get("idempotent", True) and retried[step_id] < LOSSES_ALLOWED:
                if any(run.seen("cancellation.requested")):
                    continue  # no attempt follows in a run that is asked to cancel
                told = f"{step_id} failed after {retried[step_id] + 1} lost attempts"
                yield Broken("losses are counted", run.id, told, program_id(run))
        if is_given_up(run) and not is_deadly(run):
            taken = [at for at in takes if began(run) - 1 <= at <= run.events[-1].at]
            beside = [other.id for other in deadly if overlap(run, other)]
            if len(taken) <= LOSSES_ALLOWED:
                told = f"it was given up after {len(taken)} faults that can take a coordinator"
                told += f", beside {beside[0]}, which ends its process" if beside else ""
                yield Broken("a run is given up for its own losses", run.id, told, program_id(run))


def what_was_done_is_undone(evidence: Evidence) -> Iterator[Broken]:
    """A run that failed or was cancelled has undone what it could, the last step first; others have not."""
    for run in evidence.records.runs.values():
        if not run.has_ended or is_given_up(run):
            continue
        steps = run.steps()
        done = [event.data["step_id"] for event in run.of("step.completed")]
        names = {event.data["step_id"]: event.data["step_name"] for event in run.of("step.started")}
        undone = [steps[step_id]["id"] for step_id in done if names.get(step_id) == "storm.undo"]
        wanted = [
            steps[step_id]["id"]
            for step_id in reversed(done)
            if names.get(step_id) != "storm.undo" and steps.get(step_id, {}).get("compensated")
        ]
        if run.status in ("completed", "continued_as_new"):
            wanted = []
        if undone != wanted:
            told = f"it is {run.status}, should have undone {wanted} and has undone {undone}"
            yield Broken("what was done is undone", run.id, told, program_id(run))


def parents_are_told_the_truth(evidence: Evidence) -> Iterator[Broken]:
    """What a parent was told of a child is how the child ended."""
    told_as = {
        "child_workflow.completed": "completed",
        "child_workflow.failed": "failed",
        "child_workflow.cancelled": "cancelled",
    }
    for run in evidence.records.runs.values():
        for event in run.of(*told_as):
            chain = evidence.records.chain_of(event.data["child_run_id"])
            status = chain[-1].status if chain else "not there"
            is_true = status == told_as[event.type]
            if is_true and status == "completed":
                is_true = event.data["result"] == outcome_of(chain[-1])
            if not is_true:
                told = f"it was told {event.type} of {event.data['child_run_id']}, which is {status}"
                yield Broken("parents are told the truth", run.id, told, program_id(run))


def nothing_is_left_behind(evidence: Evidence) -> Iterator[Broken]:
    """An ended run has no lease, no hook that waits, and nothing unread; a blob has an owner."""
    records = evidence.records
    ended = {run.id for run in records.runs.values() if run.has_ended}
    for run in records.runs.values():
        if run.has_ended and (run.row["lease_expires_at"] is not None or run.row["wake_at"] is not None):
            told = f"it has ended and has a lease or a time to wake: {run.row['owner']}, {run.row['wake_at']}"
            yield Broken("nothing is left behind", run.id, told, program_id(run))
    for hook in records.hooks:
        if hook["run_id"] in ended and hook["status"] == "pending":
            told = f"it has ended and hook {hook['hook_id']} still waits"
            yield Broken("nothing is left behind", hook["run_id"], told, program_of(evidence, hook["run_id"]))
    for row in records.inbox:
        if row["run_id"] in ended and row["read_position"] is None:
            told = f"it has ended and {row['kind']} {row['dedup_key']} is unread"
            yield Broken("nothing is left behind", row["run_id"], told, program_of(evidence, row["run_id"]))
    owned = {digest for _, digest in records.run_blobs}
    for digest in sorted(records.blobs - owned):
        yield Broken("nothing is left behind", "", f"blob {digest} has no owner")
    for run_id, digest in sorted(records.run_blobs):
        if digest not in records.blobs or run_id not in records.runs:
            yield Broken(
                "nothing is left behind", run_id, f"it owns the blob {digest}, and one of them is gone"
            )


PROMISES: tuple[Callable[[Evidence], Iterator[Broken]], ...] = (
    every_accepted_run_ends,
    runs_end_as_the_model_allows,
    waiters_see_the_end,
    what_was_acknowledged_is_recorded_once,
    histories_have_no_gap_and_no_fork,
    what_code_waits_for_ends_once,
    attempts_begin_once,
    losses_are_counted,
    what_was_done_is_undone,
    parents_are_told_the_truth,
    nothing_is_left_behind,
)


def check_all(evidence: Evidence) -> list[Broken]:
    """All that is broken."""
    return [broken for promise in PROMISES for broken in promise(evidence)]
