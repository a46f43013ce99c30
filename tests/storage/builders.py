"""Runs and appends with only what a test is about spelled out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy.engine import Connection

from pyworkflow_ray.storage.acceptances import NewRun, accept
from pyworkflow_ray.storage.histories import Append, append
from pyworkflow_ray.storage.leases import claim
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.storages import Storage

T = TypeVar("T")

NOON = datetime(2031, 5, 4, 12, 0, 0, 123456, tzinfo=UTC)


def new_run(run_id: str = "run_1", **fields: Any) -> NewRun:
    return NewRun(
        **{"run_id": run_id, "workflow_name": "order", "input_args": "[]", "input_kwargs": "{}", **fields}
    )


def write(storage: Storage, function: Callable[..., T], *args: Any, **options: Any) -> T:
    """The committed result of `function(connection, *args, **options)`."""

    def run(connection: Connection) -> T:
        return function(connection, *args, **options)

    return storage.submit(run).result(timeout=30)


def read(storage: Storage, function: Callable[..., T], *args: Any, **options: Any) -> T:
    return storage.read(lambda connection: function(connection, *args, **options))


def accepted(storage: Storage, run_id: str = "run_1", **fields: Any) -> RunRecord:
    return write(storage, accept, new_run(run_id, **fields)).run


def claimed(storage: Storage, run_id: str = "run_1", owner: str = "process-1", ttl: float = 60) -> RunRecord:
    """The run, accepted if it is not there, and held by `owner`."""
    if read(storage, get_run, run_id) is None:
        accepted(storage, run_id)
    run = write(storage, claim, run_id, owner, ttl)
    assert run is not None
    return run


def events(*types: str, at: datetime = NOON) -> list[tuple[datetime, str, bytes]]:
    return [
        (at + timedelta(microseconds=number), type_, f'{{"step_id":"s#{number}"}}'.encode())
        for number, type_ in enumerate(types)
    ]


def new_append(run: RunRecord, *types: str, **fields: Any) -> Append:
    """An append of events of these types at the run's end."""
    return Append(
        **{
            "run_id": run.run_id,
            "epoch": run.epoch,
            "position": run.position,
            "events": events(*types),
            **fields,
        }
    )


def appended(storage: Storage, run: RunRecord, *types: str, **fields: Any) -> RunRecord:
    write(storage, append, new_append(run, *types, **fields))
    after = read(storage, get_run, run.run_id)
    assert after is not None
    return after
