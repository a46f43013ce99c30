"""Where a test has things go wrong: the places, and how often."""

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
    """An event that a commit adds to a history."""

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
    """A fault that is to happen at a place of the test's choice.

    `seen` counts how often the place was come to, and `hits` how often the fault happened there; `last` says
    to what it happened last: the events of a commit, or an attempt.
    """

    def __init__(self, what: str, skip: int, times: int | None) -> None:
        if skip < 0 or (times is not None and times < 0):
            raise ValueError(f"skip is {skip} and times is {times}: give whole numbers, 0 or more.")
        self.what, self.skip, self.times = what, skip, times
        self.seen = self.hits = 0
        self.last = ""

    def take(self) -> bool:
        """Whether the fault happens, now that its place is come to."""
        self.seen += 1
        if self.seen <= self.skip or (self.times is not None and self.hits >= self.times):
            return False
        self.hits += 1
        return True

    def __repr__(self) -> str:
        return f"<{self.what}: {self.hits} of {'any' if self.times is None else self.times} times>"


class CommitPoint(FailPoint):
    """The coordinator is lost before or after a commit."""

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
        """Whether these are events of a commit that is meant."""
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
        """Whether this is an attempt that is meant."""
        return self._step in (attempt.step_id, attempt.step_name)


class LostWorker(AttemptPoint):
    """The worker dies, before it has done the step's work or after."""

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
    """The attempt takes time."""

    def __init__(self, step: str, skip: int, times: int | None, duration: timedelta) -> None:
        super().__init__("delay", step, skip, times)
        self.duration = duration


class FailPoints:
    """The fail points of an environment, in the order in which the test has set them."""

    def __init__(self) -> None:
        self._commits: list[CommitPoint] = []
        self._attempts: list[AttemptPoint] = []

    def add(self, point: FailPoint) -> None:
        """Have a fault happen from now on."""
        if isinstance(point, CommitPoint):
            self._commits.append(point)
        elif isinstance(point, AttemptPoint):
            self._attempts.append(point)

    @property
    def watch_commits(self) -> bool:
        """Whether anything is to happen at commits."""
        return bool(self._commits)

    def at_commit(self, events: Sequence[Committed]) -> When | None:
        """When the coordinator is lost that makes this commit, if it is."""
        found = None
        for point in self._commits:
            if point.is_at(events) and point.take() and found is None:
                found = point.when
                point.last = ", ".join(map(str, events))
        return found

    def at_attempt(self, attempt: Attempt) -> tuple[Delayed | None, LostWorker | Raised | None]:
        """How long the attempt is delayed, and how it goes wrong; of each kind, the first that is due."""
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
