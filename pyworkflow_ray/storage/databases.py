"""A database and the connections to it: many that read, one that writes.

In SQLite, readers have their own connections and snapshots, and never wait for the writer. A database in
memory exists in one connection only, so its readers and its writer take turns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from pyworkflow_ray.exceptions import StorageError
from pyworkflow_ray.storage.dialects import (
    is_connection_suspect,
    is_database_error,
    is_transient,
    postgresql_engine,
    sqlite_reader,
    sqlite_writer,
    summary,
)
from pyworkflow_ray.storage.migrations import current_version, migrate, newest_version
from pyworkflow_ray.storage.transactions import (
    PostgreSQLSession,
    PostgreSQLSnapshot,
    Session,
    SQLiteSession,
    run_alone,
)
from pyworkflow_ray.storage.works import Call, Work, called

T = TypeVar("T")

_OPEN_PATIENCE = 3.0
_SYNCHRONOUS = ("OFF", "NORMAL", "FULL", "EXTRA")
_SECRETS = ("password", "sslpassword")


class Database:
    """The database at a URL, opened (and migrated) when it is first used.

    Args:
        url: An SQLAlchemy URL, the path of an SQLite file, or ``"memory"``.
        create: Whether a missing SQLite file, or missing tables, may be created.
        synchronous: SQLite's durability: ``"FULL"`` survives a power cut, ``"NORMAL"`` the process's death.
    """

    def __init__(self, url: str | Path | URL, *, create: bool = True, synchronous: str = "FULL") -> None:
        if synchronous.upper() not in _SYNCHRONOUS:
            raise StorageError(f"synchronous={synchronous!r} is not one of {', '.join(_SYNCHRONOUS)}.")
        self._url = _normalised(url)
        self._create = create
        self._synchronous = synchronous.upper()
        # Its holder alone opens or closes the database. `_is_open` changes only under it. `close` takes it
        # before `_one_at_a_time`.
        self._opening = threading.Lock()
        # Its holder alone uses the connection that writes. A database in memory has no other connection, so
        # its readers take this lock too. It is re-entrant: in memory, a read inside a read of the same thread
        # shares the transaction.
        self._one_at_a_time = threading.RLock()
        self._is_open = False
        self._writer: Connection | None = None
        self._session: Session | None = None
        self._write_engine: Engine | None = None
        self._read_engine: Engine | None = None
        self._look_engine: Engine | None = None

    def __repr__(self) -> str:
        return f"Database({self.url!r})"

    @property
    def url(self) -> str:
        """The URL without its password."""
        query = {key: "***" if key in _SECRETS else value for key, value in self._url.query.items()}
        return self._url.set(query=query).render_as_string(hide_password=True)

    @property
    def secret_url(self) -> str:
        """The file's path, or the URL with its password, for our own other processes. Never show it."""
        if self.path is not None:
            return str(self.path)  # A URL cannot hold every path: it would end at a question mark.
        return self._url.render_as_string(hide_password=False)

    @property
    def is_memory(self) -> bool:
        """Whether the database lives in this process's memory."""
        return self.path is None and self._url.get_backend_name() == "sqlite"

    @property
    def path(self) -> Path | None:
        """The SQLite file; None if the database is not a file."""
        if self._url.get_backend_name() != "sqlite" or self._url.database in (None, "", ":memory:"):
            return None
        return Path(str(self._url.database))

    def look(self, query: Work[T]) -> T:
        """The result of a work that reads. What it writes is refused or rolled back.

        The whole work sees one snapshot. A work of a single statement needs no transaction for that, and
        costs one round trip.

        Raises:
            StorageError: The database cannot be opened.
        """
        self._open()
        if self._look_engine is None:
            with self.snapshot() as connection:
                return query.on(connection)
        steps = query.at_end()
        try:
            first = next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        if isinstance(first, Call):
            with self.snapshot() as connection:
                return query.on(connection)
        with self._look_engine.connect() as connection:
            session = PostgreSQLSnapshot(connection)
            try:
                outcome = run_alone(session, steps, lambda: first)
            finally:
                session.close()
        if outcome.error is not None:
            raise outcome.error
        return outcome.result  # type: ignore[no-any-return]

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection whose reads see one snapshot. What it writes is refused or rolled back.

        Raises:
            StorageError: The database cannot be opened.
        """
        self._open()
        if self._read_engine is None:
            with self._one_at_a_time, _snapshot(self._writing_connection()) as connection:
                yield connection
        else:
            with self._read_engine.connect() as connection, _snapshot(connection):
                yield connection

    @contextmanager
    def session(self) -> Iterator[Session]:
        """The connection that writes. Its users in this process take turns.

        After an error the transaction is undone. If the answer to the commit got lost, it is unknown whether
        the commit went through. So the work must be safe to run again.
        """
        self._open()
        with self._one_at_a_time:
            session = self._writing_session()
            try:
                yield session
            except BaseException as error:
                self._undo(session, error)
                raise

    @property
    def has_many_writers(self) -> bool:
        """Whether several connections can write at the same time."""
        return self._url.get_backend_name() != "sqlite"

    def write_aside(self, task: Work[T]) -> T:
        """The committed result of a work, run on a connection of its own; see `has_many_writers`."""
        self._open()
        assert self._write_engine is not None
        with self._write_engine.connect() as connection:
            session = PostgreSQLSession(connection)
            try:
                outcome = run_alone(session, task.at_end(), locks_of=[task])
            except BaseException:
                with suppress(Exception):
                    session.close()
                connection.invalidate()
                raise
            session.close()
        if outcome.error is not None:
            raise outcome.error
        return outcome.result  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close all connections. A later use opens the database again; a database in memory is lost."""
        with self._opening, self._one_at_a_time:
            self._dispose()
            self._is_open = False

    def _dispose(self) -> None:
        if self._session is not None:
            with suppress(Exception):
                self._session.close()
        if self._writer is not None:
            self._writer.close()
        for engine in (self._write_engine, self._read_engine):
            if engine is not None:
                engine.dispose()
        self._writer = self._session = None
        self._write_engine = self._read_engine = self._look_engine = None

    def _writing_connection(self) -> Connection:
        if self._writer is None:
            assert self._write_engine is not None
            self._writer = self._write_engine.connect()
        return self._writer

    def _writing_session(self) -> Session:
        if self._session is None:
            connection = self._writing_connection()
            is_sqlite = connection.dialect.name == "sqlite"
            self._session = SQLiteSession(connection) if is_sqlite else PostgreSQLSession(connection)
        return self._session

    def _undo(self, session: Session, error: BaseException) -> None:
        is_suspect = is_connection_suspect(error)
        try:
            session.rollback()
        except Exception:
            is_suspect = True
        if is_suspect and not self.is_memory and self._writer is not None:
            connection, self._writer, self._session = self._writer, None, None
            with suppress(Exception):
                connection.invalidate()
                connection.close()

    def _open(self) -> None:
        if self._is_open:
            return
        with self._opening:
            if not self._is_open:
                self._prepare_file()
                self._make_engines()
                try:
                    self._prepare_tables()
                except BaseException:
                    self._dispose()
                    raise
                self._is_open = True

    def _prepare_file(self) -> None:
        path = self.path
        if path is None or path.exists():
            return
        if not self._create:
            raise StorageError(
                f"There is no database at {path}. Check the path (a relative one is resolved against "
                "the working directory), or create the database with create=True."
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise StorageError(f"The database {path} cannot be created: {error}.") from error

    def _make_engines(self) -> None:
        if self._url.get_backend_name() == "sqlite":
            self._write_engine = sqlite_writer(self.path, self._synchronous)
            self._read_engine = None if self.path is None else sqlite_reader(self.path, self._synchronous)
            return
        try:
            engine = postgresql_engine(self._url)
        except ImportError as error:
            raise StorageError(
                f"PostgreSQL needs the driver psycopg: pip install 'pyworkflow-ray[postgres]' ({error})."
            ) from error
        # The session sends BEGIN and COMMIT itself, in the same round trip as the work.
        self._write_engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._look_engine = self._write_engine
        self._read_engine = engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )

    def _prepare_tables(self) -> None:
        started = time.monotonic()
        pause, tries = 0.05, 0
        while True:
            tries += 1
            try:
                self._bring_tables_up()
                return
            except Exception as error:
                if not is_database_error(error):
                    raise
                waited = time.monotonic() - started
                if is_transient(error) and waited < _OPEN_PATIENCE:
                    time.sleep(pause)
                    pause *= 2
                    continue
                raise StorageError(
                    f"The database {self.url} cannot be opened (tried {tries} times in {waited:.1f} s): "
                    f"{summary(error)}. Check that the address is right, that the server runs and can be "
                    "reached from this machine, and that user and password are valid."
                ) from error

    def _bring_tables_up(self) -> None:
        assert self._write_engine is not None
        if self._read_engine is not None:
            # This look needs no lock. So an up-to-date database can be opened while another process writes.
            with self._read_engine.connect() as connection:
                version = current_version(connection)
            if version == newest_version():
                return
            if version == 0 and not self._create:
                raise StorageError(f"The database {self.url} has no pyworkflow_ray tables, and create=False.")
        session = self._writing_session()
        try:
            outcome = run_alone(session, called(migrate).at_end())
        except BaseException as error:
            self._undo(session, error)
            raise
        if outcome.error is not None:
            raise outcome.error


