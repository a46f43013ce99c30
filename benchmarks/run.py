"""Runs the benchmarks, each in its own process and folder, and prints their results.

Nothing here fails because it is slow. The table says of each bar whether it was met.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from measurements import Line, Setting, load, save

NAMES = (
    "sequential_remote_steps",
    "fan_out",
    "local_steps",
    "one_step_runs",
    "latency",
    "appends",
    "round_trips",
    "storage_scale",
    "replay",
    "suspended",
    "many_suspended",
)
DELAY_MS = 2.6
HEADER = ("", "reached", "against", "ratio", "bar", "met")


def main() -> int:
    """Run what the command line asks for; 1 if a benchmark could not be run to its end."""
    options = _parse()
    rounds = options.rounds or (3 if options.quick else 5)
    if options.one:
        setting = Setting(options.folder, options.quick, rounds, options.delay_ms)
        lines = asyncio.run(_measure(options.one, setting))
        save(options.out, lines)
        return 0
    found: dict[str, list[Line]] = {}
    broken = []
    for name in options.only or NAMES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        lines = _run_apart(name, options.quick, rounds, options.delay_ms)
        if lines is None:
            broken.append(name)
        else:
            found[name] = lines
    facts = _facts(options.quick, rounds, options.delay_ms)
    if options.json is not None:
        told = {"facts": facts, "lines": {name: [asdict(line) for line in found[name]] for name in found}}
        options.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(_markdown(facts, found) if options.markdown else _plain(facts, found))
    for name in broken:
        print(f"{name} could not be run; its error is above", file=sys.stderr)
    return 1 if broken else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="less of everything: to see that it runs")
    parser.add_argument("--rounds", type=int, help="turns of each comparison; 5, or 3 with --quick")
    parser.add_argument(
        "--delay-ms",
        type=float,
        default=DELAY_MS,
        metavar="MS",
        help=f"a round trip to a far database ({DELAY_MS:g} by default); 0 leaves out all that is far",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all lines there as well")
    parser.add_argument("--markdown", action="store_true", help="print the table for the README")
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


async def _measure(name: str, setting: Setting) -> list[Line]:
    lines: list[Line] = await importlib.import_module(name).measure(setting)
    return lines


def _run_apart(name: str, quick: bool, rounds: int, delay_ms: float) -> list[Line] | None:
    with tempfile.TemporaryDirectory(prefix="pyworkflow-benchmark-", ignore_cleanup_errors=True) as folder:
        out = Path(folder) / "lines.json"
        command = [sys.executable, __file__, "--one", name, "--rounds", str(rounds)]
        command += ["--folder", folder, "--out", str(out), "--delay-ms", str(delay_ms)]
        if quick:
            command.append("--quick")
        # Settings of the working directory and of the environment must not change what is measured.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYWORKFLOW_")}
        done = subprocess.run(command, cwd=folder, env=environment, stdout=sys.stderr, check=False)
        return load(out) if done.returncode == 0 and out.exists() else None


def _facts(quick: bool, rounds: int, delay_ms: float) -> dict[str, str]:
    facts = {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{os.cpu_count()} CPUs, {_cpu()}, {_memory():.0f} GiB, {platform.system()}",
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "Python": platform.python_version(),
    }
    for name in ("pyworkflow-ray", "ray", "dbos", "restate-sdk", "SQLAlchemy", "psycopg"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "not installed"
    facts["far"] = f"a round trip of {delay_ms:g} ms" if delay_ms else "left out"
    facts["rounds"] = f"{rounds}{' (quick)' if quick else ''}"
    return facts


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine()
    )


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _cells(line: Line) -> tuple[str, ...]:
    value = "–" if line.value is None else f"{_number(line.value)} {line.unit}"
    ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
    met = "" if line.is_met is None else ("yes" if line.is_met else "NO")
    return line.name, value, line.against, ratio, line.bar, met


def _plain(facts: dict[str, str], found: dict[str, list[Line]]) -> str:
    rows = [HEADER, *(_cells(line) for lines in found.values() for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    told = [f"{name}: {value}" for name, value in facts.items()]
    return "\n".join([*told, "", *(_row(row, widths) for row in rows)])


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return "  ".join(padded).rstrip()


def _markdown(facts: dict[str, str], found: dict[str, list[Line]]) -> str:
    rows = [_cells(line) for lines in found.values() for line in lines]
    table = [HEADER, ("---", "---:", "---", "---:", "---", "---"), *rows]
    told = ", ".join(f"{name} {value}" for name, value in facts.items())
    return "\n".join([told, "", *(f"| {' | '.join(cells)} |" for cells in table)])


if __name__ == "__main__":
    sys.exit(main())
