"""Batches of attempts, without Ray: how they are gathered, run, handed on, and left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.actors import spools
from pyworkflow_ray.actors.batch_tickets import Batches
from pyworkflow_ray.actors.batches import ALL, Batch, BatchRun
from pyworkflow_ray.actors.runner import Attempt
from pyworkflow_ray.actors.spools import Answer, Spool, take_spooled
from pyworkflow_ray.actors.tickets import Landed
from pyworkflow_ray.engine.attempts import (
    AttemptCompleted,
    AttemptFailed,
    AttemptOutcome,
    decode_outcome,
    encode_outcome,
)
from pyworkflow_ray.engine.options import StepOptions
from pyworkflow_ray.testing import WorkflowEnvironment
from pyworkflow_ray.values import codec
from pyworkflow_ray.values.failures import capture


@pytest.fixture(autouse=True)
def no_file_is_left() -> Iterator[None]:
    yield
    while spools._last:
        spools._last.pop().discard()


def attempt(number: int, timeout: float | None = None, run_id: str = "run_1") -> Attempt:
    return Attempt(
        run_id=run_id,
        workflow_name="many",
        step_id=f"work#{number}",
        step_name="work",
        attempt=1,
        args=codec.encode([number]),
        kwargs=codec.encode({}),
        timeout=timeout,
    )


def run(function: Callable[[int], Any], count: int, timeout: float | None = None) -> dict[int, Any]:
    """What each attempt of a batch came to: its result, or the type of its error."""
    attempts = [attempt(number, timeout) for number in range(count)]
    answers = BatchRun(Batch(batch_id="b" * 32, attempts=attempts), function, "node").run()
    return {index: told(decode_outcome(data)) for index, data in answers}


def told(outcome: AttemptOutcome) -> Any:
    return outcome.failure.error_type if isinstance(outcome, AttemptFailed) else codec.decode(outcome.result)


# --- in the worker --------------------------------------------------------------------------------


def test_each_attempt_has_its_own_context_and_outcome() -> None:
    def work(number: int) -> str:
        if number == 1:
            raise ValueError("one")
        return f"{pr.get_context().step_id} {pr.get_context().idempotency_key}"

    assert run(work, 3) == {0: "work#0 run_1:work#0", 1: "ValueError", 2: "work#2 run_1:work#2"}


def test_attempts_of_async_steps_run_one_after_another() -> None:
    under_way = 0

    async def work(number: int) -> int:
        nonlocal under_way
        under_way += 1
        await asyncio.sleep(0.001)
        under_way -= 1
        return under_way

    assert run(work, 4) == dict.fromkeys(range(4), 0)


def test_a_timeout_ends_one_attempt_and_not_the_batch() -> None:
    def work(number: int) -> int:
        if number == 1:
            time.sleep(60)
        return number

    late = "pyworkflow_ray.exceptions.StepTimeoutError"
    assert run(work, 3, timeout=1.0) == {0: 0, 1: late, 2: 2}


def test_an_interruption_meets_the_attempt_under_way_and_no_other_begins() -> None:
    began = []

    def work(number: int) -> int:
        began.append(number)
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        return number

    before = signal.getsignal(signal.SIGINT)
    assert run(work, 5) == {0: 0, 1: 1, 2: "KeyboardInterrupt"}
    assert began == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is before


def test_outcomes_lie_on_the_node_before_the_next_attempt_begins() -> None:
    found: list[list[Answer]] = []

    def work(number: int) -> int:
        if number == 2:
            found.append(take_spooled("b" * 32))
        return number

    run(work, 3)
    assert [(index, told(decode_outcome(data))) for index, data in found[0]] == [(0, 0), (1, 1)]


def test_a_file_that_ends_in_the_middle_of_an_outcome_gives_those_before_it() -> None:
    spool = Spool("c" * 32)
    spool.add(0, b"first")
    spool.add(1, b"second")
    path = spools._folder() / ("c" * 32)
    path.write_bytes(path.read_bytes()[:-1])
    assert take_spooled("c" * 32) == [(0, b"first")]
    assert take_spooled("c" * 32) == [], "whoever reads it removes it"


def test_the_file_of_a_batch_is_removed_when_the_next_one_begins() -> None:
    run(lambda number: number, 2)
    assert (spools._folder() / ("b" * 32)).exists()
    spools.next_spool("d" * 32)
    assert not (spools._folder() / ("b" * 32)).exists()


# --- at the coordinator ---------------------------------------------------------------------------


class Sender:
    """Takes what is sent, and keeps the outcomes of all attempts."""

    def __init__(self) -> None:
        self.sent: list[tuple[Batch, Landed]] = []
        self.alone: list[Attempt] = []
        self.outcomes: dict[str, list[Any]] = {}
        self.error: Exception | None = None
        self.batches = Batches(self._send_alone, self._send)
        self.options = StepOptions(batch_size=3)

    def gather(self, count: int, run_id: str = "run_1") -> list[Any]:
        return [self._gather(attempt(number, run_id=run_id)) for number in range(count)]

    def _gather(self, each: Attempt) -> Any:
        def on_outcome(outcome: AttemptOutcome) -> None:
            self.outcomes.setdefault(each.step_id, []).append(told(outcome))

        return self.batches.gather(each, run, self.options, on_outcome)

    def _send(self, batch: Batch, function: Any, options: StepOptions, landed: Landed) -> Any:
        if self.error is not None:
            raise self.error
        self.sent.append((batch, landed))
        return object()

    def _send_alone(self, each: Attempt, function: Any, options: StepOptions, on_outcome: Any) -> Any:
        self.alone.append(each)

    def numbers(self) -> list[list[str]]:
        return [[each.step_id for each in batch.attempts] for batch, _ in self.sent]


def answer(index: int, value: Any = None) -> Answer:
    if isinstance(value, Exception):
        return index, encode_outcome(AttemptFailed(failure=capture(value)))
    return index, encode_outcome(AttemptCompleted(result=codec.encode(value)))


async def test_attempts_are_sent_when_they_are_enough_or_the_turn_ends() -> None:
    sender = Sender()
    sender.gather(5)
    assert sender.numbers() == [["work#0", "work#1", "work#2"]]
    await asyncio.sleep(0)
    assert sender.numbers() == [["work#0", "work#1", "work#2"], ["work#3", "work#4"]]
    assert not sender.alone


async def test_one_attempt_is_sent_alone() -> None:
    sender = Sender()
    sender.gather(4)
    await asyncio.sleep(0)
    assert [each.step_id for each in sender.alone] == ["work#3"]


async def test_attempts_of_two_runs_share_no_task() -> None:
    sender = Sender()
    sender.gather(2, "run_1")
    sender.gather(2, "run_2")
    await asyncio.sleep(0)
    assert [{each.run_id for each in batch.attempts} for batch, _ in sender.sent] == [{"run_1"}, {"run_2"}]


async def test_an_attempt_that_is_given_up_while_it_is_gathered_is_not_sent() -> None:
    sender = Sender()
    sender.gather(2)[0].cancel()
    await asyncio.sleep(0)
    assert not sender.sent
    assert [each.step_id for each in sender.alone] == ["work#1"]


async def test_an_outcome_that_comes_twice_is_handed_on_once() -> None:
    sender = Sender()
    sender.gather(3)
    batch, landed = sender.sent[0]
    assert sender.batches.take_answers(batch.batch_id, "node", [answer(0, "a")])
    assert sender.outcomes == {"work#0": ["a"]}
    landed.land(msgspec.msgpack.encode([answer(0, "a"), answer(1, "b"), answer(2, ValueError())]))
    assert sender.outcomes == {"work#0": ["a"], "work#1": ["b"], "work#2": ["ValueError"]}
    assert not sender.batches.take_answers(batch.batch_id, "node", []), "nobody waits for it any more"


async def test_a_batch_that_cannot_begin_fails_all_its_attempts() -> None:
    sender = Sender()
    sender.gather(3)
    sender.sent[0][1].land(msgspec.msgpack.encode([answer(ALL, ImportError())]))
    assert sender.outcomes == {f"work#{number}": ["ImportError"] for number in range(3)}


async def test_a_batch_that_cannot_be_sent_fails_all_its_attempts_later() -> None:
    sender = Sender()
    sender.error = ValueError("no such option")
    sender.gather(3)
    assert not sender.outcomes, "whoever dispatches has no tickets yet"
    await asyncio.sleep(0)
    assert sender.outcomes == {f"work#{number}": ["ValueError"] for number in range(3)}


# --- in this process ------------------------------------------------------------------------------


@pr.step(name="batch_double")
def double(number: int) -> int:
    return 2 * number


@pr.workflow(name="batch_many")
async def many(count: int) -> list[int]:
    return await double.map(range(count), batch_size=4)


async def test_in_process_a_batch_size_changes_nothing() -> None:
    async with WorkflowEnvironment() as env:
        assert await env.run(many, 10) == [2 * number for number in range(10)]
