"""``python -m pyworkflow_ray.testing DIR --module orders``: replays histories with today's code.

Exits with 0 when all replay, with 1 when one does not, and with 2 when there are none to replay.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence

from pyworkflow_ray.authoring.discovery import discover_workflows
from pyworkflow_ray.exceptions import ConfigurationError, DiscoveryError
from pyworkflow_ray.testing.replays import ReplayResult, replay_directory


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pyworkflow_ray.testing",
        description="Replay recorded histories (of save_history) with today's code of their workflows.",
    )
    parser.add_argument("path", nargs="+", help="a folder of histories, or a file")
    parser.add_argument(
        "--module",
        action="append",
        help="a module that defines workflows, several times if need be; those of the settings by default",
    )
    given = parser.parse_args(arguments)
    try:
        discover_workflows(given.module)
        results = [result for path in given.path for result in replay_directory(path)]
    except (DiscoveryError, ConfigurationError, FileNotFoundError) as error:
        return _refused(str(error))
    if not results:
        return _refused(f"There are no histories (*.json) in {', '.join(given.path)}.")
    print(table(results))
    return 0 if all(result.is_ok for result in results) else 1


def _refused(why: str) -> int:
    print(why, file=sys.stderr)
    return 2


def table(results: Sequence[ReplayResult]) -> str:
    """The results in columns, each that is not ok with its reason below it."""
    rows = [
        (result.status, result.workflow, result.run_id, f"{result.events} events", str(result.path))
        for result in results
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for row, result in zip(rows, results, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[4]]))
        if result.error is not None:
            lines.append(textwrap.indent(f"{type(result.error).__name__}: {result.error}", "    "))
    good = sum(result.is_ok for result in results)
    return "\n".join([*lines, f"{good} of {len(results)} replay."])


if __name__ == "__main__":
    sys.exit(main())
