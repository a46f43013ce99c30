"""`pyworkflow-ray schedules`: workflows that run at set times."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from typing import Annotated, Any

import typer

from pyworkflow_ray.authoring.workflows import get_workflow
from pyworkflow_ray.cli import completions
from pyworkflow_ray.cli.arguments import Args, ArgsJson, arguments_of, parse_json
from pyworkflow_ray.cli.confirmations import Yes, confirm
from pyworkflow_ray.cli.invocations import (
    begin_driving,
    begin_reading,
    begin_writing,
    import_workflows,
    invocation,
    is_local,
)
from pyworkflow_ray.cli.outputs import PROGRAM, Column, Output
from pyworkflow_ray.cli.times import format_exact
from pyworkflow_ray.client import declarations, firings, schedule_changes
from pyworkflow_ray.client import schedules as client
from pyworkflow_ray.client.event_loops import run_sync
from pyworkflow_ray.client.new_schedules import create_schedule
from pyworkflow_ray.client.schedules import Schedule
from pyworkflow_ray.exceptions import ScheduleNotFoundError
from pyworkflow_ray.recurrences.specs import ScheduleSpec
from pyworkflow_ray.statuses import OverlapPolicy, ScheduleStatus

app = typer.Typer(no_args_is_help=True, help="Schedules: workflows that run at set times.")

STORED = f"No Ray cluster runs here. The change is stored, and counts once an engine is up ({PROGRAM} up)."
SHOWN_EVENTS = 10
_KINDS = ("cron", "interval", "calendar")

Id = Annotated[
    str, typer.Argument(metavar="ID", help="The schedule's id.", autocompletion=completions.schedules)
]
Cron = Annotated[str | None, typer.Option(metavar="EXPR", help='When, as cron: "0 9 * * MON-FRI".')]
Interval = Annotated[str | None, typer.Option(metavar="DURATION", help='How often: "30s", "6h".')]
Calendar = Annotated[
    str | None, typer.Option(metavar="JSON", help='When, as a calendar: {"hour": 9, "day_of_week": [0, 4]}.')
]
Timezone = Annotated[
    str | None,
    typer.Option(metavar="ZONE", help='The time zone of these times: "Europe/Berlin"; UTC by default.'),
]
From = Annotated[str | None, typer.Option("--start-at", metavar="TIME", help="No run before this time.")]
Until = Annotated[str | None, typer.Option("--end-at", metavar="TIME", help="No run after this time.")]
Jitter = Annotated[
    str | None, typer.Option(metavar="DURATION", help="Delay each run by a random time up to this.")
]
Overlap = Annotated[
    OverlapPolicy | None, typer.Option("--overlap", help="What to do while an earlier run has not ended.")
]
Catchup = Annotated[
    str | None, typer.Option(metavar="DURATION", help="How late a missed run may start; an hour by default.")
]
Note = Annotated[str | None, typer.Option(metavar="TEXT", help="Shown with the schedule.")]

COLUMNS = [
    Column("schedule", lambda each: each.schedule_id, is_whole=True),
    Column("workflow", lambda each: each.workflow_name),
    Column("status", lambda each: each.status, is_whole=True),
    Column("when", lambda each: each.spec.describe()),
    Column("next", lambda each: each.next_run_time, is_whole=True),
    Column("last", lambda each: each.last_run_at),
    Column("runs", lambda each: each.total_runs),
    Column("failed", lambda each: each.failed_runs or None),
    Column("skipped", lambda each: each.skipped_runs or None),
]


@app.command("list")
def list_(
    ctx: typer.Context,
    workflow: Annotated[
        str | None,
        typer.Option(help="Only of this workflow.", autocompletion=completions.workflows_with_runs),
    ] = None,
    status: Annotated[ScheduleStatus | None, typer.Option(help="Only schedules in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
) -> None:
    """List schedules by their ids."""
    output = begin_reading(ctx)
    found, following = run_sync(client.list_schedules(workflow=workflow, status=status, limit=limit))
    if output.is_json:
        output.data([_plain(each) for each in found])
        return
    empty = f"No schedules. The first: {PROGRAM} schedules create WORKFLOW --interval 1h --module MODULE"
    output.rows(found, COLUMNS, empty=empty)
    output.suggest_limit(limit, following)


@app.command()
def show(ctx: typer.Context, schedule: Id) -> None:
    """Show a schedule: when it fires, what it has done, and its last events."""
    output = begin_reading(ctx)
    found = run_sync(client.get_schedule(schedule))
    if found is None:
        raise ScheduleNotFoundError(schedule)
    events = run_sync(client.get_schedule_events(schedule))[-SHOWN_EVENTS:]
    if output.is_json:
        output.data({**_plain(found), "events": events})
        return
    _print(output, found)
    if events:
        output.say("")
        columns = [
            Column("time", lambda event: event.timestamp, is_whole=True, is_exact=True),
            Column("event", lambda event: event.type.removeprefix("schedule."), is_whole=True),
            Column("", lambda event: _event_text(event.data)),
        ]
        output.rows(events, columns)


@app.command()
def create(
    ctx: typer.Context,
    workflow: Annotated[
        str, typer.Argument(metavar="WORKFLOW", help="Its name.", autocompletion=completions.workflows)
    ],
    schedule_id: Annotated[
        str | None, typer.Option("--id", help="An id of your own; a random one by default.")
    ] = None,
    cron: Cron = None,
    interval: Interval = None,
    calendar: Calendar = None,
    timezone: Timezone = None,
    start_at: From = None,
    end_at: Until = None,
    jitter: Jitter = None,
    overlap: Overlap = None,
    catchup_window: Catchup = None,
    note: Note = None,
    arg: Args = None,
    args_json: ArgsJson = None,
) -> None:
    """Run a workflow by a schedule."""
    if [cron, interval, calendar].count(None) != 2:
        raise typer.BadParameter("give one of them", param_hint="--cron, --interval, --calendar")
    times = _given_times(cron, interval, calendar, timezone or None, start_at, end_at, jitter)
    spec = ScheduleSpec.from_dict(times)
    output, is_hurried = begin_writing(ctx)
    import_workflows(ctx)
    definition = get_workflow(workflow)
    args, kwargs = arguments_of(definition, arg or (), args_json)
    make = create_schedule.options(
        overlap_policy=overlap or OverlapPolicy.SKIP,
        schedule_id=schedule_id,
        catchup_window=catchup_window,
        note=note,
    )
    _print_changed(output, run_sync(make(definition, spec, *args, **kwargs)), is_hurried)


@app.command()
def update(
    ctx: typer.Context,
    schedule: Id,
    cron: Cron = None,
    interval: Interval = None,
    calendar: Calendar = None,
    timezone: Timezone = None,
    start_at: From = None,
    end_at: Until = None,
    jitter: Jitter = None,
    overlap: Overlap = None,
    catchup_window: Catchup = None,
    note: Note = None,
    arg: Args = None,
    args_json: ArgsJson = None,
) -> None:
    """Change the given parts. With --arg, --args-json or --module, also take the workflow's present code."""
    output, is_hurried = begin_writing(ctx)
    found = run_sync(client.get_schedule(schedule))
    if found is None:
        raise ScheduleNotFoundError(schedule)
    given: dict[str, Any] = {}
    if times := _given_times(cron, interval, calendar, timezone, start_at, end_at, jitter):
        given["spec"] = _changed(found.spec, times)
    if arg or args_json is not None or invocation(ctx).modules:
        import_workflows(ctx)
        definition = get_workflow(found.workflow_name)
        given["workflow"] = definition
        if arg or args_json is not None:
            given["args"], given["kwargs"] = arguments_of(definition, arg or (), args_json)
    changing = schedule_changes.update_schedule(
        schedule, overlap_policy=overlap, catchup_window=catchup_window, note=note, **given
    )
    _print_changed(output, run_sync(changing), is_hurried)


