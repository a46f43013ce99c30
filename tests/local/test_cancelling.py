"""Cancelling a run wherever it waits, what it undoes, and how long it may take: in process."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import pyworkflow_ray as pr
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.testing import WorkflowEnvironment
from tests.local.notes import note, notes, types, write_note


@pr.step(local=True, max_retries=0)
async def linger(folder: str, name: str, seconds: float) -> str:
    """Takes its time, and leaves a line when it begins, ends, or is interrupted."""
    write_note(folder, f"{name} began")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        write_note(folder, f"{name} interrupted")
        raise
    write_note(folder, f"{name} ended")
    return name


@pr.step(local=True, max_retries=5, retry_delay="1d")
async def always_fails(folder: str) -> None:
    write_note(folder, "attempt")
    raise ConnectionError("down")


@pr.workflow
async def sleeping_child() -> None:
    await pr.sleep("10d")


async def _sleeps(folder: str) -> None:
    await pr.sleep("10d")


async def _sleeps_as_asyncio(folder: str) -> None:
    await asyncio.sleep(864_000)


async def _waits_for_hook(folder: str) -> None:
    await pr.hook("cancelled_hook")


async def _receives(folder: str) -> None:
    await pr.receive("nothing")


async def _waits_for_step(folder: str) -> None:
    await linger(folder, "step", 0.1)
    await pr.sleep("10d")


async def _retries(folder: str) -> None:
    await always_fails(folder)


async def _waits_for_child(folder: str) -> None:
    await pr.start_child_workflow(sleeping_child)


async def _gathers(folder: str) -> None:
    await asyncio.gather(pr.sleep("10d"), pr.hook("gathered"), pr.receive("nothing"))


async def _groups(folder: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(pr.sleep("10d"))
        group.create_task(pr.hook("grouped"))


async def _times_out(folder: str) -> None:
    async with asyncio.timeout(864_000):
        await pr.sleep("20d")


async def _waits_for_an_event(folder: str) -> None:
    await asyncio.Event().wait()


async def _races(folder: str) -> None:
    await pr.wait([asyncio.create_task(pr.sleep("10d")), asyncio.create_task(pr.sleep("11d"))])


PLACES: dict[str, Any] = {
    place.__name__: place
    for place in (
        _sleeps,
        _sleeps_as_asyncio,
        _waits_for_hook,
        _receives,
        _waits_for_step,
        _retries,
        _waits_for_child,
        _gathers,
        _groups,
        _times_out,
        _waits_for_an_event,
        _races,
    )
}


@pr.workflow
async def waits_somewhere(folder: str, place: str) -> str:
    try:
        await PLACES[place](folder)
    except pr.CancellationError as error:
        is_both = isinstance(error, asyncio.CancelledError)
        await note(folder, f"cleaning up after {error.reason}, asyncio's too: {is_both}")
        await pr.sleep("1h")
        raise
    finally:
        await note(folder, "finally")
    return "went on"


@pytest.mark.parametrize("place", PLACES)
async def test_a_run_that_waits_is_cancelled_and_cleans_up(place: str, tmp_path: Path) -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(waits_somewhere, str(tmp_path), place)
        while not (await run.events())[1:]:
            await asyncio.sleep(0.001)
            if place in ("_receives", "_waits_for_an_event"):
                break  # it waits without an event of its own
        assert await run.cancel("the test") is True
        await asyncio.wait_for(_advance_until_it_has_ended(environment, run), 60)
        with pytest.raises(pr.CancellationError) as caught:
            await run
        assert caught.value.reason == "the test"
        assert (await run.refresh()).status is pr.RunStatus.CANCELLED
        assert notes(tmp_path)[-2:] == ["cleaning up after the test, asyncio's too: True", "finally"]
        recorded = await types(run)
        assert recorded.count("cancellation.requested") == 1
        assert recorded[-1] == "workflow.cancelled"
        assert await run.cancel("again") is False


async def _advance_until_it_has_ended(environment: WorkflowEnvironment, run: pr.RunHandle[Any]) -> None:
    while not (await run.status()).is_terminal:
        await environment.advance("1h")


async def test_a_run_that_waits_for_nothing_yet_is_cancelled_before_its_code_runs() -> None:
    pr.configure(lease_ttl="1s")
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await pr.start.options(delay="30d")(sleeping_child)
        await environment.settle()
        assert await run.cancel("no longer wanted")
        with pytest.raises(pr.CancellationError):
            await run.result(timeout=60)
        assert await types(run) == ["workflow.started", "cancellation.requested", "workflow.cancelled"]


async def test_who_cancels_may_wait_for_the_end() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(sleeping_child)
        assert await pr.cancel_workflow(run, "now", wait=True, timeout=60) is True
        assert await run.status() is pr.RunStatus.CANCELLED
        assert await pr.cancel_workflow(run) is False
        with pytest.raises(pr.WorkflowNotFoundError):
            await pr.cancel_workflow("run_0000000000000000")


async def test_a_run_is_asked_to_cancel_once_however_many_ask() -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(cleans_for_long)
        await environment.settle()
        asked = await asyncio.gather(*(run.cancel(f"reason {number}") for number in range(10)))
        assert asked == [True] * 10
        await environment.settle()
        assert await run.cancel("while it cleans up") is True
        await environment.advance("2h")
        with pytest.raises(pr.CancellationError):
            await run
        assert (await types(run)).count("cancellation.requested") == 1


@pr.workflow
async def cleans_for_long() -> None:
    try:
        await pr.sleep("10d")
    finally:
        await pr.sleep("1h")


@pr.workflow
async def goes_on_all_the_same(folder: str) -> str:
    try:
        await pr.sleep("10d")
    except pr.CancellationError:
        assert pr.get_context().is_cancellation_requested()
        await note(folder, "noted")
    await pr.sleep("1h")
    return "went on"


async def test_a_run_that_swallows_its_cancellation_completes(tmp_path: Path) -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(goes_on_all_the_same, str(tmp_path))
        await environment.settle()
        assert await run.cancel()
        assert await run == "went on"
        assert notes(tmp_path) == ["noted"]


async def test_code_that_computes_may_ask_whether_it_is_cancelled() -> None:
    @pr.workflow
    async def asks_often() -> int:
        rounds = 0
        while True:
            try:
                await asyncio.gather(pr.sleep("1h"), return_exceptions=True)
            except asyncio.CancelledError:
                rounds += 100
            pr.get_context().check_cancellation()
            rounds += 1

    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(asks_often)
        await environment.advance("3h")
        await run.cancel("enough")
        with pytest.raises(pr.CancellationError, match="cancelled"):
            await run.result(timeout=60)


async def test_a_run_that_keeps_no_history_is_cancelled_and_timed_out_all_the_same(tmp_path: Path) -> None:
    @pr.workflow(max_duration="1h")
    async def fleeting(folder: str) -> None:
        try:
            await pr.sleep("2h")
        finally:
            await note(folder, "cleaned up")

    async with WorkflowEnvironment(skip_time=False, default_durable=False) as environment:
        run = await environment.start(fleeting, str(tmp_path))
        await environment.settle()
        assert await run.cancel("enough", wait=True, timeout=60)
        with pytest.raises(pr.CancellationError):
            await run
        late = await environment.start(fleeting, str(tmp_path))
        await environment.advance("3h")
        with pytest.raises(pr.WorkflowTimeoutError):
            await late
        assert notes(tmp_path) == ["cleaned up"] * 2
        assert await run.events() == []


async def test_a_run_that_was_set_aside_can_be_cancelled(tmp_path: Path) -> None:
    pr.configure(default_runtime="local", storage=tmp_path / "local.db", suspend_after="30ms")
    run = await pr.start(goes_on_all_the_same, str(tmp_path))
    with Storage(tmp_path / "local.db") as storage:
        await storage.write(partial(_damage, run))
    await pr.resume(run)
    assert await run.status() is pr.RunStatus.INTERRUPTED
    assert await run.cancel("nobody will mend it")
    assert await run.status() is pr.RunStatus.CANCELLED
    assert await pr.delete_run(run)


@pr.workflow
async def leaves_children() -> None:
    for parent_close in ("cancel", "abandon"):
        await pr.start_child_workflow(sleeping_child, wait_for_completion=False, parent_close=parent_close)
    await pr.sleep("20d")


async def test_the_children_of_a_run_that_was_set_aside_end_with_it_as_they_are_to(tmp_path: Path) -> None:
    pr.configure(default_runtime="local", storage=tmp_path / "local.db", suspend_after="30ms")
    run = await pr.start(leaves_children)
    with Storage(tmp_path / "local.db") as storage:
        await storage.write(lambda connection: _damage(run, connection, position=0))
    await pr.resume(run)
    assert await run.cancel("nobody will mend it")
    assert await run.status() is pr.RunStatus.CANCELLED
    while pr.RunStatus.CANCELLED not in (found := {child.status for child in await pr.get_children(run)}):
        await asyncio.sleep(0.01)
    assert found == {pr.RunStatus.CANCELLED, pr.RunStatus.SUSPENDED}


def _damage(run: str, connection: Any, position: int | None = None) -> None:
    where = "" if position is None else f" AND position = {position}"
    connection.execute(text(f"UPDATE events SET data = '{{' WHERE run_id = :run{where}"), {"run": str(run)})


# --- steps under way ------------------------------------------------------------------------------


@pr.workflow
async def runs_a_step(folder: str, on_cancel: str) -> None:
    try:
        await linger.options(on_cancel=on_cancel)(folder, "step", 0.3)
    finally:
        await note(folder, "cleaned up")


@pytest.mark.parametrize(
    ("on_cancel", "seen", "recorded"),
    [
        ("wait", ["step began", "step ended", "cleaned up"], "step.completed"),
        ("interrupt", ["step began", "step interrupted", "cleaned up"], "step.cancelled"),
        ("kill", ["step began", "step interrupted", "cleaned up"], "step.cancelled"),
        ("abandon", ["step began", "cleaned up", "step ended"], "step.cancelled"),
    ],
)
async def test_a_step_under_way_is_dealt_with_as_it_says(
    on_cancel: str, seen: list[str], recorded: str, tmp_path: Path
) -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(runs_a_step, str(tmp_path), on_cancel)
        while not notes(tmp_path):
            await asyncio.sleep(0.001)
        assert await run.cancel()
        with pytest.raises(pr.CancellationError):
            await run
        while len(notes(tmp_path)) < len(seen):
            await asyncio.sleep(0.001)
        assert sorted(notes(tmp_path)) == sorted(seen)
        if on_cancel in ("wait", "abandon"):
            assert notes(tmp_path) == seen
        assert recorded in await types(run)


async def test_a_step_that_the_run_waits_for_is_not_tried_again(tmp_path: Path) -> None:
    @pr.step(local=True, max_retries=5, retry_delay="10ms")
    async def fails_slowly(folder: str) -> None:
        write_note(folder, "began")
        await asyncio.sleep(0.1)
        raise ConnectionError("down")

    @pr.workflow
    async def waits_for_one_that_fails(folder: str) -> None:
        await fails_slowly(folder)

    async with WorkflowEnvironment() as environment:
        run = await environment.start(waits_for_one_that_fails, str(tmp_path))
        while not notes(tmp_path):
            await asyncio.sleep(0.001)
        await run.cancel()
        with pytest.raises(pr.CancellationError):
            await run
        assert notes(tmp_path) == ["began"]
        assert (await types(run))[-2:] == ["step.failed", "workflow.cancelled"]


@pr.step(local=True)
async def looks_around(folder: str) -> str:
    for _ in range(12_000):
        await asyncio.sleep(0.01)
        pr.get_context().check_cancellation()
    return "never asked to stop"


@pr.workflow
async def runs_one_that_looks_around(folder: str) -> None:
    try:
        await looks_around(folder)
    finally:
        await note(folder, "cleaned up")


async def test_a_step_may_ask_whether_its_run_is_cancelled(tmp_path: Path) -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(runs_one_that_looks_around, str(tmp_path))
        await asyncio.sleep(0.05)
        await run.cancel("enough")
        with pytest.raises(pr.CancellationError):
            await run.result(timeout=60)
        assert notes(tmp_path) == ["cleaned up"]


# --- shields --------------------------------------------------------------------------------------


@pr.workflow
async def shielded(folder: str) -> None:
    async with pr.shield():
        async with pr.shield():
            await pr.receive("inner")
        await note(folder, "inner over")
        await pr.receive("outer")
        await note(folder, "outer over")
    await note(folder, "never")


async def test_a_cancellation_waits_until_the_shields_are_left(tmp_path: Path) -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(shielded, str(tmp_path))
        await environment.settle()
        await run.cancel("later")
        for name, seen in (("inner", ["inner over"]), ("outer", ["inner over", "outer over"])):
            await environment.settle()
            assert not (await run.status()).is_terminal
            await run.signal(name)
            await environment.settle()
            assert notes(tmp_path) == seen
        with pytest.raises(pr.CancellationError) as caught:
            await run
        assert caught.value.reason == "later"


@pr.workflow
async def shielded_beside(folder: str, together: str) -> None:
    async def careful() -> None:
        async with pr.shield():
            await pr.sleep("1h")
            await note(folder, "careful one is through")

    async def careless() -> None:
        try:
            await pr.sleep("1h")
        except asyncio.CancelledError:
            await note(folder, "careless one is cancelled")
            raise

    if together == "gather":
        await asyncio.gather(careful(), careless())
    else:
        async with asyncio.TaskGroup() as group:
            group.create_task(careful())
            group.create_task(careless())


@pytest.mark.parametrize("together", ["group", "gather"])
async def test_a_shield_belongs_to_the_task_that_entered_it(together: str, tmp_path: Path) -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(shielded_beside, str(tmp_path), together)
        await environment.settle()
        await run.cancel()
        await environment.settle()
        assert notes(tmp_path) == ["careless one is cancelled"]
        assert not (await run.status()).is_terminal
        await environment.advance("1h")
        with pytest.raises(pr.CancellationError):
            await run
        assert notes(tmp_path)[1:] == ["careful one is through"]


async def test_a_shield_keeps_no_timeout_of_the_codes_own_away() -> None:
    @pr.workflow
    async def shielded_timeout() -> str:
        async with pr.shield():
            try:
                async with asyncio.timeout(60):
                    await pr.sleep("1h")
            except TimeoutError:
                return "timed out"
        return "slept"

    async with WorkflowEnvironment() as environment:
        assert await environment.run(shielded_timeout) == "timed out"


# --- max_duration ---------------------------------------------------------------------------------


@pr.workflow(max_duration="1h")
async def takes_too_long(folder: str, swallow: bool) -> str:
    try:
        await pr.sleep("2h")
    except pr.WorkflowTimeoutError as error:
        await note(folder, f"{type(error).__name__} is {asyncio.CancelledError.__name__}")
        if not swallow:
            raise
    return "in time"


@pytest.mark.parametrize("swallow", [True, False])
async def test_a_run_fails_at_its_max_duration_whatever_its_code_makes_of_it(
    swallow: bool, tmp_path: Path
) -> None:
    async with WorkflowEnvironment() as environment:
        begun = environment.now()
        with pytest.raises(pr.WorkflowTimeoutError, match="1:00:00") as caught:
            await environment.run(takes_too_long, str(tmp_path), swallow)
        assert (environment.now() - begun).total_seconds() == 3600
        run = pr.RunHandle[Any](caught.value.run_id)
        assert await run.status() is pr.RunStatus.FAILED
        assert notes(tmp_path) == ["RunTimedOut is CancelledError"]


async def test_a_run_that_ends_in_time_is_left_alone() -> None:
    @pr.workflow(max_duration="1h")
    async def just_in_time() -> str:
        await pr.sleep("59m")
        return "in time"

    async with WorkflowEnvironment() as environment:
        assert await environment.run(just_in_time) == "in time"


# --- sagas ----------------------------------------------------------------------------------------


@pr.step(local=True)
async def unbook(folder: str, what: str, result: str) -> None:
    write_note(folder, f"unbook {what} ({result})")
    if what == "stuck":
        raise pr.FatalError("cannot be undone")


@pr.step(local=True, compensate=unbook)
async def book(folder: str, what: str) -> str:
    if what == "impossible":
        raise pr.FatalError("full")
    write_note(folder, f"book {what}")
    return f"receipt of {what}"


@pr.workflow
async def books(folder: str, whats: list[str], clear: bool = False) -> list[str]:
    receipts = [await book(folder, what) for what in whats]
    pr.compensations().add(note, folder, "added by hand")
    if clear:
        pr.compensations().clear()
    if "then wait" in whats:
        await pr.sleep("1d")
    return receipts


async def test_a_failed_run_undoes_what_it_did_the_last_first(tmp_path: Path) -> None:
    async with WorkflowEnvironment() as environment:
        with pytest.raises(pr.FatalError, match="full"):
            await environment.run(books, str(tmp_path), ["hotel", "flight", "impossible"])
        assert notes(tmp_path) == [
            "book hotel",
            "book flight",
            "unbook flight (receipt of flight)",
            "unbook hotel (receipt of hotel)",
        ]


async def test_a_compensation_that_fails_keeps_no_other_from_running(tmp_path: Path) -> None:
    async with WorkflowEnvironment() as environment:
        with pytest.raises(pr.FatalError, match="full") as caught:
            await environment.run(books, str(tmp_path), ["hotel", "stuck", "impossible"])
        assert notes(tmp_path)[-1] == "unbook hotel (receipt of hotel)"
        assert any("cannot be undone" in text for text in caught.value.__notes__)


async def test_a_cancelled_run_undoes_what_it_did(tmp_path: Path) -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(books, str(tmp_path), ["hotel", "then wait"])
        await environment.settle()
        await run.cancel()
        with pytest.raises(pr.CancellationError):
            await run
        assert notes(tmp_path)[2:] == [
            "added by hand",
            "unbook then wait (receipt of then wait)",
            "unbook hotel (receipt of hotel)",
        ]


async def test_a_run_that_completes_or_clears_undoes_nothing(tmp_path: Path) -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        assert await environment.run(books, str(tmp_path), ["hotel"]) == ["receipt of hotel"]
        run = await environment.start(books, str(tmp_path), ["then wait"], clear=True)
        await environment.settle()
        await run.cancel()
        with pytest.raises(pr.CancellationError):
            await run
        assert notes(tmp_path) == ["book hotel", "book then wait"]
