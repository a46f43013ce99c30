"""Starting runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar, cast

from loguru import logger

from pyworkflow_ray.actors.inboxes import InboxEntry
from pyworkflow_ray.actors.new_runs import label, new_run
from pyworkflow_ray.authoring.arguments import Hint
from pyworkflow_ray.authoring.workflows import WorkflowFunction, as_workflow
from pyworkflow_ray.client.event_loops import run_sync
from pyworkflow_ray.client.guards import refuse_in_workflow
from pyworkflow_ray.client.handles import RunHandle
from pyworkflow_ray.client.lookups import latest_of_chain
from pyworkflow_ray.client.progress import Progress
from pyworkflow_ray.client.runtimes import LOCAL
from pyworkflow_ray.client.sessions import Session, session
from pyworkflow_ray.client.shipments import shipped
from pyworkflow_ray.durations import Duration, When, resolve_when
from pyworkflow_ray.engine.events import CancellationRequested
from pyworkflow_ray.exceptions import (
    ConfigurationError,
    WorkflowAlreadyRunningError,
)
from pyworkflow_ray.ids import checked_run_id, checked_text, new_run_id
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.acceptances import Accepted, NewRun, accept
from pyworkflow_ray.storage.codes import Code
from pyworkflow_ray.storage.inboxes import CANCEL_KEY
from pyworkflow_ray.storage.placements import Loads
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.runs import delete_run, get_by_idempotency_key, get_chain, releasing_key
from pyworkflow_ray.storage.works import Steps, ask, work

P = ParamSpec("P")
CONFLICTS = ("use_existing", "fail", "replace")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StartOptions:
    """The options of a start. None leaves an option to the workflow or the settings."""

    idempotency_key: str | None = None
    run_id: str | None = None
    attributes: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    runtime: str | None = None
    durable: bool | None = None
    storage: Any = None
    start_at: When | None = None
    conflict: str = "use_existing"

    def __post_init__(self) -> None:
        if self.run_id is not None:
            checked_run_id(self.run_id)
        if self.idempotency_key is not None:
            checked_text(self.idempotency_key, "The idempotency key")
        for key in self.attributes or ():
            checked_text(key, "The name of an attribute")


_OPTIONS = (*StartOptions.__dataclass_fields__, "delay")


class Starter:
    """`start` with its options given: a call takes the workflow and its arguments."""

    def __init__(self, options: StartOptions) -> None:
        self._options = options

    async def __call__(
        self, fn: WorkflowFunction[P, T] | Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> RunHandle[T]:
        of = session(self._options.runtime, self._options.storage)
        return cast(RunHandle[T], await start_run(of, self._options, fn, args, kwargs))


class Start:
    """Starts runs. `start.options(...)` separates its options from the workflow's arguments."""

    async def __call__(
        self,
        fn: WorkflowFunction[Any, T] | Any,
        /,
        *args: Any,
        runtime: str | None = None,
        durable: bool | None = None,
        storage: Any = None,
        idempotency_key: str | None = None,
        **kwargs: Any,
    ) -> RunHandle[T]:
        """Start a run, and return once it is durably accepted. After that no crash can lose it.

        Args:
            fn: A `@workflow` function, a `Workflow` class, or the name of an imported workflow.
            args, kwargs: The workflow's arguments.
            runtime: "ray" or "local"; the setting `default_runtime` by default.
            durable: If False, the run keeps no history.
            storage: Another database than the configured one.
            idempotency_key: If a run of this workflow has the key already, that run is returned.

        Raises:
            StepValidationError: The arguments do not fit the workflow's signature.
            ConfigurationError: The code cannot be sent to other processes, or the cluster is not there.
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
        start_at: datetime | None = None,
        delay: Duration | None = None,
        conflict: str = "use_existing",
        runtime: str | None = None,
        durable: bool | None = None,
        storage: Any = None,
    ) -> Starter:
        """``await start.options(idempotency_key=order_id)(order, order_id)``.

        Args:
            idempotency_key: If a run of this workflow has the key already, that run is returned.
            run_id: An id of your own, unique in the storage.
            attributes: Values by which `list_runs` finds the run.
            metadata: Values that are kept with the run.
            start_at: The time at which the run starts, instead of now. A naive `datetime` is UTC.
            delay: How long the start waits.
            conflict: What to do if a run of this workflow has the idempotency key already. "use_existing"
                returns that run. "fail" raises `WorkflowAlreadyRunningError`. "replace" cancels that run and
                starts a new one, which gets the key.
            runtime, durable, storage: As in `start`.
        """
        if conflict not in CONFLICTS:
            raise ConfigurationError(
                f"conflict is {conflict!r}: give one of {', '.join(map(repr, CONFLICTS))}."
            )
        if start_at is not None and delay is not None:
            raise ConfigurationError("start_at and delay both say when to start: give one of them.")
        when = delay if delay is not None else start_at
        if when is not None:
            resolve_when(when, datetime.now(UTC))  # raises an error here if it cannot be read
        return Starter(
            StartOptions(
                idempotency_key=idempotency_key,
                run_id=run_id,
                attributes=attributes,
                metadata=metadata,
                runtime=runtime,
                durable=durable,
                storage=storage,
                start_at=when,
                conflict=conflict,
            )
        )


start = Start()


class SyncStarter:
    """`start_sync` with its options given: a call takes the workflow and its arguments."""

    def __init__(self, starter: Starter) -> None:
        self._starter = starter

    def __call__(
        self, fn: WorkflowFunction[P, T] | Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> RunHandle[T]:
        refuse_in_workflow("start_sync")
        return run_sync(self._starter(fn, *args, **kwargs))


class StartSync:
    """Starts runs, blocking. `start_sync.options(...)` separates its options from the arguments."""

    def __call__(
        self,
        fn: WorkflowFunction[Any, T] | Any,
        /,
        *args: Any,
        runtime: str | None = None,
        durable: bool | None = None,
        storage: Any = None,
        idempotency_key: str | None = None,
        **kwargs: Any,
    ) -> RunHandle[T]:
        """Start a run, blocking until it is durably accepted; see `start`."""
        refuse_in_workflow("start_sync")
        work = start(
            fn,
            *args,
            runtime=runtime,
            durable=durable,
            storage=storage,
            idempotency_key=idempotency_key,
            **kwargs,
        )
        return run_sync(work)

    def options(self, **options: Any) -> SyncStarter:
        """``start_sync.options(delay="1h")(order, order_id)``. Takes every option of `start.options`."""
        return SyncStarter(start.options(**options))


start_sync = StartSync()


def run_workflow(fn: WorkflowFunction[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Start a run, wait for it, and return its result or raise what it raised.

    This blocks, and works in scripts and in notebooks. In a terminal it shows what the run does.
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
    checked_args, checked_kwargs = definition.check_arguments(args, kwargs, _hint(definition.name))
    await of.runtime.open()
    # First, so that a delay is over no earlier than it says after the run was asked for: shipping takes time.
    created_at = datetime.now(UTC)
    shipment = await shipped(of, definition, f"workflow {definition.name!r}")
    with shipment.for_its_run():
        new = _new_run(of, options, definition, shipment.code, checked_args, checked_kwargs, created_at)
    accepted, replaced = await of.storage.write(_accept(new, options.conflict, of.storage.loads))
    if not accepted.is_new and new.idempotency_key is not None and _never_began(accepted.run):
        logger.warning(
            "Run {} has the idempotency key {!r} and could not begin: {}. Another run takes its place",
            *(accepted.run.run_id, new.idempotency_key, accepted.run.error),
        )
        accepted, replaced = await of.storage.write(_accept(new, "replace", of.storage.loads))
    handle: RunHandle[Any] = RunHandle(accepted.run.run_id, of, accepted.run if accepted.is_new else None)
    if not accepted.is_new:
        if options.conflict == "fail":
            raise WorkflowAlreadyRunningError(accepted.run.run_id)
        await _require_same(of, accepted.run, new)
        return handle
    await hand_over(of, accepted.run)
    if replaced is not None:
        await of.runtime.wake(replaced)
    if of.runtime.name == LOCAL:
        await _raise_local_failure(handle)
    return handle


def _hint(workflow: str) -> Hint:
    """Says of a keyword that the workflow does not take whether it is an option of a start."""

    def hint(name: str) -> str:
        if name not in _OPTIONS:
            return ""
        return (
            f"{name!r} is an option: await start.options({name}=...)({workflow}, ...) gives it, and so does "
            f"start_sync.options({name}=...)({workflow}, ...)."
        )

    return hint


async def hand_over(of: Session, run: RunRecord) -> None:
    """Let the runtime drive an accepted run."""
    try:
        await of.runtime.start(run)
    except ConfigurationError:
        await of.storage.write(delete_run(run.run_id))
        raise


def _never_began(run: RunRecord) -> bool:
    """Whether the run was set aside before any of its code ran, as one is whose code cannot be loaded."""
    return run.status is RunStatus.INTERRUPTED and run.position == 0


@work
def _accept(new: NewRun, conflict: str, loads: Loads) -> Steps[tuple[Accepted, RunRecord | None]]:
    """The run that is there now, and the live one that it has replaced."""
    replaced = None
    if conflict == "replace" and new.idempotency_key is not None:
        key, workflow = new.idempotency_key, new.workflow_name
        holder = yield from get_by_idempotency_key(key, workflow)
        if holder is not None and holder.run_id != new.run_id:
            yield ask(releasing_key(holder.run_id))
            if not holder.status.is_terminal:
                request = CancellationRequested(reason=f"it was replaced by {new.run_id}")
                yield ask(InboxEntry(holder.run_id, CANCEL_KEY, request).posting())
                replaced = holder
    accepted = yield from accept(new, loads).at_end()
    return accepted, replaced


def _new_run(
    of: Session,
    options: StartOptions,
    definition: WorkflowFunction[Any, Any],
    code: Code,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    created_at: datetime,
) -> NewRun:
    run_id = options.run_id or new_run_id()
    what = f"workflow {definition.name!r}"
    start_at = None if options.start_at is None else resolve_when(options.start_at, of.runtime.now())
    isolated = definition.workflow_options.isolation == "process" or of.settings.coordinators == "per_run"
    return new_run(
        of.runtime.engine_settings,
        definition,
        code,
        run_id,
        of.values.encode(list(args), f"the arguments of {what}"),
        of.values.encode(dict(kwargs), f"the keyword arguments of {what}"),
        idempotency_key=options.idempotency_key,
        created_at=created_at,
        durable=options.durable,
        metadata=label(options.metadata),
        attributes=label(options.attributes),
        **of.runtime.placing(run_id, isolated, start_at, code.bundle),
    )


async def _require_same(of: Session, existing: RunRecord, new: NewRun) -> None:
    """Check that an existing run has the same input. A key or a run id belongs to one input."""
    first = existing
    if existing.continued_from_run_id is not None:
        chain = await asyncio.to_thread(of.storage.read, get_chain(existing.run_id))
        first = chain[0] if chain else existing
    if first.input_hash != new.input_hash or first.workflow_name != new.workflow_name:
        run_id = existing.run_id
        what = f"idempotency key {new.idempotency_key!r}" if new.idempotency_key else f"run id {new.run_id!r}"
        raise WorkflowAlreadyRunningError(
            run_id,
            f"The {what} belongs to run {run_id!r}, which was started with other arguments. "
            "Use another key for each input.",
        )


async def _raise_local_failure(handle: RunHandle[Any]) -> None:
    """Raise what the run raised: in process, `start` has driven the run."""
    last = await latest_of_chain(handle._session, str(handle))
    if last.status.is_terminal and last.status is not RunStatus.COMPLETED:
        await handle.result()
