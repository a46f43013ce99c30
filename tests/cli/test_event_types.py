"""Each surface that shows events knows every type of event: it shows the event, or says that it is silent."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest

from pyworkflow_ray.cli.live_views import Lines
from pyworkflow_ray.cli.runs import EVENT_COLUMNS
from pyworkflow_ray.client.records import Event
from pyworkflow_ray.client.summaries import RunSummary
from pyworkflow_ray.event_types import EventType

AT = datetime(2026, 11, 22, tzinfo=UTC)
DATA: dict[str, Any] = {
    "workflow_name": "album",
    "reason": "it was asked to",
    "recovery_attempt": 1,
    "new_run_id": "run_2",
    "step_id": "load#1",
    "step_name": "load",
    "attempt": 1,
    "retry_at": AT.isoformat(),
    "error": "no space",
    "error_type": "ValueError",
    "sleep_id": "sleep#1",
    "resume_at": AT.isoformat(),
    "hook_id": "review#1",
    "token": "run_1:secret",
    "child_id": "album#1",
    "child_run_id": "run_3",
    "child_workflow_name": "album",
    "name": "hurry",
}
"""The fields of all events together."""
SILENT = {
    EventType.STEP_STARTED,
    EventType.STEP_CANCELLED,
    EventType.SLEEP_COMPLETED,
    EventType.HOOK_DISPOSED,
    EventType.SIDE_EFFECT_RECORDED,
    EventType.PATCH_APPLIED,
    EventType.ATTRIBUTES_SET,
    *(each for each in EventType if each.value.startswith("schedule.")),
}
"""The events that a view line by line leaves out."""


def event_of(type_: EventType) -> Event:
    return Event("run_1:0", "run_1", type_, AT, DATA, 0)


@pytest.mark.parametrize("type_", list(EventType))
def test_the_lines_of_a_run_know_each_type_of_event(type_: EventType) -> None:
    lines = Lines(None, "run_1", io.StringIO())  # type: ignore[arg-type]
    assert (lines.line(event_of(type_)) is None) == (type_ in SILENT)


@pytest.mark.parametrize("type_", list(EventType))
def test_the_summary_of_a_run_knows_each_type_of_event(type_: EventType) -> None:
    assert RunSummary.of("run_1", [event_of(type_)]).last_position == 0


@pytest.mark.parametrize("type_", list(EventType))
def test_a_history_shows_each_type_of_event(type_: EventType) -> None:
    position, _, shown, data = (str(column.of(event_of(type_))) for column in EVENT_COLUMNS)
    assert (position, shown) == ("0", type_.value)
    assert "error=no space" in data
    assert "secret" not in data


def test_an_event_of_a_later_version_is_shown_in_a_history_and_nowhere_else() -> None:
    later = event_of(EventType("workflow.teleported"))
    assert not later.type.is_known
    assert Lines(None, "run_1", io.StringIO()).line(later) is None  # type: ignore[arg-type]
    assert RunSummary.of("run_1", [later]).last_position == 0
    assert str(EVENT_COLUMNS[2].of(later)) == "workflow.teleported"
