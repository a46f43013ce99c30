"""Schedules: making, changing, looking at them, and firing by hand."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import msgspec

from pyworkflow_ray.actors.codes import pack
from pyworkflow_ray.actors.new_runs import new_run
from pyworkflow_ray.authoring.schedules import window_of
from pyworkflow_ray.authoring.workflows import WorkflowFunction, as_workflow
from pyworkflow_ray.client.handles import refuse_in_workflow
from pyworkflow_ray.client.records import Event
from pyworkflow_ray.client.sessions import Session, session
from pyworkflow_ray.durations import Duration
from pyworkflow_ray.exceptions import ConfigurationError, ScheduleNotFoundError
from pyworkflow_ray.recurrences.overlaps import policy_of
from pyworkflow_ray.recurrences.specs import ScheduleSpec
from pyworkflow_ray.statuses import OverlapPolicy, ScheduleStatus
from pyworkflow_ray.storage import fires, schedules
from pyworkflow_ray.storage.acceptances import NewRun
from pyworkflow_ray.storage.codes import Code
from pyworkflow_ray.storage.schedules import ScheduleRecord
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.values import codec


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule as its row tells it. `args` and `kwargs` hold plain JSON values; nothing is unpickled.

    `next_run_time` is the next fire, without its jitter; None while the schedule is paused, and when it has
    no fire any more. It and `last_run_at` are in UTC. `total_runs` were started, of which `successful_runs`
    completed and `failed_runs` failed; `skipped_runs` fires made none. `buffered_count` wait for their turn.
    """

    schedule_id: str
    workflow_name: str
    spec: ScheduleSpec
    status: ScheduleStatus
    overlap_policy: OverlapPolicy
    args: list[Any]
    kwargs: dict[str, Any]
    catchup_window: timedelta
    created_at: datetime
    updated_at: datetime
    next_run_time: datetime | None
    last_run_at: datetime | None
    last_run_id: str | None
    running_run_ids: list[str]
    buffered_count: int
    total_runs: int
    successful_runs: int
    failed_runs: int
    skipped_runs: int
    note: str | None

    @classmethod
    def of(cls, record: ScheduleRecord, running: list[str]) -> Schedule:
        """The schedule of a row, and its runs that have not ended."""
        run = fires.run_of_text(record.run)
        return cls(
            schedule_id=record.schedule_id,
            workflow_name=record.workflow_name,
            spec=record.spec,
            status=record.status,
            overlap_policy=record.overlap_policy,
            args=codec.describe(run.input_args),
            kwargs=codec.describe(run.input_kwargs),
            catchup_window=timedelta(seconds=record.catchup_window),
            created_at=record.created_at,
            updated_at=record.updated_at,
            next_run_time=record.next_fire_at if record.status is ScheduleStatus.ACTIVE else None,
            last_run_at=record.last_run_at,
            last_run_id=record.last_run_id,
            running_run_ids=running,
            buffered_count=len(record.buffered),
            total_runs=record.total_runs,
            successful_runs=record.successful_runs,
            failed_runs=record.failed_runs,
            skipped_runs=record.skipped_runs,
            note=record.note,
        )


@dataclass(frozen=True, slots=True)
class ScheduleOptions:
    """How a schedule is made, apart from the workflow's arguments."""

    overlap_policy: OverlapPolicy | str = OverlapPolicy.SKIP
    schedule_id: str | None = None
    catchup_window: Duration | None = None
    note: str | None = None


class ScheduleMaker:
    """`create_schedule` with options of its own, kept apart from the workflow's arguments."""

    def __init__(self, options: ScheduleOptions) -> None:
        self._options = options

    async def __call__(
        self, workflow_name: Any, spec: ScheduleSpec, /, *args: Any, **kwargs: Any
    ) -> Schedule:
        return await _create(self._options, as_workflow(workflow_name), spec, args, kwargs)


