"""Memory and size over many short runs: what grows with the runs, and what does not.

    python benchmarks/memory.py --runs 100000 --svg docs/memory.svg

One process holds a client, a coordinator and a timer, on SQLite. Runs of one local step are started a hundred
at a time. It is done twice: runs are kept; and runs that have ended are purged while others go on.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyworkflow_ray as pr

AT_ONCE = 100
SAMPLES = 50


@pr.step(local=True)
async def echo(number: int) -> int:
    return number


@pr.workflow
async def short(number: int) -> int:
    return await echo(number)


@dataclass(frozen=True)
class Sample:
    """What there was after so many runs: memory and database in MB, and Python's objects."""

    runs: int
    seconds: float
    memory: float
    database: float
    objects: int


def _sample(runs: int, began: float, folder: Path) -> Sample:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    size = sum(file.stat().st_size for file in folder.glob("runs.db*")) / 2**20
    return Sample(runs, time.monotonic() - began, memory, size, len(gc.get_objects()))


async def _measured(count: int, folder: Path, *, purges: bool) -> list[Sample]:
    from pyworkflow_ray.actors.settings import EngineSettings
    from pyworkflow_ray.actors.timer import Timer

    pr.configure(default_runtime="local", storage=folder / "runs.db", sqlite_synchronous="NORMAL")
    await (await pr.start(short, 0)).result()
    timer = Timer(EngineSettings.configured(pr.get_config()), lambda group: None, lambda environment: None)
    timing = asyncio.get_running_loop().create_task(timer.run())
    began, samples = time.monotonic(), []
    for done in range(AT_ONCE, count + 1, AT_ONCE):
        runs = await asyncio.gather(*(pr.start(short, done + number) for number in range(AT_ONCE)))
        going_on = asyncio.gather(*(run.result() for run in runs))
        if purges and done % (10 * AT_ONCE) == 0:
            await pr.purge("0s")
        await going_on
        if done % max(count // SAMPLES, AT_ONCE) == 0:
            samples.append(_sample(done, began, folder))
    timing.cancel()
    return samples


def _run(count: int, purges: bool) -> list[Sample]:
    with tempfile.TemporaryDirectory(prefix="memory-", ignore_cleanup_errors=True) as folder:
        return asyncio.run(_measured(count, Path(folder), purges=purges))


LINES = (
    ("memory, runs kept (MB)", "#1f5fa8", lambda kept, purged: [each.memory for each in kept]),
    ("memory, runs purged (MB)", "#6fa8dc", lambda kept, purged: [each.memory for each in purged]),
    ("database, runs kept (MB)", "#b45309", lambda kept, purged: [each.database for each in kept]),
    ("database, runs purged (MB)", "#f2a65a", lambda kept, purged: [each.database for each in purged]),
)
WIDTH, HEIGHT, LEFT, TOP = 640, 300, 60, 20


def drawing(kept: list[Sample], purged: list[Sample]) -> str:
    """The samples as an SVG image."""
    series = [(name, colour, values(kept, purged)) for name, colour, values in LINES]
    top = max(max(values) for _, _, values in series) * 1.05
    count = kept[-1].runs
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {TOP + HEIGHT + 110}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{LEFT + WIDTH + 20}" height="{TOP + HEIGHT + 110}" fill="white"/>',
    ]
    for tick in range(5):
        y = TOP + HEIGHT - HEIGHT * tick / 4
        x = LEFT + WIDTH * tick / 4
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.0f}" text-anchor="end">{top * tick / 4:.0f}</text>')
        parts.append(
            f'<text x="{x:.0f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{count * tick // 4:,}</text>'
        )
    parts.append(f'<text x="{LEFT + WIDTH / 2:.0f}" y="{TOP + HEIGHT + 36}" text-anchor="middle">runs</text>')
    for number, (name, colour, values) in enumerate(series):
        points = " ".join(
            f"{LEFT + WIDTH * sample.runs / count:.1f},{TOP + HEIGHT - HEIGHT * value / top:.1f}"
            for sample, value in zip(kept, values, strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = LEFT + 320 * (number % 2), TOP + HEIGHT + 60 + 22 * (number // 2)
        parts.append(f'<rect x="{x}" y="{y - 9}" width="18" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 26}" y="{y}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--svg", type=Path, help="draw it into this file")
    arguments = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        kept, purged = (pool.apply(_run, (arguments.runs, purges)) for purges in (False, True))
    for name, samples in (("kept", kept), ("purged", purged)):
        first, last = samples[len(samples) // 10], samples[-1]
        runs = last.runs - first.runs
        print(f"runs {name}: {last.runs:,} in {last.seconds:.0f} s")
        print(f"  memory {first.memory:.1f} MB after {first.runs:,}, {last.memory:.1f} MB at the end")
        print(f"  Python's objects {first.objects:,} after {first.runs:,}, {last.objects:,} at the end")
        grown = (last.database - first.database) * 2**20 / runs
        print(f"  database {last.database:.1f} MB at the end, {grown:,.0f} bytes for each run")
    if arguments.svg is not None:
        arguments.svg.write_text(drawing(kept, purged))


if __name__ == "__main__":
    sys.exit(main())
