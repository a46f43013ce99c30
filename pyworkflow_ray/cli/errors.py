"""Errors of commands: one message on standard error, and what to type next."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from pyworkflow_ray import exceptions
from pyworkflow_ray.cli.formatters import sanitize
from pyworkflow_ray.cli.outputs import PROGRAM

VARIABLE = "PYWORKFLOW_DEBUG"

_NEXT: dict[type[BaseException], str] = {
    exceptions.HookNotFoundError: f"{PROGRAM} hooks list --status pending",
    exceptions.HookExpiredError: f"{PROGRAM} hooks list",
    exceptions.HookAlreadyReceivedError: f"{PROGRAM} hooks list",
    exceptions.StorageError: f"{PROGRAM} doctor",
}
"""The command that shows more about an error."""


def is_debugging(debug: bool = False) -> bool:
    """Whether tracebacks are wanted."""
    return debug or os.environ.get(VARIABLE, "0") not in ("", "0")


@contextmanager
def report_errors(debug: bool) -> Iterator[None]:
    """Report errors of this package with a message and exit code 1. With `debug` they pass."""
    try:
        yield
    except (exceptions.WorkflowError, TimeoutError) as error:
        if is_debugging(debug):
            raise
        print_error(str(error) or type(error).__name__, next_command(error))
        raise typer.Exit(1) from None


def print_error(text: str, following: str | None = None) -> None:
    """Print an error, and the command to type next."""
    print(f"Error: {sanitize(text, lines=True)}", file=sys.stderr)
    if following is not None:
        print(f"Next: {following}", file=sys.stderr)


def next_command(error: BaseException) -> str | None:
    """The command to type after an error; None if the message says it."""
    if isinstance(error, exceptions.WorkflowNotFoundError):
        is_run = str(error).startswith("There is no run")
        return f"{PROGRAM} {'runs' if is_run else 'workflows'} list"
    return next((command for kind, command in _NEXT.items() if isinstance(error, kind)), None)