@contextmanager
def _snapshot(connection: Connection) -> Iterator[Connection]:
    if connection.in_transaction():
        yield connection
        return
    with connection.begin() as snapshot:
        yield connection
        snapshot.rollback()


def _normalised(url: str | Path | URL) -> URL:
    if isinstance(url, str) and url in ("memory", ":memory:"):
        return URL.create("sqlite")
    if isinstance(url, Path) or (isinstance(url, str) and "://" not in url):
        return _sqlite_file(str(url))
    try:
        parsed = make_url(url)
        backend = parsed.drivername.partition("+")[0]
    except (ArgumentError, NoSuchModuleError, ValueError):
        # Neither the text nor the cause is shown: they may hold a password.
        raise StorageError(
            "The storage's URL cannot be read; its form is sqlite:///path/of/file.db or "
            "postgresql://user:password@host:5432/database (special characters of a password as %XX)."
        ) from None
    if backend == "sqlite":
        is_memory = parsed.database in (None, "", ":memory:")
        return URL.create("sqlite") if is_memory else _sqlite_file(str(parsed.database))
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    raise StorageError(f"Databases of kind {backend!r} are not supported; use SQLite or PostgreSQL.")


def _sqlite_file(path: str) -> URL:
    return URL.create("sqlite", database=str(Path(path).expanduser().absolute()))
