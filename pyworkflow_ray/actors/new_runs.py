"""The rows of new runs: of runs that a client starts, of children, and of successors."""

from __future__ import annotations

import hashlib
from typing import Any

from pyworkflow_ray.actors.payloads import split_value
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.storage.acceptances import NewRun
from pyworkflow_ray.storage.codes import Code
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.values import codec


def new_run(
    settings: EngineSettings,
    definition: Any,
    code: Code,
    run_id: str,
    args: bytes,
    kwargs: bytes,
    **others: Any,
) -> NewRun:
    """A run of a workflow, with the workflow's options over the engine's defaults.

    Args:
        args, kwargs: The arguments, encoded.
        others: Further fields of the run; `durable` of None leaves that to the workflow.
    """
    own = definition.workflow_options
    durable = next(
        (d for d in (others.pop("durable", None), own.durable) if d is not None), settings.default_durable
    )
    recover, attempts = own.recover_on_worker_loss, own.max_recovery_attempts
    return NewRun(
        run_id=run_id,
        workflow_name=definition.name,
        code_hash=code.hash,
        code=code,
        durable=durable,
        tags=label(list(own.tags) or None),
        max_duration=None if own.max_duration is None else own.max_duration.total_seconds(),
        recover_on_worker_loss=settings.default_recover_on_worker_loss if recover is None else recover,
        max_recovery_attempts=settings.default_max_recovery_attempts if attempts is None else attempts,
        **_input(settings, args, kwargs),
        **({"owner_lease": settings.lease_ttl.total_seconds()} | others),
    )


def child_of(
    parent: RunRecord,
    settings: EngineSettings,
    definition: Any,
    code: Code,
    child_id: str,
    run_id: str,
    args: bytes,
    kwargs: bytes,
) -> NewRun:
    """A child run. It is placed with its parent."""
    return new_run(
        settings,
        definition,
        code,
        run_id,
        args,
        kwargs,
        parent_run_id=parent.run_id,
        root_run_id=parent.root_run_id,
        nesting_depth=parent.nesting_depth + 1,
        child_id=child_id,
        coordinator=parent.coordinator,
        environment=parent.environment,
    )


def successor_of(run: RunRecord, settings: EngineSettings, run_id: str, args: bytes, kwargs: bytes) -> NewRun:
    """The run in which this one continues. It has all that this one has, but the history."""
    return NewRun(
        run_id=run_id,
        continued_from_run_id=run.run_id,
        owner_lease=settings.lease_ttl.total_seconds(),
        root_run_id=run_id if run.root_run_id == run.run_id else run.root_run_id,
        **_kept(run),
        **_input(settings, args, kwargs),
    )


_KEPT = (
    *("workflow_name", "code_hash", "durable", "environment", "coordinator", "parent_run_id", "child_id"),
    *("nesting_depth", "schedule_id", "scheduled_at", "metadata", "attributes", "tags", "max_duration"),
    *("recover_on_worker_loss", "max_recovery_attempts"),
)


def _kept(run: RunRecord) -> dict[str, Any]:
    return {name: getattr(run, name) for name in _KEPT}


def _input(settings: EngineSettings, args: bytes, kwargs: bytes) -> dict[str, Any]:
    stored_args, args_blob = split_value(args, settings.blob_threshold)
    stored_kwargs, kwargs_blob = split_value(kwargs, settings.blob_threshold)
    return {
        "input_args": stored_args.decode(),
        "input_kwargs": stored_kwargs.decode(),
        "input_hash": hashlib.sha256(args + b"\0" + kwargs).hexdigest(),
        "blobs": [blob for blob in (args_blob, kwargs_blob) if blob is not None],
    }


def label(value: Any) -> str | None:
    """A label as it is stored. Tools show labels and search for them, so no payload codec encrypts them.
    Secrets belong in arguments."""
    return None if value is None else codec.encode(value).decode()
