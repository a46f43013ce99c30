"""What a step's code sees of the attempt that it is."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from loguru import logger

from pyworkflow_ray.exceptions import CancellationError


class Settled:
    """What a call gives that has done its work, for those who await it all the same."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


@dataclass(frozen=True, slots=True)
class StepContext:
    """The step attempt that is running.

    Args:
        attempt: Counted from 1.
        idempotency_key: The same for every attempt of this step in this run, and for no other: hand it to
            a payment provider.
        deadline: When the attempt's timeout passes; None without one.
    """

    run_id: str
    workflow_name: str
    step_id: str
    step_name: str
    attempt: int
    deadline: datetime | None = None
    is_cancelled: Callable[[str], bool] | None = field(default=None, repr=False, compare=False)
    is_durable: bool = True
    is_replaying: bool = False
    namespace: str = ""
    """The engine on Ray that the step's calls to the client mean; empty in process."""

    @property
    def idempotency_key(self) -> str:
        return f"{self.run_id}:{self.step_id}"

    @property
    def log_fields(self) -> dict[str, Any]:
        """What its log lines carry."""
        return {
            "run_id": self.run_id,
            "workflow": self.workflow_name,
            "step_id": self.step_id,
            "step": self.step_name,
            "attempt": self.attempt,
        }

    def is_cancellation_requested(self) -> bool:
        """Whether the run was asked to cancel; a remote step learns of it within a second or so."""
        return self.is_cancelled is not None and self.is_cancelled(self.run_id)

    def check_cancellation(self) -> Settled:
        """Raise a `CancellationError` if the run was asked to cancel. Cheap; may be awaited, too."""
        if self.is_cancellation_requested():
            raise CancellationError()
        return Settled()

    def now(self) -> datetime:
        """The present instant, in UTC."""
        return datetime.now(UTC)

    def random(self) -> float:
        """A random number from 0 up to, and not including, 1."""
        return random.random()

    def uuid4(self) -> uuid.UUID:
        """A random UUID."""
        return uuid.uuid4()

    def log(self, message: str, level: str = "INFO", **fields: Any) -> None:
        """Log a message with the step's ids."""
        logger.bind(**self.log_fields, **fields).opt(depth=1).log(level, message)


current_step: ContextVar[StepContext | None] = ContextVar("pyworkflow_ray_step", default=None)
"""The step attempt whose code is running; None in workflows and outside of runs."""


@contextmanager
def attempting(context: StepContext) -> Iterator[None]:
    """Make this the attempt whose code is running; whatever it logs with loguru carries its ids."""
    token = current_step.set(context)
    try:
        with logger.contextualize(**context.log_fields):
            yield
    finally:
        current_step.reset(token)
