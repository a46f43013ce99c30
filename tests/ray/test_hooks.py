"""Payloads reach the runs that wait for them, each once, whoever dies on the way."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import ray
from pydantic import BaseModel, Field, SecretStr

import pyworkflow_ray as pr
from pyworkflow_ray.client.hook_answers import MOST_IN_CALL
from tests.ray.conftest import EngineUnderTest, eventually, kill_ray_process
from tests.ray.test_crashes import began, mark, types

pytestmark = pytest.mark.usefixtures("shared_engine")

T = TypeVar("T")

KILLED_IN = 500
"""How many payloads, for as many runs, are under way as the registry is killed."""
HOOKED_RUNS, HOOKS_OF_EACH = 50, 10
SIGNALLED_RUNS, SIGNALS_OF_EACH = 8, 125
"""How large the bursts are. Of 2,000 hooks and 8,000 signals all arrive, too; it takes most of a minute."""


@pr.workflow
async def awaits_payload(token: str, timeout: str | None = None) -> Any:
    try:
        return await pr.hook("payload", token=token, timeout=timeout)
    except pr.HookExpiredError:
        return "expired"


@pr.workflow
async def works_and_awaits(folder: str, token: str, seconds: float) -> list[Any]:
    return list(await asyncio.gather(pr.hook("beside", token=token), mark(folder, token, seconds)))


def suspended(run: pr.RunHandle[Any]) -> None:
    eventually(lambda: run.status_sync() is pr.RunStatus.SUSPENDED)


def waits_for(token: str) -> None:
    """Return when there is a hook with this token."""
    eventually(lambda: pr.run_sync(pr.get_hook(token)))


def living(engine: EngineUnderTest, name: str) -> int:
    """The process id of an actor, once it is back from what an earlier test did to it."""

    def ask() -> int:
        with contextlib.suppress(ray.exceptions.RayActorError):
            return engine.pid_of(name)
        return 0

    if name == "hook-registry":
        with contextlib.suppress(pr.HookNotFoundError):
            pr.resume_hook_sync("nobody's", None)  # it is made when it is first needed
    return int(eventually(ask))


def kill_all(pids: Iterable[int]) -> None:
    for pid in pids:
        kill_ray_process(pid)


def received_once(run: pr.RunHandle[Any]) -> None:
    assert types(run).count("hook.received") == 1


def test_a_payload_wakes_a_suspended_run() -> None:
    run = pr.start_sync(awaits_payload, "wakes")
    suspended(run)
    given = pr.resume_hook_sync("wakes", {"answer": 42})
    assert (given.run_id, given.hook_id, given.status) == (run, "payload#1", "resumed")
    assert run.wait(timeout=60) == {"answer": 42}
    received_once(run)


def test_a_payload_reaches_a_run_that_is_at_work(tmp_path: Path) -> None:
    run = pr.start_sync(works_and_awaits, str(tmp_path), "at-work", 1.0)
    eventually(lambda: began(tmp_path, "at-work"))
    pr.resume_hook_sync("at-work", "payload")
    assert run.wait(timeout=60) == ["payload", "at-work:1"]
    received_once(run)


class Verdict(BaseModel):
    guilty: bool


Judging = pr.define_hook("verdict", Verdict)


@pr.workflow
async def awaits_verdict(token: str) -> bool:
    verdict = await Judging(token=token)
    return bool(verdict.guilty)


def test_a_payload_that_does_not_fit_is_refused_where_it_is_given() -> None:
    run = pr.start_sync(awaits_verdict, "verdict")
    suspended(run)
    before = run.events_sync()
    with pytest.raises(pr.HookValidationError, match="guilty"):
        pr.resume_hook_sync("verdict", {"guilty": "perhaps"})
    hook = pr.run_sync(pr.get_hook("verdict"))
    assert hook is not None
    assert (hook.status, hook.payload) == (pr.HookStatus.PENDING, None)
    assert run.events_sync() == before
    pr.resume_hook_sync("verdict", Verdict(guilty=False), dedup_key="mail-1")
    again = pr.resume_hook_sync("verdict", Verdict(guilty=True), dedup_key="mail-1")
    assert again.run_id == run, "accepted, and of no effect"
    assert run.wait(timeout=60) is False
    with pytest.raises(pr.HookAlreadyReceivedError):
        pr.resume_hook_sync("verdict", Verdict(guilty=True))
    with pytest.raises(pr.HookNotFoundError):
        pr.resume_hook_sync("no-such-token", 1)


class Account(BaseModel):
    owner: str = Field(alias="accountOwner")
    password: SecretStr
    limit: int = Field(exclude=True)
    parts: Any = None


@pr.workflow
async def awaits_account(token: str) -> list[Any]:
    given: Any = await pr.hook("account", token=token, payload_schema=Account)
    assert type(given) is Account
    is_secret = given.password.get_secret_value() == "s3cret"
    return [given.owner, is_secret, given.limit, repr(given.parts)]


ACCOUNT = """
    import sys
    from typing import Any
    from pydantic import BaseModel, Field, SecretStr
    import pyworkflow_ray as pr

    class Account(BaseModel):
        owner: str = Field(alias="accountOwner")
        password: SecretStr
        limit: int = Field(exclude=True)
        parts: Any = None

    pr.resume_hook_sync(sys.argv[1], Account(accountOwner="x", password="s3cret", limit=3, parts=(1, {2})))