@app.command()
def pause(ctx: typer.Context, schedule: Id, note: Note = None) -> None:
    """Pause a schedule: it does not fire until it is resumed."""
    output, is_hurried = begin_writing(ctx)
    _print_changed(output, run_sync(schedule_changes.pause_schedule(schedule, note)), is_hurried)


@app.command()
def resume(ctx: typer.Context, schedule: Id, note: Note = None) -> None:
    """Resume a paused schedule: it fires again from now on."""
    output, is_hurried = begin_writing(ctx)
    _print_changed(output, run_sync(schedule_changes.resume_schedule(schedule, note)), is_hurried)


@app.command()
def trigger(
    ctx: typer.Context,
    schedule: Id,
    overlap: Annotated[
        OverlapPolicy, typer.Option("--overlap", help="What to do while an earlier run has not ended.")
    ] = OverlapPolicy.ALLOW_ALL,
) -> None:
    """Start a run of the schedule now, whatever its times."""
    output, _ = begin_driving(ctx)
    run = run_sync(firings.trigger_schedule(schedule, overlap))
    if output.is_json:
        output.data({"schedule_id": schedule, "run_id": None if run is None else str(run)})
    elif run is None:
        output.text("no run now: an earlier run of the schedule has not ended")
    else:
        output.text(str(run))
        output.suggest(f"runs status {run}")


@app.command()
def backfill(
    ctx: typer.Context,
    schedule: Id,
    start: Annotated[str, typer.Option(metavar="TIME", help="The first instant, included.")],
    end: Annotated[str, typer.Option(metavar="TIME", help="The first instant that is not included.")],
) -> None:
    """Start the missing runs of past times."""
    begins, ends = _instant(start, "--start"), _instant(end, "--end")
    output, _ = begin_driving(ctx)
    with output.busy("starting runs"):
        made = run_sync(firings.backfill_schedule(schedule, begins, ends))
    if output.is_json:
        output.data({"schedule_id": schedule, "run_ids": made})
        return
    for run_id in made:
        output.text(run_id)
    output.say(f"{len(made)} {'run' if len(made) == 1 else 'runs'}", "dim")


