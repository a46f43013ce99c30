"""Fail points: where a test injects faults, and how often."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from pyworkflow_ray.actors.runner import Attempt
from pyworkflow_ray.engine.events import TYPES

When = Literal["before_commit", "after_commit"]
CRASHES: tuple[When, ...] = ("before_commit", "after_commit")


@dataclass(frozen=True, slots=True)
class Committed:
    """An event that a commit appends to a history."""

    run_id: str
    workflow: str
    type: str
    data: dict[str, Any]

    @property
    def step(self) -> tuple[str, str]:
        """The id and the name of the event's step, if it has one."""
        return self.data.get("step_id", ""), self.data.get("step_name", "")

    def __str__(self) -> str:
        return f"{self.type} {self.step[0]}".strip()


class FailPoint:
    """A fault that happens at a place of the test's choice.

    `seen` counts how often a run has reached the place, and `hits` how often the fault has happened there.
    `last` says what the last fault has hit: the events of a commit, or an attempt.
    """

    def __init__(self, what: str, skip: int, times: int | None) -> None:
        if skip < 0 or (times is not None and times < 0):
            raise ValueError(f"skip is {skip} and times is {times}: give whole numbers, 0 or more.")
        self.what, self.skip, self.times = what, skip, times
        self.seen = self.hits = 0
        self.last = ""

    def take(self) -> bool:
        """Count that a run has reached the place; whether the fault happens this time."""
        self.seen += 1
        if self.seen <= self.skip or (self.times is not None and self.hits >= self.times):
            return False
        self.hits += 1
        return True

    def __repr__(self) -> str:
        return f"<{self.what}: {self.hits} of {'any' if self.times is None else self.times} times>"


class CommitPoint(FailPoint):
    """The coordinator crashes before or after a commit."""

    def __init__(
        self,
        when: When,
        event: str | None,
        step: str | None,
        workflow: str | None,
        skip: int,
        times: int | None,
    ) -> None:
        if when not in CRASHES:
            raise ValueError(f"crash_at is {when!r}: give one of {', '.join(map(repr, CRASHES))}.")
        known = TYPES.values()
        if event is not None and event not in known:
            alike = difflib.get_close_matches(event, known, n=1)
            hint = f"did you mean {alike[0]!r}?" if alike else f"there are {', '.join(known)}."
            raise ValueError(f"There is no event of type {event!r}; {hint}")
        of = [f"of {what}" for what in (event, step, workflow) if what is not None]
        super().__init__(" ".join(["crash", when.replace("_", " "), *of]), skip, times)
        self.when, self._event, self._step, self._workflow = when, event, step, workflow

    def is_at(self, events: Sequence[Committed]) -> bool:
        """Whether a commit of these events is the place."""
        return any(
            (self._event is None or event.type == self._event)
            and (self._step is None or self._step in event.step)
            and (self._workflow is None or event.workflow == self._workflow)
            for event in events
        )


class AttemptPoint(FailPoint):
    """An attempt of a step goes wrong."""

    def __init__(self, what: str, step: str, skip: int, times: int | None) -> None:
        super().__init__(f"{what} {step}", skip, times)
        self._step = step

    def is_at(self, attempt: Attempt) -> bool:
        """Whether this attempt is the place."""
        return self._step in (attempt.step_id, attempt.step_name)


class LostWorker(AttemptPoint):
    """The worker dies, before or after it has done the step's work."""

    def __init__(self, step: str, skip: int, times: int | None, after_work: bool) -> None:
        super().__init__("lose worker of", step, skip, times)
        self.after_work = after_work


class Raised(AttemptPoint):
    """The step raises an error instead of doing its work."""

    def __init__(
        self, step: str, skip: int, times: int | None, error: BaseException | type[BaseException]
    ) -> None:
        super().__init__("fail", step, skip, times)
        self.error = error


class Delayed(AttemptPoint):
    """The attempt begins later."""

    def __init__(self, step: str, skip: int, times: int | None, duration: timedelta) -> None:
        super().__init__("delay", step, skip, times)
        self.duration = duration


class FailPoints:
    """The fail points of an environment, in the order in which the test has added them."""

    def __init__(self) -> None:
        self._commits: list[CommitPoint] = []
        self._attempts: list[AttemptPoint] = []

    def add(self, point: FailPoint) -> None:
        """Inject this fault from now on."""
        if isinstance(point, CommitPoint):
            self._commits.append(point)
        elif isinstance(point, AttemptPoint):
            self._attempts.append(point)

    @property
    def watch_commits(self) -> bool:
        """Whether any fault can happen at a commit."""
        return bool(self._commits)

    def at_commit(self, events: Sequence[Committed]) -> When | None:
        """When the coordinator crashes at a commit of these events; None if it does not."""
        found = None
        for point in self._commits:
            if point.is_at(events) and point.take() and found is None:
                found = point.when
                point.last = ", ".join(map(str, events))
        return found

    def at_attempt(self, attempt: Attempt) -> tuple[Delayed | None, LostWorker | Raised | None]:
        """The delay and the fault of this attempt, if any. Of each kind, the first that is due counts."""
        delay: Delayed | None = None
        fault: LostWorker | Raised | None = None
        for point in self._attempts:
            match point:
                case Delayed() if delay is None and point.is_at(attempt) and point.take():
                    delay = point
                case LostWorker() | Raised() if fault is None and point.is_at(attempt) and point.take():
                    fault = point
                case _:
                    continue
            point.last = f"attempt {attempt.attempt} of {attempt.step_id}"
        return delay, fault
