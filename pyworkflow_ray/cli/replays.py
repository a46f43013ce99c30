"""`pyworkflow-ray replay`: today's code, run over recorded histories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pyworkflow_ray.cli.invocations import begin, import_workflows
from pyworkflow_ray.cli.outputs import Column
from pyworkflow_ray.exceptions import DiscoveryError
from pyworkflow_ray.testing.replays import ReplayResult, replay_directory

COLUMNS = [
    Column("replay", lambda result: result.status, is_whole=True),
    Column("workflow", lambda result: result.workflow),
    Column("run", lambda result: result.run_id, is_whole=True),
    Column("events", lambda result: result.events),
    Column("file", lambda result: str(result.path)),
]


def replay(
    ctx: typer.Context,
    path: Annotated[list[Path], typer.Argument(metavar="DIR", help="Folders of histories, or files.")],
) -> None:
    """Replay recorded histories with today's code. The exit code is 1 if one does not replay."""
    output = begin(ctx)
    # Exit code 1 says that a history does not replay; whatever keeps this from replaying any is code 2.
    try:
        import_workflows(ctx)
    except DiscoveryError as error:
        raise typer.BadParameter(str(error), param_hint="--module") from None
    try:
        results = [result for each in path for result in replay_directory(each)]
    except FileNotFoundError as error:
        raise typer.BadParameter(str(error), param_hint="DIR") from None
    if not results:
        folders = ", ".join(map(str, path))
        raise typer.BadParameter(f"there are no histories (*.json) in {folders}", param_hint="DIR")
    if output.is_json:
        output.data([_plain(result) for result in results])
    else:
        output.rows(results, COLUMNS)
    bad = [result for result in results if not result.is_ok]
    for result in bad:
        output.say(f"\n{result.path}\n{type(result.error).__name__}: {result.error}")
    if not output.is_json:
        output.say(f"{len(results) - len(bad)} of {len(results)} replay.", "dim")
    if bad:
        raise typer.Exit(1)


def _plain(result: ReplayResult) -> dict[str, Any]:
    return {
        "path": str(result.path),
        "workflow": result.workflow,
        "run_id": result.run_id,
        "events": result.events,
        "status": result.status,
        "error": None if result.error is None else str(result.error),
    }


def add_commands(app: typer.Typer) -> None:
    """Add this command to the root."""
    app.command()(replay)
