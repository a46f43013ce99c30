"""`pyworkflow-ray quickstart`: writes a small project that runs."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from pyworkflow_ray.cli.invocations import begin
from pyworkflow_ray.cli.outputs import PROGRAM
from pyworkflow_ray.exceptions import ConfigurationError

FILES = ("orders.py", "pyworkflow.config.yaml", "README.md")
FIRST = f"{PROGRAM} workflows run process_order --arg order=A-17 --arg cents=1250"


def quickstart(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The folder to write to.")] = Path("orders"),
) -> None:
    """Write a small project: a workflow with steps, a sleep and a hook, its settings, and a README."""
    output = begin(ctx)
    taken = [name for name in FILES if (folder / name).exists()]
    if taken:
        raise ConfigurationError(
            f"{folder / taken[0]} exists already, and is not overwritten: name another folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (folder / name).write_text(_template(name), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written: {error.strerror}.") from error
    if output.is_json:
        output.data({"folder": str(folder), "files": list(FILES), "first_command": f"cd {folder} && {FIRST}"})
        return
    for name in FILES:
        output.say(f"wrote {folder / name}", "dim")
    output.text(f"cd {folder} && {FIRST}")


def _template(name: str) -> str:
    return (files("pyworkflow_ray.cli") / "quickstart" / name.replace(".py", ".py.txt")).read_text(
        encoding="utf-8"
    )


def add_commands(app: typer.Typer) -> None:
    """Add this command to the root."""
    app.command()(quickstart)
