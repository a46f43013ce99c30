"""What a step's code may ask about the attempt that it runs in."""

from __future__ import annotations

import random
import uuid
from collections.abc import Generator
from datetime import UTC, datetime
from typing import Any

from pyworkflow_ray.authoring.logs import run_logger
from pyworkflow_ray.engine.running_steps import RunningStep
from pyworkflow_ray.exceptions import CancellationError


class Settled:
    """The return value of a call that is done, for code that awaits it all the same."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


class StepContext:
    """The step attempt that is running."""

    __slots__ = ("_step",)

    is_durable = True
    is_replaying = False

    def __init__(self, step: RunningStep) -> None:
        self._step = step

    @property
    def run_id(self) -> str:
        return self._step.run_id

    @property
    def workflow_name(self) -> str:
        return self._step.workflow_name

    @property
    def step_id(self) -> str:
        return self._step.step_id

    @property
    def step_name(self) -> str:
        return self._step.step_name

    @property
    def attempt(self) -> int:
        """The number of the attempt, counted from 1."""
        return self._step.attempt

    @property
    def deadline(self) -> datetime | None:
        """When the attempt's timeout passes; None without one."""
        return self._step.deadline

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this step in this run, and for no other step: hand it to a payment
        provider."""
        return f"{self.run_id}:{self.step_id}"

    def is_cancellation_requested(self) -> bool:
        """Whether the run was asked to cancel. A remote step learns of it within a second or so."""
        is_cancelled = self._step.is_cancelled
        return is_cancelled is not None and is_cancelled(self.run_id)

    def check_cancellation(self) -> Settled:
        """Raise a `CancellationError` if the run was asked to cancel. It is cheap, and may be awaited."""
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
        run_logger.bind(**{**self._step.log_fields, **fields}).opt(depth=1).log(level, message)

    def __repr__(self) -> str:
        return f"<step {self.step_id!r} of {self.run_id}, attempt {self.attempt}>"
