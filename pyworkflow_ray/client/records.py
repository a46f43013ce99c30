"""Records: runs and events as a client sees them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import msgspec

from pyworkflow_ray.event_types import EventType
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.histories import EventRow
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.values import codec

ON_CREATED = ".on_created"
"""The end of the name of the local step that hands a hook's token on, as its argument."""


@dataclass(frozen=True, slots=True, repr=False)
class Event:
    """An event of a run's history.

    `data` holds plain JSON values. A value without a JSON form shows as text; nothing is unpickled.
    `sequence` is the event's position, from 0 without gaps.
    """

    event_id: str
    run_id: str
    type: EventType
    timestamp: datetime
    data: dict[str, Any]
    sequence: int
    stored: str = field(default="", repr=False)
    """The data as it is in the storage, which `testing.replay` reads."""

    @property
    def shown(self) -> dict[str, Any]:
        """The data for people to look at, with no hook's token in full. `repr` has it too."""
        data = dict(self.data)
        if isinstance(data.get("token"), str):
            data["token"] = f"{data['token'][:4]}…"
        if str(data.get("step_name", "")).endswith(ON_CREATED) and data.get("args"):
            data["args"] = ["…"]
        return data

    def __repr__(self) -> str:
        return (
            f"Event({self.event_id!r}, type={self.type.value!r}, timestamp={self.timestamp!r}, "
            f"data={self.shown!r})"
        )

    @classmethod
    def of(cls, run_id: str, row: EventRow) -> Event:
        position, timestamp, type_, data = row
        text = data if isinstance(data, str) else data.decode()
        kind = EventType(type_)
        return cls(f"{run_id}:{position}", run_id, kind, timestamp, codec.describe(text), position, text)


@dataclass(frozen=True, slots=True)
class WorkflowRun:
    """A run, from its row. All times are aware and in UTC.

    `input_args`, `input_kwargs`, `result`, `metadata` and `attributes` hold plain JSON values. A value
    without a JSON form shows as text. The `result()` of a run's handle gives the result itself.
    """

    run_id: str
    workflow_name: str
    status: RunStatus
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    input_args: list[Any] = field(default_factory=list)
    input_kwargs: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    error: str | None = None
    idempotency_key: str | None = None
    max_duration: timedelta | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    recovery_attempts: int = 0
    max_recovery_attempts: int = 3
    recover_on_worker_loss: bool = True
    parent_run_id: str | None = None
    nesting_depth: int = 0
    continued_from_run_id: str | None = None
    continued_to_run_id: str | None = None
    tags: tuple[str, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    coordinator: str | None = None
    code_version: str | None = None

    @classmethod
    def of(cls, record: RunRecord) -> WorkflowRun:
        """The run of a row."""
        tags = _shown(record.tags, [])
        return cls(
            run_id=record.run_id,
            workflow_name=record.workflow_name,
            status=record.status,
            created_at=record.created_at,
            updated_at=record.updated_at,
            started_at=record.started_at,
            completed_at=record.completed_at,
            input_args=_shown(record.input_args, []),
            input_kwargs=_shown(record.input_kwargs, {}),
            result=_shown(record.result, None),
            error=record.error,
            idempotency_key=record.idempotency_key,
            max_duration=None if record.max_duration is None else timedelta(seconds=record.max_duration),
            metadata=_shown(record.metadata, {}),
            recovery_attempts=record.recovery_attempts,
            max_recovery_attempts=record.max_recovery_attempts,
            recover_on_worker_loss=record.recover_on_worker_loss,
            parent_run_id=record.parent_run_id,
            nesting_depth=record.nesting_depth,
            continued_from_run_id=record.continued_from_run_id,
            continued_to_run_id=record.continued_to_run_id,
            tags=tuple(tags) if isinstance(tags, list) else (str(tags),),
            attributes=_shown(record.attributes, {}),
            coordinator=record.coordinator,
            code_version=record.code_hash,
        )

    def to_dict(self) -> dict[str, Any]:
        """The run as plain JSON values; `from_dict` reads them."""
        plain: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            match value:
                case datetime():
                    value = value.astimezone(UTC).isoformat()
                case RunStatus():
                    value = value.value
                case timedelta():
                    value = value.total_seconds()
                case tuple():
                    value = list(value)
                case _:
                    pass
            plain[each.name] = value
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """The run of which these are the values that `to_dict` gave."""
        return msgspec.convert(plain, cls, strict=False)


def _shown(text: str | None, default: Any) -> Any:
    return default if text is None else codec.describe(text)
