"""Live views of a run: a picture that is kept up to date on a terminal, lines elsewhere."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections import Counter
from collections.abc import Awaitable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from pyworkflow_ray.cli.formatters import STYLES, format_error, sanitize
from pyworkflow_ray.cli.outputs import PROGRAM, Output
from pyworkflow_ray.cli.times import format_clock, format_duration, format_relative
from pyworkflow_ray.client.event_loops import run_sync
from pyworkflow_ray.client.lookups import latest_of_chain
from pyworkflow_ray.client.progress import Progress
from pyworkflow_ray.client.records import Event, WorkflowRun
from pyworkflow_ray.client.results import wait_for_end
from pyworkflow_ray.client.runtimes import LOCAL
from pyworkflow_ray.client.sessions import Session, session
from pyworkflow_ray.client.summaries import ChildSummary, RunSummary, StepSummary, Wait
from pyworkflow_ray.event_types import EventType
from pyworkflow_ray.statuses import RunStatus, StepStatus
from pyworkflow_ray.storage.runs import get_run

COLLAPSE_FROM = 6
"""From this many steps of one name on, they are shown as one line with a bar."""
_BAR = 30
_MOST_WAITS = 8
_FRAME = 4
"""How many lines of the screen are kept free."""
_STALE = 5.0
"""Seconds after its time at which a timer without an event counts as given up by the code."""

MARKS = {
    StepStatus.COMPLETED: "✓",
    StepStatus.FAILED: "✗",
    StepStatus.RETRYING: "↻",
    StepStatus.CANCELLED: "⊘",
    StepStatus.RUNNING: "▸",
    StepStatus.PENDING: "·",
}


def watch(
    output: Output, starting: Awaitable[str], *, is_own: bool, run_id: str | None = None
) -> WorkflowRun:
    """Show a run until it ends; the last run of its chain.

    Ctrl-C ends the view and not the run.

    Args:
        starting: Starts or resumes the run, and gives its id.
        is_own: Whether this process drives the run, or a cluster that ends with this process.
        run_id: The run's id if `starting` itself drives the run.
    """
    of = session()
    view: Progress = (
        Screen(of, output.err) if output.err.is_terminal else Lines(of, "", sys.stderr, always=True)
    )
    frame: AbstractContextManager[object] = view.live if isinstance(view, Screen) else nullcontext()
    try:
        with frame:
            return run_sync(_followed(of, starting, view, run_id))
    except KeyboardInterrupt:
        _print_after_interrupt(output, view.run_id, is_own=is_own)
        raise SystemExit(1) from None


async def _followed(of: Session, starting: Awaitable[str], view: Progress, run_id: str | None) -> WorkflowRun:
    task = asyncio.ensure_future(starting)
    if run_id is None:
        run_id = await task
        view.run_id = run_id
        async with view:
            if of.runtime.name != LOCAL:  # in process, starting a run has driven it as far as it goes
                await wait_for_end(of, run_id)
    else:
        run_id = await _accepted(of, task, run_id)
        view.run_id = run_id
        async with view:
            await asyncio.wait([task])
        task.exception()  # the run's own error, which its row has
    return WorkflowRun.of(await latest_of_chain(of, run_id))


async def _accepted(of: Session, task: asyncio.Future[str], run_id: str) -> str:
    """The run's id once its row exists; the id of another run if that one has the idempotency key."""
    while True:
        is_done = task.done()
        record = await asyncio.to_thread(of.storage.read, get_run(run_id))
        if record is not None:
            return run_id
        if is_done:
            return await task
        await asyncio.sleep(0.02)


def _print_after_interrupt(output: Output, run_id: str, *, is_own: bool) -> None:
    if not run_id:
        output.say("Interrupted before a run was accepted.")
        return
    if is_own:
        output.say(f"Run {run_id} was driven by this process, and stops where it is. To go on with it:")
        output.suggest(f"runs resume {run_id} --wait")
    else:
        output.say(f"Run {run_id} goes on. Look at it with:")
        output.suggest(f"runs status {run_id}")
        output.suggest(f"runs logs {run_id} --follow")


def answer_command(token: str | None) -> str:
    """The command that answers a hook."""
    return f"{PROGRAM} hooks resume {shlex.quote(token or 'TOKEN')}"


class Lines(Progress):
    """A view with a line for each thing that happens."""

    def line(self, event: Event) -> str | None:
        line = super().line(event)
        if event.type is EventType.HOOK_CREATED:
            return sanitize(f"{line}: {answer_command(event.data['token'])}")
        return None if line is None else sanitize(line)


class Screen(Progress):
    """A view of a run's steps and of what it waits for, at the bottom of a terminal."""

    def __init__(self, of: Session, console: Console) -> None:
        super().__init__(of, "", always=True)
        self.summary: RunSummary | None = None
        self.chain = 0
        self._spinner = Spinner("dots", style="cyan")
        self._console = console
        self.live = Live(get_renderable=self.picture, console=console, refresh_per_second=8)

    def take(self, event: Event) -> None:
        if self.summary is None or self.summary.run_id != event.run_id:
            self.summary = RunSummary(event.run_id)
            self.chain += 1
        self.summary.add(event)

    def picture(self) -> RenderableType:
        """The run as it is now."""
        summary = self.summary
        if summary is None:
            text = f" waiting for {self.run_id} to begin" if self.run_id else " starting"
            return _side_by_side(self._spinner, Text(text))
        now = datetime.now(UTC)
        entries = [
            *step_lines(summary, now),
            *child_lines(summary),
            *(wait_line(wait, now) for wait in open_waits(summary, now)),
        ]
        room = max(self._console.height - _FRAME, 5)
        if len(entries) > room:
            hidden = len(entries) - room + 1
            entries = [Text(f"  … {hidden} lines above", style="dim"), *entries[hidden:]]
        return Group(self._heading(summary, now), *entries)

    def _heading(self, summary: RunSummary, now: datetime) -> RenderableType:
        state = "waiting" if is_waiting(summary) else summary.status.value
        line = Text.assemble((sanitize(summary.workflow_name), "bold"), "  ", summary.run_id, "  ")
        line.append(state, style=STYLES.get(state, ""))
        if summary.started_at is not None:
            line.append(f"  {format_duration((summary.ended_at or now) - summary.started_at)}", style="dim")
        if self.chain > 1:
            line.append(f"  run {self.chain} of its chain", style="dim")
        if summary.interruptions:
            line.append(f"  recovered {summary.interruptions}×", style="yellow")
        if summary.cancel_reason is not None and summary.ended_at is None:
            line.append("  asked to cancel", style="magenta")
        return line if summary.ended_at is not None else _side_by_side(self._spinner, Text(" "), line)


