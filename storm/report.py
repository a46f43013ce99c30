"""The report of a storm, as text and as plain data."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from storm import ledger
from storm.evidence import Broken, Evidence, is_deadly
from storm.plans import Plan
from storm.programs import nodes
from storm.recoveries import Recovery, percentile, recoveries_of, shown

MOST_SHOWN = 5
"""Cases of one broken promise that the text shows; the plain data has all."""


@dataclass(frozen=True)
class Report:
    """What a storm came to.

    Args:
        replays: How many histories were replayed, and whether that is all.
    """

    plan: Plan
    evidence: Evidence
    broken: list[Broken]
    replays: dict[str, Any]

    @property
    def is_whole(self) -> bool:
        """Whether every promise held."""
        return not self.broken

    def plain(self) -> dict[str, Any]:
        """All of it, for `--json`."""
        records, lines = self.evidence.records, self.evidence.lines
        acknowledged = Counter(line["kind"] for line in ledger.of(lines, "done"))
        return {
            "seed": self.plan.seed,
            "database": self.plan.database,
            "minutes": self.plan.minutes,
            "folder": str(self.plan.folder),
            "programs": len(self.evidence.started),
            "runs": dict(Counter(run.status for run in records.runs.values())),
            "events": sum(len(run.events) for run in records.runs.values()),
            "attempts": len(ledger.of(lines, "begin")),
            "acknowledged": dict(acknowledged),
            "nodes": dict(self._nodes()),
            "faults": dict(Counter(line["kind"] for line in ledger.of(lines, "fault"))),
            "recoveries": [_recovery(each) for each in recoveries_of(self.evidence)],
            "replays": self.replays,
            "broken": [asdict(each) for each in self.broken],
        }

    def text(self) -> str:
        """All of it, for people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        plain = self.plain()
        yield f"storm of seed {plain['seed']} on {plain['database']}, {plain['minutes']:g} minutes of faults"
        yield f"programs       {plain['programs']}"
        yield f"runs           {_counts(plain['runs'])}"
        yield f"carried out    {_counts(plain['nodes'])}"
        yield f"attempts       {plain['attempts']}, events {plain['events']}"
        yield f"acknowledged   {_counts(plain['acknowledged'])}"
        whole = "" if plain["replays"].get("is_whole") else " (not all)"
        yield f"replayed       {plain['replays'].get('replayed', 0)} histories{whole}"
        yield ""
        yield f"{'from a fault to the next event of its runs':28} {'all':>18} {'no other fault':>24}"
        yield f"{'fault':20} {'times':>5}{'cases':>8}{'p50':>9}{'p99':>9}{'cases':>8}{'p50':>9}{'p99':>9}"
        for each in recoveries_of(self.evidence):
            yield f"{each.kind:20} {each.faults:5}   {shown(each.times)}   {shown(each.alone)}"
        yield ""
        if self.is_whole:
            yield "All promises held."
            return
        by_promise: dict[str, list[Broken]] = defaultdict(list)
        for broken in self.broken:
            by_promise[broken.promise].append(broken)
        yield f"BROKEN: {len(self.broken)} cases of {len(by_promise)} promises"
        for promise, cases in by_promise.items():
            yield f"\n{promise}: {len(cases)}"
            for case in cases[:MOST_SHOWN]:
                yield f"  {case.run_id or '–'} {self._flags(case)}\n    {case.what}"
                if case.program:
                    number = case.program.partition("x")[2].partition(".")[0]
                    yield f"    its program: python storm/run.py --seed {self.plan.seed} --show {number}"
            if len(cases) > MOST_SHOWN:
                yield f"  and {len(cases) - MOST_SHOWN} more"
        yield f"\ndatabase, ledger and logs: {self.plan.folder}"
        if "data" in self.plan.victim:
            yield f"the server's data: {self.plan.victim['data']}"
        yield (
            f"to storm so again: python storm/run.py --seed {self.plan.seed} --minutes {self.plan.minutes:g} "
            + (f"--database {self.plan.database}")
        )

    def _nodes(self) -> Counter[str]:
        """How many nodes of each kind the programs had that were started."""
        counts: Counter[str] = Counter()
        for run_id in self.evidence.started.values():
            run = self.evidence.records.runs.get(run_id)
            counts.update(() if run is None else (node["do"] for node in nodes(run.program["tree"])))
        return counts

    def _flags(self, case: Broken) -> str:
        run = self.evidence.records.runs.get(case.run_id)
        return (
            f"({case.program}{', deadly' if run is not None and is_deadly(run) else ''})"
            if case.program
            else ""
        )


def _recovery(recovery: Recovery) -> dict[str, Any]:
    return {"kind": recovery.kind, "faults": recovery.faults} | {
        name: {"cases": len(times), "p50": percentile(times, 0.5), "p99": percentile(times, 0.99)}
        for name, times in (("all", recovery.times), ("alone", recovery.alone))
    }


def _counts(counted: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counted.items())) or "none"
