"""Runs on Ray, from start to result."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import functools
import operator
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

import pyworkflow_ray as pr
from tests.ray.conftest import EngineUnderTest

pytestmark = pytest.mark.usefixtures("shared_engine")


@dataclass
class Order:
    id: int
    total: decimal.Decimal


class CardDeclined(Exception):
    def __init__(self, card: str, *, code: int) -> None:
        super().__init__(f"{card} was declined")
        self.card, self.code = card, code


@pr.step
async def double(x: int) -> int:
    return 2 * x


@pr.step
def plain(x: int) -> int:
    return x + 1


@pr.step(local=True)
async def near(x: int) -> int:
    return x + os.getpid() * 0


@pr.step(max_retries=0)
async def decline(card: str) -> None:
    raise CardDeclined(card, code=51)


@pr.step(max_retries=3, retry_delay="10ms")
async def third_time() -> int:
    attempt: int = pr.get_context().attempt
    if attempt < 3:
        raise ValueError(f"attempt {attempt}")
    return attempt


@pr.step
def whereabouts() -> tuple[int, str, list[float]]:
    context = ray.get_runtime_context()
    return os.getpid(), context.get_node_id(), [context.get_assigned_resources()["CPU"]]


@pr.step
def price(order: Order) -> Order:
    return Order(order.id, order.total * 2)


@pr.step(timeout="300ms", max_retries=1, retry_delay="10ms")
def dawdle() -> None:
    import time

    try:
        time.sleep(30)
    except Exception:  # a step that swallows what it can must still be stopped
        time.sleep(30)


@pr.step(timeout="300ms", max_retries=0)
async def dawdle_async() -> None:
    await asyncio.sleep(30)


@pr.workflow
async def everything(x: int) -> list[int]:
    first = await double(x)
    rest = await asyncio.gather(*(plain(i) for i in range(5)), near(7))
    return [first, *rest]


async def test_a_run_gives_what_its_workflow_returns() -> None:
    run = await pr.start(everything, 4)
    assert run.startswith("run_")
    assert await run == [8, 1, 2, 3, 4, 5, 7]
    assert await run.status() is pr.RunStatus.COMPLETED
    assert await run.result() == await run, "a second wait gives the same"


def test_blocking_forms_work_in_a_script() -> None:
    assert pr.run_workflow(everything, 1)[0] == 2
    run = pr.start_sync(everything, 2)
    assert run.wait(timeout=60)[0] == 4
    assert run.status_sync() is pr.RunStatus.COMPLETED
    assert run.events_sync()[0].type == "workflow.started"


async def test_blocking_forms_work_where_a_loop_is_running() -> None:
    assert pr.run_workflow(everything, 1)[0] == 2


@pr.workflow
async def paying(card: str) -> None:
    await decline(card)


async def test_what_a_step_raised_comes_out_of_the_run_with_its_own_type() -> None:
    run = await pr.start(paying, "visa")
    with pytest.raises(CardDeclined) as caught:
        await run
    assert (caught.value.card, caught.value.code) == ("visa", 51)
    assert any("gave up after 1 attempt" in note for note in caught.value.__notes__)
    assert await run.status() is pr.RunStatus.FAILED


@pr.workflow
async def persistent() -> int:
    return await third_time()


async def test_attempts_are_recorded_with_their_errors() -> None:
    run = await pr.start(persistent)
    assert await run == 3
    retrying = [event.data for event in await run.events() if event.type == "step.retrying"]
    assert [(data["attempt"], data["error"]) for data in retrying] == [(2, "attempt 1"), (3, "attempt 2")]


@pr.workflow
async def typed(order: Order) -> Order:
    return await price(order)


async def test_values_of_the_drivers_own_classes_survive_the_way() -> None:
    result = await (await pr.start(typed, Order(1, decimal.Decimal("9.90"))))
    assert (result.id, result.total) == (1, decimal.Decimal("19.80"))


@pr.workflow
async def resources() -> list[float]:
    _, _, two = await whereabouts.options(num_cpus=2)()
    _, _, half = await whereabouts.options(num_cpus=0.5)()
    return [*two, *half]


async def test_ray_options_reach_the_task() -> None:
    assert await (await pr.start(resources)) == [2.0, 0.5]


@pr.workflow
async def slow(which: str) -> None:
    await (dawdle() if which == "def" else dawdle_async())


@pytest.mark.parametrize("which", ["def", "async"])
async def test_an_attempt_ends_at_its_timeout(which: str) -> None:
    run = await pr.start(slow, which)
    with pytest.raises(pr.StepTimeoutError):
        await run.result(timeout=60)
    failed = [event for event in await run.events() if event.type == "step.failed"]
    assert failed[0].data["cause"] == "timeout"


@pr.workflow
async def giving_up() -> str:
    try:
        async with asyncio.timeout(0.5):
            await dawdle.options(timeout=None)()
    except TimeoutError:
        return "gave up"
    return "waited"


async def test_a_workflows_own_timeout_stops_the_step_it_waited_for() -> None:
    run = await pr.start(giving_up)
    assert await run.result(timeout=60) == "gave up"
    assert "step.cancelled" in [event.type for event in await run.events()]


@pr.workflow
async def large(size: int) -> int:
    data = await run_large(size)
    return len(data)


@pr.step
def run_large(size: int) -> bytes:
    return b"x" * size


async def test_large_values_are_kept_beside_the_history() -> None:
    run = await pr.start(large, 1_000_000)
    assert await run == 1_000_000
    completed = next(event for event in await run.events() if event.type == "step.completed")
    assert len(completed.stored) < 1000


async def test_arguments_that_do_not_fit_are_refused_before_anything_is_stored() -> None:
    before, _ = await pr.list_runs(workflow="everything", limit=1000)
    with pytest.raises(pr.StepValidationError, match="everything"):
        await pr.start(everything)
    with pytest.raises(pr.StepValidationError, match="'x'"):
        await pr.start(everything, "four")
    after, _ = await pr.list_runs(workflow="everything", limit=1000)
    assert len(after) == len(before)


async def test_unknown_names_are_told_clearly() -> None:
    with pytest.raises(pr.WorkflowNotFoundError, match="everything"):
        await pr.start("everythin", 1)
    with pytest.raises(pr.WorkflowNotFoundError):
        await pr.RunHandle("run_0000000000000000").result()
    assert await pr.get_workflow_run("run_0000000000000000") is None


async def test_code_that_cannot_travel_is_refused_at_start() -> None:
    import threading

    lock = threading.Lock()

    @pr.workflow
    async def holds_a_lock() -> None:
        lock.acquire()

    with pytest.raises(pr.ConfigurationError, match="holds_a_lock"):
        await pr.start(holds_a_lock)


async def test_an_idempotency_key_gives_one_run() -> None:
    runs = await asyncio.gather(*(pr.start(everything, 3, idempotency_key="k1") for _ in range(10)))
    assert len(set(runs)) == 1
    with pytest.raises(pr.WorkflowAlreadyRunningError):
        await pr.start(everything, 4, idempotency_key="k1")


@pr.workflow
async def exits() -> None:
    raise SystemExit(3)


@pr.step(max_retries=0)
def exits_in_step() -> None:
    raise SystemExit(3)


@pr.workflow
async def calls_exit() -> str:
    try:
        await exits_in_step()
    except pr.StepFailedError as error:
        return error.error_type
    return "?"


async def test_system_exit_in_user_code_ends_only_its_run(shared_engine: EngineUnderTest) -> None:
    before = shared_engine.pid_of("coordinator-0")
    with pytest.raises(pr.WorkflowFailedError, match="SystemExit"):
        await (await pr.start(exits))
    assert await (await pr.start(calls_exit)) == "SystemExit"
    assert shared_engine.pid_of("coordinator-0") == before


@pr.workflow
async def many(count: int) -> int:
    return sum(await double.map(range(count), max_in_flight=50))


async def test_a_wide_fan_out_gives_every_result() -> None:
    assert await (await pr.start(many, 300)) == sum(2 * i for i in range(300))


async def test_a_burst_of_runs_all_end() -> None:
    runs = await asyncio.gather(*(pr.start(everything, i) for i in range(40)))
    results = await asyncio.gather(*runs)
    assert [result[0] for result in results] == [2 * i for i in range(40)]


async def test_a_client_call_in_a_workflow_is_refused() -> None:
    @pr.workflow
    async def starts_another() -> None:
        await pr.start(everything, 1)

    with pytest.raises(pr.WorkflowError, match="child workflow"):
        await (await pr.start(starts_another))


async def test_times_are_set_and_in_utc_on_every_path() -> None:
    run = await pr.start(everything, 1)
    await run
    record = await run.refresh()
    for instant in (record.created_at, record.started_at, record.completed_at, record.updated_at):
        assert instant is not None
        assert instant.utcoffset() == dt.timedelta(0)
    assert pr.WorkflowRun.from_dict(record.to_dict()) == record


class Doubling(pr.Step):
    max_retries = 2

    def __init__(self, factor: int) -> None:
        self.factor = factor

    async def execute(self, x: int) -> int:
        return self.factor * x


class Sums(pr.Workflow):
    tags = ("sums",)

    async def run(self, count: int) -> int:
        return sum([await Doubling(3)(number) for number in range(count)])


async def test_workflows_and_steps_may_be_classes() -> None:
    run = await pr.start(Sums, 4)
    assert await run == 18
    assert (await run.refresh()).tags == ("sums",)
    started = [event.data["step_id"] for event in await run.events() if event.type == "step.started"]
    assert started == [f"Doubling#{number}" for number in range(1, 5)]


class Scaled:
    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, x: int) -> int:
        return self.by * x


class LaterScaled(Scaled):
    async def __call__(self, x: int) -> int:  # type: ignore[override]
        return self.by * x


def handing_on(fn: Any) -> Any:
    @functools.wraps(fn)
    def inner(**given: Any) -> Any:
        return fn(**given)

    return inner


@pr.step(max_retries=0)
@handing_on
async def handed_on(a: int, b: int = 0) -> int:
    return a - b


class Boxes:
    @pr.step(max_retries=0)
    @staticmethod
    def static_box(x: int) -> list[object]:
        return ["static", x]

    @pr.step(max_retries=0)
    @classmethod
    def class_box(cls, x: int) -> list[object]:
        return [cls.__name__, x]

    @pr.step(max_retries=0)
    def own_box(self, x: int) -> list[object]:
        return [type(self).__name__, x]


@pr.step(max_retries=0)
def gives_a_handle() -> pr.RunHandle[None]:
    return pr.RunHandle("run_0123456789abcdef")


@pr.workflow
async def calls_of_all_kinds_on_ray() -> list[object]:
    return [
        await pr.run_step(max, 1, 2),
        await pr.run_step(dict, a=1),
        await pr.run_step(operator.itemgetter(1), [1, 2]),
        await pr.run_step("abc".upper),
        await pr.run_step(functools.partial(handed_on.fn, b=1), a=3),
        await pr.run_step(Scaled(3), 4),
        await pr.run_step(LaterScaled(3), 5),
        await handed_on(a=1, b=3),
        await Boxes.static_box(1),
        await Boxes.class_box(1),
        await Boxes().own_box.options(num_cpus=0.5)(1),
        await gives_a_handle(),
    ]


async def test_steps_may_be_callables_of_all_kinds() -> None:
    run = await pr.start(calls_of_all_kinds_on_ray)
    boxes = [["static", 1], ["Boxes", 1], ["Boxes", 1]]
    handle = "run_0123456789abcdef"
    assert await run == [2, {"a": 1}, 2, "ABC", 2, 12, 15, -2, *boxes, handle]


async def test_a_storage_that_ray_will_delete_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    with pytest.raises(pr.ConfigurationError, match="deletes after the job"):
        await pr.start.options(storage=folder / "runs.db")(everything, 1)


@pr.workflow
async def twenty() -> int:
    total = 0
    for number in range(20):
        total = await plain(total + number)
    return total


async def test_the_log_of_a_run_of_twenty_steps_can_be_read_in_sql(shared_engine: EngineUnderTest) -> None:
    import sqlite3

    run = await pr.start(twenty)
    await run
    with sqlite3.connect(shared_engine.url) as connection:
        rows = connection.execute(
            "SELECT position, type, data ->> 'step_id', data ->> 'args', data ->> 'result' FROM events "
            "WHERE run_id = ? ORDER BY position",
            (str(run),),
        ).fetchall()
    assert rows[:3] == [
        (0, "workflow.started", None, "[]", None),
        (1, "step.started", "plain#1", "[0]", None),
        (2, "step.completed", "plain#1", None, 1),
    ]
    assert [row[1] for row in rows].count("step.completed") == 20
