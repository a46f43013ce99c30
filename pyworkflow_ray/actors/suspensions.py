"""How long a run waits, and whether it leaves its coordinator's memory meanwhile.

A run that waits for less than the linger (`suspend_after`) stays. One that would wait longer stays for the
linger, in case that something comes, and is suspended after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from pyworkflow_ray.actors.activations import Activation, RunEnd
from pyworkflow_ray.statuses import RunStatus


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait for something to come, until an instant at most (None: for ever)."""

    until: datetime | None
    then_suspend: bool = False


def wait_of(now: datetime, due_at: datetime | None, linger: timedelta | None, *, may_leave: bool) -> Wait:
    """The wait of a run for which nothing has come.

    Args:
        due_at: When its next timer or retry is due; None if there is none.
        linger: `suspend_after`; None never suspends.
        may_leave: Whether the run can be suspended: it has no attempt under way, say.
    """
    if may_leave and linger is not None and (due_at is None or due_at - now > linger):
        return Wait(now + linger, then_suspend=True)
    return Wait(due_at)


def suspension(run_id: str, due_at: datetime | None) -> Activation:
    """The decision to let go of a run until something wakes it."""
    changes = {"status": RunStatus.SUSPENDED, "wake_at": due_at}
    return Activation(run_id, changes=changes, end=RunEnd(run_id, RunStatus.SUSPENDED.value))


def still_held(run_id: str) -> Activation:
    """The decision to go on with a run. Its commit is refused if another claim has the run."""
    return Activation(run_id, changes={"status": RunStatus.RUNNING})
