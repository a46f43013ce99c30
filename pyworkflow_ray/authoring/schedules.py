"""`@scheduled_workflow`: a workflow together with its schedule."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from pyworkflow_ray.authoring.workflows import WorkflowFunction, workflow
from pyworkflow_ray.callables import own_signature
from pyworkflow_ray.durations import Duration, parse_duration
from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.recurrences.calendars import CalendarSpec
from pyworkflow_ray.recurrences.overlaps import policy_of
from pyworkflow_ray.recurrences.specs import ScheduleSpec
from pyworkflow_ray.statuses import OverlapPolicy

P = ParamSpec("P")
T = TypeVar("T")

CATCHUP_WINDOW = timedelta(hours=1)
"""How late a missed fire may be carried out, by default."""
SHORTEST_CATCHUP, LONGEST_CATCHUP = timedelta(seconds=10), timedelta(days=36_500)


@dataclass(frozen=True, slots=True)
class Declaration:
    """A schedule as a decorator declares it; its id is the workflow's name."""

    definition: WorkflowFunction[Any, Any]
    spec: ScheduleSpec
    overlap_policy: OverlapPolicy
    catchup_window: timedelta


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

    A call of `activate_scheduled_workflows()` creates the schedule. Its id is the workflow's name. The
    workflow is called without arguments.

    Args:
        cron, interval, calendar, timezone, start_at, end_at, jitter: As of `ScheduleSpec`.
        overlap_policy: What happens to a fire while a run of the schedule has not ended.
        name: The workflow's name; the function's by default.
        catchup_window: As of `create_schedule`.
        options: Further options of `@workflow`.

    Raises:
        ConfigurationError: The times are not valid, there is no such policy, the window is too short, or the
            function has a parameter without a default.
    """
    spec = ScheduleSpec(cron, interval, calendar, timezone, start_at, end_at, jitter)
    policy, window = policy_of(overlap_policy), window_of(catchup_window)

    def decorate(fn: Callable[P, Coroutine[Any, Any, T]]) -> WorkflowFunction[P, T]:
        definition: WorkflowFunction[P, T] = workflow(name=name, **options)(fn)
        signature = own_signature(definition.fn)
        parameters = () if signature is None else signature.parameters.values()
        needed = [p.name for p in parameters if _is_needed(p)]
        if needed:
            raise ConfigurationError(
                f"@scheduled_workflow {definition.name!r}: nobody gives its parameter {needed[0]!r} a value. "
                "Give it a default, or make the schedule with create_schedule(workflow, spec, ...)."
            )
        declarations[definition.name] = Declaration(definition, spec, policy, window)
        return definition

    return decorate


def window_of(window: Duration | None) -> timedelta:
    """How late a missed fire may be carried out, from the option `catchup_window`; None is the default.

    Raises:
        ConfigurationError: It is not a duration, or is too short.
    """
    if window is None:
        return CATCHUP_WINDOW
    try:
        duration = parse_duration(window)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"catchup_window is {window!r}. {error}") from None
    if duration < SHORTEST_CATCHUP:
        raise ConfigurationError(
            f"catchup_window is {window!r}: give 10 s or more, since no fire is carried out on the instant."
        )
    return min(duration, LONGEST_CATCHUP)  # the calendar has a beginning


def _is_needed(parameter: inspect.Parameter) -> bool:
    various = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in various
