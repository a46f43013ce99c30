"""The storage as the other layers see it: they submit works that write, and read with works that query."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from sqlalchemy.engine import URL

from pyworkflow_ray.exceptions import StorageError
from pyworkflow_ray.storage.databases import Database
from pyworkflow_ray.storage.dialects import is_database_error, is_transient
from pyworkflow_ray.storage.migrations import read_facts
from pyworkflow_ray.storage.placements import Loads
from pyworkflow_ray.storage.works import as_work
from pyworkflow_ray.storage.writers import Task, Writer, translated

T = TypeVar("T")

_READ_PATIENCE = 5.0


class Storage:
    """One SQL database that holds all state. It is opened when it is first used.

    Args:
        url: An SQLAlchemy URL (``sqlite:///file``, ``postgresql://user:password@host/name``), the path of an
            SQLite file, or ``"memory"``.
        create: Whether a missing SQLite file, or missing tables, may be created.
        synchronous: SQLite's durability: ``"FULL"`` survives a power cut, ``"NORMAL"`` the process's death.
        give_up_after: Seconds after which a write fails if an opened database stays unreachable; None means
            never.
    """

    def __init__(
        self,
        url: str | Path | URL,
        *,
        create: bool = True,
        synchronous: str = "FULL",
        give_up_after: float | None = None,
    ) -> None:
        self.database = Database(url, create=create, synchronous=synchronous)
        self.writer = Writer(self.database, give_up_after=give_up_after)
        self.loads = Loads()

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    @property
    def url(self) -> str:
        """The URL without its password."""
        return self.database.url

    def submit(self, task: Task[T]) -> Future[T]:
        """The future of a work's result. It is resolved when the work is committed; see `Writer.submit`."""
        return self.writer.submit(task)

    async def write(self, task: Task[T]) -> T:
        """As `submit`, for the running event loop."""
        return await self.writer.write(task)

    def write_aside(self, task: Task[T]) -> T:
        """The committed result of a work that waits for no other write of this process.

        It runs in the calling thread, on a connection of its own. It is tried once. In SQLite there is one
        writer, so there it waits for its turn.

        Raises:
            StorageError: The database cannot be reached, or it refuses.
        """
        if not self.database.has_many_writers:
            return self.submit(task).result()
        try:
            return self.database.write_aside(as_work(task))
        except Exception as error:
            raise translated(error, self.database) from error

    def read(self, query: Task[T]) -> T:
        """The result of a work that only reads. It runs in the calling thread and sees one snapshot.

        The query may also be a function that is called with a connection.

        Raises:
            StorageError: The database cannot be reached within some seconds, or it refuses.
        """
        deadline = time.monotonic() + _READ_PATIENCE
        pause = 0.01
        while True:
            try:
                return self.database.look(as_work(query))
            except Exception as error:
                if not is_database_error(error):
                    raise
                if not is_transient(error) or time.monotonic() + pause > deadline:
                    raise translated(error, self.database) from error
            time.sleep(pause)
            pause = min(pause * 2, 1.0)

    def facts(self) -> dict[str, str]:
        """Facts about the installation: `storage_id`, `schema_version`."""
        return self.read(read_facts)

    def health_check(self) -> bool:
        """Whether the database can be read now."""
        try:
            return bool(self.facts())
        except StorageError:
            return False

    def close(self, timeout: float | None = 10.0) -> None:
        """Write what was submitted, then close the database. Writes that take longer than `timeout` fail."""
        self.writer.close(timeout)
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
