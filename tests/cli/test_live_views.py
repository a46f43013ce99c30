"""The live view: what a person sees of a run while it goes on."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console

from pyworkflow_ray.cli.live_views import Screen
from pyworkflow_ray.client.records import Event
from pyworkflow_ray.client.summaries import RunSummary
from pyworkflow_ray.event_types import EventType
from pyworkflow_ray.statuses import RunStatus, StepStatus

NOW = datetime.now(UTC)
LATER = (NOW + timedelta(hours=2)).isoformat()


class History:
    """Events of a run, one after another."""

    def __init__(self, run_id: str = "run_1") -> None:
        self.run_id = run_id
        self.events: list[Event] = []
        self.add("workflow.started", workflow_name="album")

    def add(self, type_: str, **data: Any) -> History:
        place = len(self.events)
        self.events.append(Event(f"{self.run_id}:{place}", self.run_id, EventType(type_), NOW, data, place))
        return self

    def step(self, step_id: str, *ends: str, attempt: int = 1, **data: Any) -> History:
        step = {"step_id": step_id, "step_name": step_id.partition("#")[0]}
        self.add("step.started", **step, attempt=1)
        for end in ends:
            self.add(f"step.{end}", **step, attempt=attempt, **data)
        return self

    @property
    def summary(self) -> RunSummary:
        return RunSummary.of(self.run_id, self.events)


def seen(*histories: History, height: int = 40, width: int = 100) -> list[str]:
    """The lines of the picture after these histories of runs that continued one another."""
    console = Console(file=io.StringIO(), width=width, height=height)
    screen = Screen(None, console)  # type: ignore[arg-type]
    for history in histories:
        for event in history.events:
            screen.take(event)
    console.print(screen.picture())
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_each_step_has_its_state_attempt_and_error() -> None:
    history = (
        History()
        .step("load#1", "completed")
        .step(
            "charge#1",
            "retrying",
            attempt=2,
            retry_at=LATER,
            error="no answer",
            error_type="a.b.GatewayError",
        )
        .step("send#1", "failed", error="refused", error_type="ValueError")
        .step("wrap#1")
    )
    heading, *lines = seen(history)
    assert "album  run_1  running" in heading
    assert [line.split()[:3] for line in lines] == [
        ["✓", "load#1", "completed"],
        ["↻", "charge#1", "retrying"],
        ["✗", "send#1", "failed"],
        ["▸", "wrap#1", "running"],
    ]
    assert "attempt 2 in 2 h  GatewayError: no answer" in lines[1]
    assert lines[2].endswith("ValueError: refused")


def test_a_fan_out_is_one_line_with_a_bar() -> None:
    history = History()
    for number in range(1000):
        ends = ["completed"] if number < 340 else ["failed"] if number < 342 else []
        history.step(f"resize#{number}", *ends, error="broken", error_type="ValueError")
    _, line = seen(history)
    assert "resize" in line
    assert "340/1000  658 running  2 failed" in line


def test_what_a_run_waits_for_is_shown_with_what_to_type() -> None:
    history = (
        History()
        .add("sleep.started", sleep_id="nap#1", resume_at=LATER)
        .add("hook.created", hook_id="approval#1", token="t0k3n", name="approval", expires_at=LATER)
        .add("child_workflow.started", child_id="part#1", child_run_id="run_2", child_workflow_name="part")
    )
    heading, child, sleep, hook, command = seen(history)
    assert "waiting" in heading
    assert child.split() == ["▷", "part#1", "running", "run_2"]
    assert "nap#1" in sleep
    assert "(in 2 h)" in sleep
    assert "approval#1" in hook
    assert command.strip() == "pyworkflow-ray hooks resume t0k3n"


def test_what_is_over_is_waited_for_no_longer() -> None:
    past = (NOW - timedelta(minutes=1)).isoformat()
    history = (
        History()
        .add("sleep.started", sleep_id="let-go#1", resume_at=past)
        .add("sleep.started", sleep_id="nap#1", resume_at=LATER)
        .add("sleep.completed", sleep_id="nap#1")
        .add("hook.created", hook_id="h#1", token="t", name="h")
        .add("hook.received", hook_id="h#1")
        .add("child_workflow.started", child_id="c#1", child_run_id="run_2", child_workflow_name="c")
        .add(
            "child_workflow.failed", child_id="c#1", child_run_id="run_2", child_workflow_name="c", error="e"
        )
    )
    _, child = seen(history)
    assert child.split()[:3] == ["▷", "c#1", "failed"]


def test_a_run_is_followed_into_the_runs_that_continue_it() -> None:
    first = History("run_1").step("look#1", "completed").add("workflow.continued_as_new", new_run_id="run_2")
    heading, line = seen(first, History("run_2").step("look#1"))
    assert "run_2" in heading
    assert "run 2 of its chain" in heading
    assert line.split()[:3] == ["▸", "look#1", "running"]


def test_a_picture_is_never_higher_than_the_screen() -> None:
    history = History()
    for number in range(60):
        history.step(f"step_{number}#1", "completed")
    lines = seen(history, height=20)
    assert len(lines) < 20
    assert "lines above" in lines[1]
    assert "step_59#1" in lines[-1]


def test_no_line_is_wider_than_the_screen_and_none_controls_it() -> None:
    history = History().step("load#1", "failed", error="\x1b[31m" + "long " * 100, error_type="ValueError")
    lines = seen(history, width=80)
    assert max(map(len, lines)) <= 80
    assert not any("\x1b" in line for line in lines)


def test_an_outline_tells_the_end_and_its_error() -> None:
    history = History().step("load#1", "completed").add("cancellation.requested", reason="too late")
    assert history.summary.cancel_reason == "too late"
    history.add("workflow.failed", error="oh", error_type="ValueError", traceback="Traceback …")
    summary = history.summary
    assert (summary.status, summary.error, summary.traceback) == (RunStatus.FAILED, "oh", "Traceback …")
    assert summary.last_position == len(history.events) - 1


def test_an_outline_of_a_newer_history_leaves_out_what_it_does_not_know() -> None:
    summary = History().add("moon.rose", phase="full").step("load#1", "completed").summary
    assert summary.steps["load#1"].status is StepStatus.COMPLETED
