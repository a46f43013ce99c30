"""What is sent to a run and acknowledged is in its history, also when its code has just ended."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

import pyworkflow_ray as pr
from pyworkflow_ray import testing
from pyworkflow_ray.actors import commits
from pyworkflow_ray.actors.inboxes import InboxEntry
from pyworkflow_ray.engine.events import CancellationRequested, ChildCompleted, Event, SignalReceived
from pyworkflow_ray.storage.blobs import require_blobs
from pyworkflow_ray.storage.hooks import deliver
from pyworkflow_ray.storage.inboxes import CANCEL_KEY, post
from pyworkflow_ray.storage.storages import Storage


@pr.step(local=True)
async def last_word_step() -> int:
    return 1


@pr.workflow
async def last_word_steps() -> int:
    return await last_word_step() + await last_word_step()


@pr.workflow
async def last_word_at_once() -> int:
    return 1


@pr.workflow
async def last_word_beside_a_hook() -> int:
    asyncio.get_running_loop().create_task(_waits())
    return await last_word_step()


async def _waits() -> None:
    await pr.hook("answer", token="a-token-of-this-test")


@pr.workflow
async def last_word_goes_on(stage: int) -> int:
    asyncio.get_running_loop().create_task(_waits())
    await last_word_step()
    if stage == 1:
        pr.continue_as_new(2)
    return stage


@pr.workflow
async def last_word_stops() -> str:
    return str(await pr.receive("stop"))


@pr.workflow(max_duration="50ms")
async def last_word_takes_its_time() -> None:
    try:
        await pr.receive("item")
    finally:
        await pr.receive("stop")


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "local.db"
    pr.configure(default_runtime="local", storage=path)
    return path


CANCEL = (CANCEL_KEY, CancellationRequested(reason="enough"))
SIGNAL = ("signal:1", SignalReceived(name="item", payload=Raw(b"1")))
CHILD = (
    "child:c#1",
    ChildCompleted(child_id="c#1", child_run_id="c", child_workflow_name="c", result=Raw(b"1")),
)


def before_the_end(monkeypatch: pytest.MonkeyPatch, act: Callable[[str], Any], times: int = 1) -> list[Any]:
    """Has something done when the code of a run has ended and nothing of that is written; what it came to."""
    append_of, done = commits.append_of, list[Any]()

    def acting(run: Any, position: int, activation: Any) -> Any:
        if activation.end is not None and activation.end.is_final and len(done) < times:
            done.append(act(run.run_id))
        return append_of(run, position, activation)

    monkeypatch.setattr(commits, "append_of", acting)
    return done


def posting(path: Path, *sent: tuple[str, Event]) -> Callable[[str], list[bool]]:
    """Posts from another process, as far as the database is concerned."""

    def act(run_id: str) -> list[bool]:
        with Storage(path) as storage:
            entries = [InboxEntry(run_id, key, event).posting().parameters for key, event in sent]
            return [storage.submit(post(**each)).result(30) for each in entries]

    return act


def types(events: list[pr.Event]) -> list[str]:
    return [event.type.value for event in events]


def unseen(events: list[pr.Event]) -> list[str]:
    return [event.type.value for event in events if event.data.get("is_unseen")]


def assert_replays(events: list[pr.Event], workflow: Any) -> None:
    """Today's code replays the history, and each of its prefixes."""
    for length in range(1, len(events) + 1):
        testing.replay(events[:length], workflow)


@pytest.mark.parametrize("workflow", [last_word_steps, last_word_at_once], ids=lambda each: each.name)
async def test_a_run_that_is_cancelled_before_its_end_is_written_is_cancelled(
    local: Path, monkeypatch: pytest.MonkeyPatch, workflow: Any
) -> None:
    sent = before_the_end(monkeypatch, posting(local, CANCEL))
    with pytest.raises(pr.CancellationError, match="enough") as cancelled:
        await pr.start(workflow)
    assert sent == [[True]]
    assert "cancellation.requested" in types(await pr.get_workflow_events(cancelled.value.run_id))


