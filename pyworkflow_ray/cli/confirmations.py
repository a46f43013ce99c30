"""Asking the person at the terminal, and reading what was given instead."""

from __future__ import annotations

import sys

import typer

from pyworkflow_ray.cli.outputs import Output


def is_interactive() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(output: Output, question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone, unless `yes`; with nobody there it is a usage error."""
    if yes:
        return
    if not is_interactive():
        raise typer.BadParameter("there is no terminal to ask at: give --yes", param_hint="--yes")
    if not typer.confirm(question, err=True):
        output.say("Nothing was done.")
        raise typer.Exit(1)
