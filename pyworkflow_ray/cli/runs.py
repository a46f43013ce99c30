"""`pyworkflow-ray runs`: the commands that show runs. They need the database alone."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer

from pyworkflow_ray.cli import completions, run_changes
from pyworkflow_ray.cli.formatters import sanitize
from pyworkflow_ray.cli.invocations import begin_reading
from pyworkflow_ray.cli.outputs import PROGRAM, Column, Format, Output
from pyworkflow_ray.cli.run_ids import RunId, full_id
from pyworkflow_ray.cli.run_reports import duration_of, print_status
from pyworkflow_ray.cli.times import format_exact, parse_since
from pyworkflow_ray.client.event_loops import run_sync
from pyworkflow_ray.client.lookups import read_events_after, read_record
from pyworkflow_ray.client.progress import INTERVAL
from pyworkflow_ray.client.records import Event
from pyworkflow_ray.client.runs import get_children, get_workflow_chain, list_runs
from pyworkflow_ray.client.sessions import session
from pyworkflow_ray.statuses import RunStatus

app = typer.Typer(no_args_is_help=True, help="Runs: show, cancel, resume, rerun, fork and delete them.")


COLUMNS = [
    Column("run", lambda run: run.run_id, is_whole=True),
    Column("workflow", lambda run: run.workflow_name),
    Column("status", lambda run: run.status, is_whole=True),
    Column("created", lambda run: run.created_at, is_whole=True),
    Column("took", duration_of),
    Column("error", lambda run: run.error),
]


@app.command("list")
def list_(
    ctx: typer.Context,
    query: Annotated[
        str | None,
        typer.Option("--query", "-q", metavar="TEXT", help="Part of an id, a workflow's name or a key."),
    ] = None,
    status: Annotated[
        list[RunStatus] | None, typer.Option(help="Only runs in this state; may be repeated.")
    ] = None,
    workflow: Annotated[
        str | None,
        typer.Option(help="Only of this workflow.", autocompletion=completions.workflows_with_runs),
    ] = None,
    created: Annotated[
        str | None,
        typer.Option("--since", metavar="WHEN", help='Created since: "2h", "3d", or a date and time.'),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
) -> None:
    """List runs, newest first."""
    output = begin_reading(ctx)
    since_at = None if created is None else parse_since(created, "--since")
    found, following = run_sync(
        list_runs(query=query, status=status or None, workflow=workflow, start_time=since_at, limit=limit)
    )
    is_filtered = any((query, status, workflow, created))
    empty = "No run matches." if is_filtered else f"No runs yet. For a first one: {PROGRAM} quickstart"
    output.rows(found, COLUMNS, empty=empty)
    output.suggest_limit(limit, following)


@app.command()
def status(ctx: typer.Context, run: RunId) -> None:
    """Show a run: its state, steps, error, and what it waits for."""
    output = begin_reading(ctx)
    of = session()
    record = run_sync(read_record(of, full_id(run)))
    print_status(output, record, run_sync(read_events_after(of, record.run_id, -1)))


@app.command()
def logs(
    ctx: typer.Context,
    run: RunId,
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", metavar="TYPE", help='Events of a type: "step", "step.failed"; may be repeated.'
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new events until the run ends.")
    ] = False,
) -> None:
    """Show a run's history, event by event."""
    output = begin_reading(ctx)
    run_id = full_id(run)
    if follow:
        try:
            run_sync(_follow(output, run_id, filter_ or []))
        except KeyboardInterrupt:
            raise typer.Exit from None
        return
    events = run_sync(read_events_after(session(), run_id, -1))
    output.rows([event for event in events if _is_wanted(event, filter_ or [])], EVENT_COLUMNS)


@app.command()
def children(ctx: typer.Context, run: RunId) -> None:
    """List the child runs of a run, oldest first."""
    output = begin_reading(ctx)
    output.rows(run_sync(get_children(full_id(run))), COLUMNS, empty="The run has no child runs.")


@app.command()
def chain(ctx: typer.Context, run: RunId) -> None:
    """List the runs that continued one another, oldest first."""
    output = begin_reading(ctx)
    output.rows(run_sync(get_workflow_chain(full_id(run))), COLUMNS)


_LEFT_OUT = frozenset(
    {
        "traceback",
        "exception",
        "python",
        "error_cause",
        "error_details",
        "step_name",
        "options",
        "node",
        "worker_pid",
    }
)


def format_data(event: Event) -> str:
    """An event's data on one line, without what is long, secret or shown elsewhere. JSON has all of it."""
    data = {name: value for name, value in event.shown.items() if name not in _LEFT_OUT}
    return ", ".join(
        f"{name}={_short(value)}" for name, value in data.items() if value not in (None, "", [], {})
    )


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


EVENT_COLUMNS = [
    Column("no", lambda event: str(event.sequence), is_whole=True),
    Column("time", lambda event: event.timestamp, is_whole=True, is_exact=True),
    Column("event", lambda event: event.type, is_whole=True),
    Column("data", format_data),
]


def _is_wanted(event: Event, types: list[str]) -> bool:
    return not types or any(event.type == each or event.type.startswith(f"{each}.") for each in types)


async def _follow(output: Output, run_id: str, types: list[str]) -> None:
    """Print the events of a run as they come, and those of the runs as which it continues."""
    of, seen = session(), -1
    while True:
        # The row is read first: a run that has ended by then has all its events.
        record = await read_record(of, run_id)
        for event in await read_events_after(of, run_id, seen):
            seen = event.sequence
            if _is_wanted(event, types):
                _print_event(output, event)
        if record.continued_to_run_id is not None:
            run_id, seen = record.continued_to_run_id, -1
        elif record.status.is_terminal:
            return
        else:
            await asyncio.sleep(INTERVAL)


def _print_event(output: Output, event: Event) -> None:
    if output.is_json:
        output.line(event)
    elif output.format is Format.PLAIN:
        output.rows([event], EVENT_COLUMNS)
    else:
        data = sanitize(format_data(event))
        output.text(f"{event.sequence:<4} {format_exact(event.timestamp)}  {event.type:<26} {data}")


run_changes.add_commands(app)
