"""`pyworkflow-ray runs`: the commands that change runs, delete them, or start new runs from them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pyworkflow_ray.cli import completions
from pyworkflow_ray.cli.confirmations import Yes, confirm
from pyworkflow_ray.cli.errors import print_error
from pyworkflow_ray.cli.invocations import (
    STORED,
    begin_driving,
    begin_reading,
    begin_writing,
    import_workflows,
    is_local,
)
from pyworkflow_ray.cli.live_views import watch
from pyworkflow_ray.cli.outputs import Output
from pyworkflow_ray.cli.run_ids import RunId, full_id
from pyworkflow_ray.cli.times import parse_since
from pyworkflow_ray.cli.workflows import print_end, print_start
from pyworkflow_ray.client import forks
from pyworkflow_ray.client import runs as client
from pyworkflow_ray.client.event_loops import run_sync
from pyworkflow_ray.statuses import RunStatus

Wait = Annotated[bool, typer.Option("--wait", help="Show the run until it ends.")]


def cancel(
    ctx: typer.Context,
    run: RunId,
    reason: Annotated[
        str | None, typer.Option(help="The reason; the run's code sees it, and it is kept.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the run has ended.")] = False,
    timeout: Annotated[float | None, typer.Option(help="How many seconds to wait at most.")] = None,
) -> None:
    """Ask a run to cancel. Its code may clean up first."""
    output, is_hurried = begin_writing(ctx)
    run_id = full_id(run)
    if wait and not is_hurried:
        raise typer.BadParameter("no Ray cluster runs here, so the run cannot end now", param_hint="--wait")
    try:
        is_asked = run_sync(client.cancel_workflow(run_id, reason, wait=wait, timeout=timeout))
    except TimeoutError:
        raise TimeoutError(
            f"Run {run_id} was asked to cancel, and has not ended after {timeout} s."
        ) from None
    ended = run_sync(client.get_workflow_run(run_id))
    if output.is_json:
        output.data({"run_id": run_id, "initiated": is_asked, "status": ended.status if ended else None})
    if not is_asked:
        state = ended.status.value if ended is not None else "gone"
        print_error(f"Run {run_id} has ended as {state}: there is nothing to cancel.")
        raise typer.Exit(1)
    if not output.is_json:
        state = f"is {ended.status.value}" if ended is not None and wait else "is asked to cancel"
        output.text(f"{run_id} {state}")
    if not is_hurried:
        output.say(STORED)


def resume(ctx: typer.Context, run: RunId, wait: Wait = False) -> None:
    """Let a suspended or interrupted run go on now."""
    output, is_own = begin_driving(ctx, may_start=wait)
    run_id = full_id(run)
    _go_on(output, client.resume(run_id), wait=wait, is_own=is_own)


def rerun(ctx: typer.Context, run: RunId, wait: Wait = False) -> None:
    """Start a new run with the input and the code of this one."""
    output, is_own = begin_driving(ctx, may_start=wait)
    _go_on(output, forks.rerun(full_id(run)), wait=wait, is_own=is_own)


def fork(
    ctx: typer.Context,
    run: RunId,
    from_step: Annotated[
        str | None, typer.Option(metavar="STEP", help='The first step to run again, such as "render#1".')
    ] = None,
    from_position: Annotated[
        int | None, typer.Option(metavar="N", help="Instead of a step: how many events to keep.")
    ] = None,
    code: Annotated[
        str, typer.Option(help='"recorded", or "current" for the code of the modules.')
    ] = "recorded",
    wait: Wait = False,
) -> None:
    """Start a new run that keeps the first part of this run's history."""
    if from_step is not None and from_position is not None:
        raise typer.BadParameter("both say where to cut: give one", param_hint="--from-step, --from-position")
    if code not in forks.CODES:
        raise typer.BadParameter("give recorded or current", param_hint="--code")
    output, is_own = begin_driving(ctx, may_start=wait)
    if code == "current":
        import_workflows(ctx)
    _go_on(output, forks.fork(full_id(run), from_step, from_position, code), wait=wait, is_own=is_own)


def _go_on(output: Output, starting: Any, *, wait: bool, is_own: bool) -> None:
    if wait:
        print_end(output, watch(output, _id_of(starting), is_own=is_own or is_local()))
    else:
        print_start(output, run_sync(_id_of(starting)))


async def _id_of(starting: Any) -> str:
    return str(await starting)


def delete(
    ctx: typer.Context,
    run: RunId,
    yes: Yes = False,
) -> None:
    """Delete a run that has ended, with its history and hooks."""
    output = begin_reading(ctx)
    run_id = full_id(run)
    confirm(output, f"Delete run {run_id} with its history?", yes=yes)
    is_deleted = run_sync(client.delete_run(run_id))
    if output.is_json:
        output.data({"run_id": run_id, "deleted": is_deleted})
    else:
        output.text(f"{run_id} is deleted")


def purge(
    ctx: typer.Context,
    older_than: Annotated[
        str, typer.Option(metavar="WHEN", help='Runs that ended before: "30d" (ago), or a date and time.')
    ],
    status: Annotated[
        list[str] | None,
        typer.Option(
            help="Only runs that ended in this state; may be repeated.",
            autocompletion=completions.run_statuses,
        ),
    ] = None,
    yes: Yes = False,
) -> None:
    """Delete the runs that ended long ago."""
    until = parse_since(older_than, "--older-than")
    wanted = [_ended(each) for each in status or ()]
    output = begin_reading(ctx)
    which = ", ".join(each.value for each in wanted) or "ended"
    confirm(output, f"Delete all {which} runs from before {until.astimezone():%Y-%m-%d %H:%M}?", yes=yes)
    count = run_sync(client.purge(until, wanted or None))
    if output.is_json:
        output.data({"deleted": count, "ended_before": until})
    else:
        output.text(f"{count} {'run is' if count == 1 else 'runs are'} deleted")


def _ended(text: str) -> RunStatus:
    ends = {status.value: status for status in RunStatus if status.is_terminal}
    if text not in ends:
        raise typer.BadParameter(f"{text!r}: give one of {', '.join(ends)}", param_hint="--status")
    return ends[text]


def add_commands(app: typer.Typer) -> None:
    """Add these commands to those of `runs`."""
    for command in (cancel, resume, rerun, fork, delete, purge):
        app.command()(command)
