"""Log lines of workflows and steps: whose they are, and that none is written twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

import pyworkflow_ray as pr
from pyworkflow_ray.actors import sinks
from pyworkflow_ray.testing import MockContext, WorkflowEnvironment

log = pr.get_logger()


@pytest.fixture
def records() -> Iterator[list[Any]]:
    """What a sink of the application's own is given."""
    found: list[Any] = []
    sink = logger.add(lambda message: found.append(message.record), level=0, format="{message}")
    yield found
    logger.remove(sink)


@pytest.fixture
def own_sinks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sinks that `configure_logging` adds go with the test, and loguru's own stays."""
    monkeypatch.setattr(sinks, "_has_default", False)
    yield
    for number in sinks._added:
        logger.remove(number)
    sinks._added.clear()


def lines_of(records: list[Any], *names: str) -> list[tuple[Any, ...]]:
    """Message and fields of the test's own lines."""
    return [
        (record["message"], *(record["extra"].get(name) for name in names))
        for record in records
        if record["message"].startswith("=")
    ]


@pr.step(max_retries=1, retry_delay="10ms")
def logged_in_thread() -> None:
    assert threading.current_thread() is not threading.main_thread()
    log.info("=thread")
    if pr.get_context().attempt == 1:
        raise ValueError


@pr.step
async def logged_on_loop() -> None:
    log.info("=loop")
    await asyncio.sleep(0)
    logger.info("=loop, by loguru itself")
    pr.get_context().log("=loop, by the context")
    await asyncio.to_thread(log.info, "=loop, in a thread")


@pr.workflow
async def logged() -> None:
    log.info("=began")
    await asyncio.gather(logged_in_thread(), logged_on_loop())
    pr.get_context().log("={braces} stay", order=7)


async def test_a_line_carries_the_run_and_step_that_it_comes_from(records: list[Any]) -> None:
    async with WorkflowEnvironment() as env:
        run = await env.start(logged)
        await run
    fields = ("run_id", "workflow", "step_id", "step", "attempt")
    lines = lines_of(records, *fields)
    on_loop = (str(run), "logged", "logged_on_loop#1", "logged_on_loop", 1)
    in_thread = (str(run), "logged", "logged_in_thread#1", "logged_in_thread")
    assert lines[0] == ("=began", str(run), "logged", None, None, None)
    assert lines[-1] == ("={braces} stay", str(run), "logged", None, None, None)
    assert sorted(lines[1:-1]) == [
        ("=loop", *on_loop),
        ("=loop, by loguru itself", *on_loop),
        ("=loop, by the context", *on_loop),
        ("=loop, in a thread", *on_loop),
        ("=thread", *in_thread, 1),
        ("=thread", *in_thread, 2),
    ]
    assert records[-1]["extra"]["order"] == 7
    by_context = [record for record in records if "by the context" in record["message"]]
    assert {record["name"] for record in by_context} == {__name__}, "lines are those of the user's module"


async def test_nothing_of_a_run_is_left_on_lines_after_it(records: list[Any]) -> None:
    async with WorkflowEnvironment() as env:
        await env.run(logged)
    log.info("=outside")
    assert records[-1]["extra"] == {}


@pr.workflow
async def logged_around_a_wait() -> str:
    log.info("=first")
    logger.info("=first, by loguru itself")
    await pr.sleep("100ms")
    log.bind(run_id="another").info("=second")
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        log.exception("=third")
    return "done"


@pytest.mark.usefixtures("own_sinks")
async def test_a_run_that_is_replayed_repeats_no_line(
    records: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pr.configure_logging(json_logs=True)
    pr.configure(default_runtime="local", storage=tmp_path / "logs.db", suspend_after="1ms")
    run = await pr.start(logged_around_a_wait)
    assert await run.status() is pr.RunStatus.SUSPENDED
    while await run.status() is pr.RunStatus.SUSPENDED:
        await pr.resume(run)
    assert await run == "done"
    assert lines_of([r for r in records if "itself" not in r["message"]], "run_id") == [
        ("=first", str(run)),
        ("=second", "another"),
        ("=third", str(run)),
    ]
    lines = [line for line in map(json.loads, capsys.readouterr().err.splitlines()) if "=" in line["message"]]
    assert [line["message"] for line in lines] == ["=first", "=first, by loguru itself", "=second", "=third"]
    assert {line["workflow"] for line in lines} == {"logged_around_a_wait"}
    assert lines[1]["run_id"] == str(run)
    assert "ZeroDivisionError" in lines[3]["exception"]


def _bad_predicate(error: BaseException) -> bool:
    raise RuntimeError("no predicate")


@pr.step(retry_on=_bad_predicate)
def fails() -> None:
    raise ValueError("no")


@pr.workflow
async def with_faults() -> None:
    asyncio.get_running_loop().call_soon(_bad_predicate, ValueError())
    with contextlib.suppress(ValueError):
        await fails()
    await pr.sleep("1h")


def noted(records: list[Any]) -> list[str]:
    """The first lines of the warnings about faults in workflow code."""
    return [
        record["message"].partition("\n")[0]
        for record in records
        if record["level"].name == "WARNING" and "no predicate" in record["message"]
    ]


async def test_faults_in_workflow_code_are_logged_once(records: list[Any]) -> None:
    async with WorkflowEnvironment() as env:
        run = await env.start(with_faults)
        await run
    assert noted(records) == [
        f"In workflow code of run {run}: Exception in callback",
        f"retry_on of step 'fails#1' of run {str(run)!r} raised, and the step is not tried again:",
    ]


async def test_faults_in_workflow_code_are_logged_in_tests_with_mocks(records: list[Any]) -> None:
    with MockContext(mock_results={"fails": None}):
        await with_faults()
    assert noted(records) == ["In workflow code of run run_mock: Exception in callback"]


def test_code_outside_of_a_run_can_name_the_run_it_means(records: list[Any]) -> None:
    pr.bind_workflow_context("run_1", "order").info("=run")
    pr.bind_step_context("run_1", "pay#1", "pay").info("=step")
    assert [record["extra"] for record in records] == [
        {"run_id": "run_1", "workflow": "order"},
        {"run_id": "run_1", "step_id": "pay#1", "step": "pay"},
    ]


def test_a_logger_may_have_a_name(records: list[Any]) -> None:
    pr.get_logger("orders").info("=named")
    log.info("=not named")
    assert [record["name"] for record in records] == ["orders", __name__]
