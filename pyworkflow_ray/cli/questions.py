"""Asking the person at the terminal, and reading what was given instead."""

from __future__ import annotations

import json
import sys
from typing import Any

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


def read_value(text: str, option: str) -> Any:
    """The value of a JSON text that was given for an option.

    Raises:
        BadParameter: It is not JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"it is not JSON: {error}. Texts need quotes in JSON, and the whole quotes of the shell: "
            "'\"a text\"', '{\"approved\": true}'",
            param_hint=option,
        ) from None
