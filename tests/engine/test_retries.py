"""Whether a failed attempt is followed by another, and when."""

from __future__ import annotations

import random
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyworkflow_ray.authoring.steps import StepFunction, step
from pyworkflow_ray.engine.limits import Limits
from pyworkflow_ray.engine.retries import AttemptCounts, Pauses, RetryPolicy, as_retry_on, next_attempt_at
from pyworkflow_ray.exceptions import (
    CancellationError,
    FatalError,
    RetryableError,
    StepFailedError,
    StepTimeoutError,
)
from pyworkflow_ray.values.failures import capture
from tests.engine.simulator import Simulation, WorkerKilled, assert_replays, outcome_of, retries_of

NOW = datetime(2026, 5, 1, tzinfo=UTC)
ERROR = ValueError("no")


class NoJitter(random.Random):
    def random(self) -> float:
        return 0.0


class FullJitter(random.Random):
    def random(self) -> float:
        return 1.0


def pause(
    delay: Any,
    failures: int = 1,
    *,
    error: BaseException = ERROR,
    cause: str = "error",
    losses: int = 0,
    elapsed: timedelta = timedelta(0),
    max_retries: int = 10**6,
    max_losses: int = 3,
    may_retry: bool = True,
    source: random.Random | None = None,
) -> timedelta | None:
    """The pause after this many failures, in all, of a step; None when it gives up."""
    due_at = next_attempt_at(
        capture(error),
        cause,
        AttemptCounts(NOW - elapsed, failures - 1, losses),
        now=NOW,
        max_retries=max_retries,
        pauses=Pauses(delay),
        may_retry=lambda: may_retry,
        max_losses=max_losses,
        source=source or NoJitter(),
    )
    return None if due_at is None else due_at - NOW


def seconds(*values: float) -> list[timedelta]:
    return [timedelta(seconds=value) for value in values]


# --- how long the pauses are --------------------------------------------------------------------------


def test_exponential_pauses_double_from_one_second_to_five_minutes() -> None:
    pauses = [pause("exponential", n) for n in range(1, 12)]
    assert pauses == seconds(1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300)


def test_exponential_pauses_stay_at_the_cap_however_many_failures() -> None:
    assert pause("exponential", 100_000) == timedelta(seconds=300)


def test_jitter_adds_up_to_a_tenth() -> None:
    assert pause("exponential", 3, source=FullJitter()) == timedelta(seconds=4.4)


@given(st.integers(1, 5000), st.integers())
def test_an_exponential_pause_with_jitter_is_within_its_bounds(failures: int, seed: int) -> None:
    least = pause("exponential", failures)
    told = pause("exponential", failures, source=random.Random(seed))
    assert least is not None
    assert told is not None
    assert least <= told <= least * 1.1


def test_fixed_pauses_are_a_minute() -> None:
    assert [pause("fixed", n) for n in (1, 2, 9)] == seconds(60, 60, 60)


@pytest.mark.parametrize(
    ("delay", "expected"),
    [
        ("30s", 30),
        ("1h30m", 5400),
        ("250ms", 0.25),
        (10, 10),
        (2.5, 2.5),
        (0, 0),
        (timedelta(minutes=2), 120),
    ],
)
def test_a_duration_is_the_pause_after_every_failure(delay: Any, expected: float) -> None:
    assert [pause(delay, n) for n in (1, 2, 7)] == seconds(expected, expected, expected)


def test_the_last_pause_of_a_list_repeats() -> None:
    assert [pause([1, "5s", 2.5], n) for n in range(1, 6)] == seconds(1, 5, 2.5, 2.5, 2.5)


