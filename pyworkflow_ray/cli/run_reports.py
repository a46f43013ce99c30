"""Run reports: all about one run. What it has done, what it waits for, why it has failed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from rich.text import Text

from pyworkflow_ray.cli.formatters import format_cell, format_error, sanitize
from pyworkflow_ray.cli.live_views import COLLAPSE_FROM, answer_command, open_waits
from pyworkflow_ray.cli.outputs import Column, Format, Output
from pyworkflow_ray.cli.times import format_duration, format_moment
from pyworkflow_ray.client.records import Event, WorkflowRun
from pyworkflow_ray.client.summaries import RunSummary, StepSummary, Wait
from pyworkflow_ray.statuses import RunStatus, StepStatus
from pyworkflow_ray.storage.records import RunRecord

_LONG_TEXT = 2000
"""How many characters of an input or a result are shown; JSON has all of them."""


def print_status(output: Output, record: RunRecord, events: list[Event]) -> None:
    """Print a run and the summary of its history."""
    run, summary = WorkflowRun.of(record), RunSummary.of(record.run_id, events)
    now = datetime.now(UTC)
    if output.is_json:
        more = {"error_type": record.error_type, "traceback": summary.traceback, "wake_at": record.wake_at}
        waits = open_waits(summary, now)
        output.data(
            {
                **run.to_dict(),
                **more,
                "steps": list(summary.steps.values()),
                "children": list(summary.children.values()),
                "waits_for": waits,
            }
        )
        return
    output.record(None, _pairs(run, record, summary, now))
    if output.format is Format.PLAIN:
        return
    if summary.traceback:
        output.text(f"\n{sanitize(summary.traceback, lines=True).rstrip()}")
    if summary.steps:
        output.text("")
        output.rows(_step_rows(summary), STEP_COLUMNS)
    following = _following(run)
    if following:
        output.say("Next:", "dim")
    for command, meaning in following:
        output.suggest(f"runs {command}", meaning)


def _pairs(run: WorkflowRun, record: RunRecord, summary: RunSummary, now: datetime) -> list[tuple[str, Any]]:
    return [
        ("run", Text(run.run_id, style="bold")),
        ("workflow", run.workflow_name),
        ("status", run.status),
        ("created", run.created_at),
        ("started", run.started_at),
        ("starts", record.start_at if run.started_at is None else None),
        ("ended", run.completed_at),
        ("took", duration_of(run)),
        ("input", _input(run)),
        ("result", None if run.result is None else _cut(format_cell(run.result).plain)),
        ("error", None if run.error is None else Text(_error(record), style="red")),
        ("waits for", _waits(summary, now)),
        ("wakes", record.wake_at),
        ("asked to cancel", _cancel(summary)),
        ("recoveries", summary.interruptions or None),
        ("parent", run.parent_run_id),
        ("continued from", run.continued_from_run_id),
        ("continued as", run.continued_to_run_id),
        ("idempotency key", run.idempotency_key),
        ("tags", ", ".join(run.tags) or None),
        ("attributes", run.attributes or None),
        ("metadata", run.metadata or None),
        ("coordinator", None if run.status.is_terminal else run.coordinator),
    ]


def duration_of(run: WorkflowRun) -> timedelta | None:
    """How long the run took; None if it has not ended."""
    return None if run.started_at is None or run.completed_at is None else run.completed_at - run.started_at


def _input(run: WorkflowRun) -> str | None:
    texts = [format_cell(each).plain if not isinstance(each, str) else repr(each) for each in run.input_args]
    texts += [f"{name}={format_cell(each).plain}" for name, each in run.input_kwargs.items()]
    return _cut(", ".join(texts)) or None


def _error(record: RunRecord) -> str:
    return sanitize(format_error(record.error_type, record.error), lines=True)


def _cut(text: str) -> str:
    return text if len(text) <= _LONG_TEXT else f"{text[:_LONG_TEXT]}… ({len(text)} characters)"


def _cancel(summary: RunSummary) -> str | None:
    if summary.cancel_reason is None or summary.ended_at is not None:
        return None
    return summary.cancel_reason or "yes"


def _waits(summary: RunSummary, now: datetime) -> str | None:
    open_children = [child for child in summary.children.values() if child.status is RunStatus.RUNNING]
    lines = [_wait(each, now) for each in open_waits(summary, now)]
    if summary.ended_at is None:
        lines += [f"{child.child_id}: {child.run_id}" for child in open_children[:COLLAPSE_FROM]]
        lines += [f"and {more} more children"] if (more := len(open_children) - COLLAPSE_FROM) > 0 else []
    return "\n".join(lines) or None


def _wait(wait: Wait, now: datetime) -> str:
    until = "" if wait.until is None else f" until {format_moment(wait.until, now)}"
    match wait.kind:
        case "hook":
            return f"{wait.id}{until}\n{answer_command(wait.token)}"
        case _:
            return f"{wait.id}{until}"


def _following(run: WorkflowRun) -> list[tuple[str, str]]:
    """The commands to suggest next, with what each one does."""
    match run.status:
        case RunStatus.FAILED:
            return [
                (f"fork {run.run_id} --code current", "goes on at the step that failed, with today's code"),
                (f"rerun {run.run_id}", "starts again from the beginning"),
            ]
        case RunStatus.INTERRUPTED:
            return [(f"resume {run.run_id}", "lets the run go on, once the cause is mended")]
        case RunStatus.CONTINUED_AS_NEW:
            return [(f"chain {run.run_id}", "lists the runs as which it continued")]
        case _:
            return []


STEP_COLUMNS = [
    Column("step", lambda row: row["step"]),
    Column("status", lambda row: row["status"], is_whole=True),
    Column("attempt", lambda row: row["attempt"]),
    Column("took", lambda row: row["took"]),
    Column("error", lambda row: row["error"]),
]


def _step_rows(summary: RunSummary) -> list[dict[str, Any]]:
    """A row for each step. Many steps of one name share a row for each state."""
    by_name: dict[str, list[StepSummary]] = {}
    for step in summary.steps.values():
        by_name.setdefault(step.step_name, []).append(step)
    rows = []
    for name, steps in by_name.items():
        if len(steps) < COLLAPSE_FROM:
            rows += [_row(step.step_id, [step]) for step in steps]
            continue
        for state in StepStatus:
            some = [step for step in steps if step.status is state]
            if some:
                rows.append(_row(f"{name} ×{len(some)}", some))
    return rows


def _row(name: str, steps: list[StepSummary]) -> dict[str, Any]:
    last = steps[-1]
    ends = [step.ended_at for step in steps if step.ended_at is not None]
    began = min(step.scheduled_at for step in steps)
    failed = next((step for step in steps if step.error), None)
    return {
        "step": name,
        "status": last.status,
        "attempt": max(step.attempt for step in steps),
        "took": format_duration(max(ends) - began) if len(ends) == len(steps) else None,
        "error": None if failed is None else format_error(failed.error_type, failed.error),
    }