@app.command()
def delete(
    ctx: typer.Context,
    schedule: Id,
    yes: Yes = False,
) -> None:
    """Delete a schedule; its runs go on, and stay."""
    output = begin_reading(ctx)
    if run_sync(client.get_schedule(schedule)) is None:
        raise ScheduleNotFoundError(schedule)
    confirm(output, f"Delete schedule {schedule}?", yes=yes)
    is_deleted = run_sync(schedule_changes.delete_schedule(schedule))
    if output.is_json:
        output.data({"schedule_id": schedule, "deleted": is_deleted})
    else:
        output.text(f"{schedule} is deleted")


@app.command()
def activate(ctx: typer.Context) -> None:
    """Make, or change, the schedules that @scheduled_workflow declares in the modules."""
    output, is_hurried = begin_writing(ctx)
    import_workflows(ctx)
    ids = run_sync(declarations.activate_scheduled_workflows())
    if output.is_json:
        output.data(ids)
        return
    for schedule_id in ids:
        output.text(schedule_id)
    if ids:
        _print_who_fires(output, is_hurried)
    else:
        output.say("The modules declare no schedule. Name the modules that do with --module.")


# --- forms ----------------------------------------------------------------------------------------


def _given_times(
    cron: str | None,
    interval: str | None,
    calendar: str | None,
    timezone: str | None,
    start_at: str | None,
    end_at: str | None,
    jitter: str | None,
) -> dict[str, Any]:
    """The parts of a spec that were given, by their names."""
    parts = {
        "cron": cron,
        "interval": interval,
        "calendar": None if calendar is None else parse_json(calendar, "--calendar"),
        "timezone": timezone,
        "start_at": None if start_at is None else _instant(start_at, "--start-at"),
        "end_at": None if end_at is None else _instant(end_at, "--end-at"),
        "jitter": jitter,
    }
    return {name: value for name, value in parts.items() if value is not None}


def _changed(spec: ScheduleSpec, times: dict[str, Any]) -> ScheduleSpec:
    """The spec with the given parts in place of its own. A new kind of times replaces the old kind."""
    parts = spec.to_dict()
    if not times.keys().isdisjoint(_KINDS):
        parts = {name: value for name, value in parts.items() if name not in _KINDS}
    return ScheduleSpec.from_dict(parts | times)


def _instant(text: str, option: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise typer.BadParameter(
            f'{text!r} is not a time: give "2026-11-22", "2026-11-22T15:39" or "2026-11-22T15:39+01:00". '
            "A time without a zone is local",
            param_hint=option,
        ) from None


def _plain(schedule: Schedule) -> dict[str, Any]:
    """A schedule for JSON."""
    values = {each.name: getattr(schedule, each.name) for each in fields(schedule)}
    return values | {"spec": schedule.spec.to_dict()}


def _print(output: Output, schedule: Schedule) -> None:
    output.record(
        _plain(schedule),
        [
            ("schedule", schedule.schedule_id),
            ("workflow", schedule.workflow_name),
            ("status", schedule.status),
            ("when", schedule.spec.describe()),
            ("overlap", schedule.overlap_policy.value),
            ("catch-up", schedule.catchup_window),
            ("arguments", [*schedule.args, schedule.kwargs] if schedule.kwargs else schedule.args or None),
            ("next", schedule.next_run_time),
            ("last", schedule.last_run_at),
            ("last run", schedule.last_run_id),
            ("running", ", ".join(schedule.running_run_ids) or None),
            ("waiting", schedule.buffered_count or None),
            ("runs", schedule.total_runs),
            ("completed", schedule.successful_runs),
            ("failed", schedule.failed_runs),
            ("skipped", schedule.skipped_runs),
            ("note", schedule.note),
        ],
    )


def _print_changed(output: Output, schedule: Schedule, is_hurried: bool) -> None:
    """Print a schedule after a change."""
    _print(output, schedule)
    _print_who_fires(output, is_hurried)


def _print_who_fires(output: Output, is_hurried: bool) -> None:
    if is_local():
        output.say("Nothing fires while default_runtime is local. Schedules need an engine on Ray.")
    elif not is_hurried:
        output.say(STORED)


def _event_text(data: dict[str, Any]) -> str:
    """The data of an event on one line."""
    at = data.get("scheduled_at")
    shown = dict(data)
    if isinstance(at, str):
        shown["scheduled_at"] = format_exact(datetime.fromisoformat(at))
    return "  ".join(f"{name}={value}" for name, value in shown.items() if name != "spec")
