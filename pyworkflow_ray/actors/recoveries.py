"""Taking a run over from a claim that did not let go of it, and giving the run up.

Theory of operation. Whoever claims a run that was not let go of records `workflow.interrupted` before
anything of the run begins. That gives unfinished attempts new numbers, and ends the steps that must not run
twice. It does not matter who had the run before: the same process may have it again, after a stall.

If a run is taken over again and again and gets no further, its own code ends the process, perhaps. So
takeovers in a row are counted in the run's row, until an attempt of a step has ended. But other runs were in
the same process, and one of them may be to blame. So two counts are kept:

- `recovery_attempts` counts the losses that nobody else can have caused: the run was alone in its process. A
  run that has had too many of them fails.
- `shared_recoveries` counts the others. The run never fails for these. After the second one in a row it is
  set apart: it goes on in a process with fewer others, and at last alone in one of its own (`separations`).

A loss is counted before any code of the run runs, and before each further recovery in a row the run waits,
longer each time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from enum import Enum, auto
from typing import assert_never

from pyworkflow_ray.actors.activations import Activation, RunEnd
from pyworkflow_ray.actors.commits import Decide
from pyworkflow_ray.actors.names import is_coordinator
from pyworkflow_ray.actors.services import Services
from pyworkflow_ray.actors.turns import Turn, end_failed, started_event
from pyworkflow_ray.engine.events import WorkflowInterrupted
from pyworkflow_ray.exceptions import (
    NonDeterminismError,
    StorageError,
    UnreadableRowError,
    WorkerDiedError,
)
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.blobs import require_blobs
from pyworkflow_ray.storage.leases import GAVE_UP, SET_APART, SET_ASIDE, WAS_ALONE, holder_of
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.values.failures import capture

FIRST_PAUSE = timedelta(seconds=1)
"""The pause before the second recovery in a row; there is none before the first. It doubles each time."""
LONGEST_PAUSE = timedelta(seconds=30)


class Loss(Enum):
    """How a run was lost that has just been claimed."""

    NONE = auto()
    """It was not: nobody held it, or nothing of it can have begun."""
    STALLED = auto()
    """The process that claims it had it before, and was not heard of in time. It lives."""
    SET_ASIDE = auto()
    """It was set aside while attempts may have been under way."""
    SET_APART = auto()
    """Its process went away. That was counted when the run was set apart."""
    SHARED = auto()
    """Its process went away, and other runs may be to blame."""
    ALONE = auto()
    """Its process went away, or could not drive it. No other run can be to blame."""


def loss_of(run: RunRecord, process: str, company: int | None) -> Loss:
    """How a run was lost that this process has claimed.

    Args:
        company: How many other runs were in the process that has gone away, if one has; None: nobody knows.
    """
    if run.previous_owner is None:
        return Loss.NONE
    holder = holder_of(run.previous_owner)
    company = 0 if holder.mark == WAS_ALONE else company
    is_born = holder.process == run.coordinator or (is_coordinator(holder.process) and not holder.is_process)
    if is_born and run.position == 0 and not company:
        return Loss.NONE  # it was accepted under its coordinator's name, and perhaps no process has seen it
    match holder.mark:
        case mark if mark == SET_ASIDE:
            return Loss.SET_ASIDE
        case mark if mark == SET_APART:
            return Loss.SET_APART
        case mark if mark == GAVE_UP:
            return Loss.ALONE
    if holder.process == process:
        return Loss.STALLED
    return Loss.ALONE if company == 0 else Loss.SHARED


def allowed_recoveries(run: RunRecord) -> int:
    """How often in a row the run may be taken over, if nobody else is to blame."""
    return run.max_recovery_attempts if run.recover_on_worker_loss and run.durable else 0


def counts_after(run: RunRecord, loss: Loss) -> dict[str, int]:
    """The columns that count takeovers, with this one."""
    return {
        "recovery_attempts": run.recovery_attempts + (loss is Loss.ALONE),
        "shared_recoveries": run.shared_recoveries + (loss is Loss.SHARED),
    }


def pause_before(run: RunRecord, loss: Loss) -> timedelta:
    """How long the run waits before its code runs again."""
    before = run.recovery_attempts + run.shared_recoveries
    match loss:
        case Loss.NONE | Loss.STALLED | Loss.SET_ASIDE:
            return timedelta()
        case Loss.SET_APART:
            before -= 1
        case Loss.SHARED | Loss.ALONE:
            pass
        case _:
            assert_never(loss)
    if loss is Loss.ALONE and run.recovery_attempts >= allowed_recoveries(run):
        return timedelta()  # it fails now, or has its last try
    return min(FIRST_PAUSE * 2 ** min(before - 1, 10), LONGEST_PAUSE) if before > 0 else timedelta()


def recovery_of(run: RunRecord, loss: Loss, process: str) -> WorkflowInterrupted | WorkerDiedError | None:
    """How a claimed run with a history goes on: interrupted, failed, or (None) as if nothing had been.

    Args:
        process: Who takes it over now.
    """
    if loss is Loss.NONE:
        return None
    counts = counts_after(run, loss)
    if (
        not run.durable
        or counts["recovery_attempts"] > allowed_recoveries(run)
        or _is_never_recovered(run, loss)
    ):
        return given_up(run, max(counts["recovery_attempts"], 1))
    return WorkflowInterrupted(
        reason=_reason(run, loss), worker_id=process, recovery_attempt=sum(counts.values())
    )


def _is_never_recovered(run: RunRecord, loss: Loss) -> bool:
    return allowed_recoveries(run) == 0 and loss is not Loss.SET_ASIDE


def may_run_again(run: RunRecord, recoveries: int) -> bool:
    """Whether the code of a run may run that nobody else can have caused so many losses of in a row.

    A run without a history gets one more try than others: its process may have died before its code began.
    One with a history gets that try to be replayed, and to be failed with all that belongs to it.
    """
    return recoveries <= allowed_recoveries(run) + 1


def _reason(run: RunRecord, loss: Loss) -> str:
    process = holder_of(run.previous_owner or "").process
    match loss:
        case Loss.STALLED:
            return f"its coordinator {process} was not heard of in time, and lost it for a while"
        case Loss.SET_ASIDE:
            return f"its coordinator {process} set it aside while attempts of its steps were under way"
        case _:
            return f"its coordinator {process} went away"


def given_up(run: RunRecord, recoveries: int) -> WorkerDiedError:
    """What a run fails with that was taken over too often."""
    return WorkerDiedError(
        f"The coordinator of run {run.run_id!r} went away {recoveries} time(s) in a row "
        f"without the run getting further, and {allowed_recoveries(run)} recoveries are allowed "
        "(recover_on_worker_loss, max_recovery_attempts)."
    )


async def count_loss(
    services: Services, run: RunRecord, loss: Loss, take_turn: Callable[[Decide], Awaitable[None]]
) -> None:
    """Count the loss in the run's row, and fail a run that was lost too often.

    It is done before any code of the run runs here. That may end the process even while it is loaded, or
    replayed.
    """
    if loss not in (Loss.ALONE, Loss.SHARED):
        return
    counts = counts_after(run, loss)
    await take_turn(lambda: Activation(run.run_id, changes=dict(counts)))
    recoveries = counts["recovery_attempts"]
    if not may_run_again(run, recoveries):
        await take_turn(lambda: _failed(services, run, given_up(run, recoveries)))


async def explained(services: Services, run_id: str, error: Exception) -> Exception:
    """Why a run cannot go on: its code may have left its history over a damaged value."""
    if isinstance(error, NonDeterminismError):
        with contextlib.suppress(StorageError):
            try:
                await asyncio.to_thread(services.storage.read, require_blobs(run_id))
            except UnreadableRowError as damage:
                return damage
    return error


def _failed(services: Services, run: RunRecord, error: WorkerDiedError) -> Activation:
    turn = Turn(run, None, services)
    end_failed(turn, error, *([] if run.position > 0 else [started_event(run)]))
    return turn.activation


def set_aside(run_id: str, error: Exception, *, leaves_attempts: bool) -> Activation:
    """The decision to set a run aside: its code is not there, or has left its history.

    Args:
        leaves_attempts: Whether attempts may be under way. Then whoever goes on takes the run over.
    """
    failure = capture(error)
    changes = {
        "status": RunStatus.INTERRUPTED,
        "error": failure.error,
        "error_type": failure.error_type,
        "wake_at": None,
    }
    end = RunEnd(run_id, RunStatus.INTERRUPTED.value, failure=failure)
    return Activation(run_id, changes=changes, end=end, leaves_attempts=leaves_attempts)
