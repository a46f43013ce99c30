"""`pyworkflow-ray up`, `down` and `doctor`: the engine's actors in a cluster."""

from __future__ import annotations

import typer

from pyworkflow_ray.cli import doctors
from pyworkflow_ray.cli.invocations import begin
from pyworkflow_ray.cli.outputs import PROGRAM, Column, Output
from pyworkflow_ray.client.engine_actors import bring_up, join, take_down
from pyworkflow_ray.client.event_loops import run_sync
from pyworkflow_ray.client.sessions import session
from pyworkflow_ray.config import get_config

COLUMNS = [
    Column("actor", lambda each: each.name, is_whole=True),
    Column("pid", lambda each: each.pid),
    Column("", lambda each: "new" if each.is_new else "was there"),
]


def up(ctx: typer.Context) -> None:
    """Start the engine's actors in a Ray cluster, and keep them running."""
    output = begin(ctx)
    with output.busy("joining Ray"):
        run_sync(join(must_last=True))
        actors = run_sync(bring_up())
    output.rows(actors, COLUMNS)
    url = session(runtime="ray").storage.url
    output.say(f"The engine runs in the namespace {get_config().namespace!r}, on {url}", "dim")


def down(ctx: typer.Context) -> None:
    """Stop the engine's actors in a Ray cluster. Runs are kept, and go on after the next `up`."""
    output = begin(ctx)
    run_sync(join(must_last=True))
    namespace = get_config().namespace
    names = run_sync(take_down(namespace))
    output.rows(
        names, [Column("actor", str, is_whole=True)], empty=f"No engine runs in the namespace {namespace!r}."
    )
    if names:
        _print_after_down(output)


def _print_after_down(output: Output) -> None:
    output.say(f"Runs are kept, and go on after: {PROGRAM} up", "dim")


def doctor(ctx: typer.Context) -> None:
    """Check versions, Ray, the storage, the engine and its runs. Say how to mend what is wrong."""
    output = begin(ctx)
    with output.busy("checking"):
        checks = run_sync(doctors.examine())
    doctors.print_checks(output, checks)
    if any(check.status == doctors.PROBLEM for check in checks):
        raise typer.Exit(1)


def add_commands(app: typer.Typer) -> None:
    """Add these commands to the root."""
    for command in (up, down, doctor):
        app.command()(command)
