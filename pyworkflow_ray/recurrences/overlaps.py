"""What a schedule does with a fire while a run of its own has not ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.statuses import OverlapPolicy


def policy_of(policy: OverlapPolicy | str) -> OverlapPolicy:
    """The policy, given by its name or as it is.

    Raises:
        ConfigurationError: There is no such policy.
    """
    try:
        return OverlapPolicy(policy)
    except ValueError:
        raise ConfigurationError(
            f"overlap_policy is {policy!r}: give one of {', '.join(each.value for each in OverlapPolicy)}."
        ) from None


@dataclass(slots=True)
class Decision:
    """What happens to fires. Each fire is in one of the three lists, in order.

    Args:
        starts: Those that start now.
        buffered: Those that start when no run of the schedule goes on.
        skipped: Those that never start.
        is_cancelling: Whether to ask the present run to cancel.
    """

    starts: list[datetime] = field(default_factory=list)
    buffered: list[datetime] = field(default_factory=list)
    skipped: list[datetime] = field(default_factory=list)
    is_cancelling: bool = False


def decide(
    policy: OverlapPolicy, due: Sequence[datetime], buffered: Sequence[datetime], *, is_running: bool
) -> Decision:
    """What happens to the fires that are due now, and to those that were buffered before.

    Args:
        due: In order.
        buffered: In order, all of them before those in `due`.
        is_running: Whether a run of the schedule has not ended.
    """
    match policy:
        case OverlapPolicy.ALLOW_ALL:
            return Decision(starts=[*buffered, *due])
        case OverlapPolicy.CANCEL_OTHER:
            return _latest(due, buffered, is_running)
        case _:
            capacity = {OverlapPolicy.SKIP: 0, OverlapPolicy.BUFFER_ONE: 1}.get(policy)
            return _in_turn(due, buffered, is_running, capacity)


def _latest(due: Sequence[datetime], buffered: Sequence[datetime], is_running: bool) -> Decision:
    """The latest fire replaces all earlier ones."""
    fires = [*buffered, *due]
    if not is_running:
        return Decision(starts=fires[-1:], skipped=fires[:-1])
    return Decision(buffered=fires[-1:], skipped=fires[:-1], is_cancelling=bool(due))


def _in_turn(
    due: Sequence[datetime], buffered: Sequence[datetime], is_running: bool, capacity: int | None
) -> Decision:
    """One fire at a time. At most `capacity` others wait for their turn (None: all)."""
    decision = Decision(buffered=list(buffered))
    if not is_running and decision.buffered:
        decision.starts.append(decision.buffered.pop(0))
    for fire in due:
        if not is_running and not decision.starts:
            decision.starts.append(fire)
        elif capacity is None or len(decision.buffered) < capacity:
            decision.buffered.append(fire)
        else:
            decision.skipped.append(fire)
    return decision