@pytest.mark.parametrize("delay", ["soon", "", [], ["soon"], -1, float("nan"), "30"])
def test_a_delay_that_says_nothing_is_refused(delay: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Pauses(delay)


@pytest.mark.parametrize("delay", [None, object(), True, {"seconds": 1}])
def test_a_delay_of_another_type_is_refused(delay: Any) -> None:
    with pytest.raises(TypeError, match=r"\w"):
        Pauses(delay)


# --- policies -----------------------------------------------------------------------------------------


def test_a_policy_says_initial_factor_and_maximum() -> None:
    policy = RetryPolicy(initial="2s", factor=3, maximum="1m", jitter=0)
    assert [pause(policy, n, source=FullJitter()) for n in range(1, 6)] == seconds(2, 6, 18, 54, 60)


def test_a_policys_jitter_is_a_share_of_the_pause() -> None:
    assert pause(RetryPolicy(initial=10, jitter=0.5), source=FullJitter()) == timedelta(seconds=15)


def test_a_policys_max_attempts_count_the_first_and_go_before_max_retries() -> None:
    policy = RetryPolicy(max_attempts=3)
    assert pause(policy, 2, max_retries=0) is not None
    assert pause(policy, 3, max_retries=100) is None


def test_no_attempt_starts_later_than_max_elapsed_after_scheduling() -> None:
    policy = RetryPolicy(initial=10, jitter=0, max_elapsed="1m")
    assert pause(policy, elapsed=timedelta(seconds=50)) == timedelta(seconds=10)
    assert pause(policy, elapsed=timedelta(seconds=50.001)) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"factor": 0.5},
        {"factor": float("nan")},
        {"jitter": -0.1},
        {"jitter": float("inf")},
        {"max_attempts": 0},
        {"initial": "soon"},
        {"maximum": -1},
        {"max_elapsed": "long"},
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        RetryPolicy(**wrong)


def test_a_pause_beyond_the_calendars_end_is_due_at_its_end() -> None:
    due_at = next_attempt_at(
        capture(ERROR),
        "error",
        AttemptCounts(NOW),
        now=NOW,
        max_retries=3,
        pauses=Pauses(RetryPolicy(initial=timedelta.max, maximum=timedelta.max, max_elapsed=timedelta.max)),
        may_retry=lambda: True,
        max_losses=3,
        source=FullJitter(),
    )
    assert due_at == datetime.max.replace(tzinfo=UTC)


@given(
    st.builds(
        RetryPolicy,
        initial=st.floats(0, 1e6),
        factor=st.floats(1, 1e6),
        maximum=st.floats(0, 1e9),
        jitter=st.floats(0, 10),
        max_attempts=st.none() | st.integers(1, 20),
    ),
    st.integers(1, 10_000),
    st.integers(),
)
def test_a_policy_never_pauses_less_than_nothing_or_more_than_its_maximum_with_jitter(
    policy: RetryPolicy, failures: int, seed: int
) -> None:
    told = pause(policy, failures, source=random.Random(seed))
    if told is None:
        assert policy.max_attempts is not None
        assert failures >= policy.max_attempts
    else:
        longest = timedelta(seconds=float(policy.maximum)) * (1 + policy.jitter)  # type: ignore[arg-type]
        assert timedelta(0) <= told <= longest + timedelta(microseconds=1)


@given(st.integers(0, 20), st.integers(1, 30))
def test_a_step_has_one_attempt_more_than_retries(max_retries: int, failures: int) -> None:
    gives_up = pause(1, failures, max_retries=max_retries) is None
    assert gives_up == (failures > max_retries)


# --- what the error says ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry_after", "expected"),
    [("30s", 30.0), (7, 7.0), (2.5, 2.5), (0, 0.0), (timedelta(hours=1), 3600.0)],
)
def test_retry_after_takes_the_place_of_the_delay(retry_after: Any, expected: float) -> None:
    told = pause("fixed", error=RetryableError("later", retry_after=retry_after))
    assert told is not None
    assert told.total_seconds() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("zone", ["aware", "naive", "other"])
def test_retry_after_an_instant_is_that_instant_in_any_zone(zone: str) -> None:
    from datetime import timezone

    instant = datetime.now(UTC) + timedelta(seconds=90)
    if zone == "naive":
        instant = instant.replace(tzinfo=None)
    elif zone == "other":
        instant = instant.astimezone(timezone(timedelta(hours=-7)))
    told = pause("fixed", error=RetryableError("later", retry_after=instant))
    assert told is not None
    assert told.total_seconds() == pytest.approx(90, abs=5)


def test_retry_after_an_instant_that_has_passed_is_at_once() -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    assert pause("fixed", error=RetryableError("now", retry_after=past)) == timedelta(0)


def test_a_retryable_error_without_an_instant_leaves_it_to_the_delay() -> None:
    assert pause("fixed", error=RetryableError("later")) == timedelta(seconds=60)


def test_retry_after_asks_for_no_more_attempts_than_there_are() -> None:
    assert pause("fixed", 4, max_retries=3, error=RetryableError("later", retry_after=1)) is None


@pytest.mark.parametrize("error", [FatalError("no"), CancellationError()])
def test_an_error_that_no_attempt_can_help_ends_the_step(error: Exception) -> None:
    assert pause("exponential", error=error) is None


