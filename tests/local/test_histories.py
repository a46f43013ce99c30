"""Histories in files: written, read, and replayed with today's code."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.testing import (
    WorkflowEnvironment,
    load_history,
    replay,
    replay_directory,
    save_history,
)
from tests.local.notes import note, notes


class Parcel:
    """A value that is stored as a pickle, and leaves a trace when it is read."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return _unpack, (self.folder,)


def _unpack(folder: str) -> Parcel:
    with (Path(folder) / "unpickled").open("a") as file:
        file.write("once\n")
    return Parcel(folder)


@pr.step
def history_pack(folder: str) -> Parcel:
    return Parcel(folder)


@pr.step
def history_fill(size: int) -> list[int]:
    return list(range(size))


@pr.step
def history_break(text: str) -> None:
    raise ValueError(text)


@pr.workflow
async def history_order(folder: str, size: int) -> str:
    await note(folder, "packing – ä")
    await history_pack(folder)
    filled = await history_fill(size)
    await pr.sleep("1d")
    try:
        await history_break("no")
    except ValueError as error:
        return f"{len(filled)} {error} {pr.get_context().uuid4()}"
    return ""


async def record(folder: Path, size: int = 3, **settings: Any) -> Path:
    async with WorkflowEnvironment(default_retries=0, **settings) as env:
        run = await env.start(history_order, str(folder), size)
        await run
        return save_history(run, folder / "histories")


async def test_a_saved_history_holds_what_was_recorded_in_text_that_one_can_read(tmp_path: Path) -> None:
    async with WorkflowEnvironment(default_retries=0) as env:
        run = await env.start(history_order, str(tmp_path), 3)
        await run
        file = save_history(run, tmp_path / "mine" / "order.json")
        events = await run.events()
    assert file == tmp_path / "mine" / "order.json"
    text = file.read_text()
    assert '\n      "type": "step.started",\n' in text
    assert "packing – ä" in text
    stored = json.loads(text)
    assert (stored["workflow"], stored["run_id"], stored["blobs"]) == ("history_order", str(run), {})
    loaded = load_history(file)
    assert loaded.events == events
    assert [event.stored for event in loaded.events] == [event.stored for event in events]
    assert (loaded.run_id, loaded.workflow) == (str(run), "history_order")


async def test_a_file_is_replayed_without_the_storage_that_it_came_from(tmp_path: Path) -> None:
    file = await record(tmp_path)
    assert file.parent == tmp_path / "histories"
    assert file.name.startswith("history_order-run_")
    before = notes(tmp_path)
    pr.configure(storage=tmp_path / "nowhere" / "none.db")
    replay(file)
    replay(str(file), history_order)
    assert notes(tmp_path) == before
    assert not (tmp_path / "nowhere").exists()


async def test_large_values_travel_in_the_file(tmp_path: Path) -> None:
    file = await record(tmp_path, size=2000, blob_threshold=1000)
    blobs = json.loads(file.read_text())["blobs"]
    assert json.dumps(list(range(2000)), separators=(",", ":")) in blobs.values()
    replay(file)
    for event in json.loads(file.read_text())["events"]:
        assert len(str(event)) < 8000
    damaged = json.loads(file.read_text()) | {"blobs": {}}
    file.write_text(json.dumps(damaged))
    with pytest.raises(pr.SerializationError, match=r"refers to the blob .* does not hold it"):
        replay(file)


async def test_sealed_values_stay_sealed_in_the_file(tmp_path: Path) -> None:
    codec = "tests.local.test_environments:turned"
    file = await record(tmp_path, payload_codec=codec)
    assert "packing" not in file.read_text()
    with pytest.raises(pr.SerializationError, match="payload codec"):
        replay(file)
    pr.configure(payload_codec=codec)
    replay(file)


async def test_nothing_is_unpickled_to_save_or_to_list(tmp_path: Path) -> None:
    file = await record(tmp_path)
    trace = tmp_path / "unpickled"
    trace.unlink()
    history = load_history(file)
    assert len(history.events) == 12
    assert not trace.exists()
    replay(history)
    assert trace.exists()


async def test_events_alone_are_saved_as_well(tmp_path: Path) -> None:
    async with WorkflowEnvironment(default_retries=0) as env:
        run = await env.start(history_order, str(tmp_path), 3)
        await run
        file = save_history(await run.events(), tmp_path)
        with pytest.raises(pr.WorkflowNotFoundError):
            save_history("run_0000000000000000", tmp_path)
    replay(file)


@pr.workflow
async def history_grandchild() -> str:
    try:
        await pr.start_child_workflow(history_deepest)
    except pr.MaxNestingDepthError:
        return "deep enough"
    return "deeper"


@pr.workflow
async def history_deepest() -> None:
    pass


@pr.workflow
async def history_child(levels: int) -> str:
    if levels:
        return await pr.start_child_workflow(history_child, levels - 1)
    return await pr.start_child_workflow(history_grandchild)


