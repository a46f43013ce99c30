"""The event loop of a run: what asyncio offers works on it, what cannot be repeated is refused."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from pyworkflow_ray.authoring.steps import step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.engine import loop as loop_module
from pyworkflow_ray.exceptions import FatalError, WorkflowFailedError
from tests.engine.simulator import Simulation, assert_replays, outcome_of


@step(name="loop_double")
def double(x: int) -> int:
    return x * 2


@step(name="loop_fail", max_retries=0)
def fail(text: str) -> None:
    raise ValueError(text)


def run(workflow: Callable[..., Any], *args: Any, seed: int = 0) -> Any:
    """What the workflow gives; its history is checked to replay from every prefix."""
    simulation = Simulation(workflow, *args, seed=seed)
    kind, value = outcome_of(simulation)
    assert_replays(simulation)
    if kind == "raised":
        return simulation.result()
    return value


# --- what asyncio offers ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_gather_gives_results_in_order(seed: int) -> None:
    async def workflow() -> list[int]:
        return await asyncio.gather(*(double(i) for i in range(5)))

    assert run(workflow, seed=seed) == [0, 2, 4, 6, 8]


def test_gather_may_return_exceptions() -> None:
    async def workflow() -> list[str]:
        results = await asyncio.gather(double(1), fail("a"), sleep(1), return_exceptions=True)
        return [repr(result) for result in results]

    assert run(workflow) == ["2", "ValueError('a')", "None"]


@pytest.mark.parametrize("seed", range(4))
def test_a_failing_sibling_cancels_the_rest_of_a_task_group(seed: int) -> None:
    async def workflow() -> list[str]:
        ends: list[str] = []

        async def sleeper(name: str) -> None:
            try:
                await sleep("30d")
            except asyncio.CancelledError:
                ends.append(name)
                raise

        try:
            async with asyncio.TaskGroup() as group:
                for name in "abcdef":
                    group.create_task(sleeper(name))
                group.create_task(fail("x"))
        except* ValueError as errors:
            ends.append(str(errors.exceptions[0]))
        return ends

    assert run(workflow, seed=seed) == [*"abcdef", "x"]


def test_a_cancelled_step_is_told_in_the_history() -> None:
    async def workflow() -> str:
        try:
            await asyncio.wait_for(double(1), 5)
        except TimeoutError:
            return "late"
        return "in time"

    simulation = Simulation(workflow)
    simulation.start()
    assert simulation.types() == ["workflow.started", "sleep.started", "step.started"]
    due_at, timer = simulation.execution.next_timer() or (None, "")
    assert due_at is not None
    simulation.now = due_at
    from pyworkflow_ray.engine.events import TimerFired

    simulation.feed(TimerFired(sleep_id=timer))
    assert simulation.types()[-3:] == ["sleep.completed", "step.cancelled", "workflow.completed"]
    assert simulation.result() == "late"
    assert_replays(simulation)


def test_wait_for_gives_the_result_in_time() -> None:
    async def workflow() -> int:
        return await asyncio.wait_for(double(21), 5)

    assert run(workflow) == 42


def test_timeouts_nest() -> None:
    async def workflow() -> str:
        try:
            async with asyncio.timeout(100):
                try:
                    async with asyncio.timeout(1):
                        await sleep("1h")
                except TimeoutError:
                    await sleep("1h")
        except TimeoutError:
            return "outer"
        return "none"

    assert run(workflow) == "outer"


def test_a_queue_hands_over_in_order() -> None:
    async def workflow() -> list[int]:
        queue: asyncio.Queue[int] = asyncio.Queue(maxsize=2)

        async def produce() -> None:
            for i in range(6):
                await queue.put(await double(i))

        producer = asyncio.create_task(produce())
        got = [await queue.get() for _ in range(6)]
        await producer
        return got

    assert run(workflow) == [0, 2, 4, 6, 8, 10]


def test_events_locks_conditions_and_semaphores_work() -> None:
    async def workflow() -> list[str]:
        told: list[str] = []
        event, lock, gate = asyncio.Event(), asyncio.Lock(), asyncio.Semaphore(2)
        barrier, condition = asyncio.Condition(), asyncio.Condition(lock)
        inside = 0

        async def work(name: str) -> None:
            nonlocal inside
            await event.wait()
            async with gate:
                inside += 1
                assert inside <= 2
                await sleep(1)
                inside -= 1
            async with lock:
                told.append(name)
                condition.notify_all()

        tasks = [asyncio.create_task(work(name)) for name in "abcd"]
        event.set()
        async with condition:
            await condition.wait_for(lambda: len(told) == 4)
        await asyncio.gather(*tasks)
        assert not barrier.locked()
        return told

    assert run(workflow) == [*"abcd"]


def test_sleep_zero_gives_way_without_an_event() -> None:
    async def workflow() -> list[str]:
        order: list[str] = []

        async def one(name: str) -> None:
            for _ in range(3):
                order.append(name)
                await asyncio.sleep(0)

        await asyncio.gather(one("a"), one("b"))
        return order

    simulation = Simulation(workflow)
    assert simulation.run() == [*"ababab"]
    assert simulation.types() == ["workflow.started", "workflow.completed"]


def test_call_later_runs_in_the_order_of_due_times_and_then_of_calls() -> None:
    async def workflow() -> list[str]:
        loop, order = asyncio.get_running_loop(), []
        done = loop.create_future()
        loop.call_later(3, done.set_result, None)
        loop.call_later(2, order.append, "c")
        loop.call_later(1, order.append, "a")
        loop.call_later(1, order.append, "b")
        loop.call_later(1, order.append, "never").cancel()
        loop.call_later(0, order.append, "now")
        loop.call_soon(order.append, "soon")
        await done
        return order

    simulation = Simulation(workflow)
    assert simulation.run() == ["now", "soon", "a", "b", "c"]
    assert simulation.types().count("sleep.started") == 5
    assert simulation.types().count("sleep.completed") == 4
    assert_replays(simulation)


def test_time_stands_still_between_outcomes_and_moves_with_them() -> None:
    async def workflow() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        before = loop.time()
        time.sleep(0.002)
        still = loop.time() - before
        await asyncio.sleep(3600)
        return still, round(loop.time() - before, 1)

    assert run(workflow) == (0.0, 3600.0)


def test_a_timer_beyond_the_calendar_is_refused() -> None:
    async def workflow() -> None:
        await asyncio.sleep(1e15)

    with pytest.raises(ValueError, match="before the year 10000"):
        run(workflow)


def test_asyncio_wait_cancels_in_an_order_that_replay_repeats() -> None:
    async def workflow() -> list[str]:
        order: list[str] = []

        async def sleeper(name: str) -> str:
            try:
                await double(1)
                await sleep(5 + ord(name))
            finally:
                order.append(name)
            return name

        tasks = [asyncio.create_task(sleeper(chr(i)), name=chr(i)) for i in range(65, 90)]
        done, pending = await asyncio.wait(tasks, timeout=85)
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return [*order, *(task.get_name() for task in done)]

    orders = {tuple(run(workflow)) for _ in range(3)}
    assert len(orders) == 1


def test_as_completed_of_asyncio_works_with_tasks() -> None:
    async def workflow() -> list[int]:
        tasks = [asyncio.create_task(double(i)) for i in range(5)]
        return sorted([await done for done in asyncio.as_completed(tasks)])

    assert run(workflow) == [0, 2, 4, 6, 8]


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_as_completed_of_asyncio_is_refused_with_coroutines() -> None:
    async def workflow() -> None:
        for done in asyncio.as_completed([double(1), double(2)]):
            await done

    with pytest.raises(FatalError, match=r"pyworkflow_ray\.as_completed"):
        run(workflow)
    gc.collect()  # the coroutines are part of a cycle, and would be collected during another test


def test_async_generators_work() -> None:
    async def numbers(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield await double(i)

    async def workflow() -> list[int]:
        return [number async for number in numbers(4)]

    assert run(workflow) == [0, 2, 4, 6]


def test_an_abandoned_async_generator_is_closed_as_under_asyncio() -> None:
    async def workflow() -> list[str]:
        told: list[str] = []

        async def numbers() -> AsyncIterator[int]:
            try:
                for i in range(10):
                    yield await double(i)
            finally:
                await sleep(1)
                told.append("closed")

        async for number in numbers():
            if number == 4:
                break
        told.append("left")
        await sleep(5)
        return told

    assert run(workflow) == ["left", "closed"]


@pytest.mark.parametrize("collects", [True, False])
def test_when_the_garbage_collector_comes_makes_no_difference(collects: bool) -> None:
    async def workflow() -> list[str]:
        told: list[str] = []

        async def numbers() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                await double(1)
                told.append("closed")

        async def circle() -> None:
            holder: list[Any] = [numbers()]
            holder.append(holder)
            await anext(holder[0])

        await circle()
        if collects:
            gc.collect()
        await double(3)
        return told

    assert run(workflow) == []


def test_shield_lets_a_step_go_on() -> None:
    async def workflow() -> int:
        task = asyncio.ensure_future(double(4))
        try:
            async with asyncio.timeout(1):
                await sleep(0.5)
                await asyncio.shield(task)
                await sleep(10)
        except TimeoutError:
            pass
        return await task

    assert run(workflow) == 8


def test_contexts_of_tasks_are_their_own() -> None:
    variable = contextvars.ContextVar("variable", default="outside")
    variable.set("the host's")

    async def workflow() -> list[str]:
        seen = [variable.get()]

        async def child(value: str) -> None:
            variable.set(value)
            await sleep(1)
            seen.append(variable.get())

        await asyncio.gather(child("a"), child("b"))
        return [*seen, variable.get()]

    assert run(workflow) == ["outside", "a", "b", "outside"]
    assert variable.get() == "the host's"


# --- what is refused ----------------------------------------------------------------------------------


async def _to_thread() -> None:
    await asyncio.to_thread(time.sleep, 0)


async def _executor() -> None:
    await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0)


async def _connection() -> None:
    await asyncio.open_connection("localhost", 1)


async def _server() -> None:
    await asyncio.start_server(lambda r, w: None, "localhost", 1)


async def _subprocess() -> None:
    await asyncio.create_subprocess_exec("true")


async def _shell() -> None:
    await asyncio.create_subprocess_shell("true")


async def _threadsafe() -> None:
    asyncio.get_running_loop().call_soon_threadsafe(print)


async def _reader() -> None:
    asyncio.get_running_loop().add_reader(0, print)


async def _signal() -> None:
    asyncio.get_running_loop().add_signal_handler(2, print)


async def _dns() -> None:
    await asyncio.get_running_loop().getaddrinfo("localhost", 1)


async def _stop() -> None:
    asyncio.get_running_loop().stop()


async def _close() -> None:
    asyncio.get_running_loop().close()


async def _factory() -> None:
    asyncio.get_running_loop().set_task_factory(lambda loop, code: asyncio.Task(code, loop=loop))


async def _handler() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)


REFUSED = [
    _to_thread,
    _executor,
    _connection,
    _server,
    _subprocess,
    _shell,
    _threadsafe,
    _reader,
    _signal,
    _dns,
    _stop,
    _close,
    _factory,
    _handler,
]


@pytest.mark.parametrize("asking", REFUSED)
def test_real_input_and_output_is_refused_with_the_way_to_do_it(asking: Callable[[], Any]) -> None:
    with pytest.raises(FatalError, match="in a step"):
        run(asking)


def test_every_method_of_an_event_loop_works_or_says_why_not() -> None:
    own = {name for cls in loop_module.RunLoop.__mro__[:-2] for name in vars(cls)}
    missing = [
        name for name in vars(asyncio.AbstractEventLoop) if not name.startswith("_") and name not in own
    ]
    assert missing == []


# --- containment --------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("odd")])
def test_whatever_workflow_code_raises_fails_the_run_and_not_the_thread(error: BaseException) -> None:
    async def workflow() -> None:
        await double(1)
        raise error

    with pytest.raises(WorkflowFailedError) as failed:
        run(workflow)
    assert failed.value.error_type == type(error).__name__


def test_system_exit_in_a_task_reaches_who_awaits_it() -> None:
    async def leaving() -> None:
        raise SystemExit(1)

    async def workflow() -> str:
        task = asyncio.create_task(leaving())
        await sleep(1)
        try:
            await task
        except SystemExit:
            return "caught"
        return "missed"

    assert run(workflow) == "caught"


@pytest.mark.parametrize("error", [ValueError("in a callback"), SystemExit(2)])
def test_an_exception_in_a_callback_is_contained_and_noted_once(error: BaseException) -> None:
    def raising() -> None:
        raise error

    async def workflow() -> int:
        asyncio.get_running_loop().call_soon(raising)
        return await double(1)

    simulation = Simulation(workflow)
    assert simulation.run() == 2
    (note,) = simulation.execution.take_notes()
    assert note.startswith(f"In workflow code of run {simulation.run_id}: Exception in callback\n")
    assert type(error).__name__ in note
    assert simulation.execution.take_notes() == []
    assert simulation.resumed().execution.take_notes() == [], "a replay notes nothing again"
    assert_replays(simulation)


def test_code_that_spins_fails_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "MAX_CALLBACKS", 1000)

    async def workflow() -> None:
        await double(1)
        while True:
            await asyncio.sleep(0)

    simulation = Simulation(workflow)
    with pytest.raises(FatalError, match="without waiting for anything"):
        simulation.run()
    assert simulation.types()[-1] == "workflow.failed"
    assert_replays(simulation)


def test_a_run_ends_with_its_function_and_what_it_left_running_is_let_go() -> None:
    told: list[str] = []

    async def left() -> None:
        try:
            await double(1)
        finally:
            told.append("ran")

    async def workflow() -> str:
        task = asyncio.create_task(left())
        await asyncio.sleep(0)
        return f"ended before {task.done()}"

    simulation = Simulation(workflow)
    assert simulation.run() == "ended before False"
    assert simulation.types()[-2:] == ["step.cancelled", "workflow.completed"]
    assert_replays(simulation)
    assert told == []


def test_a_function_that_cancels_itself_fails_the_run() -> None:
    async def workflow() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await sleep(1)

    with pytest.raises(WorkflowFailedError, match="cancelled from within"):
        run(workflow)


# --- where it is stepped ------------------------------------------------------------------------------


async def _everything() -> list[Any]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(double(i)) for i in range(3)]
    async with asyncio.timeout(10):
        await sleep(1)
    return [task.result() for task in tasks]


def test_a_run_is_stepped_in_a_thread() -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(run(_everything)))
    thread.start()
    thread.join()
    assert results == [[0, 2, 4]]


def test_a_run_may_move_from_thread_to_thread() -> None:
    simulation = Simulation(_everything)
    simulation.start()
    while not simulation.execution.is_finished:
        events = [
            simulation.execution.conclude(
                p.command.step_id, 1, simulation.attempt(p.command, 1), simulation.now
            )
            for p in simulation.execution.steps.values()
        ]
        timer = simulation.execution.next_timer()
        from pyworkflow_ray.engine.events import TimerFired

        event = events[0] if events else TimerFired(sleep_id=timer[1] if timer else "")
        assert event is not None
        thread = threading.Thread(target=simulation.feed, args=(event,))
        thread.start()
        thread.join()
    assert simulation.result() == [0, 2, 4]


def test_a_run_is_stepped_while_another_loop_runs_in_the_thread() -> None:
    async def host() -> tuple[list[Any], bool, bool]:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        simulation = Simulation(_everything)
        simulation.attempt = _without_asyncio(simulation)  # type: ignore[method-assign]
        result = simulation.run()
        return result, asyncio.get_running_loop() is loop, asyncio.current_task() is task

    assert asyncio.run(host()) == ([0, 2, 4], True, True)


def _without_asyncio(simulation: Simulation) -> Callable[..., Any]:
    from pyworkflow_ray.engine.attempts import AttemptCompleted
    from tests.engine.simulator import VALUES

    def attempt(command: Any, attempt: int) -> AttemptCompleted:
        return AttemptCompleted(
            result=VALUES.encode(command.function.fn(*VALUES.decode(command.args)), "result")
        )

    return attempt


def test_many_runs_share_a_thread_without_meeting() -> None:
    simulations = [Simulation(_everything, seed=n, run_id=f"run_{n:016x}") for n in range(20)]
    for simulation in simulations:
        simulation.start()
    while any(not s.execution.is_finished for s in simulations):
        for simulation in simulations:
            if not simulation.execution.is_finished:
                simulation.advance()
    assert [simulation.result() for simulation in simulations] == [[0, 2, 4]] * 20


def test_tasks_of_different_runs_have_different_hashes() -> None:
    hashes: set[int] = set()

    async def workflow() -> None:
        hashes.add(hash(asyncio.current_task()))

    for n in range(50):
        Simulation(workflow, run_id=f"run_{n:016x}").run()
    assert len(hashes) == 50
