"""Storages under the names of kinds of databases: given as settings, and read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.engine.events import TYPES
from pyworkflow_ray.storage.storages import Storage


@pr.step(local=True, max_retries=1, retry_delay="1ms")
async def read_twice(name: str, *, size: int) -> dict[str, int]:
    if pr.get_context().attempt == 1:
        raise ConnectionError("not yet")
    return {name: size}


@pr.step(local=True, max_retries=0)
def read_never() -> None:
    raise KeyError("no such thing")


@pr.workflow
async def read_child(name: str) -> str:
    return name


@pr.workflow
async def read_parent(times: int = 1) -> None:
    if times > 0:
        await read_twice("a", size=7)
        await pr.start_child_workflow(read_child, "b")
        pr.continue_as_new(times - 1)
    await pr.hook("approval")
    with pytest.raises(KeyError):
        await read_never()


async def test_a_backend_reads_what_runs_on_it_have_written() -> None:
    storage = pr.InMemoryStorageBackend()
    pr.configure(storage=storage)
    begun_at = datetime.now(UTC)
    run = await pr.start(read_parent, idempotency_key="once")
    first, second = await storage.get_workflow_chain(run)
    assert [first.status, second.status] == [pr.RunStatus.CONTINUED_AS_NEW, pr.RunStatus.SUSPENDED]
    assert await storage.get_workflow_chain(second.run_id) == [first, second]
    assert await storage.get_run(run) == first == await pr.get_workflow_run(run)
    by_key = await storage.get_run_by_idempotency_key("once")
    assert by_key is not None
    assert by_key.workflow_name == "read_parent"

    (child,) = await storage.get_children(run)
    assert await storage.get_children(run, status=pr.RunStatus.FAILED) == []
    assert await storage.get_parent(child.run_id) == first
    assert await storage.get_parent(run) is None

    page, cursor = await storage.list_runs("read_", limit=2)
    rest, end = await storage.list_runs("read_", limit=2, cursor=cursor)
    assert {each.run_id for each in page + rest} == {first.run_id, second.run_id, child.run_id}
    assert end is None
    completed, _ = await storage.list_runs(status="completed", start_time=begun_at, workflow="read_child")
    assert completed == [child]

    hooks, _ = await storage.list_hooks(second.run_id, status="pending")
    assert [hook.name for hook in hooks] == ["approval"]
    assert await storage.get_hook(hooks[0].hook_id, second.run_id) == hooks[0]
    assert await storage.get_hook("none", second.run_id) is None
    assert await storage.get_hook_by_token(hooks[0].token) == hooks[0]
    with pytest.raises(ValueError, match="needs a run_id"):
        await storage.get_hook(hooks[0].hook_id)
    assert await storage.health_check()


async def test_steps_are_told_by_the_history() -> None:
    storage = pr.InMemoryStorageBackend()
    pr.configure(storage=storage)
    run = await pr.start(read_parent)
    (_, last) = await storage.get_workflow_chain(run)
    (step,) = await storage.list_steps(run)
    assert (step.step_id, step.step_name, step.run_id) == ("read_twice#1", "read_twice", str(run))
    assert (step.status, step.attempt, step.max_retries) == (pr.StepStatus.COMPLETED, 2, 1)
    assert step.input == {"args": ["a"], "kwargs": {"size": 7}}
    assert (step.result, step.error, step.retry_after) == ({"a": 7}, None, None)
    assert step.started_at is not None
    assert step.completed_at is not None
    assert step.created_at < step.started_at < step.completed_at
    await pr.resume_hook((await storage.list_hooks(last.run_id))[0][0].token)
    (failed,) = await storage.list_steps(last.run_id)
    assert (failed.status, failed.result, failed.error) == (pr.StepStatus.FAILED, None, "'no such thing'")


async def test_events_can_be_picked_by_type() -> None:
    storage = pr.InMemoryStorageBackend()
    pr.configure(storage=storage)
    run = await pr.start(read_parent)
    events = await storage.get_events(run)
    assert events == await pr.get_workflow_events(run)
    assert [event.type for event in await storage.get_events(run, ["step.started", "step.retrying"])] == [
        "step.started",
        "step.retrying",
    ]
    assert await storage.get_events(run, event_types=[]) == []
    assert await storage.get_latest_event(run) == events[-1]
    assert events[-1].type is pr.EventType.WORKFLOW_CONTINUED_AS_NEW
    retrying = await storage.get_latest_event(run, pr.EventType.STEP_RETRYING)
    assert retrying is not None
    assert retrying.type.value == "step.retrying"
    assert await storage.get_latest_event(run, "hook.expired") is None
    assert await storage.get_latest_event("run_none") is None


async def test_each_memory_is_its_own_and_stays_itself() -> None:
    first, second = pr.InMemoryStorageBackend(), pr.InMemoryStorageBackend()
    run = await pr.start(read_child, "x", storage=first)
    assert await second.get_run(run) is None
    pr.configure(namespace="another", default_retries=1)
    found = await first.get_run(run)
    assert found is not None
    assert found.result == "x"


async def test_a_database_in_memory_has_its_runs_in_this_process_unless_that_was_refused() -> None:
    assert pr.get_config().default_runtime == "ray"
    for storage in (pr.InMemoryStorageBackend(), "memory", {"type": "memory"}):
        assert pr.configure(storage=storage).default_runtime == "local"
    assert pr.configure(storage="some.db").default_runtime == "ray"
    pr.configure(storage=pr.InMemoryStorageBackend(), default_runtime="ray")
    assert pr.get_config().default_runtime == "ray"


async def test_a_file_backend_keeps_its_runs_for_the_next_process(tmp_path: Path) -> None:
    run = await pr.start(read_child, "x", storage=pr.FileStorageBackend(tmp_path), runtime="local")
    again = pr.SQLiteStorageBackend(db_path=tmp_path / "pyworkflow.db")
    found = await again.get_run(run)
    assert found is not None
    assert found.status is pr.RunStatus.COMPLETED
    with Storage(tmp_path / "pyworkflow.db") as storage:
        assert storage.health_check()


async def test_a_backend_opens_its_database_when_told_to(tmp_path: Path) -> None:
    backend = pr.SQLiteStorageBackend(tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()
    await backend.connect()
    assert (tmp_path / "new.db").exists()
    await backend.disconnect()
    assert await backend.health_check()
    (tmp_path / "text.db").write_text("this is no database" * 100)
    with pytest.raises(pr.StorageError):
        await pr.SQLiteStorageBackend(tmp_path / "text.db").connect()


def test_a_postgresql_backend_is_named_by_its_url_or_its_parts() -> None:
    backend = pr.PostgresStorageBackend(host="db", port=5433, user="ann", password="a@b/c", database="orders")
    assert backend.secret_url == "postgresql://ann:a%40b%2Fc@db:5433/orders"
    assert "a@b" not in f"{backend!r} {backend.url}"
    assert "a%40b" not in f"{backend!r} {backend.url}"
    assert pr.PostgresStorageBackend("postgresql://h/d").secret_url == "postgresql://h/d"
    assert pr.configure(storage=backend).storage_url == backend.secret_url


async def test_the_storage_of_the_settings_can_be_read(tmp_path: Path) -> None:
    pr.configure(storage=tmp_path / "a.db", default_runtime="local")
    run = await pr.start(read_child, "x")
    storage = pr.get_storage()
    assert await storage.get_run(run) is not None
    elsewhere = await pr.start(read_child, "y", storage=storage)
    assert await storage.get_run(elsewhere) is not None
    assert str(tmp_path / "a.db") in repr(storage)


async def test_what_names_no_database_is_refused() -> None:
    with pytest.raises(pr.ConfigurationError, match=r"storage is of type int: give"):
        await pr.start(read_child, "x", storage=7)
    with pytest.raises(pr.ConfigurationError, match="'mongo' is unknown"):
        await pr.start(read_child, "x", storage={"type": "mongo"})


@pr.workflow
async def reads_in_a_workflow() -> None:
    await pr.get_storage().list_runs()


async def test_a_storage_is_not_read_in_a_workflow() -> None:
    pr.configure(storage=pr.InMemoryStorageBackend())
    with pytest.raises(pr.WorkflowError, match=r"list_runs"):
        await pr.start(reads_in_a_workflow)


def test_every_event_has_its_type() -> None:
    assert set(TYPES.values()) <= {each.value for each in pr.EventType}
    later = pr.EventType("later.added")
    assert (later, later.value, str(later)) == ("later.added",) * 3


@pr.workflow
async def read_elsewhere() -> str:
    answer: str = await pr.hook("elsewhere")
    return answer


async def test_a_storage_can_be_named_at_each_call() -> None:
    storage = pr.InMemoryStorageBackend()
    pr.configure(storage=pr.InMemoryStorageBackend())
    run = await pr.start(read_elsewhere, storage=storage)
    assert await pr.get_workflow_run(run) is None
    found = await pr.get_workflow_run(run, storage=storage)
    assert found is not None
    assert found.status is pr.RunStatus.SUSPENDED
    assert len(await pr.get_workflow_events(run, storage=storage)) == 2
    assert [each.run_id for each in await pr.get_workflow_chain(run, storage=storage)] == [str(run)]
    ((hook,), _) = await storage.list_hooks()
    await pr.resume_hook(hook.token, "yes", storage=storage)
    assert await run == "yes"
    other = await pr.start(read_elsewhere, storage=storage)
    await pr.resume(other, storage=storage)
    assert await pr.cancel_workflow(other, storage=storage)
    with pytest.raises(pr.CancellationError):
        await other
