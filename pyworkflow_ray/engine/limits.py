"""The bounds of what a run may do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one run.

    Args:
        default_retries: `max_retries` of steps that do not set it.
        max_losses: How many workers may die under one step. The next one fails the step; 0 means the first.
        max_duration: How long the run may take in all. None means no limit.
        max_nesting_depth: How many levels of children may be below a root run.
    """

    default_retries: int = 3
    max_losses: int = 3
    max_duration: timedelta | None = None
    max_nesting_depth: int = 3
