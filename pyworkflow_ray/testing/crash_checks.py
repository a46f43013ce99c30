"""Crash checks: a workflow is run many times, and its coordinator crashes at another place each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pyworkflow_ray.client.handles import RunHandle
from pyworkflow_ray.client.records import Event
from pyworkflow_ray.client.runs import get_workflow_events, list_runs
from pyworkflow_ray.client.starts import start
from pyworkflow_ray.event_types import EventType
from pyworkflow_ray.ids import new_run_id
from pyworkflow_ray.testing.environments import WorkflowEnvironment
from pyworkflow_ray.testing.fail_points import CRASHES, FailPoint, When
from pyworkflow_ray.testing.replays import replay
from pyworkflow_ray.values.failures import error_type_name

_STEP_ENDS = (EventType.STEP_COMPLETED, EventType.STEP_FAILED, EventType.STEP_CANCELLED)

During = Callable[[WorkflowEnvironment, RunHandle[Any]], Awaitable[object]]


@dataclass
class _Trial:
    """One run of the workflow, and its outcome."""

    point: FailPoint
    result: Any = None
    error: str = ""
    histories: dict[str, list[Event]] = field(default_factory=dict)

    def outcome(self) -> str:
        return f"it raised {self.error}" if self.error else f"its result is {self.result!r}"

    def has_outcome_of(self, other: _Trial) -> bool:
        return self.error == other.error and bool(self.result == other.result)


async def check_every_crash(
    workflow: Any,
    /,
    *args: Any,
    during: During | None = None,
    settings: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> int:
    """Check that a workflow has the same result wherever its coordinator crashes.

    The workflow is run once without a crash. Then it is run twice for each commit of that first run: in one
    run the coordinator crashes before the commit, in the other after it. Each run has an environment of its
    own. Every run must return the same value (or raise the same error), no step may have two outcomes, and
    today's code must replay every history.

    Steps are really called, and more than once where a crash loses their results. So the result must not
    depend on how often a step is called. If it does (a step counts its calls), reset that in `during`.

    Args:
        workflow: A `@workflow` function or a `Workflow` class.
        args, kwargs: Its arguments. An argument named `during` or `settings` must be given by position.
        during: Called in each run, before this waits for the result, with the environment and the run's
            handle. It can answer hooks and send signals.
        settings: Options of the environments.

    Returns:
        How many crashes there were.

    Raises:
        AssertionError: A crash has made a difference; the message says which difference, and where the
            coordinator crashed. Or the run keeps no history.
    """
    options = {"start_time": datetime.now(UTC), **(settings or {})}
    run_id = new_run_id()

    async def trial(when: When, skip: int, times: int) -> _Trial:
        async with WorkflowEnvironment(**options) as environment:
            done = _Trial(environment.crash_at(when, skip=skip, times=times))
            run = await start.options(run_id=run_id)(workflow, *args, **kwargs)
            if during is not None:
                await during(environment, run)
            try:
                done.result = await run.result()
            except Exception as error:
                done.error = f"{error_type_name(type(error))}: {error}"
            await environment.settle()
            for each in (await list_runs(limit=10_000))[0]:
                done.histories[each.run_id] = await get_workflow_events(each.run_id)
                _check_history(done, each.run_id)
        return done

    undisturbed = await trial("after_commit", 0, 0)
    if not undisturbed.point.seen:
        raise AssertionError(
            f"Run {run_id!r} has recorded nothing, so there is no commit to crash at: is it durable?"
        )
    crashes = 0
    for number in range(undisturbed.point.seen):
        for when in CRASHES:
            disturbed = await trial(when, number, 1)
            crashes += disturbed.point.hits
            if not disturbed.has_outcome_of(undisturbed):
                raise AssertionError(
                    f"{_where(disturbed)}, {disturbed.outcome()}; without a crash, {undisturbed.outcome()}."
                    f"{_history_text(disturbed.histories[run_id])}"
                )
    return crashes


def _where(trial: _Trial) -> str:
    if not trial.point.hits:
        return "Without a crash"
    where = trial.point.what.removeprefix("crash ")
    return f"When the coordinator crashes {where} {trial.point.skip + 1} ({trial.point.last})"


def _history_text(history: list[Event]) -> str:
    steps = (
        f"{event.sequence:>4} {event.type} {event.data.get('step_id', '')}".rstrip() for event in history
    )
    return "\nIts history:\n" + "\n".join(steps)


def _check_history(trial: _Trial, run_id: str) -> None:
    """Check that no step has two outcomes, and that the code replays."""
    history = trial.histories[run_id]
    counts = Counter(event.data["step_id"] for event in history if event.type in _STEP_ENDS)
    twice = [step_id for step_id, count in counts.items() if count > 1]
    if twice:
        raise AssertionError(f"{_where(trial)}, {', '.join(twice)} ended twice.{_history_text(history)}")
    if history:
        try:
            replay(history)
        except Exception as error:
            raise AssertionError(
                f"{_where(trial)}, run {run_id} does not replay: {error}{_history_text(history)}"
            ) from error
