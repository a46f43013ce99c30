"""What is sent to a run and acknowledged is read by it, also when its code has just ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

import pyworkflow_ray as pr
from pyworkflow_ray.actors import commits
from pyworkflow_ray.actors.inboxes import CANCEL_KEY, InboxEntry
from pyworkflow_ray.engine.events import CancellationRequested, Event, SignalReceived
from pyworkflow_ray.storage.hooks import deliver
from pyworkflow_ray.storage.inboxes import post
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


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "local.db"
    pr.configure(default_runtime="local", storage=path)
    return path


CANCEL = (CANCEL_KEY, CancellationRequested(reason="enough"))
SIGNAL = ("signal:1", SignalReceived(name="item", payload=Raw(b"1")))


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
    assert types(await run.events()).count("signal.received") == len(sent) - 1


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
