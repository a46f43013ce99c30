"""Starting runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar, cast

from pyworkflow_ray import values
from pyworkflow_ray.actors.codes import pack
from pyworkflow_ray.actors.payloads import Payloads
from pyworkflow_ray.client.handles import RunHandle, refuse_in_workflow
from pyworkflow_ray.client.loops import run_sync
from pyworkflow_ray.client.progress import Progress
from pyworkflow_ray.client.runtimes import LOCAL
from pyworkflow_ray.client.sessions import Session, session
from pyworkflow_ray.exceptions import (
    ConfigurationError,
    WorkflowAlreadyRunningError,
)
from pyworkflow_ray.ids import new_run_id
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.acceptances import Accepted, NewRun, accept
from pyworkflow_ray.storage.runs import delete_run
from pyworkflow_ray.workflows import WorkflowFunction, as_workflow

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StartOptions:
    """How a run is started; None leaves an option to the workflow or the settings."""

    idempotency_key: str | None = None
    run_id: str | None = None
    attributes: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    runtime: str | None = None
    durable: bool | None = None
    storage: Any = None


class Starter:
    """`start` with options of its own, kept apart from the workflow's arguments."""

    def __init__(self, options: StartOptions) -> None:
        self._options = options

    async def __call__(
        self, fn: WorkflowFunction[P, T] | Callable[P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> RunHandle[T]:
        of = session(self._options.runtime, self._options.storage)
        return cast(RunHandle[T], await start_run(of, self._options, fn, args, kwargs))


class Start:
    """Starts runs; `start.options(...)` keeps its options apart from the workflow's arguments."""

    async def __call__(
        self,
        fn: WorkflowFunction[Any, T] | Any,
        *args: Any,
        runtime: str | None = None,
        durable: bool | None = None,
        storage: Any = None,
        idempotency_key: str | None = None,
        **kwargs: Any,
    ) -> RunHandle[T]:
        """Start a run and return once it is durably accepted; whatever crashes now, it will run.

        Args:
            fn: A `@workflow` function, a `Workflow` class, or the name of one that was imported.
            args, kwargs: The workflow's arguments.
            runtime: "ray" or "local"; the setting `default_runtime` by default.
            durable: False keeps no history.
            storage: Another database than the configured one.
            idempotency_key: A run of this workflow that has the key already is returned instead.

        Raises:
            StepValidationError: The arguments do not fit the workflow's signature.
            ConfigurationError: The code cannot travel, or the cluster is not there.
            StorageError: The database cannot be reached.
            WorkflowAlreadyRunningError: The key is in use with other arguments.
        """
        options = StartOptions(
            runtime=runtime, durable=durable, storage=storage, idempotency_key=idempotency_key
        )
        _refuse_ambiguous(fn, options)
        return cast(RunHandle[T], await start_run(session(runtime, storage), options, fn, args, kwargs))

    def options(
        self,
        *,
        idempotency_key: str | None = None,
        run_id: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        runtime: str | None = None,
        durable: bool | None = None,
        storage: Any = None,
    ) -> Starter:
        """``await start.options(idempotency_key=order_id)(order, order_id)``.

        Args:
            idempotency_key: A run of this workflow that has the key already is returned instead.
            run_id: An id of your own; unique in the storage.
            attributes: What `list_runs` finds the run by.
            metadata: Kept with the run.
            runtime, durable, storage: As of `start`.
        """
        return Starter(StartOptions(idempotency_key, run_id, attributes, metadata, runtime, durable, storage))


start = Start()


def start_sync(fn: WorkflowFunction[Any, T] | Any, *args: Any, **kwargs: Any) -> RunHandle[T]:
    """Start a run, blocking until it is durably accepted; see `start`."""
    return run_sync(start(fn, *args, **kwargs))


def run_workflow(fn: WorkflowFunction[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Start a run, wait for it, and give its result or raise what it raised.

    Blocking; works in scripts and in notebooks. In a terminal it shows what the run does.
    """
    refuse_in_workflow("run_workflow")

    async def work() -> T:
        run = await start_run(session(), StartOptions(), fn, args, kwargs)
        async with Progress(run._session, str(run)):
            return cast(T, await run.result())

    return run_sync(work())


def _refuse_ambiguous(fn: Any, options: StartOptions) -> None:
    given = [
        name
        for name in ("runtime", "durable", "storage", "idempotency_key")
        if getattr(options, name) is not None
    ]
    if not given:
        return
    definition = as_workflow(fn)
    for name in given:
        if name in definition.parameters:
            raise ConfigurationError(
                f"{name!r} is an option of start() and a parameter of workflow {definition.name!r}. Say "
                f"which is meant: start.options({name}=...)(workflow, ...) for the option, "
                f"start.options()(workflow, {name}=...) for the parameter."
            )


async def start_run(
    of: Session, options: StartOptions, fn: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> RunHandle[Any]:
    """Accept a run in the session's storage and hand it to its runtime; see `Start`."""
    refuse_in_workflow("start")
    definition = as_workflow(fn)
    checked_args, checked_kwargs = definition.check_arguments(args, kwargs)
    await of.runtime.open()
    new = _new_run(of, options, definition, checked_args, checked_kwargs)
    accepted = await of.storage.write(lambda connection: accept(connection, new))
    handle: RunHandle[Any] = RunHandle(accepted.run.run_id, of, accepted.run if accepted.is_new else None)
    if not accepted.is_new:
        _require_same(accepted, new)
        return handle
    try:
        await of.runtime.start(accepted.run)
    except ConfigurationError:
        await of.storage.write(lambda connection: delete_run(connection, new.run_id))
        raise
    if of.runtime.name == LOCAL:
        await _raise_local_failure(handle)
    return handle


def _new_run(
    of: Session,
    options: StartOptions,
    definition: WorkflowFunction[Any, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> NewRun:
    settings = of.settings
    own = definition.workflow_options
    run_id = options.run_id or new_run_id()
    code = pack(definition, f"workflow {definition.name!r}")
    payloads = Payloads(of.values, lambda digest: b"", settings.blob_threshold)
    encoded_args = of.values.encode(list(args), f"the arguments of workflow {definition.name!r}")
    encoded_kwargs = of.values.encode(dict(kwargs), f"the keyword arguments of workflow {definition.name!r}")
    stored_args, args_blob = payloads.split_value(encoded_args)
    stored_kwargs, kwargs_blob = payloads.split_value(encoded_kwargs)
    durable = next((d for d in (options.durable, own.durable) if d is not None), settings.default_durable)
    recover = own.recover_on_worker_loss
    attempts = own.max_recovery_attempts
    return NewRun(
        run_id=run_id,
        workflow_name=definition.name,
        input_args=stored_args.decode(),
        input_kwargs=stored_kwargs.decode(),
        input_hash=hashlib.sha256(encoded_args + b"\0" + encoded_kwargs).hexdigest(),
        code_hash=code.hash,
        code=code,
        idempotency_key=options.idempotency_key,
        owner_lease=settings.lease_ttl.total_seconds(),
        created_at=datetime.now(UTC),
        durable=durable,
        metadata=_label(options.metadata),
        attributes=_label(options.attributes),
        tags=_label(list(own.tags) or None),
        max_duration=None if own.max_duration is None else own.max_duration.total_seconds(),
        recover_on_worker_loss=settings.default_recover_on_worker_loss if recover is None else recover,
        max_recovery_attempts=settings.default_max_recovery_attempts if attempts is None else attempts,
        blobs=[blob for blob in (args_blob, kwargs_blob) if blob is not None],
        **of.runtime.placing(run_id, own.isolation == "process" or settings.coordinators == "per_run"),
    )


def _label(value: Any) -> str | None:
    # Labels are for tools to show and to search, and are not sealed; what is secret is an argument.
    return None if value is None else values.encode(value).decode()


def _require_same(accepted: Accepted, new: NewRun) -> None:
    """An idempotency key, or a run id, belongs to one input."""
    if accepted.run.input_hash != new.input_hash or accepted.run.workflow_name != new.workflow_name:
        run_id = accepted.run.run_id
        what = f"idempotency key {new.idempotency_key!r}" if new.idempotency_key else f"run id {new.run_id!r}"
        raise WorkflowAlreadyRunningError(
            run_id,
            f"The {what} belongs to run {run_id!r}, which was started with other arguments. "
            "Use a key of its own for each input.",
        )


async def _raise_local_failure(handle: RunHandle[Any]) -> None:
    """In process, `start` has driven the run, and raises what it raised."""
    status = await handle.status()
    if status.is_terminal and status is not RunStatus.COMPLETED:
        await handle.result()
