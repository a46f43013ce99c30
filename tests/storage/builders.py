"""Runs and appends with only what a test is about spelled out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from pyworkflow_ray.storage.acceptances import NewRun, accept
from pyworkflow_ray.storage.histories import Append, append
from pyworkflow_ray.storage.leases import claim
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.storages import Storage

NOON = datetime(2031, 5, 4, 12, 0, 0, 123456, tzinfo=UTC)


def new_run(run_id: str = "run_1", **fields: Any) -> NewRun:
    return NewRun(
        **{"run_id": run_id, "workflow_name": "order", "input_args": "[]", "input_kwargs": "{}", **fields}
    )


def write(storage: Storage, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The committed result of a work `function(*args)`, or of `function(connection, *args)`."""
    return storage.submit(task(function, *args, **options)).result(timeout=30)


def read(storage: Storage, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return storage.read(task(function, *args, **options))


def task(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A work, or a function that wants the connection, ready to be submitted."""
    if makes_work(function):
        return function(*args, **options)
    return lambda connection: function(connection, *args, **options)


def makes_work(function: Callable[..., Any]) -> bool:
    return inspect.isgeneratorfunction(inspect.unwrap(function))


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
