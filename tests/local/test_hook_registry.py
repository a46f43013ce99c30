"""What the hook registry promises of answers that come together: each has an end of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel, field_validator

from pyworkflow_ray.actors.codes import pack
from pyworkflow_ray.actors.hook_registry import HookAnswer, HookRegistry, HookReply
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.client.hook_answers import MOST_IN_CALL, hook_answers
from pyworkflow_ray.exceptions import (
    HookAlreadyReceivedError,
    HookExpiredError,
    HookNotFoundError,
    HookValidationError,
    SerializationError,
    StorageError,
)
from pyworkflow_ray.statuses import HookStatus
from pyworkflow_ray.storage.acceptances import NewRun, accept
from pyworkflow_ray.storage.codes import Code, saving_code
from pyworkflow_ray.storage.hooks import NewHook, create_hook, expire_hooks, get_hook
from pyworkflow_ray.storage.inboxes import unread
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.works import Steps, last, work
from pyworkflow_ray.values.failures import capture


class Verdict(BaseModel):
    guilty: bool


class Ending(BaseModel):
    how: str

    @field_validator("how")
    @classmethod
    def ended(cls, how: str) -> str:
        raise SystemExit(how)


class Broken(BaseModel):
    key: str

    @field_validator("key")
    @classmethod
    def looked_up(cls, key: str) -> str:
        return {}[key]  # type: ignore[no-any-return]


class Hooks:
    """Hooks, each of a run of its own, and a registry that takes answers for them."""

    def __init__(self, url: str) -> None:
        self.storage = Storage(url)
        self.nudged: list[set[str]] = []
        self.calls: list[bytes] = []
        self.registry = HookRegistry(EngineSettings(storage_url=url), self._nudge, self.storage)
        self._sender = hook_answers(self._call)

    def _nudge(self, run_ids: Any) -> None:
        self.nudged.append(set(run_ids))

    async def _call(self, answers: bytes) -> bytes:
        self.calls.append(answers)
        return await self.registry.deliver_all(answers)

    async def make(self, *tokens: str, schema: Any = None, code: Code | None = None) -> None:
        """Make a hook for each token, in the run `run-<token>`."""
        code = code or (None if schema is None else pack(schema, "the schema"))
        schema_hash = None if code is None else code.hash
        await self.storage.write(_saved(code))
        for token in tokens:
            new = NewRun(run_id=f"run-{token}", workflow_name="order", input_args="[]", input_kwargs="{}")
            hook = NewHook(hook_id="h#1", token=token, name="h", schema_hash=schema_hash)
            await self.storage.write(accept(new))
            assert await self.storage.write(create_hook(new.run_id, hook)) is None

    async def answer(self, *answers: HookAnswer) -> list[Any]:
        """What becomes of answers that are given at once: who took each, or the error."""
        return list(
            await asyncio.gather(*(self._sender.send(each) for each in answers), return_exceptions=True)
        )

    def received(self, token: str) -> list[Any]:
        """What lies in the inbox of the hook's run."""
        return [json.loads(row.data)["payload"] for row in self.storage.read(unread(f"run-{token}"))]

    def status(self, token: str) -> HookStatus:
        hook = self.storage.read(get_hook(token))
        assert hook is not None
        return hook.status


@work
def _saved(code: Code | None) -> Steps[None]:
    yield last(*saving_code(code))


@pytest.fixture
def hooks(tmp_path: Path) -> Iterator[Hooks]:
    made = Hooks(str(tmp_path / "runs.db"))
    yield made
    made.storage.close()


def payload(token: str, value: Any, key: str | None = None) -> HookAnswer:
    return HookAnswer(token, key or f"delivery:{token}", json.dumps(value).encode())


def took(token: str) -> tuple[str, str]:
    return f"run-{token}", "h#1"


async def test_answers_that_are_given_at_once_go_together(hooks: Hooks) -> None:
    tokens = [f"t{number}" for number in range(50)]
    await hooks.make(*tokens)

    assert await hooks.answer(*(payload(token, token) for token in tokens)) == [took(t) for t in tokens]

    assert len(hooks.calls) == 1
    assert hooks.nudged == [{f"run-{token}" for token in tokens}]
    assert [hooks.received(token) for token in tokens] == [[token] for token in tokens]


async def test_a_bad_token_among_hundreds_harms_no_other(hooks: Hooks) -> None:
    tokens = [f"t{number}" for number in range(MOST_IN_CALL - 1)]
    await hooks.make(*tokens)
    asked = [*tokens[:100], "nobody's", *tokens[100:]]

    given = await hooks.answer(*(payload(token, 1) for token in asked))

    assert len(hooks.calls) == 1
    assert isinstance(given[100], HookNotFoundError)
    assert given[:100] + given[101:] == [took(token) for token in tokens]


