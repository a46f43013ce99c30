"""How long it took from a fault to the next event of the runs that it concerned."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from storm import ledger
from storm.evidence import Evidence
from storm.ledger import Line

SINCE_NEW = "lose cluster, new"
"""Counted from when the new cluster is up."""


@dataclass(frozen=True)
class Recovery:
    """Times to recover from one kind of fault, in seconds."""

    kind: str
    faults: int
    times: tuple[float, ...]
    alone: tuple[float, ...]
    """Those during which there was no other fault of the run, or of what all runs share."""


def percentile(times: Sequence[float], share: float) -> float | None:
    """The time that this share of all does not exceed."""
    if not times:
        return None
    return sorted(times)[max(math.ceil(share * len(times)) - 1, 0)]


def recoveries_of(evidence: Evidence) -> list[Recovery]:
    """The times to recover, for each kind of fault that there was."""
    times: dict[str, list[float]] = defaultdict(list)
    alone: dict[str, list[float]] = defaultdict(list)
    counts: Counter[str] = Counter()
    spans = _spans(evidence)
    for fault, _, until in spans:
        kind = fault["kind"]
        starts = {kind: fault["at"]}
        if kind == "lose cluster":
            # How long a new cluster takes to start is not the engine's doing.
            starts[SINCE_NEW] = until
        for name, at in starts.items():
            counts[name] += 1
            for run_id, after in _times_after(evidence, fault, at):
                times[name].append(after)
                others = (
                    other
                    for other, began, ended in spans
                    if other is not fault and began < at + after and at < ended
                )
                if not any(_concerns(other, run_id) for other in others):
                    alone[name].append(after)
    return [Recovery(kind, counts[kind], tuple(times[kind]), tuple(alone[kind])) for kind in sorted(counts)]


def _spans(evidence: Evidence) -> list[tuple[Line, float, float]]:
    """Each fault, when it began, and when it was over."""
    overs = ledger.of(evidence.lines, "over")
    spans = []
    for fault in ledger.of(evidence.lines, "fault"):
        same = (
            line["at"]
            for line in overs
            if line["kind"] == fault["kind"]
            and line.get("victim") == fault.get("victim")
            and line["at"] >= fault["at"]
        )
        spans.append((fault, fault["at"], next(same, fault["at"])))
    return spans


def _concerns(fault: Line, run_id: str) -> bool:
    """Whether a fault is one of this run, or of what all runs share."""
    is_of_one = fault["kind"].endswith(("worker", "coordinator", "driver", "hook_registry"))
    return not is_of_one or run_id in fault.get("runs", ())


def _times_after(evidence: Evidence, fault: Line, at: float) -> list[tuple[str, float]]:
    """The runs that a fault concerned, and how long each took."""
    kind = fault["kind"]
    if kind.endswith("hook_registry"):
        return [("", after) for after in _answers_after(evidence, at)]
    found = [
        (run_id, _next_event(evidence, run_id, at, of_timer=kind.endswith("timer")))
        for run_id in fault.get("runs", ())
    ]
    return [(run_id, after) for run_id, after in found if after is not None]


def _next_event(evidence: Evidence, run_id: str, at: float, *, of_timer: bool) -> float | None:
    """Seconds until the run's next event; for a timer, until the next sleep ended after it was due."""
    run = evidence.records.runs.get(run_id)
    if run is None:
        return None
    if not of_timer:
        return next((event.at - at for event in run.events if event.at > at), None)
    due = {
        event.data["sleep_id"]: datetime.fromisoformat(event.data["resume_at"]).timestamp()
        for event in run.of("sleep.started")
    }
    for event in run.of("sleep.completed"):
        if event.at > at and event.data["sleep_id"] in due:
            return max(event.at - max(at, due[event.data["sleep_id"]]), 0.0)
    return None


def _answers_after(evidence: Evidence, at: float, within: float = 5.0) -> list[float]:
    """For payloads that were sent when the registry was lost, or soon after: seconds until it took them."""
    first_tries: dict[str, float] = {}
    for line in ledger.of(evidence.lines, "try", "payload"):
        first_tries.setdefault(line["key"], line["at"])
    taken = {line["key"]: line["at"] for line in ledger.of(evidence.lines, "done", "payload")}
    return [
        taken[key] - max(at, tried)
        for key, tried in first_tries.items()
        if key in taken and tried < at + within and taken[key] > at
    ]


def shown(times: Sequence[float]) -> str:
    """How many there are, and the times that half and 99 of a hundred did not exceed."""
    if not times:
        return f"{'–':>21}"
    return f"{len(times):5} {percentile(times, 0.5):6.2f} s {percentile(times, 0.99):6.2f} s"