class CreateSchedule:
    """Makes schedules; `create_schedule.options(...)` keeps its options apart from the arguments."""

    async def __call__(
        self,
        workflow_name: WorkflowFunction[Any, Any] | Callable[..., Any] | str,
        spec: ScheduleSpec,
        *args: Any,
        overlap_policy: OverlapPolicy | str = OverlapPolicy.SKIP,
        schedule_id: str | None = None,
        **kwargs: Any,
    ) -> Schedule:
        """Have a workflow run by a schedule, from now on. Each fire makes one run, whoever crashes.

        Args:
            workflow_name: A `@workflow` function, or the name of one that was imported. Its code travels with
                the schedule, as it is now.
            spec: When it fires.
            args, kwargs: The workflow's arguments, the same for each run.
            overlap_policy: What becomes of a fire while a run of the schedule has not ended: "skip" makes no
                run, "buffer_one" has one and "buffer_all" all wait for their turn, "cancel_other" has the
                running one cancelled and then makes a run, "allow_all" makes it beside.
            schedule_id: A name of your own; a random one by default.

        Raises:
            ConfigurationError: There is a schedule with this id, it would never fire, there is no such
                policy, or the code cannot travel.
            StepValidationError: The arguments do not fit the workflow's signature.
        """
        definition = as_workflow(workflow_name)
        for name in ("workflow_name", "spec", "overlap_policy", "schedule_id"):
            if name in definition.parameters:
                raise ConfigurationError(
                    f"{name!r} is a parameter of create_schedule() and of workflow {definition.name!r}. Say "
                    "apart which is meant: create_schedule.options(...)(workflow, spec, ...)."
                )
        options = ScheduleOptions(overlap_policy, schedule_id)
        return await _create(options, definition, spec, args, kwargs)

    def options(
        self,
        *,
        overlap_policy: OverlapPolicy | str = OverlapPolicy.SKIP,
        schedule_id: str | None = None,
        catchup_window: Duration | None = None,
        note: str | None = None,
    ) -> ScheduleMaker:
        """``await create_schedule.options(schedule_id="nightly")(report, spec, "all")``.

        Args:
            overlap_policy, schedule_id: As of `create_schedule`.
            catchup_window: How late a fire may be made up when nobody was there to carry it out: one hour by
                default, ten seconds at least. Fires that are later are skipped.
            note: Shown with the schedule.
        """
        return ScheduleMaker(ScheduleOptions(overlap_policy, schedule_id, catchup_window, note))


create_schedule = CreateSchedule()


