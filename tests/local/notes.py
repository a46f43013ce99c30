"""What code under test leaves behind: lines in a file, since a test module's code travels by value."""

from __future__ import annotations

from pathlib import Path

import pyworkflow_ray as pr


@pr.step(local=True, max_retries=0)
async def note(folder: str, line: str) -> str:
    """Leave a line; the step's result is the line."""
    write_note(folder, line)
    return line


def write_note(folder: str, line: str) -> None:
    """Leave a line, from any code."""
    with (Path(folder) / "notes").open("a") as file:
        file.write(f"{line}\n")


def notes(folder: Path) -> list[str]:
    """The lines that were left."""
    path = folder / "notes"
    return path.read_text().splitlines() if path.exists() else []


async def types(run: pr.RunHandle) -> list[str]:  # type: ignore[type-arg]
    """The types of a run's events."""
    return [event.type for event in await run.events()]
