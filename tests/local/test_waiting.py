"""Waiting for somebody: hooks, signals and queries, in process and on a clock of the test's."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw
from pydantic import BaseModel

import pyworkflow_ray as pr
from pyworkflow_ray.actors.inboxes import InboxEntry
from pyworkflow_ray.client import inboxes, results
from pyworkflow_ray.client.lookups import read_record
from pyworkflow_ray.engine.events import SignalReceived
from pyworkflow_ray.storage import storages
from pyworkflow_ray.storage.databases import Database
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.testing import WorkflowEnvironment
from tests.local.notes import note, notes, types, write_note
from tests.local.waits import until_due


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """The in-process runtime, which suspends what waits, on a database in a file."""
    pr.configure(default_runtime="local", storage=tmp_path / "local.db", suspend_after="30ms")
    return tmp_path


# --- results --------------------------------------------------------------------------------------


async def test_who_waits_for_a_result_waits_for_the_database_too(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await pr.start(asks, "asked-in-an-outage")
    refused: list[object] = []
    look = Database.look

    def away(database: Database, query: Any) -> Any:
        if len(refused) < 3:
            refused.append(query)
            locked = sqlite3.OperationalError("database is locked")
            locked.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise locked
        return look(database, query)

    waiting = asyncio.create_task(run.result())
    while await run.status() is not pr.RunStatus.SUSPENDED:
        await asyncio.sleep(0.01)
    monkeypatch.setattr(storages, "_READ_PATIENCE", 0.0)
    monkeypatch.setattr(results, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(Database, "look", away)
    while len(refused) < 3:
        assert not waiting.done()
        await asyncio.sleep(0.01)

    await pr.resume_hook("asked-in-an-outage", "yes")

    assert await waiting == "yes"


# --- hooks ----------------------------------------------------------------------------------------


class Decision(BaseModel):
    approved: bool
    by: str = "somebody"


Approving = pr.define_hook("approving", Decision)


@pr.workflow
async def asks(token: str) -> Any:
    return await pr.hook("asking", token=token)


@pr.workflow
async def approves(token: str) -> list[Any]:
    decision = await Approving(token=token, timeout="2d", metadata={"order": 7})
    return [type(decision).__name__, decision.approved, decision.by]


@pytest.mark.parametrize(
    "payload",
    [None, {"a": [1, 2.5, None]}, ("a", 1), b"\x00\xff", datetime(2026, 1, 1, tzinfo=UTC), "x" * 300_000],
)
async def test_a_payload_reaches_the_run_with_its_value_and_type(payload: Any) -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(asks, "t")
        await environment.settle()
        given = await pr.resume_hook("t", payload)
        assert (given.run_id, given.hook_id, given.status) == (run, "asking#1", "resumed")
        assert await run == payload
        assert await types(run) == [
            "workflow.started",
            "hook.created",
            "hook.received",
            "workflow.completed",
        ]


@dataclass
class Parcel:
    weight: int


async def test_a_payload_of_the_senders_own_class_survives_the_way() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(asks, "t")
        await environment.settle()
        await pr.resume_hook("t", Parcel(3))
        assert (await run).weight == 3


async def test_a_typed_hook_gives_its_type() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(approves, "t")
        await environment.settle()
        hook = await pr.get_hook("t")
        assert hook is not None
        assert hook.payload_schema is not None
        assert sorted(hook.payload_schema["properties"]) == ["approved", "by"]
        assert hook.metadata == {"order": 7}
        await pr.resume_hook("t", Decision(approved=True))
        assert await run == ["Decision", True, "somebody"]


async def test_a_payload_that_does_not_fit_is_refused_and_the_hook_stays_open() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(approves, "t")
        await environment.settle()
        with pytest.raises(pr.HookValidationError, match=r"'approving': approved: .*boolean"):
            await pr.resume_hook("t", {"approved": "perhaps"})
        hook = await pr.get_hook("t")
        assert hook is not None
        assert (hook.status, hook.payload, hook.received_at) == (pr.HookStatus.PENDING, None, None)
        assert await types(run) == ["workflow.started", "hook.created"]
        await pr.resume_hook("t", {"approved": False})
        assert await run == ["Decision", False, "somebody"]


async def test_of_many_deliveries_at_once_one_wins() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(asks, "t")
        await environment.settle()
        answers = await asyncio.gather(
            *(pr.resume_hook("t", number) for number in range(20)), return_exceptions=True
        )
        won = [number for number, answer in enumerate(answers) if isinstance(answer, pr.ResumeResult)]
        lost = [answer for answer in answers if isinstance(answer, pr.HookAlreadyReceivedError)]
        assert (len(won), len(lost)) == (1, 19)
        assert await run == won[0]


async def test_a_delivery_made_again_with_its_key_is_accepted_and_ignored() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(asks, "t")
        await environment.settle()
        first = await pr.resume_hook("t", 1, dedup_key="mail-42")
        assert await pr.resume_hook("t", 2, dedup_key="mail-42") == first
        assert await run == 1
        assert await pr.resume_hook("t", 3, dedup_key="mail-42") == first, "also when the run has ended"
        with pytest.raises(pr.HookAlreadyReceivedError):
            await pr.resume_hook("t", 2, dedup_key="mail-43")


async def test_one_dedup_key_may_be_used_for_two_hooks() -> None:
    async with WorkflowEnvironment() as environment:
        runs = [await environment.start(asks, token) for token in ("t1", "t2")]
        await environment.settle()
        for token in ("t1", "t2"):
            await pr.resume_hook(token, token, dedup_key="the same")
        assert await asyncio.gather(*runs) == ["t1", "t2"]


@pr.workflow
async def bears(token: str) -> str:
    try:
        await pr.hook("bearing", token=token)
    except ZeroDivisionError as error:
        return f"divided: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


async def test_a_rejected_hook_raises_the_error_in_the_workflow() -> None:
    async with WorkflowEnvironment() as environment:
        one, two = [await environment.start(bears, token) for token in ("t1", "t2")]
        await environment.settle()
        await pr.reject_hook("t1", ZeroDivisionError("by zero"))
        await pr.reject_hook("t2", "not today")
        assert await one == "divided: by zero"
        assert (await two).endswith("HookRejectedError: not today")
        with pytest.raises(pr.HookAlreadyReceivedError):
            await pr.resume_hook("t1", 1)


async def test_unknown_and_malformed_tokens_are_told_apart() -> None:
    async with WorkflowEnvironment():
        with pytest.raises(pr.HookNotFoundError) as caught:
            await pr.resume_hook("secret-token", 1)
        assert "secret-token" not in str(caught.value)
        with pytest.raises(pr.HookNotFoundError):
            await pr.reject_hook("secret-token", "no")
        for malformed in ("", None, 7):
            with pytest.raises(pr.InvalidTokenError):
                await pr.resume_hook(malformed, 1)  # type: ignore[arg-type]
        assert await pr.get_hook("secret-token") is None


@pr.workflow
async def expires(timeout: Any, token: str) -> str:
    try:
        return f"got {await pr.hook('expiring', timeout=timeout, token=token)}"
    except pr.HookExpiredError as error:
        return f"{error.hook_id} expired"


async def test_a_hook_expires_when_its_timeout_has_passed() -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(expires, "1h", "t")
        await environment.advance("59m")
        assert not (await run.status()).is_terminal
        await environment.advance("2m")
        assert await run == "expiring#1 expired"
        with pytest.raises(pr.HookExpiredError):
            await pr.resume_hook("t", 1)
        hook = await pr.get_hook("t")
        assert hook is not None
        assert hook.status is pr.HookStatus.EXPIRED
        assert "hook.expired" in await types(run)


async def test_a_hook_that_was_answered_in_time_does_not_expire() -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(expires, "1h", "t")
        await environment.advance("59m")
        await pr.resume_hook("t", "it")
        await environment.advance("2h")
        assert await run == "got it"


async def test_a_hook_is_open_by_the_clock_of_the_environment() -> None:
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    async with WorkflowEnvironment(skip_time=False, start_time=long_ago) as environment:
        run = await environment.start(expires, "1h", "t")
        await environment.advance("30m")
        await pr.resume_hook("t", "it")
        assert await run == "got it"


@pr.workflow
async def asks_and_sleeps(token: str) -> list[str]:
    order = []

    async def sleeper() -> None:
        await pr.sleep("1h")
        order.append("slept")

    async def asker() -> None:
        await pr.hook("racing", token=token)
        order.append("answered")

    await asyncio.gather(sleeper(), asker())
    return order


async def test_a_payload_does_not_end_the_sleep_beside_it() -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(asks_and_sleeps, "t")
        await environment.settle()
        await pr.resume_hook("t", 1)
        await environment.settle()
        assert "sleep.completed" not in await types(run)
        await environment.advance("1h")
        assert await run == ["answered", "slept"]


@pr.workflow
async def gives_up(token: str) -> str:
    try:
        return str(await asyncio.wait_for(pr.hook("brief", token=token), timeout=60))
    except TimeoutError:
        await pr.sleep("1h")
        return "gave up"


async def test_a_hook_that_the_code_waits_for_no_more_takes_no_payload() -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(gives_up, "t")
        await environment.advance("2m")
        assert (await types(run))[-2:] == ["hook.disposed", "sleep.started"]
        with pytest.raises(pr.HookExpiredError):
            await pr.resume_hook("t", 1)
        hook = await pr.get_hook("t")
        assert hook is not None
        assert hook.status is pr.HookStatus.DISPOSED
        await environment.advance("1h")
        assert await run == "gave up"


@pr.workflow
async def reminds(token: str, how: str) -> list[Any]:
    """Asks anew each minute, with the same token."""
    for round_ in range(5):
        try:
            if how == "expires":
                return [round_, await pr.hook("reminding", token=token, timeout="1m")]
            async with asyncio.timeout(60):
                return [round_, await pr.hook("reminding", token=token)]
        except (TimeoutError, pr.HookExpiredError):
            pass
    return []


@pytest.mark.parametrize("how", ["expires", "let go"])
async def test_a_run_may_wait_again_with_the_token_of_a_hook_it_waits_for_no_more(how: str) -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(reminds, "t", how)
        await environment.advance("150s")
        await pr.resume_hook("t", "finally")
        assert await run == [2, "finally"]


@pr.workflow
async def takes_the_first(tokens: list[str]) -> str:
    hooks = [asyncio.create_task(pr.hook("first", token=token)) for token in tokens]
    done, _ = await pr.wait(hooks, return_when="FIRST_COMPLETED")
    return str(done[0].result())


async def test_the_hooks_of_an_ended_run_take_no_payload() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(takes_the_first, ["t1", "t2", "t3"])
        await environment.settle()
        await pr.resume_hook("t2", "second")
        assert await run == "second"
        with pytest.raises(pr.HookExpiredError):
            await pr.resume_hook("t1", "late")
        hooks, _ = await pr.list_hooks(run_id=run)
        assert sorted(hook.status.value for hook in hooks) == ["disposed", "disposed", "received"]


async def test_a_token_is_one_runs_while_that_run_waits() -> None:
    async with WorkflowEnvironment() as environment:
        first = await environment.start(asks, "shared")
        await environment.settle()
        with pytest.raises(pr.HookConflictError, match=first):
            await environment.run(asks, "shared")
        await pr.resume_hook("shared", 1)
        assert await first == 1
        second = await environment.start(asks, "shared")
        await environment.settle()
        await pr.resume_hook("shared", 2)
        assert await second == 2


async def test_hooks_of_one_name_are_told_apart_by_their_tokens() -> None:
    @pr.workflow
    async def asks_twice() -> list[Any]:
        return [await pr.hook("again"), await pr.hook("again")]

    async with WorkflowEnvironment() as environment:
        runs = [await environment.start(asks_twice) for _ in range(3)]
        for round_ in range(2):
            await environment.settle()
            for run in runs:
                (hook, *_), _ = await pr.list_hooks(run_id=run, status="pending")
                assert len(hook.token) >= 32
                assert hook.token not in repr(hook)
                await pr.resume_hook(hook.token, f"{run}:{round_}")
        assert await asyncio.gather(*runs) == [[f"{run}:0", f"{run}:1"] for run in runs]


async def test_hooks_are_listed_by_run_by_status_and_by_page() -> None:
    async with WorkflowEnvironment() as environment:
        runs = [await environment.start(asks, f"t{number}") for number in range(5)]
        await environment.settle()
        await pr.resume_hook("t0", 0)
        pending, _ = await pr.list_hooks(status=pr.HookStatus.PENDING)
        assert sorted(hook.run_id for hook in pending) == sorted(runs[1:])
        found, cursor = await pr.list_hooks(limit=3)
        rest, end = await pr.list_hooks(limit=3, cursor=cursor)
        assert sorted(hook.token for hook in found + rest) == [f"t{number}" for number in range(5)]
        assert end is None
        (one,), _ = await pr.list_hooks(run_id=runs[0], status="received")
        assert one.payload == 0


@pytest.mark.parametrize("token", ["", "  ", "a\nb", "x" * 256])
async def test_a_token_of_ones_own_must_look_like_one(token: Any) -> None:
    async with WorkflowEnvironment() as environment:
        with pytest.raises(pr.InvalidTokenError):
            await environment.run(asks, token)


async def test_a_hook_belongs_in_a_durable_run() -> None:
    with pytest.raises(pr.WorkflowError, match="belongs in the code of a workflow"):
        await pr.hook("nowhere")
    async with WorkflowEnvironment(default_durable=False) as environment:
        with pytest.raises(pr.WorkflowError, match="not durable"):
            await environment.run(asks, "t")


@pr.workflow
async def announces(folder: str, token: str) -> Any:
    payload = await pr.hook(
        "announcing",
        token=token,
        on_created=lambda token: write_note(folder, f"created {token}"),
        on_received=lambda payload: write_note(folder, f"received {payload}"),
    )
    await pr.sleep(1)  # long enough to be seen suspended on a busy machine
    return payload


async def test_on_created_and_on_received_run_once_in_spite_of_replays(local: Path) -> None:
    run = await pr.start(announces, str(local), "t")
    assert await run.status() is pr.RunStatus.SUSPENDED
    await pr.resume_hook("t", 5)
    assert await run.status() is pr.RunStatus.SUSPENDED
    await until_due(run)
    await pr.resume(run)
    assert await run == 5
    assert notes(local) == ["created t", "received 5"]


@pr.workflow
async def asks_itself() -> str:
    async def answer(token: str) -> None:
        await pr.resume_hook(token, "at once")

    return str(await pr.hook("asking_itself", on_created=answer))


async def test_a_payload_given_in_on_created_is_not_lost(local: Path) -> None:
    assert await (await pr.start(asks_itself)) == "at once"


@pr.workflow
async def cannot_announce(token: str) -> str:
    def fail(token: str) -> None:
        raise pr.FatalError("the mail server is away")

    try:
        await pr.hook("unannounced", token=token, on_created=fail)
    except pr.FatalError as error:
        await pr.sleep("1h")
        return str(error)
    return "?"


async def test_a_hook_that_could_not_be_announced_is_disposed_of() -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(cannot_announce, "t")
        await environment.settle()
        with pytest.raises(pr.HookExpiredError):
            await pr.resume_hook("t", 1)
        await environment.advance("1h")
        assert await run == "the mail server is away"


def test_a_payload_can_be_given_blocking_and_from_another_loop(local: Path) -> None:
    run = asyncio.run(_started(asks, "t"))
    assert pr.resume_hook_sync("t", "blocking").run_id == run
    assert run.wait(timeout=60) == "blocking"


async def _started(workflow: Any, *args: Any) -> pr.RunHandle[Any]:
    return await pr.start(workflow, *args)


async def test_a_payload_for_a_run_that_is_suspended_replays_it(local: Path) -> None:
    run = await pr.start(asks, "t")
    assert await run.status() is pr.RunStatus.SUSPENDED
    await pr.resume_hook("t", "there")
    assert await run == "there"


# --- signals --------------------------------------------------------------------------------------


@pr.workflow
async def collects(count: int) -> list[Any]:
    return [await pr.receive("item") for _ in range(count)]


async def test_signals_are_read_in_the_order_in_which_they_came() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(collects, 50)
        for number in range(50):
            await pr.signal(run, "item", number)
        assert await run == list(range(50))


async def test_signals_of_many_senders_all_arrive() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(collects, 101)
        await asyncio.gather(*(run.signal("item", number) for number in range(100)))
        await run.signal("item", "last")
        got = await run
        assert got[-1] == "last"
        assert sorted(got[:-1]) == list(range(100))


@pr.workflow
async def two_names() -> list[Any]:
    await pr.sleep("1h")
    second = await pr.receive("second")
    return [second, await pr.receive("first"), await pr.receive("first")]


async def test_signals_that_came_early_are_kept_and_names_are_kept_apart() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(two_names)
        for name, payload in (("first", 1), ("first", 2), ("second", "s"), ("unread", "u")):
            await run.signal(name, payload)
        assert await run == ["s", 1, 2]


@pr.workflow
async def sums_up() -> int:
    total = 0
    async for payload in pr.receive("summand"):
        if payload is None:
            break
        total += payload
    return total


async def test_signals_can_be_read_in_a_loop_and_repeated_by_their_key() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(sums_up)
        for key in ("a", "b", "a", "a"):
            await run.signal("summand", 5, dedup_key=key)
        await run.signal("summand", None)
        assert await run == 10


@pr.workflow
async def impatient() -> list[Any]:
    got: list[Any] = []
    while len(got) < 3:
        try:
            async with asyncio.timeout(3600):
                got.append(await pr.receive("rare"))
        except TimeoutError:
            got.append("nothing")
    return got


async def test_a_wait_for_a_signal_that_timed_out_loses_none() -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(impatient)
        await environment.advance("61m")
        await run.signal("rare", 1)
        await environment.settle()
        await environment.advance("61m")
        assert await run == ["nothing", 1, "nothing"]


async def test_a_signal_to_a_run_that_has_ended_is_reported() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(collects, 0)
        await run
        with pytest.raises(pr.WorkflowError, match="has ended"):
            await run.signal("item")
        with pytest.raises(pr.WorkflowNotFoundError):
            await pr.signal("run_0000000000000000", "item")


async def test_a_signal_that_was_read_as_the_run_ended_is_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A signal is posted. 2. The run reads it and ends. 3. The sender tells it."""
    async with WorkflowEnvironment() as environment:
        run = await environment.start(collects, 1)
        await environment.settle()
        _let_the_run_read_before_it_is_nudged(monkeypatch, environment)
        await run.signal("item", "the last")
        assert await run == ["the last"]


