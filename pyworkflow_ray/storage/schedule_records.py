"""A schedule's row, as the other layers get it."""

from __future__ import annotations

from datetime import datetime

import msgspec

from pyworkflow_ray.recurrences.specs import ScheduleSpec
from pyworkflow_ray.statuses import OverlapPolicy, ScheduleStatus
from pyworkflow_ray.storage.dialects import decode_time
from pyworkflow_ray.storage.statements import Row


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

_TIMES = tuple(index for index, name in enumerate(FIELDS) if name.endswith("_at"))


def schedule_record(row: Row) -> ScheduleRecord:
    """The record of a row that was selected as `COLUMNS`."""
    values = dict(zip(FIELDS, row, strict=True))
    for index in _TIMES:
        if row[index] is not None:
            values[FIELDS[index]] = decode_time(row[index])
    values["status"] = ScheduleStatus(values["status"])
    values["overlap_policy"] = OverlapPolicy(values["overlap_policy"])
    values["spec"] = ScheduleSpec.from_dict(msgspec.json.decode(values["spec"]))
    values["buffered"] = [datetime.fromisoformat(each) for each in msgspec.json.decode(values["buffered"])]
    return ScheduleRecord(**values)
