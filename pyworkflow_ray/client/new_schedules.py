"""Creating schedules."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyworkflow_ray.authoring.schedules import window_of
from pyworkflow_ray.authoring.workflows import WorkflowFunction, as_workflow
from pyworkflow_ray.client.guards import refuse_in_workflow
from pyworkflow_ray.client.run_templates import run_template
from pyworkflow_ray.client.schedules import Schedule, opened, own_now, require_fire, schedule_of
from pyworkflow_ray.durations import Duration
from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.ids import checked_text
from pyworkflow_ray.recurrences.overlaps import policy_of
from pyworkflow_ray.recurrences.specs import ScheduleSpec
from pyworkflow_ray.statuses import OverlapPolicy
from pyworkflow_ray.storage import schedules
from pyworkflow_ray.storage.schedule_records import ScheduleRecord
from pyworkflow_ray.storage.works import Steps, work


@dataclass(frozen=True, slots=True)
class ScheduleOptions:
    """The options of a new schedule; the workflow's arguments are not among them."""

    overlap_policy: OverlapPolicy | str = OverlapPolicy.SKIP
    schedule_id: str | None = None
    catchup_window: Duration | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if self.schedule_id is not None:
            checked_text(self.schedule_id, "The schedule's id")
        if self.note is not None:
            checked_text(self.note, "The schedule's note")


_OPTIONS = tuple(ScheduleOptions.__dataclass_fields__)


class ScheduleMaker:
    """`create_schedule` with its options given: a call takes the workflow, the spec and the arguments."""

    def __init__(self, options: ScheduleOptions) -> None:
        self._options = options

    async def __call__(
        self, workflow_name: Any, spec: ScheduleSpec, /, *args: Any, **kwargs: Any
    ) -> Schedule:
        return await _create(self._options, as_workflow(workflow_name), spec, args, kwargs)


class CreateSchedule:
    """Creates schedules. `create_schedule.options(...)` separates its options from the arguments."""

    async def __call__(
        self,
        workflow_name: WorkflowFunction[Any, Any] | Callable[..., Any] | str,
        spec: ScheduleSpec,
        *args: Any,
        overlap_policy: OverlapPolicy | str = OverlapPolicy.SKIP,
        schedule_id: str | None = None,
        **kwargs: Any,
    ) -> Schedule:
        """Run a workflow by a schedule, from now on. Each fire starts exactly one run, whatever crashes.

        Args:
            workflow_name: A `@workflow` function, or the name of an imported one. The schedule keeps the code
                as it is now.
            spec: When it fires.
            args, kwargs: The workflow's arguments, the same for each run.
            overlap_policy: What happens to a fire while an earlier run of the schedule has not ended. "skip"
                starts no run. "buffer_one" lets one fire wait for its turn, "buffer_all" lets all wait.
                "cancel_other" cancels the earlier run and then starts one. "allow_all" starts a run beside
                the earlier one.
            schedule_id: An id of your own; a random one by default.

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
                    "which is meant: create_schedule.options(...)(workflow, spec, ...)."
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
            catchup_window: How late a missed fire may still start its run: one hour by default, ten seconds
                at least. A fire that is later than that is skipped.
            note: Shown with the schedule.
        """
        return ScheduleMaker(ScheduleOptions(overlap_policy, schedule_id, catchup_window, note))


create_schedule = CreateSchedule()


def _hint(name: str) -> str:
    """Says of a keyword that the workflow does not take whether it is an option of a schedule."""
    given = f"create_schedule.options({name}=...)(workflow, spec, ...)"
    return f"{name!r} is an option: {given} gives it." if name in _OPTIONS else ""


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
    checked = definition.check_arguments(args, kwargs, _hint)
    of = await opened()
    require_fire(of, spec)
    run, code = await run_template(of, definition, *checked)
    made: ScheduleRecord | None = None

    @work
    def create() -> Steps[ScheduleRecord | None]:
        nonlocal made
        record = yield from schedules.create_schedule(
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
            there = yield from schedules.get_schedule(schedule_id)
            return there if there is not None and there.created_at == made.created_at else None
        made = record
        return record

    record = await of.storage.write(create())
    if record is None:
        raise ConfigurationError(
            f"There is a schedule {schedule_id!r}. Change it with update_schedule(), or delete it first."
        )
    await of.runtime.look_at_schedules()
    return await schedule_of(of, record)