async def test_a_signal_before_the_end_is_written_is_in_the_history(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = before_the_end(monkeypatch, posting(local, SIGNAL))
    run = await pr.start(last_word_steps)
    assert await run == 2
    assert sent == [[True]]
    assert types(await run.events())[-3:] == ["signal.received", "step.completed", "workflow.completed"]


async def test_a_signal_to_a_run_that_never_waits_keeps_it_from_no_end(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_the_end(monkeypatch, posting(local, SIGNAL))
    assert await (await pr.start(last_word_at_once)) == 1


async def test_a_run_ends_however_many_signals_come(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(range(100))

    def act(run_id: str) -> list[bool]:
        return posting(local, (f"signal:{next(numbers)}", SIGNAL[1]))(run_id)

    sent = before_the_end(monkeypatch, act, times=100)
    run = await pr.start(last_word_steps)
    assert await run == 2
    events = await run.events()
    assert types(events).count("signal.received") == len(sent) == 2
    assert [event.data.get("is_unseen") for event in events[-3:]] == [None, True, None]
    assert_replays(events, last_word_steps)


@pytest.mark.parametrize(
    ("workflow", "args"),
    [(last_word_beside_a_hook, ()), (last_word_goes_on, (1,))],
    ids=["ends", "continues"],
)
async def test_a_payload_before_the_end_is_written_is_in_the_history(
    local: Path, monkeypatch: pytest.MonkeyPatch, workflow: Any, args: tuple[Any, ...]
) -> None:
    def act(run_id: str) -> str:
        with Storage(local) as storage:
            return storage.submit(deliver("a-token-of-this-test", "key", '{"payload":1}')).result(30).run_id

    sent = before_the_end(monkeypatch, act)
    run = await pr.start(workflow, *args)
    await run
    assert sent == [str(run)]
    assert "hook.received" in types(await run.events())


async def test_what_lies_behind_that_which_ends_a_run_is_in_the_history(local: Path) -> None:
    """1. The run waits. 2. Two things come before it looks. 3. It looks, and the first ends it."""
    run = await pr.start(last_word_stops)
    while not await run.events():
        await asyncio.sleep(0.01)
    stop = ("signal:stop", SignalReceived(name="stop", payload=Raw(b'"now"')))
    assert posting(local, stop, CANCEL, SIGNAL, CHILD)(run) == [True] * 4
    await pr.signal(run, "have a look")
    assert await run == "now"
    events = await run.events()
    assert types(events) == [
        "workflow.started",
        "signal.received",
        "cancellation.requested",
        "signal.received",
        "child_workflow.completed",
        "signal.received",
        "workflow.completed",
    ]
    assert len(unseen(events)) == 4
    assert_replays(events, last_word_stops)
    forked = await pr.fork(run, from_position=2)
    assert await forked == "now"
    with pytest.raises(pr.WorkflowError, match="can keep 1 to 2 events"):
        await pr.fork(run, from_position=3)


async def test_signals_before_the_start_of_a_run_that_never_waits_are_in_its_history(local: Path) -> None:
    run = await pr.start.options(delay="200ms")(last_word_at_once)
    await pr.signal(run, "item", 1)
    assert await run == 1
    events = await run.events()
    assert types(events) == ["workflow.started", "signal.received", "workflow.completed"]
    assert unseen(events) == ["signal.received"]
    assert_replays(events, last_word_at_once)


async def test_what_comes_twice_while_a_run_continues_is_in_a_history(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A payload comes, and the run does not continue. 2. It is replayed. 3. More comes, and it does."""
    turns = itertools.count()

    def act(run_id: str) -> None:
        if next(turns):
            posting(local, CHILD, SIGNAL)(run_id)
            return
        with Storage(local) as storage:
            storage.submit(deliver("a-token-of-this-test", "key", '{"payload":1}')).result(30)

    before_the_end(monkeypatch, act, times=2)
    run = await pr.start(last_word_goes_on, 1)
    assert await run == 2
    first, second = [await pr.get_workflow_events(each.run_id) for each in await pr.get_workflow_chain(run)]
    assert types(first)[-3:] == ["step.completed", "child_workflow.completed", "workflow.continued_as_new"]
    assert "hook.received" in types(first)
    assert unseen(first) == ["child_workflow.completed"]
    assert types(second).count("signal.received") == 1
    assert_replays(first, last_word_goes_on)


async def test_large_values_that_the_code_does_not_see_are_kept_as_others(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pr.configure(default_runtime="local", storage=local, blob_threshold=1024)
    large = SignalReceived(name="item", payload=Raw(b'"' + b"x" * 2000 + b'"'))
    sent = iter([("signal:1", SIGNAL[1]), ("signal:2", large)])

    def act(run_id: str) -> list[bool]:
        return posting(local, next(sent))(run_id)

    before_the_end(monkeypatch, act, times=2)
    run = await pr.start(last_word_steps)
    assert await run == 2
    (event,) = [event for event in await run.events() if event.data.get("is_unseen")]
    assert len(event.stored) < 500
    with Storage(local) as storage:
        storage.read(require_blobs(run))
    assert await pr.delete_run(run)


async def test_what_comes_as_a_run_is_ended_without_its_code_is_in_the_history(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "limited.db"
    pr.configure(default_runtime="local", storage=path, event_hard_limit=3)
    sent = before_the_end(monkeypatch, posting(path, CANCEL, SIGNAL))
    with pytest.raises(pr.EventLimitExceededError) as ended:
        await pr.start(last_word_steps)
    assert sent == [[True, True]]
    events = await pr.get_workflow_events(ended.value.run_id)
    assert types(events)[-3:] == ["cancellation.requested", "signal.received", "workflow.failed"]
    assert len(unseen(events)) == 2
    assert_replays(events, last_word_steps)


async def test_a_request_that_comes_after_the_end_of_the_time_is_in_the_history(local: Path) -> None:
    run = await pr.start(last_word_takes_its_time)
    while "cancellation.requested" not in types(await run.events()):
        await asyncio.sleep(0.01)
    assert await run.cancel("enough")
    await pr.signal(run, "stop")
    with pytest.raises(pr.WorkflowTimeoutError):
        await run
    events = await run.events()
    assert [
        e.data["requested_by"] == "max_duration" for e in events if e.type == "cancellation.requested"
    ] == [
        True,
        False,
    ]
    assert_replays(events, last_word_takes_its_time)
