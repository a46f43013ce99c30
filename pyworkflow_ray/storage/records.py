"""A run's row, as the other layers get it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.damages import NEVER, UNREADABLE_RUN, Reader, unreadable


class RunRecord(msgspec.Struct, frozen=True):
    """The row of a run. Values are the JSON text that is stored; times are aware and in UTC.

    `position` is the position that the next event gets. `owner` names the process that holds the run.
    `previous_owner` names who held it before the present owner's claim, and had not let go of it. The present
    owner's first append clears it. If it is not None, the run was interrupted.

    Takeovers in a row, without the run getting further in between, are counted apart: `recovery_attempts` has
    those for which this run may be to blame, and `shared_recoveries` those for which others may be, too.
    """

    run_id: str
    workflow_name: str
    status: RunStatus
    code_hash: str | None
    environment: str
    coordinator: str | None
    owner: str | None
    previous_owner: str | None
    epoch: int
    lease_expires_at: datetime | None
    position: int
    wake_at: datetime | None
    start_at: datetime | None
    durable: bool
    parent_run_id: str | None
    root_run_id: str
    nesting_depth: int
    child_id: str | None
    continued_from_run_id: str | None
    continued_to_run_id: str | None
    idempotency_key: str | None
    schedule_id: str | None
    scheduled_at: datetime | None
    input_hash: str
    input_args: str
    input_kwargs: str
    result: str | None
    error: str | None
    error_type: str | None
    metadata: str | None
    attributes: str | None
    tags: str | None
    max_duration: float | None
    recover_on_worker_loss: bool
    recovery_attempts: int
    shared_recoveries: int
    max_recovery_attempts: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    completed_at: datetime | None

    @property
    def was_interrupted(self) -> bool:
        """Whether the present owner took the run from a claim that had not released it."""
        return self.previous_owner is not None


FIELDS = RunRecord.__struct_fields__
COLUMNS = ", ".join(FIELDS)
"""The columns that `run_record` needs, in their order."""

_STAND_INS = dict.fromkeys(FIELDS, "") | {
    "status": RunStatus.INTERRUPTED,
    **dict.fromkeys(("epoch", "position", "nesting_depth", "recovery_attempts", "max_recovery_attempts"), 0),
    **dict.fromkeys(("durable", "recover_on_worker_loss"), True),
    **dict.fromkeys(("created_at", "updated_at"), NEVER),
}

run_record = Reader("runs", RunRecord, {"run_id": "run"})
"""The record of a row that was selected as `COLUMNS`.

Raises:
    UnreadableRowError: A cell of the row cannot be read.
"""


def shown_record(row: Any) -> RunRecord:
    """As `run_record`, for lists: a cell that cannot be read has a stand-in, and `error` says so.

    It must not be driven.
    """
    values, error = run_record.shown(row, _STAND_INS)
    record = RunRecord(*values)
    if error is None:
        return record
    return msgspec.structs.replace(record, error=str(error), error_type=UNREADABLE_RUN)


_JSON = ("input_args", "input_kwargs", "metadata", "attributes", "tags")


def require_json(record: RunRecord) -> None:
    """Do nothing if the run's values are JSON.

    Raises:
        UnreadableRowError: One of them is not.
    """
    for name in _JSON:
        text = getattr(record, name)
        try:
            msgspec.json.decode("null" if text is None else text)
        except msgspec.DecodeError as error:
            run_id = record.run_id
            raise unreadable("runs", f"run {run_id!r}", name, str(error), run_id) from error
