"""What is done about an activation, once it is committed.

A crash in between costs time and no more. Other runs find their rows by themselves, or the sweep does; and a
replay knows which steps have no outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import assert_never

from pyworkflow_ray.actors.activations import Activation, RunEnd
from pyworkflow_ray.actors.attempts import Attempts
from pyworkflow_ray.actors.observers import Moment, RunEnded, RunInterrupted, RunSuspended, of_run
from pyworkflow_ray.actors.services import Services
from pyworkflow_ray.engine.commands import (
    ApplyPatch,
    CancelChild,
    CancelRun,
    CancelStep,
    CompleteRun,
    ContinueRun,
    CreateHook,
    DisposeHook,
    FailRun,
    RecordSideEffect,
    ScheduleStep,
    SetAttributes,
    StartChild,
    StartTimer,
)
from pyworkflow_ray.engine.events import StepRetrying
from pyworkflow_ray.engine.pending_steps import PendingStep
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.records import RunRecord


def see_to_others(services: Services, run: RunRecord, activation: Activation) -> None:
    """Have the runs go on that the activation has made or written to.

    The end of a run may be what another fire of its schedule waits for.
    """
    for new in activation.begun:
        services.begin(new)
    for run_id in dict.fromkeys(activation.to_nudge):
        services.deliver(run_id)
    if run.schedule_id is not None and activation.end is not None and activation.end.is_final:
        services.on_due(services.clock.now())


async def see_to_steps(attempts: Attempts, activation: Activation, steps: Mapping[str, PendingStep]) -> None:
    """Dispatch the attempts that the activation asks for, and cancel those that it gives up.

    Args:
        steps: The run's steps that have no outcome.
    """
    for event in activation.events:
        if isinstance(event, StepRetrying) and event.step_id in steps:
            attempts.retry_at(event.step_id, event.retry_at)
    for command in activation.commands:
        match command:
            case ScheduleStep(step_id=step_id):
                if step_id in steps:
                    await attempts.go_on(steps[step_id])
            case CancelStep(step_id=step_id, on_cancel=on_cancel):
                attempts.cancel(step_id, on_cancel)
            case StartTimer():
                pass  # the execution has it, and the drive rests until then at most
            case (
                CreateHook()
                | DisposeHook()
                | StartChild()
                | CancelChild()
                | RecordSideEffect()
                | ApplyPatch()
                | SetAttributes()
                | CompleteRun()
                | FailRun()
                | CancelRun()
                | ContinueRun()
            ):
                pass  # the commit has done it
            case _:
                assert_never(command)


def moment_of_end(
    run: RunRecord, end: RunEnd, events: int, duration: timedelta, wake_at: datetime | None
) -> Moment:
    """What observers are told of the end of a drive.

    Args:
        events: The length of the history.
        duration: How long the run was driven.
        wake_at: When a suspended run goes on by itself.
    """
    if end.is_final:
        return RunEnded(**of_run(run), status=end.status, events=events, duration=duration)
    if end.status == RunStatus.SUSPENDED.value:
        return RunSuspended(**of_run(run), wake_at=wake_at, duration=duration)
    error = "" if end.failure is None else end.failure.error
    return RunInterrupted(**of_run(run), error=error)