async def test_a_childs_history_remembers_how_deep_it_is(tmp_path: Path) -> None:
    async with WorkflowEnvironment(max_nesting_depth=2) as env:
        assert await env.run(history_child, 1) == "deep enough"
        (deepest,), _ = await pr.list_runs(workflow="history_grandchild")
        file = save_history(deepest.run_id, tmp_path)
        replay(deepest.run_id)
    pr.configure(max_nesting_depth=2)
    replay(file)


async def test_a_folder_is_replayed_and_each_file_tells_its_result(tmp_path: Path) -> None:
    good = await record(tmp_path)
    folder = good.parent
    other = json.loads(good.read_text())
    other["events"][1]["data"] |= {"step_name": "other", "step_id": "other#1"}
    (folder / "below").mkdir()
    (folder / "below" / "other.json").write_text(json.dumps(other))
    (folder / "zz_damaged.json").write_text("{}")
    unknown = json.loads(good.read_text())
    unknown["events"][0]["data"]["workflow_name"] = "history_gone"
    (folder / "unknown.json").write_text(json.dumps(unknown))
    (folder / "notes.txt").write_text("not mine")
    results = {result.path.name: result for result in replay_directory(folder)}
    assert {name: result.status for name, result in results.items()} == {
        "other.json": "diverged",
        good.name: "ok",
        "unknown.json": "failed",
        "zz_damaged.json": "failed",
    }
    assert "recorded StepScheduled('other#1')" in str(results["other.json"].error)
    assert "holds no history" in str(results["zz_damaged.json"].error)
    assert isinstance(results["unknown.json"].error, pr.WorkflowNotFoundError)
    assert (results[good.name].workflow, results[good.name].events) == ("history_order", 12)
    with pytest.raises(FileNotFoundError):
        replay_directory(tmp_path / "nowhere")


async def test_a_file_of_another_form_says_what_to_do(tmp_path: Path) -> None:
    file = await record(tmp_path)
    stored = json.loads(file.read_text())
    file.write_text(json.dumps(stored | {"format": "pyworkflow-ray history 2"}))
    with pytest.raises(pr.SerializationError, match=r"history 2', and this version reads .* save it anew"):
        load_history(file)
    file.write_text(json.dumps(stored | {"events": stored["events"][1:]}))
    with pytest.raises(pr.SerializationError, match="does not begin with its run's start"):
        load_history(file)


SHOP = """
    import pyworkflow_ray as pr

    @pr.step
    def shop_price(item: str) -> int:
        return len(item)

    @pr.workflow
    async def shop_order(item: str) -> int:
        return await shop_price(item)
"""
RECORD = """
    import asyncio, sys
    from pyworkflow_ray.testing import WorkflowEnvironment, save_history
    from shop import shop_order

    async def record():
        async with WorkflowEnvironment() as env:
            run = await env.start(shop_order, "tea")
            await run
            save_history(run, "histories")

    asyncio.run(record())
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a module and a history of its workflow."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop.py").write_text(textwrap.dedent(SHOP))
    subprocess.run([sys.executable, "-c", textwrap.dedent(RECORD)], cwd=folder, check=True, timeout=60)
    return folder


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyworkflow_ray", "replay", *arguments, "--output", "plain"],
        cwd=folder,
        env={**os.environ, "PYWORKFLOW_DEFAULT_RUNTIME": "local"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_replays_a_folder_and_fails_where_one_has_diverged(shop: Path) -> None:
    done = command(shop, "histories", "--module", "shop")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok\tshop_order\trun_")
    assert "1 of 1 replay." in done.stderr

    code = (shop / "shop.py").read_text()
    (shop / "changed.py").write_text(code.replace("return await", "await pr.sleep('1h'); return await"))
    done = command(shop, "histories", "--module", "changed")
    assert done.returncode == 1
    assert done.stdout.startswith("diverged\tshop_order\trun_")
    assert "recorded StepScheduled('shop_price#1')" in done.stderr
    assert "0 of 1 replay." in done.stderr


def test_the_command_refuses_to_pass_where_there_is_nothing_to_replay(shop: Path) -> None:
    (shop / "empty").mkdir()
    done = command(shop, "empty", "--module", "shop")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there are no histories (*.json) in empty" in done.stderr
    done = command(shop, "histories", "--module", "no_such_module")
    assert done.returncode == 2
    assert "no_such_module" in done.stderr


def test_a_history_can_be_saved_outside_of_an_environment(tmp_path: Path) -> None:
    pr.configure(default_runtime="local", storage=tmp_path / "runs.db")

    async def run() -> str:
        return (await pr.start.options(run_id="run_of_mine")(history_deepest)).run_id

    assert save_history(asyncio.run(run()), tmp_path).name == "history_deepest-run_of_mine.json"