"""


@pytest.mark.parametrize("sender", ["this process", "another process"])
def test_an_instance_of_a_model_arrives_as_it_was_given(
    shared_engine: EngineUnderTest, tmp_path: Path, sender: str
) -> None:
    run = pr.start_sync(awaits_account, sender)
    waits_for(sender)
    if sender == "this process":
        account = Account(accountOwner="x", password=SecretStr("s3cret"), limit=3, parts=(1, {2}))
        pr.resume_hook_sync(sender, account)
    else:
        script = tmp_path / "account.py"
        script.write_text(textwrap.dedent(ACCOUNT))
        subprocess.run([sys.executable, str(script), sender], env=shared_engine.environment(), check=True)
    assert run.wait(timeout=60) == ["x", True, 3, "(1, {2})"]
    hook = pr.run_sync(pr.get_hook(sender))
    assert "s3cret" not in repr((hook.payload if hook else None, run.events_sync()))


@pytest.mark.parametrize("killed", [["coordinator-0"], ["hook-registry"], ["coordinator-0", "hook-registry"]])
def test_a_payload_given_as_an_actor_dies_reaches_its_run(
    shared_engine: EngineUnderTest, killed: list[str]
) -> None:
    token = f"before-{len(killed)}-{killed[0]}"
    run = pr.start_sync(awaits_payload, token)
    suspended(run)
    kill_all([living(shared_engine, name) for name in killed])
    pr.resume_hook_sync(token, token)
    assert run.wait(timeout=60) == token
    received_once(run)


@pytest.mark.parametrize("killed", [["hook-registry"], ["coordinator-0", "hook-registry"]])
def test_a_payload_that_was_accepted_outlives_whoever_took_it(
    shared_engine: EngineUnderTest, killed: list[str], tmp_path: Path
) -> None:
    token = f"after-{len(killed)}"
    run = pr.start_sync(works_and_awaits, str(tmp_path), token, 1.0)
    waits_for(token)
    pids = [living(shared_engine, name) for name in killed]
    pr.resume_hook_sync(token, token)
    kill_all(pids)
    assert run.wait(timeout=60)[0] == token
    received_once(run)


async def test_deliveries_under_way_when_the_registry_dies_all_arrive(
    shared_engine: EngineUnderTest,
) -> None:
    tokens = [f"flight-{number}" for number in range(40)]
    runs = await asyncio.gather(*(pr.start(awaits_payload, token) for token in tokens))
    await wait_for_hooks(len(tokens), runs)
    pid = await asyncio.to_thread(living, shared_engine, "hook-registry")
    deliveries = [asyncio.create_task(pr.resume_hook(token, token)) for token in tokens]
    await asyncio.wait(deliveries, return_when=asyncio.FIRST_COMPLETED)
    kill_all([pid])
    given = await asyncio.gather(*deliveries)
    assert [each.run_id for each in given] == runs
    assert await asyncio.gather(*runs) == tokens
    for run in runs:
        assert [event.type for event in await run.events()].count("hook.received") == 1


async def test_of_a_burst_in_which_the_registry_is_killed_each_payload_counts_once(
    shared_engine: EngineUnderTest,
) -> None:
    """1. A call of many payloads is answered. 2. The next one is under way. 3. The registry is killed.

    What the killed one may have stored is not stored again when its client makes the call again.
    """
    assert KILLED_IN > MOST_IN_CALL
    tokens = [f"killed-{number}" for number in range(KILLED_IN)]
    runs = await asyncio.gather(*(pr.start(awaits_payload, token) for token in tokens))
    await wait_for_hooks(len(tokens), runs)
    pid = await asyncio.to_thread(living, shared_engine, "hook-registry")
    deliveries = [asyncio.create_task(pr.resume_hook(token, token)) for token in tokens[:MOST_IN_CALL]]
    await asyncio.wait(deliveries, return_when=asyncio.FIRST_COMPLETED)
    under_way = [asyncio.create_task(pr.resume_hook(token, token)) for token in tokens[MOST_IN_CALL:]]
    for _ in range(3):
        await asyncio.sleep(0)  # they are sent, and no answer comes in so short a time
    kill_all([pid])
    assert not any(each.done() for each in under_way)
    deliveries += under_way
    given = await asyncio.gather(*deliveries)
    assert [each.run_id for each in given] == runs
    assert await asyncio.gather(*runs) == tokens
    for run in runs:
        assert [event.type for event in await run.events()].count("hook.received") == 1


async def wait_for_hooks(count: int, runs: list[pr.RunHandle[Any]]) -> None:
    """Return when these runs wait for as many hooks."""
    wanted = set(runs)
    while True:
        hooks, _ = await pr.list_hooks(status="pending", limit=10_000)
        if sum(hook.run_id in wanted for hook in hooks) >= count:
            return
        await asyncio.sleep(0.05)


ANSWERS = """
    import asyncio, pathlib, sys, time
    import pyworkflow_ray as pr

    async def answer():
        await pr.resume_hook("from-afar", {"sent": "by another process"})
        print("ready", flush=True)
        while not pathlib.Path(sys.argv[1]).exists():
            await asyncio.sleep(0.001)
        tries = (pr.resume_hook("contested", f"other {number}") for number in range(10))
        answers = await asyncio.gather(*tries, return_exceptions=True)
        print(sum(isinstance(answer, pr.ResumeResult) for answer in answers), flush=True)
        print({type(answer).__name__ for answer in answers}, flush=True)

    asyncio.run(answer())
