"""What becomes of fires while a run of their schedule has not ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.recurrences.overlaps import Decision, decide, policy_of
from pyworkflow_ray.statuses import OverlapPolicy

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
A, B, C, D = (NOON + timedelta(minutes=minute) for minute in range(4))
SKIP, ONE, ALL, CANCEL, ALLOW = (
    OverlapPolicy.SKIP,
    OverlapPolicy.BUFFER_ONE,
    OverlapPolicy.BUFFER_ALL,
    OverlapPolicy.CANCEL_OTHER,
    OverlapPolicy.ALLOW_ALL,
)


@pytest.mark.parametrize("policy", list(OverlapPolicy))
def test_a_fire_with_nothing_before_it_starts(policy: OverlapPolicy) -> None:
    assert decide(policy, [A], [], is_running=False) == Decision(starts=[A])


@pytest.mark.parametrize(
    ("policy", "decision"),
    [
        (SKIP, Decision(skipped=[A])),
        (ONE, Decision(buffered=[A])),
        (ALL, Decision(buffered=[A])),
        (CANCEL, Decision(buffered=[A], is_cancelling=True)),
        (ALLOW, Decision(starts=[A])),
    ],
)
def test_a_fire_while_a_run_has_not_ended(policy: OverlapPolicy, decision: Decision) -> None:
    assert decide(policy, [A], [], is_running=True) == decision


@pytest.mark.parametrize(
    ("policy", "decision"),
    [
        (SKIP, Decision(skipped=[B], buffered=[A])),  # from the time of another policy
        (ONE, Decision(skipped=[B], buffered=[A])),
        (ALL, Decision(buffered=[A, B])),
        (CANCEL, Decision(skipped=[A], buffered=[B], is_cancelling=True)),
        (ALLOW, Decision(starts=[A, B])),
    ],
)
def test_a_fire_while_another_waits_for_its_turn(policy: OverlapPolicy, decision: Decision) -> None:
    assert decide(policy, [B], [A], is_running=True) == decision


@pytest.mark.parametrize(
    ("policy", "decision"),
    [
        (SKIP, Decision(starts=[A])),
        (ONE, Decision(starts=[A])),
        (ALL, Decision(starts=[A], buffered=[B])),
        (CANCEL, Decision(starts=[B], skipped=[A])),
        (ALLOW, Decision(starts=[A, B])),
    ],
)
def test_what_waits_gets_its_turn_when_the_run_has_ended(policy: OverlapPolicy, decision: Decision) -> None:
    waiting = [A] if policy in (SKIP, ONE) else [A, B]
    assert decide(policy, [], waiting, is_running=False) == decision


@pytest.mark.parametrize(
    ("policy", "decision"),
    [
        (SKIP, Decision(starts=[A], skipped=[B, C, D])),
        (ONE, Decision(starts=[A], buffered=[B], skipped=[C, D])),
        (ALL, Decision(starts=[A], buffered=[B, C, D])),
        (CANCEL, Decision(starts=[D], skipped=[A, B, C])),
        (ALLOW, Decision(starts=[A, B, C, D])),
    ],
)
def test_fires_that_were_missed_are_decided_one_after_another(
    policy: OverlapPolicy, decision: Decision
) -> None:
    assert decide(policy, [A, B, C, D], [], is_running=False) == decision


def test_a_run_that_is_asked_to_cancel_is_not_asked_again_by_what_waits() -> None:
    assert decide(CANCEL, [], [A], is_running=True) == Decision(buffered=[A])


# --- whatever the fires ---------------------------------------------------------------------------

policies = st.sampled_from(list(OverlapPolicy))


@st.composite
def fires(draw: st.DrawFn) -> tuple[list[datetime], list[datetime]]:
    """Fires that are due, and those before them that wait for their turn."""
    waiting, due = draw(st.integers(0, 5)), draw(st.integers(0, 5))
    times = [NOON + timedelta(minutes=minute) for minute in range(waiting + due)]
    return times[waiting:], times[:waiting]


@given(policies, fires(), st.booleans())
def test_every_fire_is_in_exactly_one_list_and_in_order(
    policy: OverlapPolicy, of: tuple[list[datetime], list[datetime]], is_running: bool
) -> None:
    due, waiting = of
    decision = decide(policy, due, waiting, is_running=is_running)
    starts, buffered, skipped = decision.starts, decision.buffered, decision.skipped
    assert sorted([*starts, *buffered, *skipped]) == [*waiting, *due]
    assert all(each == sorted(each) for each in (starts, buffered, skipped))


@given(st.sampled_from([SKIP, ONE, ALL, CANCEL]), fires(), st.booleans())
def test_only_allow_all_has_two_runs_at_a_time(
    policy: OverlapPolicy, of: tuple[list[datetime], list[datetime]], is_running: bool
) -> None:
    due, waiting = of
    decision = decide(policy, due, waiting, is_running=is_running)
    assert len(decision.starts) + is_running <= 1


@given(fires(), st.booleans())
def test_cancel_other_keeps_the_latest_only(
    of: tuple[list[datetime], list[datetime]], is_running: bool
) -> None:
    due, waiting = of
    decision = decide(CANCEL, due, waiting, is_running=is_running)
    assert [*decision.starts, *decision.buffered] == [*waiting, *due][-1:]
    assert decision.is_cancelling == (is_running and bool(due))


@given(policies, fires())
def test_nobody_waits_while_nothing_runs(
    policy: OverlapPolicy, of: tuple[list[datetime], list[datetime]]
) -> None:
    due, waiting = of
    decision = decide(policy, due, waiting, is_running=False)
    assert decision.starts or not (due or waiting)


@given(st.sampled_from([ALL, ALLOW]), fires(), st.booleans())
def test_buffer_all_and_allow_all_lose_no_fire(
    policy: OverlapPolicy, of: tuple[list[datetime], list[datetime]], is_running: bool
) -> None:
    due, waiting = of
    assert decide(policy, due, waiting, is_running=is_running).skipped == []


def test_a_policy_goes_by_its_name() -> None:
    assert policy_of("buffer_one") is ONE
    assert policy_of(CANCEL) is CANCEL
    with pytest.raises(ConfigurationError, match="'queue': give one of skip, buffer_one, buffer_all,"):
        policy_of("queue")
