"""Tokens and passwords: planted, and looked for in everything that people and logs get to see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from loguru import logger

import pyworkflow_ray as pr
from pyworkflow_ray.actors.hook_registry import HookAnswer
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.cli.runs import format_data
from pyworkflow_ray.client.engine_actors import EngineState
from pyworkflow_ray.client.sessions import session
from pyworkflow_ray.engine.commands import CreateHook
from pyworkflow_ray.engine.events import NONE, HookCreated, decode_history
from pyworkflow_ray.storage.histories import read_events
from pyworkflow_ray.storage.hooks import Delivery, NewHook, get_hook
from pyworkflow_ray.storage.storages import Storage

TOKEN = "planted-token-0123456789"
PASSWORD = "planted-password"
URL = f"postgresql://user:{PASSWORD}@127.0.0.1:1/nothing"


@pr.workflow
async def asks_in_secret() -> Any:
    return await pr.hook("payload", token=TOKEN, on_created=lambda token: None)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """All that is logged, at the lowest level."""
    found: list[str] = []
    sink = logger.add(lambda line: found.append(str(line)), level=0, diagnose=True, backtrace=True)
    yield found
    logger.remove(sink)


async def test_no_token_is_shown_where_it_was_not_asked_for(lines: list[str]) -> None:
    pr.configure(default_runtime="local", storage="memory")
    run = await pr.start(asks_in_secret)
    events, storage = await run.events(), session().storage
    shown = [
        *map(repr, events),
        *map(format_data, events),
        *map(repr, decode_history(storage.read(read_events(run)))),
        repr(await pr.get_hook(TOKEN)),
        repr(storage.read(get_hook(TOKEN))),
        repr(await run.refresh()),
        repr(CreateHook("payload#1", "payload", TOKEN, None, None, NONE)),
        repr(HookCreated(hook_id="payload#1", token=TOKEN, name="payload")),
        repr(NewHook(hook_id="payload#1", token=TOKEN, name="payload")),
        repr(Delivery(TOKEN, "key", "{}")),
        repr(HookAnswer(TOKEN, "key", b"1")),
        repr(await pr.resume_hook(TOKEN, 1)),
    ]
    for wrong in (TOKEN, f"{TOKEN}!"):
        with pytest.raises(pr.WorkflowError) as refused:
            await pr.resume_hook(wrong, 1)
        shown += [repr(refused.value), str(refused.value)]
    assert {event.data["token"] for event in events if event.type == "hook.created"} == {TOKEN}
    assert [text for text in (*shown, *lines) if TOKEN in text] == []


async def test_no_password_is_shown_where_a_database_is(lines: list[str]) -> None:
    settings = pr.configure(default_runtime="local", storage=URL)
    shown = [repr(settings), str(settings)]
    for make in (lambda: Storage(URL), session, lambda: pr.start_sync(asks_in_secret)):
        try:
            shown.append(repr(make()))
        except pr.StorageError as error:
            shown += [repr(error), str(error), repr(error.__cause__)]
    engine = EngineSettings.configured(settings)
    state = EngineState("address", "2", [], [], storage_url=URL)
    shown += [repr(engine), repr(state), repr(pr.PostgresStorageBackend(URL))]
    assert len(shown) > 6
    assert [text for text in (*shown, *lines) if PASSWORD in text] == []
