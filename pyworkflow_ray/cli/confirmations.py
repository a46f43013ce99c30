"""Confirmations: asking the person at the terminal before something is lost."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pyworkflow_ray.cli.outputs import Output

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def is_interactive() -> bool:
    """Whether a person sits at a terminal, whom a command can ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(output: Output, question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone, unless `yes`. Without a terminal this is a usage error."""
    if yes:
        return
    if not is_interactive():
        raise typer.BadParameter("there is no terminal to ask at: give --yes", param_hint="--yes")
    if not typer.confirm(question, err=True):
        output.say("Nothing was done.")
        raise typer.Exit(1)
