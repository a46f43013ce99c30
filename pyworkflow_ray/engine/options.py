"""How one call of a step is carried out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from pyworkflow_ray.durations import format_duration
from pyworkflow_ray.engine.retries import Pauses, RetryOn

ON_CANCEL = ("wait", "interrupt", "kill", "abandon")
_EXPONENTIAL = Pauses("exponential")


@dataclass(frozen=True, slots=True)
class StepOptions:
    """The options of a step call, checked and in one form.

    `max_retries` of None means the configured default. `ray_options` go to the Ray task unchanged.
    """

    max_retries: int | None = None
    pauses: Pauses = _EXPONENTIAL
    timeout: timedelta | None = None
    retry_on: RetryOn | None = None
    local: bool = False
    on_cancel: str = "wait"
    idempotent: bool = True
    step_id: str | None = None
    batch_size: int | None = None
    """How many first attempts of the step may share a Ray task. None: each has its own."""
    ray_options: Mapping[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The options that a reader of the history wants to know, as plain JSON values."""
        summary: dict[str, Any] = {}
        if self.local:
            summary["local"] = True
        if self.max_retries is not None:
            summary["max_retries"] = self.max_retries
        if self.timeout is not None:
            summary["timeout"] = format_duration(self.timeout)
        if self.batch_size is not None:
            summary["batch_size"] = self.batch_size
        if not self.idempotent:
            summary["idempotent"] = False
        for name, value in self.ray_options.items():
            summary[name] = value if isinstance(value, str | int | float | bool) else str(value)
        return summary
