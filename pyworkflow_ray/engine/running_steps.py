"""The step attempt whose code is running in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class RunningStep:
    """A step attempt, for the code that runs in it.

    Args:
        attempt: Counted from 1.
        deadline: When the attempt's timeout passes; None without one.
        is_cancelled: Whether the run of this id was asked to cancel; None where nobody can say.
        namespace: The engine on Ray that the step's calls to the client mean; empty in process.
    """

    run_id: str
    workflow_name: str
    step_id: str
    step_name: str
    attempt: int
    deadline: datetime | None = None
    is_cancelled: Callable[[str], bool] | None = field(default=None, repr=False, compare=False)
    namespace: str = ""

    @property
    def log_fields(self) -> dict[str, Any]:
        """What the step's log lines carry."""
        return {
            "run_id": self.run_id,
            "workflow": self.workflow_name,
            "step_id": self.step_id,
            "step": self.step_name,
            "attempt": self.attempt,
        }


current_step: ContextVar[RunningStep | None] = ContextVar("pyworkflow_ray_step", default=None)
"""The step attempt whose code is running; None in workflows and outside of runs."""


@contextmanager
def running(step: RunningStep) -> Iterator[None]:
    """Make this the step attempt whose code is running."""
    token = current_step.set(step)
    try:
        yield
    finally:
        current_step.reset(token)
