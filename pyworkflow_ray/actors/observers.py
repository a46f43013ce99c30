"""The one seam for watching: what an engine says of its runs while it drives them.

At each moment that matters, the actors hand a small frozen value to their observers. Moments carry ids,
counts and durations, and never the values of users. Logs hang here. Metrics and tracing can hang here too,
and need nothing else.

An observer names the kinds of moments that it wants. Moments that come by the thousand are not even made if
nobody wants them: so watching costs nothing where nobody watches.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Protocol, assert_never

import msgspec
from loguru import logger

from pyworkflow_ray.storage.records import RunRecord


class MomentBase(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all moments; `Moment` is the closed set of them."""


class OfRun(MomentBase, frozen=True, kw_only=True):
    """A moment in the life of a run."""

    run_id: str
    workflow: str


class RunAccepted(OfRun, frozen=True, kw_only=True):
    """A coordinator has begun to drive a new run, or one that was started for later."""

    coordinator: str


class RunClaimed(OfRun, frozen=True, kw_only=True):
    """A coordinator has claimed a run that nobody held, and has begun to drive it."""

    coordinator: str
    epoch: int
    was_interrupted: bool


class RunReplayed(OfRun, frozen=True, kw_only=True):
    """The run's code has been replayed over its history."""

    events: int
    duration: timedelta


class RunRecovered(OfRun, frozen=True, kw_only=True):
    """The run goes on after the crash of the coordinator that held it."""

    recovery_attempt: int


class RunSuspended(OfRun, frozen=True, kw_only=True):
    """The run has left its coordinator's memory, until `wake_at` or until something comes for it."""

    wake_at: datetime | None
    duration: timedelta
    """How long it was in memory."""


class RunEnded(OfRun, frozen=True, kw_only=True):
    """The run has ended for good."""

    status: str
    events: int
    duration: timedelta
    """How long it was in memory."""


class RunInterrupted(OfRun, frozen=True, kw_only=True):
    """The run was set aside: its code cannot go on over its history."""

    error: str


class RunLost(OfRun, frozen=True, kw_only=True):
    """Another coordinator has the run; it was dropped here."""


class RunGivenUp(OfRun, frozen=True, kw_only=True):
    """Driving the run failed, and it was given back for another coordinator to drive."""

    traceback: str


class RunBlocked(OfRun, frozen=True, kw_only=True):
    """The run's code has not paused for long; said again each second."""

    duration: timedelta
    stack: str


class HistoryLong(OfRun, frozen=True, kw_only=True):
    """The run's history comes close to the most events that a run may have."""

    events: int
    limit: int


class AttemptDispatched(OfRun, frozen=True, kw_only=True):
    """An attempt of a step was handed to whatever runs it."""

    step_id: str
    step: str
    attempt: int


class AttemptEnded(OfRun, frozen=True, kw_only=True):
    """An attempt of a step has ended: `outcome` is "completed", or the cause of its failure."""

    step_id: str
    step: str
    attempt: int
    outcome: str
    duration: timedelta
    """From the dispatch to the outcome's arrival."""


class AppendCommitted(OfRun, frozen=True, kw_only=True):
    """An append to the run's history, or to its row, is durable."""

    events: int
    duration: timedelta
    """From the hand-over to the writer to the answer; it includes the wait for other writes."""


class RunTimerFired(OfRun, frozen=True, kw_only=True):
    """A timer of the run was fired in memory, so long after it was due."""

    late: timedelta


class RunWoken(MomentBase, frozen=True, kw_only=True):
    """The timer has nudged a coordinator for a run that was due, so long after it was due."""

    run_id: str
    late: timedelta


def of_run(run: RunRecord) -> dict[str, str]:
    """What every moment of a run says of it."""
    return {"run_id": run.run_id, "workflow": run.workflow_name}


Moment = (
    RunAccepted
    | RunClaimed
    | RunReplayed
    | RunRecovered
    | RunSuspended
    | RunEnded
    | RunInterrupted
    | RunLost
    | RunGivenUp
    | RunBlocked
    | HistoryLong
    | AttemptDispatched
    | AttemptEnded
    | AppendCommitted
    | RunTimerFired
    | RunWoken
)
"""Every moment that observers can see."""


class Observer(Protocol):
    """Watches runs. It is called on the event loop of an actor, so it must be quick and must not wait."""

    @property
    def moments(self) -> Iterable[type[Moment]]:
        """The kinds of moments that it wants. Read once, when it is hung up."""
        ...

    def observe(self, moment: Moment) -> None:
        """Take note of a moment. What this raises is logged, and disturbs no run."""
        ...


class Observers:
    """The observers of one actor."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._by_kind: dict[type[Moment], list[Observer]] = {}
        for observer in observers:
            for kind in observer.moments:
                self._by_kind.setdefault(kind, []).append(observer)
        self._failed: set[int] = set()
        """Observers that have raised, by `id`: they are complained of once."""

    def wants(self, kind: type[Moment]) -> bool:
        """Whether any observer wants moments of this kind; ask before making one that is frequent."""
        return kind in self._by_kind

    def report(self, moment: Moment) -> None:
        """Give a moment to those observers that want it; on the actor's event loop."""
        for observer in self._by_kind.get(type(moment), ()):
            try:
                observer.observe(moment)
            except Exception as error:
                self._complain(observer, moment, error)

    def _complain(self, observer: Observer, moment: Moment, error: Exception) -> None:
        if id(observer) in self._failed:
            return
        self._failed.add(id(observer))
        logger.error(
            "The observer {} failed at {}: {}: {}. Runs go on. This is said once.",
            *(type(observer).__name__, type(moment).__name__, type(error).__name__, error),
        )


class LogObserver:
    """Says in the log what a person should hear of."""

    moments: Iterable[type[Moment]] = (RunInterrupted, RunLost, RunGivenUp, RunBlocked, HistoryLong)

    def observe(self, moment: Moment) -> None:
        match moment:
            case RunLost():
                logger.info("Run {} is driven elsewhere now; dropped here", moment.run_id)
            case RunInterrupted():
                logger.error("Run {} is interrupted: {}", moment.run_id, moment.error)
            case RunGivenUp():
                logger.error(
                    "Driving run {} failed; it is given up here:\n{}", moment.run_id, moment.traceback
                )
            case RunBlocked():
                logger.warning(
                    "Workflow code of run {} has blocked for {:.0f} s; do slow work in a step. It is at:\n{}",
                    *(moment.run_id, moment.duration.total_seconds(), moment.stack),
                )
            case HistoryLong():
                logger.warning(
                    "Run {} has {} events; it fails at {} (event_hard_limit). Use continue_as_new() or "
                    "children.",
                    *(moment.run_id, moment.events, moment.limit),
                )
            case (
                RunAccepted()
                | RunClaimed()
                | RunReplayed()
                | RunRecovered()
                | RunSuspended()
                | RunEnded()
                | AttemptDispatched()
                | AttemptEnded()
                | AppendCommitted()
                | RunTimerFired()
                | RunWoken()
            ):
                pass  # the history tells these
            case _:
                assert_never(moment)