@pr.workflow
async def reads_one_in_each(stage: int) -> list[Any]:
    got = await pr.receive("item")
    if stage == 1:
        pr.continue_as_new(2)
    return [stage, got]


async def test_a_signal_that_was_read_as_the_run_continued_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1. A signal is posted. 2. The run reads it and continues. 3. The sender tells it."""
    async with WorkflowEnvironment() as environment:
        run = await environment.start(reads_one_in_each, 1)
        await environment.settle()
        _let_the_run_read_before_it_is_nudged(monkeypatch, environment)
        await run.signal("item", "first")
        monkeypatch.undo()
        await run.signal("item", "second")
        assert await run == [2, "second"]


def _let_the_run_read_before_it_is_nudged(
    monkeypatch: pytest.MonkeyPatch, environment: WorkflowEnvironment
) -> None:
    nudge = inboxes.nudge

    async def nudge_late(of: Any, record: Any) -> None:
        environment._runtime.coordinator().deliver(record.run_id)
        while not (await read_record(of, record.run_id)).status.is_terminal:
            await asyncio.sleep(0.005)
        await nudge(of, record)

    monkeypatch.setattr(inboxes, "nudge", nudge_late)


@pr.workflow
async def passes_on(stage: int, database: str) -> list[Any]:
    """Continues with two signals received and not read, and a third in its inbox."""
    if stage == 1:
        await pr.receive("go")
        run_id = pr.get_context().run_id
        pr.side_effect(lambda: _post(database, run_id, 3))
        pr.continue_as_new(2, database)
    return [await pr.receive("item") for _ in range(3)]


def _post(database: str, run_id: str, payload: int) -> None:
    """Send a signal, and tell nobody."""
    event = SignalReceived(name="item", payload=Raw(str(payload).encode()))
    with Storage(database) as storage:
        storage.submit(InboxEntry(str(run_id), f"signal:{uuid.uuid4().hex}", event).posting().on).result()


async def test_signals_keep_their_order_when_the_run_continues(tmp_path: Path) -> None:
    database = str(tmp_path / "order.db")
    async with WorkflowEnvironment(storage=database) as environment:
        run = await environment.start(passes_on, 1, database)
        for name, payload in (("item", 1), ("item", 2), ("go", None)):
            await run.signal(name, payload)
        assert await run == [1, 2, 3]


@pr.workflow
async def reads_in_stages(read: list[Any]) -> list[Any]:
    read = [*read, await pr.receive("item")]
    if len(read) < 4:
        pr.continue_as_new(read)
    return read


async def test_signals_that_are_read_together_are_shared_among_the_runs_of_a_chain(tmp_path: Path) -> None:
    """1. Four signals lie in the inbox. 2. A run takes them all in, reads one, and continues."""
    database = str(tmp_path / "together.db")
    async with WorkflowEnvironment(storage=database) as environment:
        run = await environment.start(reads_in_stages, [])
        await environment.settle()
        for number in (1, 2, 3):
            _post(database, run, number)
        await run.signal("item", 4)
        assert await run.result(timeout=60) == [1, 2, 3, 4]


# --- queries and attributes -----------------------------------------------------------------------


@pr.workflow
async def counts_up(folder: str) -> int:
    state = {"total": 0}
    pr.set_query_handler("total", lambda: state["total"])
    pr.set_query_handler("plus", lambda amount, *, times=1: state["total"] + amount * times)
    pr.set_query_handler("broken", lambda: 1 // 0)
    await note(folder, "begun")
    while (amount := await pr.receive("amount")) is not None:
        state["total"] += amount
    return state["total"]


async def test_a_query_is_answered_by_a_run_that_goes_on_and_by_one_that_has_ended(tmp_path: Path) -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(counts_up, str(tmp_path))
        await run.signal("amount", 3)
        await run.signal("amount", 4)
        await environment.settle()
        before = await run.events()
        assert await run.query("total") == 7
        assert await pr.query(run, "plus", 3, times=2) == 13
        with pytest.raises(ZeroDivisionError):
            await run.query("broken")
        with pytest.raises(pr.WorkflowError, match="answers no query 'sum'; it answers 'total', 'plus'"):
            await run.query("sum")
        assert await run.events() == before
        await run.signal("amount", None)
        assert await run == 7
        ended = await run.events()
        assert await run.query("total") == 7
        assert await run.events() == ended
        assert notes(tmp_path) == ["begun"], "a query runs no step"


async def test_a_query_of_a_suspended_run_wakes_nobody(local: Path) -> None:
    run = await pr.start(counts_up, str(local))
    await run.signal("amount", 9)
    assert await run.status() is pr.RunStatus.SUSPENDED
    before = await run.refresh(), await run.events()
    assert await run.query("total") == 9
    assert (await run.refresh(), await run.events()) == before


async def test_a_query_of_a_run_that_continued_goes_to_its_last() -> None:
    @pr.workflow
    async def tells_its_stage(stage: int) -> int:
        pr.set_query_handler("stage", lambda: stage)
        await pr.sleep("1d")
        if stage < 3:
            pr.continue_as_new(stage + 1)
        return stage

    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(tells_its_stage, 1)
        for stage in (1, 2, 3):
            await environment.settle()
            assert await run.query("stage") == stage
            await environment.advance("1d")
        assert await run == 3


async def test_a_query_of_a_run_that_is_put_off_is_refused_at_once(tmp_path: Path) -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await pr.start.options(delay="30d")(counts_up, str(tmp_path))
        await environment.settle()
        with pytest.raises(pr.WorkflowError, match="has not begun"):
            await asyncio.wait_for(run.query("total"), 60)


async def test_a_query_handler_must_be_a_plain_function_of_a_run() -> None:
    @pr.workflow
    async def async_handler() -> None:
        async def later() -> None: ...

        pr.set_query_handler("later", later)

    with pytest.raises(pr.WorkflowError, match="belongs in the code of a workflow"):
        pr.set_query_handler("nobody", lambda: 1)
    async with WorkflowEnvironment() as environment:
        with pytest.raises(pr.WorkflowError, match="plain function"):
            await environment.run(async_handler)
        with pytest.raises(pr.WorkflowNotFoundError):
            await pr.query("run_0000000000000000", "total")


async def test_attributes_that_a_run_sets_are_merged_and_found() -> None:
    @pr.workflow
    async def labels_itself() -> None:
        pr.set_attributes(stage="begun", size=1)
        await pr.sleep("1h")
        pr.set_attributes(stage="ended")

    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await pr.start.options(attributes={"customer": "c"})(labels_itself)
        await environment.settle()
        assert (await run.refresh()).attributes == {"customer": "c", "stage": "begun", "size": 1}
        await environment.advance("1h")
        assert (await run.refresh()).attributes == {"customer": "c", "stage": "ended", "size": 1}
        found, _ = await pr.list_runs(attributes={"stage": "ended", "customer": "c"})
        assert [each.run_id for each in found] == [run]
        assert (await pr.list_runs(attributes={"stage": "begun"}))[0] == []
