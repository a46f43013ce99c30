"""What a benchmark finds, and how two things are measured against each other.

A machine's speed drifts with heat, neighbours and caches, so two rates are compared only when they were
taken in turns: A B, B A, A B. The ratio is the median of each round's own ratio.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

Side = Callable[[], Awaitable[float]]
"""Does the work once and gives what it reached, such as steps a second."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    Args:
        name: What was measured.
        value: What was reached, in `unit`; None when it could not be measured, and `against` says why.
        against: What it is held against, with the value that it reached.
        ratio: `value` over that, the median over the rounds.
        bar: What is asked for; empty for a line that only informs.
        is_met: Whether that was reached; None without a bar.
    """

    name: str
    value: float | None
    unit: str
    against: str = ""
    ratio: float | None = None
    bar: str = ""
    is_met: bool | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """What a benchmark is run with.

    Args:
        folder: A folder of its own, for databases.
        quick: Whether to be done in seconds, with less to measure.
        rounds: How often the sides of a comparison take turns.
        delay_ms: What a round trip to a far database takes; 0 when nothing far is to be measured.
    """

    folder: Path
    quick: bool
    rounds: int
    delay_ms: float = 0.0

    @property
    def far(self) -> str:
        """The far database, as lines call it."""
        return f"PostgreSQL, {self.delay_ms:g} ms away"


def progress(text: str) -> None:
    """Tell how far the benchmark is."""
    print(f"  {text}", file=sys.stderr, flush=True)


async def in_turns(rounds: int, sides: Mapping[str, Side]) -> dict[str, list[float]]:
    """What each side reached in each round; every second round goes backwards."""
    reached: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in order:
            value = await sides[name]()
            reached[name].append(value)
            progress(f"round {number + 1}/{rounds}  {name}: {value:,.1f}")
    return reached


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def compared(
    name: str,
    unit: str,
    reached: Mapping[str, Sequence[float]],
    ours: str,
    other: str,
    *,
    at_least: float | None = None,
    absent: Mapping[str, str] | None = None,
) -> Line:
    """The line that holds one side of a comparison against another.

    Args:
        at_least: The ratio that is asked for; None only informs.
        absent: Sides that could not take part, and why: the line says so.
    """
    bar = "" if at_least is None else f"≥ {at_least:g}x"
    value = statistics.median(reached[ours])
    if absent is not None and other in absent:
        return Line(name, value, unit, against=f"{other}: {absent[other]}", bar=bar)
    ratio = median_ratio(reached[ours], reached[other])
    return Line(
        name=name,
        value=value,
        unit=unit,
        against=f"{other}: {statistics.median(reached[other]):,.0f}",
        ratio=ratio,
        bar=bar,
        is_met=None if at_least is None else ratio >= at_least,
    )


def at_most(name: str, value: float, unit: str, most: float, against: str = "") -> Line:
    """A line whose value must not exceed its bar."""
    return Line(name, value, unit, against=against, bar=f"≤ {most:g} {unit}", is_met=value <= most)


def save(path: Path, lines: Sequence[Line]) -> None:
    """Write lines for the runner to read."""
    path.write_text(json.dumps([asdict(line) for line in lines]), encoding="utf-8")


def load(path: Path) -> list[Line]:
    """The lines that `save` wrote."""
    return [Line(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]
