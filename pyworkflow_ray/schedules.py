"""`@scheduled_workflow`: a workflow together with when it is to run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ParamSpec, TypeVar

from pyworkflow_ray.calendars import CalendarSpec
from pyworkflow_ray.durations import Duration
from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.recurrences import ScheduleSpec
from pyworkflow_ray.statuses import OverlapPolicy
from pyworkflow_ray.workflows import WorkflowFunction, workflow

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Declaration:
    """A schedule as a decorator declares it; its id is the workflow's name."""

    definition: WorkflowFunction[Any, Any]
    spec: ScheduleSpec
    overlap_policy: OverlapPolicy
    catchup_window: Duration | None


declarations: dict[str, Declaration] = {}
"""The schedules that this process has declared, by their ids."""


def scheduled_workflow(
    cron: str | None = None,
    interval: Duration | None = None,
    calendar: CalendarSpec | Sequence[CalendarSpec] | None = None,
    timezone: str = "UTC",
    start_at: datetime | None = None,
    end_at: datetime | None = None,
    jitter: Duration | None = None,
    overlap_policy: OverlapPolicy | str = OverlapPolicy.SKIP,
    name: str | None = None,
    *,
    catchup_window: Duration | None = None,
    **options: Any,
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], WorkflowFunction[P, T]]:
    """``@scheduled_workflow(cron="0 9 * * *", timezone="Europe/Berlin")``: a workflow with a schedule.

    The schedule is there once `activate_scheduled_workflows()` was called, under the workflow's name as its
    id. The workflow is called without arguments.

    Args:
        cron, interval, calendar, timezone, start_at, end_at, jitter: As of `ScheduleSpec`.
        overlap_policy: What becomes of a fire while a run of the schedule has not ended.
        name: The workflow's; the function's by default.
        catchup_window: As of `create_schedule`.
        options: Further options of `@workflow`.

    Raises:
        ConfigurationError: The times are not as they must be, or the function wants arguments.
    """
    spec = ScheduleSpec(cron, interval, calendar, timezone, start_at, end_at, jitter)
    policy = OverlapPolicy(overlap_policy)

    def decorate(fn: Callable[P, Coroutine[Any, Any, T]]) -> WorkflowFunction[P, T]:
        definition: WorkflowFunction[P, T] = workflow(name=name, **options)(fn)
        needed = [p.name for p in inspect.signature(fn).parameters.values() if _is_needed(p)]
        if needed:
            raise ConfigurationError(
                f"@scheduled_workflow {definition.name!r}: nobody gives its parameter {needed[0]!r} a value. "
                "Give it a default, or make the schedule with create_schedule(workflow, spec, ...)."
            )
        declarations[definition.name] = Declaration(definition, spec, policy, catchup_window)
        return definition

    return decorate


def _is_needed(parameter: inspect.Parameter) -> bool:
    various = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in various
