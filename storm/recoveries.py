"""How long it took from a fault to the next event of the runs that it concerned."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from storm import ledger
from storm.evidence import Evidence

SINCE_NEW = "lose cluster, new"
"""Counted from when the new cluster is up."""


@dataclass(frozen=True)
class Recovery:
    """Times to recover from one kind of fault, in seconds."""

    kind: str
    faults: int
    times: tuple[float, ...]

    def percentile(self, share: float) -> float | None:
        """The time that this share of all recoveries did not exceed."""
        if not self.times:
            return None
        return sorted(self.times)[max(math.ceil(share * len(self.times)) - 1, 0)]


def recoveries_of(evidence: Evidence) -> list[Recovery]:
    """The times to recover, for each kind of fault that there was."""
    times: dict[str, list[float]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    returns = [line["at"] for line in ledger.of(evidence.lines, "over", "lose cluster")]
    for fault in ledger.of(evidence.lines, "fault"):
        kind = fault["kind"]
        back_at = next((at for at in returns if at > fault["at"]), None)
        if kind == "lose cluster" and back_at is not None:
            # How long a new cluster takes to start is not the engine's doing.
            counts[SINCE_NEW] += 1
            found = (_next_event(evidence, run_id, back_at, of_timer=False) for run_id in fault["runs"])
            times[SINCE_NEW] += [each for each in found if each is not None]
        counts[kind] += 1
        if kind.endswith("hook_registry"):
            times[kind] += _answers_after(evidence, fault["at"])
        for run_id in fault.get("runs", ()):
            after = _next_event(evidence, run_id, fault["at"], of_timer=kind.endswith("timer"))
            if after is not None:
                times[kind].append(after)
    return [Recovery(kind, counts[kind], tuple(times[kind])) for kind in sorted(counts)]


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


def shown(recovery: Recovery, shares: Sequence[float] = (0.5, 0.99)) -> list[str]:
    """The percentiles as text."""
    found = [recovery.percentile(share) for share in shares]
    return ["–" if each is None else f"{each:.2f} s" for each in found]