async def test_what_the_database_refuses_is_refused_alone(postgresql_url: str) -> None:
    hooks = Hooks(postgresql_url)
    await hooks.make("a", "b")

    first, refused, second = await hooks.answer(
        payload("a", 1), payload("no\0text of PostgreSQL's", 1), payload("b", 2)
    )

    assert (first, second) == (took("a"), took("b"))
    assert isinstance(refused, (StorageError, ValueError))
    assert (hooks.received("a"), hooks.received("b")) == ([1], [2])
    hooks.storage.close()


async def test_each_answer_has_the_end_that_it_has_alone(hooks: Hooks) -> None:
    await hooks.make("free", "taken", "expired", "rejected")
    await hooks.make("fits", "does not fit", "rejected too", schema=Verdict)
    await hooks.storage.write(expire_hooks("run-expired", ["h#1"]))
    await hooks.answer(payload("taken", 1, "first"))
    rejection = capture(ValueError("no"))

    given = await hooks.answer(
        payload("free", 1),
        payload("taken", 2, "second"),
        payload("taken", 3, "first"),
        payload("expired", 1),
        payload("fits", {"guilty": True}),
        payload("does not fit", {"guilty": "perhaps"}),
        HookAnswer("rejected", "key", rejection=rejection),
        HookAnswer("rejected too", "key", rejection=rejection),
    )

    assert len(hooks.calls) == 2
    assert [given[index] for index in (0, 2, 4, 6, 7)] == [
        took(token) for token in ("free", "taken", "fits", "rejected", "rejected too")
    ]
    assert [type(given[index]) for index in (1, 3, 5)] == [
        HookAlreadyReceivedError,
        HookExpiredError,
        HookValidationError,
    ]
    assert "guilty" in str(given[5])
    assert not getattr(given[5], "__notes__", [])
    assert hooks.received("taken") == [1]
    assert hooks.received("fits") == [{"guilty": True}]
    assert (hooks.received("does not fit"), hooks.status("does not fit")) == ([], HookStatus.PENDING)


async def test_a_schema_that_cannot_be_loaded_or_used_harms_no_other(hooks: Hooks) -> None:
    await hooks.make("free")
    await hooks.make("fits", schema=Verdict)
    await hooks.make("lost", code=Code(hash="lost", kind="reference", python="3", reference="lost.place:It"))
    await hooks.make("ending", schema=Ending)
    await hooks.make("broken", schema=Broken)

    given = await hooks.answer(
        payload("lost", 1),
        payload("ending", {"how": "badly"}),
        payload("broken", {"key": "k"}),
        payload("free", 1),
        payload("fits", {"guilty": False}),
    )

    assert given[3:] == [took("free"), took("fits")]
    assert [type(each) for each in given[:3]] == [SerializationError, HookValidationError, KeyError]
    for token in ("lost", "ending", "broken"):
        assert hooks.status(token) is HookStatus.PENDING


async def test_a_call_that_is_made_again_is_answered_as_it_was(hooks: Hooks) -> None:
    """1. A group is stored. 2. The registry dies before it answers. 3. Its successor gets the same call."""
    tokens = [f"t{number}" for number in range(20)]
    await hooks.make(*tokens[:10])
    await hooks.make(*tokens[10:], schema=Verdict)
    answers = [payload(token, {"guilty": True}) for token in [*tokens, "nobody's"]]
    call = msgspec.msgpack.encode(answers)

    first = await hooks.registry.deliver_all(call)
    successor = HookRegistry(hooks.registry.settings, lambda run_ids: None, hooks.storage)
    again = await successor.deliver_all(call)

    replies = msgspec.msgpack.decode(first, type=list[HookReply])
    assert [(each.run_id, each.hook_id) for each in replies[:-1]] == [took(token) for token in tokens]
    assert replies[-1].refusal is not None
    assert again == first
    assert [hooks.received(token) for token in tokens] == [[{"guilty": True}]] * len(tokens)


async def test_of_many_answers_to_one_hook_in_one_call_the_first_wins(hooks: Hooks) -> None:
    await hooks.make("contested")
    given = await hooks.answer(*(payload("contested", n, f"key-{n}") for n in range(100)))
    assert given[0] == took("contested")
    assert {type(each) for each in given[1:]} == {HookAlreadyReceivedError}
    assert hooks.received("contested") == [0]


def test_neither_token_nor_payload_of_an_answer_is_shown() -> None:
    for shown in (repr(payload("secret", "hidden")), str([payload("secret", "hidden")])):
        assert "HookAnswer" in shown
        assert "secret" not in shown
        assert "hidden" not in shown
