"""Calls to actors that are dead, restarting or silent, and calls of a process that has left its cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from ray import ActorID, JobID, TaskID
from ray import exceptions as ray_errors

from pyworkflow_ray.actors import calls, connections, pulses
from pyworkflow_ray.actors.calls import Callee, Handles
from pyworkflow_ray.actors.pulses import Pulses
from pyworkflow_ray.exceptions import HookNotFoundError, NoAnswerError

PASSING: list[Callable[[], Exception]] = [
    ray_errors.ActorDiedError,
    lambda: ray_errors.ActorUnavailableError("restarting", None),
    ray_errors.GetTimeoutError,
    lambda: ray_errors.RaySystemError("it cannot be reached"),
    lambda: ray_errors.RpcError("it cannot be reached"),
    lambda: ray_errors.OwnerDiedError("00" * 28, None, ""),
    lambda: ray_errors.AsyncioActorExit("it leaves"),
]


class Actor:
    """An actor's handle, as Ray gives it. Each call has the next of these ends; a later one has none."""

    def __init__(self, *ends: object) -> None:
        self._actor_id = ActorID.of(JobID.from_int(1), TaskID.for_driver_task(JobID.from_int(1)), 1)
        self.ends, self.calls = list(ends), 0
        self.work = SimpleNamespace(remote=self._call)
        self.work.options = lambda **options: self.work
        self.ping = SimpleNamespace(remote=lambda: SimpleNamespace(future=Future))

    def _call(self) -> Any:
        self.calls += 1
        future: Future[object] = Future()
        if self.ends:
            end = self.ends.pop(0)
            if isinstance(end, BaseException):
                future.set_exception(end)
            else:
                future.set_result(end)
        return SimpleNamespace(future=lambda: future)


@pytest.fixture(autouse=True)
def joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process counts as being in a cluster."""
    for module in (connections, pulses):
        monkeypatch.setattr(module, "has_joined", lambda: True)
    monkeypatch.setattr(calls, "LONGEST_PAUSE", 0.05)  # nobody restarts, so there is nothing to wait for


@pytest.fixture(params=["on a loop", "in a thread"])
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Calls an actor."""
    handles = Handles(Pulses(hung_after=3600))

    async def on_a_loop(actor: Actor, **limits: float) -> Any:
        return await handles.call(Callee("actor", lambda: actor), "work", **limits)

    async def in_a_thread(actor: Actor, **limits: float) -> Any:
        callee = Callee("actor", lambda: actor)
        return await asyncio.to_thread(handles.call_in_thread, callee, "work", tries=len(PASSING) + 1)

    return on_a_loop if request.param == "on a loop" else in_a_thread


async def test_whatever_ray_says_of_an_actor_that_comes_back_the_call_is_made_again(
    call: Callable[..., Any],
) -> None:
    actor = Actor(*(make() for make in PASSING), "answer")
    assert await call(actor, patience=60.0) == "answer"
    assert actor.calls == len(PASSING) + 1


async def test_an_actor_that_does_not_come_back_ends_in_an_error_of_ours(call: Callable[..., Any]) -> None:
    actor = Actor(*(ray_errors.ActorUnavailableError("restarting", None) for _ in range(20)))
    with pytest.raises(NoAnswerError, match="'actor' of the engine cannot be reached: ActorUnavailableError"):
        await call(actor)


async def test_an_error_that_the_actor_raises_is_raised_at_once(call: Callable[..., Any]) -> None:
    raised = ray_errors.RayTaskError("work", "traceback", HookNotFoundError("token"))
    actor = Actor(raised, "answer")
    with pytest.raises(HookNotFoundError):
        await call(actor)
    assert actor.calls == 1


async def test_a_silent_actor_keeps_nobody_waiting(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray counts the actor as alive, and its ping is not answered. The next call is not even made."""
    monkeypatch.setattr(pulses, "_living_process", lambda handle: (1, 0))
    monkeypatch.setattr(pulses, "SILENT_AFTER", 0.5)
    actor = Actor()
    for _ in range(2):
        with pytest.raises(NoAnswerError, match="'actor' of the engine does not answer"):
            await call(actor)
    assert actor.calls == 1


async def test_an_actor_that_is_being_made_is_waited_for(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray does not count it as alive. The call ends by its own limit."""
    monkeypatch.setattr(pulses, "_living_process", lambda handle: None)
    monkeypatch.setattr(pulses, "SILENT_AFTER", 0.1)
    monkeypatch.setattr(calls, "ANSWER_TIME", 2.0)
    waiting = asyncio.ensure_future(call(Actor(), answer_time=2.0))
    await asyncio.wait([waiting], timeout=1.0)
    assert not waiting.done()
    with pytest.raises(NoAnswerError):
        await waiting


async def test_a_process_that_has_left_its_cluster_calls_nobody(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "has_joined", lambda: False)
    actor = Actor("answer")
    with pytest.raises(NoAnswerError, match=r"has left its Ray cluster \(ray\.shutdown\(\)\)"):
        await call(actor)
    assert actor.calls == 0


async def test_a_call_under_way_ends_when_its_process_leaves_the_cluster(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = asyncio.ensure_future(call(Actor()))
    await asyncio.wait([waiting], timeout=0.1)
    monkeypatch.setattr(pulses, "has_joined", lambda: False)
    with pytest.raises(NoAnswerError):
        await waiting


async def test_an_actor_is_replaced_once_and_then_waited_for_twice_as_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[object] = []
    monkeypatch.setattr(pulses, "_living_process", lambda handle: (1, 0))
    monkeypatch.setattr(pulses, "SILENT_AFTER", 0.5)
    monkeypatch.setattr(pulses, "PING_EVERY", 0.1)
    monkeypatch.setattr("ray.kill", lambda handle, no_restart: killed.append((handle, no_restart)))
    actor, watched = Actor(), Pulses(hung_after=1.0)
    watched.visit("actor", actor)
    while len(killed) < 2:
        await asyncio.sleep(0.05)
    assert killed == [(actor, False)] * 2
    assert watched._patience("actor") == 4.0
