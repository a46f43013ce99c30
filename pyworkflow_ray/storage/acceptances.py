"""Accepting a run. After the commit the run exists and will run, whichever process crashes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from pyworkflow_ray.storage.blobs import saving_blobs
from pyworkflow_ray.storage.codes import Code, saving_code
from pyworkflow_ray.storage.placements import CHOSEN_COORDINATOR, Loads, Placement, known_loads
from pyworkflow_ray.storage.records import COLUMNS, RunRecord, run_record
from pyworkflow_ray.storage.statements import Bound, Statement
from pyworkflow_ray.storage.works import Steps, ask, last, work

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
    "owner": "NULL",
    "epoch": ":epoch",
    "updated_at": "<now>",
}


def _insert(created_at: str, lease: str, coordinator: str) -> Statement:
    values = {name: f":{name}" for name in _COPIED} | _COMPUTED
    values |= {"created_at": created_at, "lease_expires_at": lease, "coordinator": coordinator}
    if lease != "NULL":
        values["owner"] = coordinator  # the coordinator that the run is placed with holds it from the start
    return Statement(
        f"INSERT INTO runs ({', '.join(values)}) VALUES ({', '.join(values.values())}) "
        f"ON CONFLICT DO NOTHING RETURNING {COLUMNS}"
    )


_INSERTS = {
    (has_time, is_leased, is_chosen): _insert(
        ":created_at" if has_time else "<now>",
        "<now + :ttl>" if is_leased else "NULL",
        CHOSEN_COORDINATOR if is_chosen else ":coordinator",
    )
    for has_time in (False, True)
    for is_leased in (False, True)
    for is_chosen in (False, True)
}
_SAME_ID = Statement(f"SELECT {COLUMNS} FROM runs WHERE run_id = :run_id")
_SAME_KEY = Statement(
    f"SELECT {COLUMNS} FROM runs WHERE idempotency_key = :idempotency_key AND workflow_name = :workflow_name"
)


class NewRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run to accept; values are JSON text.

    Args:
        created_at: When the run was asked for, by the caller's clock; None takes the database's clock. If it
            is given, it also distinguishes a second call with the same custom `run_id` from the same call
            that runs again.
        environment: Hash of the job's `runtime_env`. With a `placement`, the placement's environment is used.
        coordinator: The coordinator that drives the run, if it is not to be chosen.
        placement: The slots to choose its coordinator from. Leave both out for a run that starts later.
        owner_lease: Seconds for which the coordinator holds the new run: the epoch is 1, and `owner` is the
            coordinator's name. Then the run needs no claim. If the coordinator never comes, the lease runs
            out.
        child_id: The id of the run in its parent.
        schedule_id, scheduled_at: The schedule that makes the run, and the fire that the run is made for.
        start_at, wake_at: For a run that starts later. The sweep finds it when `wake_at` has come.
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
    """The run that exists now, and whether this request made it."""

    run: RunRecord
    is_new: bool


@work
def accept(new: NewRun, loads: Loads | None = None) -> Steps[Accepted]:
    """Insert the run, or find the one that holds its id or its idempotency key.

    After the commit the run exists exactly once, with its code and its coordinator. This is safe to run
    again: a run that an earlier try inserted still counts as new. `is_new` is False if the idempotency key is
    in use (compare `input_hash`), or if the custom run id is in use for another request.

    Args:
        loads: What this process knows about the coordinators' loads. It saves a round trip.
    """
    looking: list[Bound] = []
    choice: dict[str, Any] | None = None
    placement = new.placement if new.coordinator is None else None
    if placement is not None:
        loads, looking = yield from known_loads(placement, loads)
        choice = loads.choice(placement)
    while True:
        inserting = (*saving_code(new.code), _inserting(new, choice))
        # A blob can be linked only to a run that exists, so it needs its own batch.
        answers = yield (ask(*inserting) if new.blobs else last(*inserting, *looking))
        row = answers[len(inserting) - 1]
        run = None if row is None else run_record(row)
        if loads is not None and placement is not None and choice is not None:
            if run is not None:
                loads.placed(placement, choice, run.coordinator)
            if looking and not new.blobs:
                loads.saw(placement, answers[-1])
        if run is not None:
            if new.blobs:
                yield last(*saving_blobs(new.run_id, new.blobs))
            return Accepted(run, is_new=True)
        existing = yield from _existing(new).at_end()
        if existing is not None:
            return existing
        # The run that the insert conflicted with was deleted between the two statements. Try again.


def _inserting(new: NewRun, choice: dict[str, Any] | None) -> Bound:
    is_leased = new.owner_lease is not None and (choice is not None or new.coordinator is not None)
    parameters: dict[str, Any] = {name: getattr(new, name) for name in _COPIED}
    parameters |= {
        "root_run_id": new.root_run_id,
        "environment": new.environment if new.placement is None else new.placement.environment,
        "epoch": 1 if is_leased else 0,
    }
    parameters |= {"coordinator": new.coordinator} if choice is None else choice
    if new.created_at is not None:
        parameters["created_at"] = new.created_at
    if is_leased:
        parameters["ttl"] = new.owner_lease
    return _INSERTS[new.created_at is not None, is_leased, choice is not None].find(**parameters)


@work
def _existing(new: NewRun) -> Steps[Accepted | None]:
    same_id, same_key = yield last(
        _SAME_ID.find(run_id=new.run_id),
        _SAME_KEY.find(idempotency_key=new.idempotency_key, workflow_name=new.workflow_name),
    )
    if same_id is not None:
        run = run_record(same_id)
        return Accepted(run, is_new=_is_same_request(run, new))
    return None if same_key is None else Accepted(run_record(same_key), is_new=False)


def _is_same_request(run: RunRecord, new: NewRun) -> bool:
    return (
        (run.workflow_name, run.idempotency_key, run.input_hash)
        == (new.workflow_name, new.idempotency_key, new.input_hash)
    ) and new.created_at in (None, run.created_at)