def test_a_timeout_is_retried_like_an_error() -> None:
    assert pause(3, error=StepTimeoutError("slow"), cause="timeout") == timedelta(seconds=3)
    assert pause(3, 4, max_retries=3, error=StepTimeoutError("slow"), cause="timeout") is None


def test_what_retry_on_does_not_name_is_not_tried_again() -> None:
    assert pause(3, may_retry=False) is None


@pytest.mark.parametrize("wrong", [3, "ValueError", [ValueError, 3], (int,), object()])
def test_retry_on_of_another_form_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="retry_on"):
        as_retry_on(wrong)


# --- lost workers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", ["worker_died", "out_of_memory"])
def test_lost_workers_do_not_use_up_the_steps_own_retries(cause: str) -> None:
    assert pause(1, 50, cause=cause, max_retries=0, losses=0) == timedelta(seconds=0.5)


def test_a_step_that_loses_too_many_workers_fails() -> None:
    pauses = [pause(1, cause="worker_died", losses=n, max_losses=3) for n in range(4)]
    assert pauses == [*seconds(0.5, 1, 2), None]


# --- in a run -----------------------------------------------------------------------------------------


def run_failing(failing: StepFunction[Any, Any], limits: Limits | None = None) -> Simulation:
    async def workflow() -> Any:
        return await failing()

    simulation = Simulation(workflow, limits=limits)
    outcome_of(simulation)
    assert_replays(simulation)
    return simulation


def raiser(*errors: BaseException, **options: Any) -> tuple[StepFunction[Any, Any], list[int]]:
    """A step that raises these, one a call and then the last for ever, and how often it was called."""
    calls: list[int] = []

    def raising() -> None:
        calls.append(1)
        raise errors[min(len(calls), len(errors)) - 1]

    from pyworkflow_ray.authoring.step_options import build_options
    from pyworkflow_ray.engine.options import StepOptions

    return StepFunction(raising, "raising", build_options("a step", StepOptions(), options)), calls


def test_a_step_that_says_nothing_has_the_configured_retries() -> None:
    failing, calls = raiser(ValueError("no"))
    run_failing(failing, Limits(default_retries=5))
    assert len(calls) == 6


def test_max_retries_of_zero_is_one_attempt() -> None:
    failing, calls = raiser(ValueError("no"), max_retries=0)
    run_failing(failing, Limits(default_retries=5))
    assert len(calls) == 1


@pytest.mark.parametrize("error", [FatalError("no"), CancellationError()])
def test_a_fatal_error_is_raised_once(error: Exception) -> None:
    failing, calls = raiser(error)
    simulation = run_failing(failing)
    assert len(calls) == 1
    assert retries_of(simulation) == []


def test_pauses_are_waited_for_in_the_run() -> None:
    failing, _ = raiser(ValueError("no"), retry_delay=[2.5, "1m"], max_retries=3)
    simulation = run_failing(failing)
    starts = {r.event.attempt: r for r in simulation.history if hasattr(r.event, "retry_at")}  # type: ignore[attr-defined]
    told = [recorded.event.retry_at - recorded.timestamp for recorded in starts.values()]  # type: ignore[attr-defined]
    assert [round(pause.total_seconds(), 2) for pause in told] == [2.5, 60, 60]


def test_retry_on_tells_which_types_are_tried_again() -> None:
    failing, calls = raiser(KeyError("a"), KeyError("b"), ValueError("c"), retry_on=(LookupError, OSError))
    run_failing(failing, Limits(default_retries=9))
    assert len(calls) == 3


class Unreachable(OSError):
    def __init__(self, host: str, *, port: int) -> None:
        super().__init__(f"{host} is away")
        self.port, self.lock = port, threading.Lock()


class LostClassError(Unreachable):
    lock = threading.Lock()  # its class cannot travel


@pytest.mark.parametrize("cls", [Unreachable, LostClassError])
@pytest.mark.parametrize(
    ("retry_on", "attempts"),
    [
        (Unreachable, 4),
        (OSError, 4),
        ((KeyError, Exception), 4),
        (ValueError, 1),
        (StepFailedError, 1),
    ],
)
def test_retry_on_knows_the_base_classes_of_an_error_that_cannot_be_rebuilt(
    cls: type[Unreachable], retry_on: Any, attempts: int
) -> None:
    failing, calls = raiser(cls("host", port=1), retry_on=retry_on)
    run_failing(failing, Limits(default_retries=3))
    assert len(calls) == attempts


