"""A schedule's row, as the other layers get it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from pyworkflow_ray.recurrences.specs import ScheduleSpec
from pyworkflow_ray.statuses import OverlapPolicy, ScheduleStatus
from pyworkflow_ray.storage.acceptances import NewRun
from pyworkflow_ray.storage.damages import Reader


class ScheduleRecord(msgspec.Struct, frozen=True):
    """The row of a schedule; `run` is the model of its runs, as JSON text of a `NewRun`."""

    schedule_id: str
    workflow_name: str
    status: ScheduleStatus
    spec: ScheduleSpec
    overlap_policy: OverlapPolicy
    catchup_window: float
    run: str
    environment: str
    declared: str | None
    note: str | None
    version: int
    anchor_at: datetime
    next_fire_at: datetime | None
    look_at: datetime | None
    buffered: list[datetime]
    total_runs: int
    successful_runs: int
    failed_runs: int
    skipped_runs: int
    last_fire_at: datetime | None
    last_run_at: datetime | None
    last_run_id: str | None
    created_at: datetime
    updated_at: datetime


FIELDS = ScheduleRecord.__struct_fields__
COLUMNS = ", ".join(FIELDS)
"""The columns that `schedule_record` needs, in their order."""


def _spec(text: str) -> ScheduleSpec:
    return ScheduleSpec.from_dict(msgspec.json.decode(text))


def _times(text: str) -> list[datetime]:
    return [datetime.fromisoformat(each) for each in msgspec.json.decode(text, type=list[str])]


def _run(text: str) -> str:
    _run_decoder.decode(text)
    return text


_run_decoder = msgspec.json.Decoder(NewRun)
_parsers: dict[str, Callable[[Any], Any]] = {"spec": _spec, "buffered": _times, "run": _run}
schedule_record = Reader("schedules", ScheduleRecord, {"schedule_id": "schedule"}, _parsers)
"""The record of a row that was selected as `COLUMNS`.

Raises:
    UnreadableRowError: A cell of the row cannot be read.
"""
