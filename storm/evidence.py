"""What the checks look at, and what they have in common."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from storm import ledger
from storm.ledger import Line
from storm.model import LOST, Facts, Model, Sent
from storm.programs import nodes
from storm.records import Records, Run, seconds_of


@dataclass(frozen=True)
class Broken:
    """A promise that did not hold."""

    promise: str
    run_id: str
    what: str
    program: str = ""


@dataclass(frozen=True)
class Evidence:
    """All that the checks look at."""

    records: Records
    lines: list[Line]

    @cached_property
    def started(self) -> dict[str, str]:
        """The first run of each program whose start was acknowledged, by the program."""
        return {line["program"]: line["run"] for line in ledger.of(self.lines, "done", "start")}

    @cached_property
    def sent(self) -> Sent:
        """What drivers have tried to send."""
        payloads: dict[str, set[str]] = defaultdict(set)
        for line in ledger.of(self.lines, "try", "payload"):
            payloads[line["token"]].add(line["payload"])
        rejected = {line["token"] for line in ledger.of(self.lines, "try", "rejection")}
        cancelled = {line["program"] for line in ledger.of(self.lines, "try", "cancel")}
        return Sent(payloads, rejected, cancelled)

    def facts_of(self, run: Run) -> Facts:
        """What the model must know of a run's history."""
        steps = run.steps()
        lost = {
            steps[event.data["step_id"]]["id"]
            for event in run.of("step.failed")
            if event.data.get("cause") in ("worker_died", "out_of_memory") and event.data["step_id"] in steps
        }
        children = {
            event.data["child_id"]: event.data["args"][0]["id"] for event in run.of("child_workflow.started")
        }
        return Facts(
            is_asked_to_cancel=any(run.seen("cancellation.requested")),
            is_cancelled_without_code=any(
                event.data.get("is_without_code") and any(run.of("cancellation.requested"))
                for event in run.of("workflow.cancelled")
            ),
            lost_nodes=lost,
            had_failed_child=any(run.seen("child_workflow.failed", "child_workflow.cancelled")),
            child_values={
                children[event.data["child_id"]]: event.data["result"]
                for event in run.seen("child_workflow.completed")
                if event.data["child_id"] in children
            },
            is_given_up=is_given_up(run),
        )


def is_given_up(run: Run) -> bool:
    """Whether a run failed since the processes that drove it were lost, and not by its own code."""
    return any(
        event.data["error_type"].endswith(LOST) and "recoveries are allowed" in event.data["error"]
        for event in run.of("workflow.failed")
    )


def judge(evidence: Evidence, run: Run) -> str | None:
    """Why a run may not have ended as it did; None if it may."""
    program, *rest = run.arguments
    iteration, carried = rest if rest else (program.get("iteration", 0), [])
    model = Model(evidence.sent, evidence.facts_of(run), iteration, carried)
    return model.judge(program["tree"], run.status, outcome_of(run))


def outcome_of(run: Run) -> Any:
    """The value, the error, or what was carried on, as the run's last event has it."""
    if not run.events:
        return None
    last = run.events[-1]
    match last.type:
        case "workflow.completed":
            return last.data["result"]
        case "workflow.continued_as_new":
            return last.data["args"][2]
        case "workflow.failed":
            name = last.data["error_type"].rpartition(".")[2]
            return f"{name}: {last.data['error']}" if name in ("ValueError", "FatalError") else name
        case _:
            return None


def program_id(run: Run) -> str:
    """The id of the run's program."""
    return str(run.program["id"])


def program_of(evidence: Evidence, run_id: str) -> str:
    """The id of a run's program; "" where it has no row."""
    run = evidence.records.runs.get(run_id)
    return "" if run is None else program_id(run)


def is_deadly(run: Run) -> bool:
    """Whether its program ends the process that drives it."""
    return any(node["do"] == "die" for node in nodes(run.program["tree"]))


def began(run: Run) -> float:
    """When it was accepted: a run whose first lines end their process has no history for a while."""
    created_at = run.row.get("created_at")
    if created_at is not None:
        return seconds_of(created_at)
    return run.events[0].at if run.events else 0.0


def overlap(run: Run, other: Run) -> bool:
    """Whether two runs went on at the same time."""
    if not run.events or not other.events:
        return False
    return began(run) <= other.events[-1].at and began(other) <= run.events[-1].at
