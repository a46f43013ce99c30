"""Accepting a run: from here on it exists, and will run, whoever crashes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy.engine import Connection

from pyworkflow_ray.storage.blobs import save_blobs
from pyworkflow_ray.storage.codes import Code, save_code
from pyworkflow_ray.storage.dialects import Row, Statement
from pyworkflow_ray.storage.placements import Placement, choose_coordinator
from pyworkflow_ray.storage.records import COLUMNS, RunRecord, run_record

_COPIED = (
    *("run_id", "workflow_name", "code_hash", "wake_at", "start_at", "durable"),
    *("parent_run_id", "nesting_depth", "child_id", "continued_from_run_id", "idempotency_key"),
    *("schedule_id", "scheduled_at"),
    *("input_hash", "input_args", "input_kwargs", "metadata", "attributes", "tags"),
    *("max_duration", "recover_on_worker_loss", "max_recovery_attempts"),
)
_COMPUTED = {
    "status": "'pending'",
    "root_run_id": "COALESCE(:root_run_id, :run_id)",
    "environment": ":environment",
    "coordinator": ":coordinator",
    "owner": ":owner",
    "epoch": ":epoch",
    "updated_at": "<now>",
}


def _insert(created_at: str, lease: str) -> Statement:
    values = {name: f":{name}" for name in _COPIED} | _COMPUTED
    values |= {"created_at": created_at, "lease_expires_at": lease}
    return Statement(
        f"INSERT INTO runs ({', '.join(values)}) VALUES ({', '.join(values.values())}) "
        f"ON CONFLICT DO NOTHING RETURNING {COLUMNS}"
    )


_INSERTS = {
    (has_time, is_leased): _insert(
        ":created_at" if has_time else "<now>", "<now + :ttl>" if is_leased else "NULL"
    )
    for has_time in (False, True)
    for is_leased in (False, True)
}
_SAME_ID = Statement(f"SELECT {COLUMNS} FROM runs WHERE run_id = :run_id")
_SAME_KEY = Statement(
    f"SELECT {COLUMNS} FROM runs WHERE idempotency_key = :idempotency_key AND workflow_name = :workflow_name"
)


class NewRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run to accept; values are JSON text.

    Args:
        created_at: When it was asked for, by the caller's clock; None takes the database's. Given, it also
            tells a second call with the same custom `run_id` from the same call run again.
        environment: Hash of the job's `runtime_env`; with a `placement`, the placement's counts.
        coordinator: The coordinator it lives with, if that is not to be chosen.
        placement: The slots to choose its coordinator from. Leave both out for a run that starts later.
        owner_lease: Seconds for which the run is born held by its coordinator: epoch 1, and `owner` is the
            coordinator's name. It needs no claim then; a coordinator that never comes loses it by time.
        child_id: The id by which its parent knows it.
        schedule_id, scheduled_at: Of a run that a schedule makes, and the fire it is made for.
        start_at, wake_at: Of a run that starts later: the sweep finds it when `wake_at` has come.
        blobs: See `Append.blobs`.
    """

    run_id: str
    workflow_name: str
    input_args: str
    input_kwargs: str
    input_hash: str = ""
    code_hash: str | None = None
    idempotency_key: str | None = None
    environment: str = ""
    coordinator: str | None = None
    placement: Placement | None = None
    owner_lease: float | None = None
    created_at: datetime | None = None
    start_at: datetime | None = None
    wake_at: datetime | None = None
    durable: bool = True
    parent_run_id: str | None = None
    root_run_id: str | None = None
    nesting_depth: int = 0
    child_id: str | None = None
    continued_from_run_id: str | None = None
    schedule_id: str | None = None
    scheduled_at: datetime | None = None
    metadata: str | None = None
    attributes: str | None = None
    tags: str | None = None
    max_duration: float | None = None
    recover_on_worker_loss: bool = True
    max_recovery_attempts: int = 3
    code: Code | None = None
    blobs: Sequence[tuple[str, bytes | None]] = ()


class Accepted(msgspec.Struct, frozen=True):
    """The run that is there now, and whether it is the one that was asked for just now."""

    run: RunRecord
    is_new: bool


def accept(connection: Connection, new: NewRun) -> Accepted:
    """Insert the run, or find the one that holds its id or its idempotency key.

    After the commit the run exists exactly once, with its code and its coordinator. It is safe to run
    again: the run that an earlier try inserted is the new one still. `is_new` is False for an
    idempotency key in use (compare `input_hash`), and for a custom run id in use by another input.
    """
    if new.code is not None:
        save_code(connection, new.code)
    coordinator, environment = new.coordinator, new.environment
    if new.placement is not None:
        environment = new.placement.environment
        coordinator = coordinator or choose_coordinator(connection, new.placement)
    while True:
        inserted = _insert_run(connection, new, coordinator, environment)
        if inserted is not None:
            save_blobs(connection, new.run_id, new.blobs)
            return Accepted(run_record(inserted), is_new=True)
        existing = _existing(connection, new)
        if existing is not None:
            return existing
        # What the insert met was deleted between the two statements; the way is free now.


def _insert_run(connection: Connection, new: NewRun, coordinator: str | None, environment: str) -> Row | None:
    is_leased = new.owner_lease is not None and coordinator is not None
    parameters: dict[str, Any] = {name: getattr(new, name) for name in _COPIED}
    parameters |= {
        "root_run_id": new.root_run_id,
        "environment": environment,
        "coordinator": coordinator,
        "owner": coordinator if is_leased else None,
        "epoch": 1 if is_leased else 0,
    }
    if new.created_at is not None:
        parameters["created_at"] = new.created_at
    if is_leased:
        parameters["ttl"] = new.owner_lease
    return _INSERTS[new.created_at is not None, is_leased].row(connection, **parameters)


def _existing(connection: Connection, new: NewRun) -> Accepted | None:
    row = _SAME_ID.row(connection, run_id=new.run_id)
    if row is not None:
        run = run_record(row)
        return Accepted(run, is_new=_is_same_request(run, new))
    key, workflow = new.idempotency_key, new.workflow_name
    row = _SAME_KEY.row(connection, idempotency_key=key, workflow_name=workflow)
    return None if row is None else Accepted(run_record(row), is_new=False)


def _is_same_request(run: RunRecord, new: NewRun) -> bool:
    return (
        (run.workflow_name, run.idempotency_key, run.input_hash)
        == (new.workflow_name, new.idempotency_key, new.input_hash)
    ) and new.created_at in (None, run.created_at)
