"""Whether a failed attempt is followed by another, and when."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pyworkflow_ray.durations import Duration, parse_duration
from pyworkflow_ray.values.failures import Failure

RetryOn = tuple[type[BaseException], ...] | Callable[[BaseException], bool]

WORKER_LOSS = frozenset({"worker_died", "out_of_memory"})
"""Causes for which the step is not to blame. They are counted apart from the step's retries."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to wait between the attempts of a step.

    Args:
        initial: The pause after the first failure (a duration: seconds, ``"30s"``, `timedelta`).
        factor: How many times longer each pause is than the one before.
        maximum: The longest pause.
        jitter: A random part that is added to each pause: 0.1 adds up to a tenth of it.
        max_attempts: Attempts in all, the first included. None leaves it to `max_retries`.
        max_elapsed: No attempt starts later than this after the step was scheduled.
    """

    initial: Duration = 1
    factor: float = 2.0
    maximum: Duration = 300
    jitter: float = 0.1
    max_attempts: int | None = None
    max_elapsed: Duration | None = None

    def __post_init__(self) -> None:
        for duration in (self.initial, self.maximum, self.max_elapsed):
            if duration is not None:
                parse_duration(duration)
        if not (self.factor >= 1 and 0 <= self.jitter < math.inf):  # "not", for NaN
            raise ValueError(f"A retry policy needs factor >= 1 and jitter >= 0, not {self!r}.")
        if self.max_attempts is not None and self.max_attempts < 1:
            raise ValueError(f"A retry policy needs max_attempts >= 1, not {self.max_attempts}.")

    def pause(self, failures: int) -> timedelta:
        """The pause after this many failures (1 or more), without jitter."""
        initial, maximum = parse_duration(self.initial), parse_duration(self.maximum)
        try:
            return min(initial * self.factor ** (failures - 1), maximum)
        except OverflowError:
            return maximum


RetryDelay = str | int | float | timedelta | Sequence[Duration] | RetryPolicy


class Pauses:
    """The pauses that a step's `retry_delay` asks for.

    Raises:
        ValueError: The text is neither "exponential", "fixed" nor a duration.
        TypeError: The value is of no accepted type.
    """

    __slots__ = ("_list", "policy")

    def __init__(self, delay: RetryDelay) -> None:
        self.policy: RetryPolicy | None = None
        self._list: list[timedelta] = []
        match delay:
            case RetryPolicy():
                self.policy = delay
            case "exponential":
                self.policy = RetryPolicy()
            case "fixed":
                self._list = [timedelta(seconds=60)]
            case list() | tuple():
                if not delay:
                    raise ValueError("retry_delay is an empty list: give at least one duration.")
                self._list = [parse_duration(item) for item in delay]
            case str() | int() | float() | timedelta():
                self._list = [parse_duration(delay)]
            case _:
                raise TypeError(
                    f"retry_delay is {delay!r}: give 'exponential', 'fixed', a duration, a list of durations "
                    "or a RetryPolicy."
                )

    def after(self, failures: int, source: random.Random) -> timedelta:
        """The pause after this many failures (1 or more)."""
        if self.policy is None:
            return self._list[min(failures, len(self._list)) - 1]
        pause = self.policy.pause(failures)
        try:
            return pause * (1 + self.policy.jitter * source.random())
        except OverflowError:
            return pause


@dataclass(frozen=True, slots=True)
class AttemptCounts:
    """How many attempts of a step have failed, and how many have lost their worker."""

    scheduled_at: datetime
    failures: int = 0
    losses: int = 0


def next_attempt_at(
    failure: Failure,
    cause: str,
    attempts: AttemptCounts,
    *,
    now: datetime,
    max_retries: int,
    pauses: Pauses,
    may_retry: Callable[[], bool],
    max_losses: int,
    source: random.Random,
) -> datetime | None:
    """When the next attempt is due after this failure; None when the step fails for good.

    Args:
        failure: What the attempt raised.
        cause: "error", "timeout", "worker_died" or "out_of_memory".
        attempts: The counts before this failure.
        now: When the failure was learnt.
        max_retries: How many times the step may be tried again after errors of its own.
        pauses: From the step's `retry_delay`.
        may_retry: The step's `retry_on`. It is called last.
        max_losses: How many times the step may be tried again after its worker was lost.
        source: The random source of the jitter.
    """
    if cause in WORKER_LOSS:
        losses = attempts.losses + 1
        return _later(now, RetryPolicy(jitter=0).pause(losses) / 2) if losses <= max_losses else None
    failures = attempts.failures + 1
    policy = pauses.policy
    if policy is not None and policy.max_attempts is not None:
        max_retries = policy.max_attempts - 1
    if not failure.is_retryable or failures > max_retries or not may_retry():
        return None
    if failure.retry_after is not None:
        due_at = _later(now, timedelta(seconds=failure.retry_after))
    else:
        due_at = _later(now, pauses.after(failures, source))
    if policy is not None and policy.max_elapsed is not None:
        last_at = _later(attempts.scheduled_at, parse_duration(policy.max_elapsed))
        return due_at if due_at <= last_at else None
    return due_at


def _later(instant: datetime, pause: timedelta) -> datetime:
    try:
        return instant + pause
    except OverflowError:  # beyond the calendar's end: as late as possible
        return datetime.max.replace(tzinfo=UTC)


def as_retry_on(value: Any) -> RetryOn | None:
    """The `retry_on` option in its one form: a tuple of exception types or a predicate.

    Raises:
        TypeError: It is neither.
    """
    if value is None:
        return None
    if isinstance(value, type) and issubclass(value, BaseException):
        return (value,)
    if isinstance(value, tuple | list) and all(
        isinstance(v, type) and issubclass(v, BaseException) for v in value
    ):
        return tuple(value)
    if callable(value):
        return value  # type: ignore[no-any-return]
    raise TypeError(
        f"retry_on is {value!r}: give an exception type, several, or a predicate of the exception."
    )
