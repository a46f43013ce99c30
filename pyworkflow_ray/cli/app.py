"""The command line's root: its global options, and all its commands put together."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from loguru import logger
from typer.core import TyperGroup

import pyworkflow_ray
from pyworkflow_ray.cli import (
    databases,
    engine_actors,
    hooks,
    invocations,
    quickstarts,
    replays,
    runs,
    schedules,
    workflows,
)
from pyworkflow_ray.cli.errors import is_debugging, print_error, report_errors
from pyworkflow_ray.cli.invocations import Invocation
from pyworkflow_ray.cli.outputs import PROGRAM, Format

_WITH_VALUE = frozenset({"--storage", "--address", "--namespace", "--module", "--output"})
_FLAGS = frozenset({"--debug"})


class Root(TyperGroup):
    """The root group. Global options may also follow the sub-command, and errors are reported."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, hoisted(args))

    def invoke(self, ctx: Any) -> Any:
        with report_errors(bool(ctx.params.get("debug"))):
            return super().invoke(ctx)


def hoisted(args: list[str]) -> list[str]:
    """The arguments with the global options moved to the front. What follows `--` stays where it is.

    So no command may have an option with the name of a global one.
    """
    front: list[str] = []
    rest: list[str] = []
    remaining = iter(enumerate(args))
    for place, arg in remaining:
        name = arg.partition("=")[0]
        if arg == "--":
            rest += args[place:]
            break
        if arg in _FLAGS or (name in _WITH_VALUE and "=" in arg):
            front.append(arg)
        elif arg in _WITH_VALUE and place + 1 < len(args):
            front += [arg, next(remaining)[1]]
        else:
            rest.append(arg)
    return front + rest


app = typer.Typer(
    name=PROGRAM,
    cls=Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Durable workflows on Ray: run them, look at them, answer their hooks.",
    epilog=(
        "Settings come from these options, then PYWORKFLOW_*, then pyworkflow.config.yaml, then defaults. "
        f"These options may stand anywhere. To begin: {PROGRAM} quickstart"
    ),
)
for each in (engine_actors, quickstarts, replays):
    each.add_commands(app)
app.add_typer(workflows.app, name="workflows")
app.add_typer(runs.app, name="runs")
app.add_typer(hooks.app, name="hooks")
app.add_typer(schedules.app, name="schedules")
app.add_typer(databases.app, name="db")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {pyworkflow_ray.__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Database URL, or path of an SQLite file.")
    ] = None,
    address: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The Ray cluster to join.")] = None,
    namespace: Annotated[str | None, typer.Option(help="The engine's Ray namespace.")] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="A module or file that defines workflows; may be repeated."),
    ] = None,
    output: Annotated[Format, typer.Option(help="Form of the answer.")] = Format.TABLE,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (or PYWORKFLOW_DEBUG=1).")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    ctx.obj = Invocation(
        storage=storage,
        address=address,
        namespace=namespace,
        modules=tuple(module or ()),
        format=output,
        debug=debug,
    )


def main() -> None:
    """Run the command line of this process."""
    debug = is_debugging("--debug" in sys.argv)
    invocations.is_whole_process = True
    logger.remove()
    logger.add(
        sys.stderr,
        level="DEBUG" if debug else "WARNING",
        format="{level}: {message}",
    )
    try:
        app(prog_name=PROGRAM)
    except Exception as error:
        if debug:
            raise
        print_error(f"{type(error).__name__}: {error}", "run it again with --debug to see the traceback")
        sys.exit(1)