async def _create(
    options: ScheduleOptions,
    definition: WorkflowFunction[Any, Any],
    spec: ScheduleSpec,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Schedule:
    refuse_in_workflow("create_schedule")
    schedule_id = options.schedule_id or f"sched_{secrets.token_hex(8)}"
    policy, window = policy_of(options.overlap_policy), window_of(options.catchup_window)
    checked = definition.check_arguments(args, kwargs)
    of = await opened()
    _require_fire(of, spec)
    run, code = run_like(of, definition, *checked)
    made: ScheduleRecord | None = None

    def write(connection: Any) -> ScheduleRecord | None:
        nonlocal made
        record = schedules.create_schedule(
            connection,
            schedule_id,
            run,
            spec,
            policy,
            window.total_seconds(),
            code=code,
            note=options.note,
            now=own_now(of),
        )
        if record is None and made is not None:  # the answer to a COMMIT was lost, and this is run again
            there = schedules.get_schedule(connection, schedule_id)
            return there if there is not None and there.created_at == made.created_at else None
        made = record
        return record

    record = await of.storage.write(write)
    if record is None:
        raise ConfigurationError(
            f"There is a schedule {schedule_id!r}. Change it with update_schedule(), or delete it first."
        )
    await of.runtime.look_at_schedules()
    return await _shown(of, record)


async def get_schedule(schedule_id: str) -> Schedule | None:
    """The schedule, or None. Needs no Ray."""
    refuse_in_workflow("get_schedule")
    return await read_schedule(session().storage, schedule_id)


async def read_schedule(storage: Storage, schedule_id: str) -> Schedule | None:
    """The schedule in this storage; see `get_schedule`."""

    def read(connection: Any) -> Schedule | None:
        record = schedules.get_schedule(connection, schedule_id)
        if record is None or record.status is ScheduleStatus.DELETED:
            return None
        return Schedule.of(record, schedules.running_runs(connection, schedule_id))

    return await asyncio.to_thread(storage.read, read)


async def list_schedules(
    workflow: str | None = None,
    status: ScheduleStatus | str | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> tuple[list[Schedule], str | None]:
    """A page of schedules by their ids, and the cursor of the next page (None behind the last). Needs no Ray.

    Args:
        workflow: Those of one workflow.
        status: "active" or "paused"; both by default. "deleted" lists those that were deleted.
        limit: Schedules in the page, at most.
        cursor: What the page before gave.

    Raises:
        ValueError: There is no such status.
    """
    refuse_in_workflow("list_schedules")
    return await page_of_schedules(session().storage, workflow, status, limit, cursor)


async def page_of_schedules(
    storage: Storage,
    workflow: str | None,
    status: ScheduleStatus | str | None,
    limit: int,
    cursor: str | None,
) -> tuple[list[Schedule], str | None]:
    """A page of the schedules in this storage; see `list_schedules`."""
    wanted = None if status is None else _status_of(status)

    def read(connection: Any) -> tuple[list[Schedule], str | None]:
        found = schedules.list_schedules(connection, wanted, workflow, limit + 1, cursor or "")
        page = [
            Schedule.of(each, schedules.running_runs(connection, each.schedule_id)) for each in found[:limit]
        ]
        return page, page[-1].schedule_id if page and len(found) > limit else None

    return await asyncio.to_thread(storage.read, read)


async def update_schedule(
    schedule_id: str,
    spec: ScheduleSpec | None = None,
    overlap_policy: OverlapPolicy | str | None = None,
    *,
    workflow: WorkflowFunction[Any, Any] | str | None = None,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    catchup_window: Duration | None = None,
    note: str | None = None,
) -> Schedule:
    """Change what is given of a schedule; all else, and what it has made, stays as it is.

    Args:
        spec: When it fires, from now on.
        overlap_policy: As of `create_schedule`.
        workflow: What it runs: its code is taken anew. Needed with `args` or `kwargs`, unless this process
            has imported the workflow.
        args, kwargs: The workflow's arguments, all of them; without both, they stay.
        catchup_window, note: As of `create_schedule.options`.

    Raises:
        ScheduleNotFoundError: There is no such schedule.
        ConfigurationError: It would never fire, there is no such policy, or the code cannot travel.
        StepValidationError: The arguments do not fit the workflow's signature.
    """
    refuse_in_workflow("update_schedule")
    policy = None if overlap_policy is None else policy_of(overlap_policy)
    window = None if catchup_window is None else window_of(catchup_window)
    of = await opened()
    if spec is not None:
        _require_fire(of, spec)
    code: Code | None = None

    def change(record: ScheduleRecord) -> ScheduleRecord:
        nonlocal code
        if workflow is not None or args is not None or kwargs is not None:
            run, code = _run_anew(of, record, workflow, args, kwargs)
            record = running_now(record, run)
        return msgspec.structs.replace(
            record,
            spec=spec or record.spec,
            overlap_policy=policy or record.overlap_policy,
            catchup_window=record.catchup_window if window is None else window.total_seconds(),
            note=record.note if note is None else note,
        )

    record = await _change(of, schedule_id, "schedule.updated", change, lambda: code)
    await of.runtime.look_at_schedules()
    return await _shown(of, record)


async def pause_schedule(schedule_id: str, note: str | None = None) -> Schedule:
    """Have a schedule fire no more until it is resumed; what waits for its turn waits on. Its runs go on.

    Args:
        note: Shown with the schedule from now on; without one, what it has stays.

    Raises:
        ScheduleNotFoundError: There is no such schedule.
    """
    refuse_in_workflow("pause_schedule")
    return await _set_status(schedule_id, ScheduleStatus.PAUSED, "schedule.paused", note)


async def resume_schedule(schedule_id: str, note: str | None = None) -> Schedule:
    """Have a paused schedule fire again, from now on: what it would have fired in between is not made up.

    Args:
        note: Shown with the schedule from now on; without one, what it has stays.

    Raises:
        ScheduleNotFoundError: There is no such schedule.
    """
    refuse_in_workflow("resume_schedule")
    return await _set_status(schedule_id, ScheduleStatus.ACTIVE, "schedule.resumed", note)


async def _set_status(schedule_id: str, status: ScheduleStatus, type_: str, note: str | None) -> Schedule:
    of = await opened()

    def change(record: ScheduleRecord) -> ScheduleRecord | None:
        if record.status is status:
            return None
        kept = record.note if note is None else note
        return msgspec.structs.replace(record, status=status, note=kept)

    record = await _change(of, schedule_id, type_, change)
    await of.runtime.look_at_schedules()
    return await _shown(of, record)


async def delete_schedule(schedule_id: str) -> bool:
    """Whether there was such a schedule; it fires no more. Its runs go on, and stay."""
    refuse_in_workflow("delete_schedule")
    of = session()
    was_there = False

    def write(connection: Any) -> bool:
        nonlocal was_there  # it may be run again after its COMMIT, whose answer was lost
        was_there = schedules.delete_schedule(connection, schedule_id, now=own_now(of)) or was_there
        return was_there

    return await of.storage.write(write)


async def get_schedule_events(schedule_id: str) -> list[Event]:
    """What has happened to a schedule, oldest first: its last 1,000 events. Needs no Ray.

    Raises:
        ScheduleNotFoundError: There is no such schedule.
    """
    refuse_in_workflow("get_schedule_events")
    of = session()
    found = await asyncio.to_thread(of.storage.read, lambda c: schedules.schedule_events(c, schedule_id))
    if not found:
        raise ScheduleNotFoundError(schedule_id)
    return [Event.of(schedule_id, (e.position, e.timestamp, e.type, e.data)) for e in found]


async def _change(
    of: Session,
    schedule_id: str,
    type_: str,
    change: Callable[[ScheduleRecord], ScheduleRecord | None],
    code: Callable[[], Code | None] = lambda: None,
) -> ScheduleRecord:
    """Read, change and write a schedule; again, when somebody else has changed it in between."""
    while True:
        record = await asyncio.to_thread(of.storage.read, lambda c: schedules.get_schedule(c, schedule_id))
        if record is None or record.status is ScheduleStatus.DELETED:
            raise ScheduleNotFoundError(schedule_id)
        changed = change(record)
        if changed is None:
            return record
        counts_anew = changed.spec != record.spec or changed.status != record.status
        written = await of.storage.write(
            lambda c, new=changed, anew=counts_anew: schedules.change_schedule(  # type: ignore[misc]
                c, new, type_, code=code(), counts_anew=anew, now=own_now(of)
            )
        )
        if written is not None:
            return written


async def opened() -> Session:
    """The session in force, with what fires schedules within reach."""
    of = session()
    await of.runtime.open()
    return of


def own_now(of: Session) -> datetime | None:
    """The time of a test that owns it; None leaves it to the database."""
    return of.runtime.now() if of.runtime.owns_time else None


def run_like(
    of: Session, definition: WorkflowFunction[Any, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[NewRun, Code]:
    """What a schedule makes its runs from, and the workflow's code; the arguments were checked."""
    what = f"workflow {definition.name!r}"
    code = pack(definition, what)
    isolated = definition.workflow_options.isolation == "process" or of.settings.coordinators == "per_run"
    # Large values are not kept apart here: a blob belongs to runs, and goes with the last of them.
    engine = replace(of.runtime.engine_settings, blob_threshold=2**62)
    run = new_run(
        engine,
        definition,
        code,
        "",
        of.values.encode(list(args), f"the arguments of {what}"),
        of.values.encode(dict(kwargs), f"the keyword arguments of {what}"),
        environment=engine.environment,
        coordinator="" if isolated else None,
        owner_lease=None,
    )
    return run, code


def running_now(record: ScheduleRecord, run: NewRun) -> ScheduleRecord:
    """The schedule, changed to make such runs."""
    return msgspec.structs.replace(
        record,
        workflow_name=run.workflow_name,
        environment=run.environment,
        run=schedules.run_text(run),
    )


def _run_anew(
    of: Session,
    record: ScheduleRecord,
    workflow: Any,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
) -> tuple[NewRun, Code]:
    """What a schedule is to make its runs from; without arguments, they stay."""
    definition = as_workflow(record.workflow_name if workflow is None else workflow)
    if args is None and kwargs is None:
        before = fires.run_of_text(record.run)
        args = of.values.decode(before.input_args.encode())
        kwargs = of.values.decode(before.input_kwargs.encode())
    return run_like(of, definition, *definition.check_arguments(tuple(args or ()), kwargs or {}))


async def _shown(of: Session, record: ScheduleRecord) -> Schedule:
    id_ = record.schedule_id
    return Schedule.of(
        record, await asyncio.to_thread(of.storage.read, lambda c: schedules.running_runs(c, id_))
    )


def _require_fire(of: Session, spec: Any) -> None:
    if not isinstance(spec, ScheduleSpec):
        raise ConfigurationError(
            f"A schedule wants a ScheduleSpec, such as ScheduleSpec(cron='0 9 * * *'), not {spec!r}."
        )
    now = of.runtime.now()
    if spec.next_after(now, now) is None:
        raise ConfigurationError(f"A schedule that never fires: {spec.describe()}. Give a time that comes.")


def _status_of(status: ScheduleStatus | str) -> ScheduleStatus:
    try:
        return ScheduleStatus(status)
    except ValueError:
        raise ValueError(
            f"status is {status!r}: give one of {', '.join(each.value for each in ScheduleStatus)}."
        ) from None
