"""Storage backends: a database as an application names it and reads it."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, TypeVar

from pyworkflow_ray.client.guards import refuse_in_workflow
from pyworkflow_ray.client.hooks import Hook, page_of_hooks
from pyworkflow_ray.client.records import Event, WorkflowRun
from pyworkflow_ray.client.runs import page_of_runs, statuses_of
from pyworkflow_ray.client.schedules import Schedule, page_of_schedules, read_schedule
from pyworkflow_ray.client.sessions import session
from pyworkflow_ray.client.steps import StepExecution, step_executions
from pyworkflow_ray.config import DEFAULT_STORAGE, storage_url
from pyworkflow_ray.statuses import HookStatus, RunStatus, ScheduleStatus
from pyworkflow_ray.storage import hooks, runs
from pyworkflow_ray.storage.databases import Database
from pyworkflow_ray.storage.histories import latest_event, read_events
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.writers import Task

T = TypeVar("T")

Statuses = RunStatus | str | Collection[RunStatus | str] | None


class StorageBackend:
    """One database. It can be given as `storage`, and read. No method needs Ray.

    Args:
        url: A database URL or the path of an SQLite file, as in the setting `storage`.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self._url = str(url)
        self._opened: Storage | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def url(self) -> str:
        """The URL without its password."""
        return Database(self._url).url

    @property
    def secret_url(self) -> str:
        """The URL with its password. Never show it."""
        return self._url

    def _storage(self) -> Storage:
        return self._opened or session(storage=self).storage

    async def _read(self, what: str, query: Task[T]) -> T:
        refuse_in_workflow(what)
        return await asyncio.to_thread(lambda: self._storage().read(query))

    # --- runs -------------------------------------------------------------------------------------

    async def get_run(self, run_id: str) -> WorkflowRun | None:
        """The run of this id, or None."""
        record = await self._read("get_run", runs.get_run(str(run_id)))
        return None if record is None else WorkflowRun.of(record)

    async def get_run_by_idempotency_key(self, key: str, workflow: str | None = None) -> WorkflowRun | None:
        """The run that holds this key, or None. If runs of several workflows hold it, the newest one."""
        record = await self._read("get_run_by_idempotency_key", runs.get_by_idempotency_key(key, workflow))
        return None if record is None else WorkflowRun.of(record)

    async def list_runs(
        self,
        query: str | None = None,
        status: Statuses = None,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
        *,
        workflow: str | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> tuple[list[WorkflowRun], str | None]:
        """A page of runs, newest first, and the cursor of the next page; see the function `list_runs`."""
        refuse_in_workflow("list_runs")
        return await page_of_runs(
            self._storage(),
            query=query,
            status=status,
            workflow=workflow,
            start_time=start_time,
            end_time=end_time,
            attributes=attributes,
            limit=limit,
            cursor=cursor,
        )

    async def get_children(self, run_id: str, status: Statuses = None) -> list[WorkflowRun]:
        """The child runs of a run, oldest first."""
        wanted = statuses_of(status)
        found = await self._read("get_children", runs.get_children(str(run_id)))
        return [WorkflowRun.of(record) for record in found if wanted is None or record.status in wanted]

    async def get_parent(self, run_id: str) -> WorkflowRun | None:
        """The run of which this one is a child, or None."""

        record = await self._read("get_parent", runs.get_parent(str(run_id)))
        return None if record is None else WorkflowRun.of(record)

    async def get_workflow_chain(self, run_id: str) -> list[WorkflowRun]:
        """The runs that continued one another, oldest first, by any one's id. Empty for an unknown id."""
        found = await self._read("get_workflow_chain", runs.get_chain(str(run_id)))
        return [WorkflowRun.of(record) for record in found]

    # --- histories --------------------------------------------------------------------------------

    async def get_events(self, run_id: str, event_types: Collection[str] | None = None) -> list[Event]:
        """The history of a run, oldest first. With `event_types`, only the events of these types."""
        rows = await self._read("get_events", read_events(str(run_id), types=event_types))
        return [Event.of(str(run_id), row) for row in rows]

    async def get_latest_event(self, run_id: str, event_type: str | None = None) -> Event | None:
        """The last event of a run, or its last event of a type, or None."""
        if event_type is not None:
            return next(reversed(await self.get_events(run_id, [event_type])), None)
        row = await self._read("get_latest_event", latest_event(str(run_id)))
        return None if row is None else Event.of(str(run_id), row)

    async def list_steps(self, run_id: str) -> list[StepExecution]:
        """The steps that a run has called, in the order of the calls."""
        return step_executions(str(run_id), await self.get_events(run_id))

    # --- hooks ------------------------------------------------------------------------------------

    async def get_hook(self, hook_id: str, run_id: str | None = None) -> Hook | None:
        """The hook of this id in a run, or None.

        Raises:
            ValueError: No `run_id` is given. Each run has hooks of its own.
        """
        if run_id is None:
            raise ValueError(
                f"get_hook({hook_id!r}) needs a run_id, since each run has hooks of its own; "
                "get_hook_by_token() finds one by its token."
            )
        cursor = None
        while True:
            page, cursor = await self.list_hooks(run_id, cursor=cursor)
            for hook in page:
                if hook.hook_id == hook_id:
                    return hook
            if cursor is None:
                return None

    async def get_hook_by_token(self, token: str) -> Hook | None:
        """The hook of this token, or None."""
        record = await self._read("get_hook_by_token", hooks.get_hook(token))
        return None if record is None else Hook.of(record)

    async def list_hooks(
        self,
        run_id: str | None = None,
        status: HookStatus | str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> tuple[list[Hook], str | None]:
        """A page of hooks, newest first, and the cursor of the next page; see the function `list_hooks`."""
        refuse_in_workflow("list_hooks")
        return await page_of_hooks(self._storage(), run_id=run_id, status=status, limit=limit, cursor=cursor)

    # --- schedules --------------------------------------------------------------------------------

    async def get_schedule(self, schedule_id: str) -> Schedule | None:
        """The schedule of this id, or None."""
        refuse_in_workflow("get_schedule")
        return await read_schedule(self._storage(), schedule_id)

    async def list_schedules(
        self,
        workflow: str | None = None,
        status: ScheduleStatus | str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> tuple[list[Schedule], str | None]:
        """A page of schedules, and the cursor of the next page; see the function `list_schedules`."""
        refuse_in_workflow("list_schedules")
        return await page_of_schedules(self._storage(), workflow, status, limit, cursor)

    # --- the database -----------------------------------------------------------------------------

    async def health_check(self) -> bool:
        """Whether the database can be read now."""
        return await asyncio.to_thread(lambda: self._storage().health_check())

    async def connect(self) -> None:
        """Open the database now, and create its tables if they are missing. The first use would do so, too.

        Raises:
            StorageError: It cannot be opened.
        """
        await asyncio.to_thread(lambda: self._storage().facts())

    async def disconnect(self) -> None:
        """Do nothing. The database is closed when the process ends; runs may use it until then."""


_memories = itertools.count(1)


class InMemoryStorageBackend(StorageBackend):
    """A new database in the memory of this process. Runs on it are driven in this process, too."""

    def __init__(self) -> None:
        super().__init__(f"sqlite:///:memory:?name={next(_memories)}")

    def __repr__(self) -> str:
        return "InMemoryStorageBackend()"


class FileStorageBackend(StorageBackend):
    """The SQLite database `pyworkflow.db` in a folder. A missing folder is created."""

    def __init__(self, base_path: str | os.PathLike[str] = ".pyworkflow") -> None:
        super().__init__(storage_url({"type": "file", "base_path": base_path}))


class SQLiteStorageBackend(StorageBackend):
    """An SQLite database in a file. A missing file is created."""

    def __init__(self, db_path: str | os.PathLike[str] = DEFAULT_STORAGE) -> None:
        super().__init__(storage_url({"type": "sqlite", "db_path": db_path}))


class PostgresStorageBackend(StorageBackend):
    """A PostgreSQL database, named by its URL or by the parts of the URL."""

    def __init__(
        self,
        dsn: str | None = None,
        host: str = "localhost",
        port: int = 5432,
        user: str = "pyworkflow",
        password: str = "",
        database: str = "pyworkflow",
    ) -> None:
        parts = {"host": host, "port": port, "user": user, "password": password, "database": database}
        super().__init__(storage_url({"type": "postgres", "dsn": dsn, **parts}))


def get_storage() -> StorageBackend:
    """The storage of the present settings."""
    storage = session().storage
    backend = StorageBackend(storage.database.secret_url)
    backend._opened = storage
    return backend