def test_a_predicate_gets_an_error_of_the_class_that_was_raised() -> None:
    asked = []

    def predicate(error: BaseException) -> bool:
        asked.append(error)
        return isinstance(error, Unreachable) and error.port == 1

    failing, calls = raiser(Unreachable("a", port=1), Unreachable("b", port=2), retry_on=predicate)
    run_failing(failing, Limits(default_retries=9))
    assert [str(error) for error in asked] == ["a is away", "b is away"]
    assert len(calls) == 2


def test_retry_on_may_be_one_type() -> None:
    failing, calls = raiser(KeyError("a"), ValueError("c"), retry_on=LookupError)
    run_failing(failing, Limits(default_retries=9))
    assert len(calls) == 2


def test_retry_on_may_ask_about_the_error() -> None:
    failing, calls = raiser(
        OSError(5, "busy"), OSError(13, "denied"), retry_on=lambda error: getattr(error, "errno", 0) == 5
    )
    run_failing(failing, Limits(default_retries=9))
    assert len(calls) == 2


def test_a_predicate_that_raises_ends_the_step() -> None:
    def predicate(error: BaseException) -> bool:
        raise RuntimeError("bad predicate")

    failing, calls = raiser(ValueError("no"), retry_on=predicate)
    simulation = run_failing(failing)
    assert len(calls) == 1
    (note,) = simulation.execution.take_notes()
    assert f"retry_on of step 'raising#1' of run {simulation.run_id!r} raised" in note
    assert "RuntimeError: bad predicate" in note


def test_losses_and_failures_are_counted_apart_in_a_run() -> None:
    failing, calls = raiser(
        WorkerKilled(), ValueError("1"), WorkerKilled(), ValueError("2"), ValueError("3"), max_retries=2
    )
    simulation = run_failing(failing, Limits(max_losses=2))
    assert len(calls) == 5
    assert [r.cause for r in retries_of(simulation)] == ["worker_died", "error", "worker_died", "error"]
    assert [r.attempt for r in retries_of(simulation)] == [2, 3, 4, 5]


def test_a_step_that_is_not_idempotent_fails_at_its_first_loss() -> None:
    failing, calls = raiser(WorkerKilled(), idempotent=False)
    simulation = run_failing(failing, Limits(max_losses=9))
    assert len(calls) == 1
    assert simulation.history[-1].event.error_type.endswith("StepFailedError")  # type: ignore[attr-defined]


def test_a_step_that_is_not_idempotent_retries_errors_of_its_own() -> None:
    failing, calls = raiser(ValueError("no"), idempotent=False, max_retries=2)
    run_failing(failing)
    assert len(calls) == 3


def test_jitter_is_the_same_whoever_decides() -> None:
    failing, _ = raiser(ValueError("no"), max_retries=3)
    first, second = run_failing(failing), run_failing(failing)
    assert [r.retry_at for r in retries_of(first)] == [r.retry_at for r in retries_of(second)]


def test_a_step_that_gave_up_raises_its_own_error_with_its_attempts_as_a_note() -> None:
    failing, _ = raiser(KeyError("lost"), max_retries=1)

    async def workflow() -> list[str]:
        try:
            await failing()
        except KeyError as error:
            return list(error.__notes__)
        return []

    simulation = Simulation(workflow)
    notes = simulation.run()
    assert any("'raising#1' gave up after 2 attempts" in note for note in notes)


class FrozenError(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


def test_an_error_that_takes_no_note_is_raised_as_it_is() -> None:
    failing, _ = raiser(FrozenError("ice"), max_retries=0)

    async def workflow() -> str:
        try:
            await failing()
        except FrozenError as error:
            return str(error)
        return "missed"

    assert Simulation(workflow).run() == "ice"


def test_an_outcome_of_an_attempt_that_is_no_longer_waited_for_is_not_recorded() -> None:
    from pyworkflow_ray.engine.attempts import AttemptCompleted

    failing = step(name="never_mind", max_retries=1)(lambda: None)

    async def workflow() -> None:
        await failing()

    simulation = Simulation(workflow)
    simulation.start()
    late = AttemptCompleted(result=b"1")
    assert simulation.execution.conclude("never_mind#1", 2, late, NOW) is None
    assert simulation.execution.conclude("other#1", 1, late, NOW) is None
    assert simulation.execution.conclude("never_mind#1", 1, late, NOW) is not None
