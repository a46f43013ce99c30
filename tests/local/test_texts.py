"""Ids, names and keys that cannot be stored: refused by the call that gives them, on every database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.client.sessions import close_sessions
from pyworkflow_ray.testing import save_history

BAD = ["a\0b", "name\udcff"]


@pytest.fixture(params=["sqlite", "postgresql"], autouse=True)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    url = str(tmp_path / "runs.db")
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    pr.configure(default_runtime="local", storage=url)
    yield
    close_sessions()


@pr.workflow
async def waits_for_text() -> Any:
    return await pr.hook("payload", token="the-token")


@pr.workflow
async def fails_with_text(text: str) -> None:
    raise ValueError(text)


@pr.workflow
async def names_attribute(name: str) -> None:
    pr.set_attributes(**{name: 1})


DAILY = pr.ScheduleSpec(interval="1d")
Call = Callable[[str, str], Awaitable[Any]]

CALLS: dict[str, Call] = {
    "run id": lambda run, bad: pr.start.options(run_id=bad)(waits_for_text),
    "idempotency key": lambda run, bad: pr.start(waits_for_text, idempotency_key=bad),
    "name of an attribute": lambda run, bad: pr.start.options(attributes={bad: 1})(waits_for_text),
    "signal's name": pr.signal,
    "dedup_key of signal": lambda run, bad: pr.signal(run, "name", dedup_key=bad),
    "dedup_key of hook": lambda run, bad: pr.resume_hook("the-token", 1, dedup_key=bad),
    "schedule's id": lambda run, bad: pr.create_schedule(waits_for_text, DAILY, schedule_id=bad),
    "schedule's note": lambda run, bad: pr.pause_schedule("any", note=bad),
    "attribute set by code": lambda run, bad: pr.start(names_attribute, bad),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_text_that_cannot_be_stored_is_refused_by_the_call(bad: str) -> None:
    run = await pr.start(waits_for_text)
    for call in CALLS.values():
        with pytest.raises(pr.ConfigurationError, match=r"cannot be stored|is not valid"):
            await call(run, bad)
    for ask in (pr.get_hook, pr.resume_hook):
        with pytest.raises(pr.InvalidTokenError):
            await ask(bad)  # type: ignore[operator]
    assert await run.status() is pr.RunStatus.SUSPENDED


@pytest.mark.parametrize("bad", BAD)
def test_a_name_that_cannot_be_stored_is_refused_where_it_is_given(bad: str) -> None:
    with pytest.raises(pr.ConfigurationError, match="The workflow's name is"):
        pr.workflow(name=bad)(waits_for_text.fn)
    with pytest.raises(pr.ConfigurationError, match="The step's name is"):
        pr.step(name=bad)(lambda: None)


@pytest.mark.parametrize("bad", BAD)
async def test_a_run_ends_whatever_the_text_of_its_error_or_its_cancellation(bad: str) -> None:
    with pytest.raises(ValueError, match=r"a|name"):
        await pr.start(fails_with_text, bad)
    (failed,), _ = await pr.list_runs(workflow="fails_with_text")
    assert failed.status is pr.RunStatus.FAILED
    assert failed.error is not None
    run = await pr.start(waits_for_text)
    assert await pr.cancel_workflow(run, reason=bad)
    with pytest.raises(pr.CancellationError):
        await run.result()


class TextError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(f"it is {text}")
        self.text = text


@pr.step(local=True, max_retries=1, retry_delay=0)
def returns_text(text: str) -> str:
    if pr.get_context().attempt == 1:
        raise TextError(text)
    return text


@pr.step(local=True, max_retries=0)
def raises_text(text: str) -> None:
    raise TextError(text)


@pr.workflow
async def child_of_text(text: str) -> dict[str, str]:
    return {text: text}


@pr.workflow
async def carries_text(text: str) -> list[Any]:
    pr.set_query_handler("text", lambda given: (given, text))
    pr.set_attributes(colour=text)
    pr.get_context().log(f"it is {text}", bound=text)
    got: list[Any] = [
        await returns_text(text),
        pr.side_effect(lambda: text),
        await pr.hook("payload", token="the-token", metadata={text: text}),
        await pr.receive("signal"),
        await child_of_text(text),
    ]
    try:
        await raises_text(text)
    except TextError as error:
        got.append((str(error), error.text))
    return got


@pytest.mark.parametrize("bad", BAD)
async def test_a_text_that_no_database_holds_as_it_is_is_a_value_like_any_other(bad: str) -> None:
    start = pr.start.options(attributes={"name": bad}, metadata={"name": bad})
    run = await start(carries_text, bad)
    assert await run.query("text", bad) == (bad, bad)
    await run.signal("signal", bad)
    await pr.resume_hook("the-token", {bad: bad})
    assert await run == [bad, bad, {bad: bad}, bad, {bad: bad}, (f"it is {bad}", bad)]
    record = await run.refresh()
    assert record.attributes.keys() == {"name", "colour"}


async def test_a_run_id_that_leads_elsewhere_is_refused() -> None:
    with pytest.raises(pr.ConfigurationError, match=r"The run id '\.\./\.\./x' is not valid"):
        await pr.start.options(run_id="../../x")(waits_for_text)


async def test_a_saved_history_stays_in_its_folder_whatever_its_run_is_called(tmp_path: Path) -> None:
    run = await pr.start(waits_for_text)
    events = [replace(event, run_id="../../x") for event in await run.events()]
    folder = tmp_path / "one" / "two"
    file = save_history(events, folder)
    assert file.parent == folder
    assert list(folder.iterdir()) == [file]