"""


async def test_of_deliveries_from_many_clients_in_two_processes_one_wins(
    shared_engine: EngineUnderTest, tmp_path: Path
) -> None:
    run = await pr.start(awaits_payload, "contested")
    other_run = await pr.start(awaits_payload, "from-afar")
    await wait_for_hooks(2, [run, other_run])
    script = tmp_path / "answers.py"
    script.write_text(textwrap.dedent(ANSWERS))
    go = tmp_path / "go"
    other = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(go), env=shared_engine.environment(), stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert await other.stdout.readline() == b"ready\n"
    assert await other_run == {"sent": "by another process"}
    go.touch()
    answers = await asyncio.gather(
        *(pr.resume_hook("contested", f"mine {number}") for number in range(30)), return_exceptions=True
    )
    mine = [number for number, answer in enumerate(answers) if isinstance(answer, pr.ResumeResult)]
    refused = [answer for answer in answers if isinstance(answer, pr.HookAlreadyReceivedError)]
    theirs = int(await other.stdout.readline())
    assert len(mine) + len(refused) == 30
    assert len(mine) + theirs == 1
    assert str(await run).startswith("mine" if mine else "other")
    assert await other.wait() == 0
    assert [event.type for event in await run.events()].count("hook.received") == 1


@pr.workflow
async def gathers_payloads(name: str, count: int) -> list[Any]:
    return list(await asyncio.gather(*(pr.hook("burst", token=f"{name}/{i}") for i in range(count))))


@pr.workflow
async def adds_up(count: int) -> int:
    return sum([await pr.receive("summand") for _ in range(count)])


async def at_most(limit: int, calls: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """The results of all, no more than so many of them under way at once."""
    places = asyncio.Semaphore(limit)

    async def one(call: Callable[[], Awaitable[T]]) -> T:
        async with places:
            return await call()

    return list(await asyncio.gather(*map(one, calls)))


async def test_a_burst_of_payloads_all_arrive() -> None:
    names = [f"burst-{number}" for number in range(HOOKED_RUNS)]
    runs = await asyncio.gather(*(pr.start(gathers_payloads, name, HOOKS_OF_EACH) for name in names))
    await wait_for_hooks(HOOKED_RUNS * HOOKS_OF_EACH, runs)
    tokens = [f"{name}/{number}" for number in range(HOOKS_OF_EACH) for name in names]
    await at_most(100, (lambda token=token: pr.resume_hook(token, token) for token in tokens))  # type: ignore[misc]
    expected = [[f"{name}/{number}" for number in range(HOOKS_OF_EACH)] for name in names]
    assert await asyncio.gather(*runs) == expected


async def test_a_burst_of_signals_all_arrive() -> None:
    # The last one comes by itself: a run that ends is no longer there for a sender who is still under way.
    runs = await asyncio.gather(*(pr.start(adds_up, SIGNALS_OF_EACH + 1) for _ in range(SIGNALLED_RUNS)))
    signals = [(run, number) for number in range(SIGNALS_OF_EACH) for run in runs]
    await at_most(100, (lambda run=run, n=n: run.signal("summand", n) for run, n in signals))  # type: ignore[misc]
    for run in runs:
        await run.signal("summand", 0)
    assert await asyncio.gather(*runs) == [sum(range(SIGNALS_OF_EACH))] * SIGNALLED_RUNS


# --- the client in a step -------------------------------------------------------------------------


async def answer_where_it_was_made(token: str) -> None:
    await pr.resume_hook(token, "from on_created")


@pr.step
def answer_from_a_worker(token: str) -> str:
    pr.resume_hook_sync(token, "from a worker")
    return pr.start_sync(other_run, 2).wait()


@pr.workflow
async def other_run(number: int) -> str:
    return f"run {number}"


@pr.workflow
async def answered_in_steps() -> list[str]:
    first = await pr.hook("first", on_created=answer_where_it_was_made)
    second = asyncio.create_task(pr.hook("second", token=f"{pr.get_context().run_id}-second"))
    third = await answer_from_a_worker(f"{pr.get_context().run_id}-second")
    return [first, await second, third]


def test_what_a_step_asks_of_the_client_concerns_the_engine_that_runs_it(
    shared_engine: EngineUnderTest,
) -> None:
    """Neither the namespace nor the storage is among the settings of a worker's process."""
    run = pr.start_sync(answered_in_steps)
    assert run.wait(timeout=60) == ["from on_created", "from a worker", "run 2"]


# These need an engine of their own.


def test_a_hook_expires_though_nobody_is_there(engine: EngineUnderTest) -> None:
    pr.configure(coordinator_ttl="1s")
    answered = pr.start_sync(awaits_payload, "answered", "1h")
    expiring = pr.start_sync(awaits_payload, "expiring", "4s")
    eventually(lambda: engine.coordinators() == [])
    pr.resume_hook_sync("answered", "in time")
    assert answered.wait(timeout=60) == "in time"
    assert expiring.wait(timeout=60) == "expired"
    with pytest.raises(pr.HookExpiredError):
        pr.resume_hook_sync("expiring", "too late")