def is_waiting(summary: RunSummary) -> bool:
    """Whether a run has not ended, and no step of it is under way."""
    if summary.ended_at is not None or not (summary.waits or summary.children):
        return False
    return all(step.ended_at is not None for step in list(summary.steps.values()))


def step_lines(summary: RunSummary, now: datetime) -> list[RenderableType]:
    """A line for each step. Many steps of one name share a line."""
    by_name: dict[str, list[StepSummary]] = {}
    for step in list(summary.steps.values()):
        by_name.setdefault(step.step_name, []).append(step)
    lines: list[RenderableType] = []
    for name, steps in by_name.items():
        if len(steps) >= COLLAPSE_FROM:
            lines.append(_bar(name, steps))
        else:
            lines += [_step_line(step, now) for step in steps]
    return lines


def _step_line(step: StepSummary, now: datetime) -> Text:
    state = step.status.value
    line = Text.assemble("  ", (MARKS[step.status], STYLES.get(state, "")), f" {sanitize(step.step_id):<24} ")
    line.append(f"{state:<9}", style=STYLES.get(state, ""))
    line.append(f" {format_duration((step.ended_at or now) - step.scheduled_at):>8}", style="dim")
    if step.attempt > 1:
        line.append(f"  attempt {step.attempt}", style="yellow")
    if step.status is StepStatus.RETRYING and step.retry_at is not None:
        line.append(f" {format_relative(step.retry_at, now)}", style="yellow")
    if step.error:
        error = sanitize(format_error(step.error_type, step.error))
        line.append(f"  {error}", style="red" if step.ended_at else "dim")
    return _cut(line)


def _bar(name: str, steps: list[StepSummary]) -> RenderableType:
    counts = {status: sum(step.status is status for step in steps) for status in StepStatus}
    done = counts[StepStatus.COMPLETED]
    ended = done + counts[StepStatus.FAILED] + counts[StepStatus.CANCELLED]
    mark = StepStatus.RUNNING if ended < len(steps) else StepStatus.COMPLETED
    if counts[StepStatus.FAILED]:
        mark = StepStatus.FAILED
    others = [
        (f"  {count} {status.value}", STYLES.get(status.value, ""))
        for status, count in counts.items()
        if count and status is not StepStatus.COMPLETED
    ]
    style = STYLES.get(mark.value, "")
    return _side_by_side(
        Text.assemble("  ", (MARKS[mark], style), f" {sanitize(name):<24} "),
        ProgressBar(len(steps), ended, width=_BAR),
        Text.assemble(f" {done}/{len(steps)}", *others),
    )


def child_lines(summary: RunSummary) -> list[RenderableType]:
    """A line for each child run. Many child runs share a line."""
    children = list(summary.children.values())
    if len(children) < COLLAPSE_FROM:
        return [_child_line(child) for child in children]
    counts = Counter(child.status for child in children)
    line = Text.assemble(
        "  ", ("▷", "cyan"), f" {'children':<24} ", f"{counts[RunStatus.COMPLETED]}/{len(children)}"
    )
    for status, count in counts.items():
        if status is not RunStatus.COMPLETED:
            line.append(f"  {count} {status.value}", style=STYLES[status.value])
    return [line]


def _child_line(child: ChildSummary) -> Text:
    state = child.status.value
    line = Text.assemble(
        "  ", ("▷", STYLES[state]), f" {sanitize(child.child_id):<24} ", (f"{state:<9}", STYLES[state])
    )
    line.append(f" {child.run_id}")
    if child.error:
        line.append(f"  {sanitize(format_error(child.error_type, child.error))}", style="red")
    return _cut(line)


def open_waits(summary: RunSummary, now: datetime) -> list[Wait]:
    """The first few things that a run waits for, other than steps, without timers whose time is over."""
    waits = [
        wait
        for wait in summary.waits
        if wait.kind != "sleep" or wait.until is None or (now - wait.until).total_seconds() < _STALE
    ]
    return waits[:_MOST_WAITS]


def wait_line(wait: Wait, now: datetime) -> Text:
    """A line for what a run waits for. For a hook, it has the command that answers the hook."""
    line = Text.assemble("  ", ("…", "yellow"), f" {sanitize(wait.id):<24} ")
    until = (
        ""
        if wait.until is None
        else f"until {format_clock(wait.until, now)} ({format_relative(wait.until, now)})"
    )
    match wait.kind:
        case "hook":
            line.append(f"waits for an answer {until}".rstrip())
            line.append(f"\n      {answer_command(wait.token)}", style="bold")
        case _:
            line.append(until)
    return line


def _side_by_side(*parts: RenderableType) -> Table:
    grid = Table.grid()
    grid.add_row(*parts)
    return grid


def _cut(line: Text) -> Text:
    line.no_wrap, line.overflow = True, "ellipsis"
    return line
