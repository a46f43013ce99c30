"""Taking a run over after a crash, and giving it up.

A run whose coordinator dies is claimed by another one, which replays it. If that happens again and again and
the run gets no further, its own code ends the process, perhaps. So recoveries are counted in the run's row
until an attempt of a step has ended, and a run that has had too many fails.
"""

from __future__ import annotations

from pyworkflow_ray.actors.activations import Activation, RunEnd
from pyworkflow_ray.engine.events import WorkflowInterrupted
from pyworkflow_ray.exceptions import WorkerDiedError, WorkflowError
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.values.failures import capture


def allowed_recoveries(run: RunRecord) -> int:
    """How often in a row the run may be taken over."""
    return run.max_recovery_attempts if run.recover_on_worker_loss and run.durable else 0


def was_lost_at_start(run: RunRecord) -> bool:
    """Whether a process held this run, which has no history yet, and died: perhaps of the run's first lines.

    A run that is still held under its coordinator's name was held by no process: it was accepted so.
    """
    return run.previous_owner is not None and run.previous_owner != run.coordinator


def recovery_of(
    run: RunRecord, recoveries: int, worker_id: str
) -> WorkflowInterrupted | WorkerDiedError | None:
    """How a claimed run with a history goes on: interrupted, failed, or (None) as if nothing had been.

    Args:
        recoveries: How often it was taken over before, in a row.
        worker_id: Who takes it over now.
    """
    if not run.was_interrupted:
        return None
    if recoveries + 1 > allowed_recoveries(run):
        return given_up(run, recoveries + 1)
    return WorkflowInterrupted(
        reason=f"its coordinator {run.previous_owner} went away",
        worker_id=worker_id,
        recovery_attempt=recoveries + 1,
    )


def given_up(run: RunRecord, recoveries: int) -> WorkerDiedError:
    """What a run fails with that was taken over too often."""
    return WorkerDiedError(
        f"The coordinator of run {run.run_id!r} went away {recoveries} time(s) in a row "
        f"without the run getting further, and {allowed_recoveries(run)} recoveries are allowed "
        "(recover_on_worker_loss, max_recovery_attempts)."
    )


def counted(run_id: str, recoveries: int) -> Activation:
    """The decision to count a recovery, before any code of the run has run."""
    return Activation(run_id, changes={"recovery_attempts": recoveries})


def set_aside(run_id: str, error: WorkflowError) -> Activation:
    """The decision to set a run aside: its code is not there, or has left its history."""
    failure = capture(error)
    changes = {
        "status": RunStatus.INTERRUPTED,
        "error": failure.error,
        "error_type": failure.error_type,
        "wake_at": None,
    }
    return Activation(
        run_id, changes=changes, end=RunEnd(run_id, RunStatus.INTERRUPTED.value, failure=failure)
    )
