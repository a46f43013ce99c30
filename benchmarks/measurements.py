"""The results of a benchmark, and how two things are compared.

A machine's speed changes with heat, other programs and caches. So two rates are compared only if they were
measured in turns: A B, B A, A B. The ratio is the median of the rounds' own ratios.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

Side = Callable[[], Awaitable[float]]
"""Does the work once and returns the value that it reached, such as steps per second."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    Args:
        name: What was measured.
        value: What was reached, in `unit`. None if it could not be measured: then `against` says why.
        against: What it is compared with, and the value that this reached.
        ratio: `value` divided by that value, the median over the rounds.
        bar: The goal; empty for a line that only informs.
        is_met: Whether the goal was reached; None without a bar.
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
    """The options of one benchmark.

    Args:
        folder: Its own folder, for databases.
        quick: Whether to measure less and finish in seconds.
        rounds: How often the sides of a comparison take turns.
        delay_ms: The delay of a round trip to a far database; 0 if nothing far is measured.
    """

    folder: Path
    quick: bool
    rounds: int
    delay_ms: float = 0.0

    @property
    def far(self) -> str:
        """The name of the far database in the lines."""
        return f"PostgreSQL, {self.delay_ms:g} ms away"


def progress(text: str) -> None:
    """Print the progress of the benchmark."""
    print(f"  {text}", file=sys.stderr, flush=True)


async def in_turns(rounds: int, sides: Mapping[str, Side]) -> dict[str, list[float]]:
    """The values of each side in each round. Every second round runs the sides in reverse order."""
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
    """The line that compares one side with another.

    Args:
        at_least: The ratio that is the goal; None only informs.
        absent: Sides that could not take part, with the reasons, which the line shows.
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
    """Write lines to a file that the runner reads."""
    path.write_text(json.dumps([asdict(line) for line in lines]), encoding="utf-8")


def load(path: Path) -> list[Line]:
    """The lines that `save` wrote."""
    return [Line(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]
