"""The differences between SQLite and PostgreSQL; they are in this module only."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from loguru import logger
from sqlalchemy import Engine, TextClause, bindparam, create_engine, event, text
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool, QueuePool

Parameters = Mapping[str, Any]
Row = tuple[Any, ...]

# SQLite's own busy handler sleeps 1, 2, 5, 10 ... 100 ms between two tries. So a client and a coordinator
# that write at the same time delay each other. We try again ourselves, much sooner.
_LOCK_PAUSE = 0.0003
_LOCK_PATIENCE = 2.0
_READER_BUSY_MS = 2000

_SQLITE_TIME = "%Y-%m-%d %H:%M:%f000"
_NOW = re.compile(r"<now(?: ([+-]) :(\w+))?>")
_LOCK = re.compile(r"\s+<(for [a-z ]+)>")
_JSON = re.compile(r"<json ([\w.]+)>")
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]\w*)")

# Primary result codes: BUSY, LOCKED, NOMEM, IOERR, FULL, CANTOPEN, PROTOCOL.
_TRANSIENT_SQLITE = frozenset({5, 6, 7, 10, 13, 14, 15})
# Connection lost, serialization, deadlock, resources (disk, connections), lock, shutdown, I/O.
_TRANSIENT_POSTGRESQL = ("08", "40001", "40P01", "53", "55P03", "57P0", "58030")


def require_aware(instant: datetime) -> datetime:
    """The instant itself. A naive one could mean a different time in each process.

    Raises:
        ValueError: It has no time zone.
    """
    if instant.tzinfo is None:
        raise ValueError(f"{instant!r} has no time zone; the storage keeps aware instants only.")
    return instant


def encode_time(instant: datetime) -> str:
    """The instant as SQLite stores it: UTC text that sorts in the order of time."""
    require_aware(instant)
    utc = instant if instant.tzinfo is UTC else instant.astimezone(UTC)
    return utc.isoformat(" ", "microseconds")[:26]


def decode_time(value: str | datetime) -> datetime:
    """The aware UTC instant of a value that either database gave."""
    if isinstance(value, str):
        return datetime.fromisoformat(value + "+00:00")
    return value.astimezone(UTC)


def driver_of(connection: Connection) -> Any:
    """The driver's own connection under SQLAlchemy's."""
    return connection.connection.dbapi_connection


def translate(sql: str, dialect: str) -> str:
    """The text of a `Statement` in the form that one database's driver takes."""
    if dialect == "sqlite":
        return _JSON.sub(r"json_quote(\1)", _LOCK.sub("", _NOW.sub(_sqlite_now, sql)))
    sql = _JSON.sub(r"CAST(to_json(\1) AS text)", sql)
    sql = _NOW.sub(_postgresql_now, sql.replace("%", "%%"))
    return _PARAMETER.sub(r"%(\1)s", _LOCK.sub(r" \1", sql))


def guarded(sql: str) -> str:
    """An UPDATE for PostgreSQL that fails with `is_refusal` when it finds no row.

    In a pipeline COMMIT is sent before the client sees a row count. So the server itself must stop.
    """
    return f"WITH changed AS ({sql} RETURNING 1) SELECT 1 / CAST(count(*) > 0 AS integer) FROM changed"


def is_refusal(error: BaseException) -> bool:
    """Whether a statement of `guarded` failed because it found no row. Use it for such statements only."""
    return getattr(_original(error), "sqlstate", None) == "22012"


def encode(dialect: str, parameters: Parameters) -> Parameters:
    """The parameters in the form that one database's driver takes."""
    as_kept = encode_time if dialect == "sqlite" else require_aware
    return {
        name: as_kept(value) if isinstance(value, datetime) else value for name, value in parameters.items()
    }


def _sqlite_now(token: re.Match[str]) -> str:
    sign, name = token.groups()
    if sign is None:
        return f"strftime('{_SQLITE_TIME}', 'now')"
    return f"strftime('{_SQLITE_TIME}', 'now', printf('%+.3f seconds', {sign}(:{name})))"


def _postgresql_now(token: re.Match[str]) -> str:
    # The statement's time, not the transaction's: a group of writes may have waited for a lock.
    sign, name = token.groups()
    if sign is None:
        return "statement_timestamp()"
    return f"(statement_timestamp() {sign} make_interval(secs => CAST(:{name} AS double precision)))"


def sqlite_writer(path: Path | None, synchronous: str) -> Engine:
    """An engine whose transactions hold the write lock from their start; a path of None means in memory."""
    engine = _sqlite(path, synchronous, busy_ms=0)
    event.listen(engine, "begin", lambda connection: begin_immediate(driver_of(connection)))
    return engine


def sqlite_reader(path: Path, synchronous: str) -> Engine:
    """An engine whose transactions see one snapshot and cannot write."""
    engine = _sqlite(path, synchronous, busy_ms=_READER_BUSY_MS)
    event.listen(engine, "begin", lambda connection: driver_of(connection).execute("BEGIN"))
    event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA query_only=ON"))
    return engine


def _sqlite(path: Path | None, synchronous: str, busy_ms: int) -> Engine:
    # "rw" and not "rwc": a file that was moved away must cause an error, not a new empty database.
    url = URL.create("sqlite")
    if path is not None:
        url = url.set(database=f"file:{quote(str(path))}", query={"mode": "rw", "uri": "true"})
    arguments = {"isolation_level": None, "check_same_thread": False, "cached_statements": 512}
    options: dict[str, Any] = (
        {"poolclass": NullPool}
        if path is None or busy_ms == 0
        else {"poolclass": QueuePool, "pool_size": 4, "max_overflow": 28}
    )
    engine = create_engine(url, connect_args=arguments, hide_parameters=True, **options)

    @event.listens_for(engine, "connect")
    def prepare(raw: sqlite3.Connection, _: object) -> None:
        raw.execute(f"PRAGMA busy_timeout={busy_ms}")
        if path is not None:
            _wait_for_lock(lambda: _use_wal(raw, path))
        raw.execute(f"PRAGMA synchronous={synchronous}")
        raw.execute("PRAGMA foreign_keys=ON")

    return engine


def _use_wal(raw: sqlite3.Connection, path: Path) -> None:
    (mode,) = raw.execute("PRAGMA journal_mode").fetchone()
    if mode != "wal":
        (mode,) = raw.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        logger.warning(
            "The file system of {} allows no write-ahead log; the journal mode stays {!r} and "
            "readers will wait for writers. Put the database on a local disk.",
            path,
            mode,
        )


def begin_immediate(raw: sqlite3.Connection) -> None:
    """Begin an SQLite transaction that may write, and wait for the lock for a while."""
    if not raw.in_transaction:
        _wait_for_lock(lambda: raw.execute("BEGIN IMMEDIATE"))


def _wait_for_lock(attempt: Callable[[], object]) -> None:
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            attempt()
            return
        except sqlite3.OperationalError as error:
            if not _is_locked(error) or time.monotonic() > deadline:
                raise
        time.sleep(_LOCK_PAUSE)


def postgresql_engine(url: URL) -> Engine:
    """An engine for PostgreSQL that notices a dead server within half a minute."""
    arguments = {
        "connect_timeout": 10,
        "application_name": "pyworkflow",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    }
    for name in url.query:
        arguments.pop(name, None)  # What the URL says wins.
    return create_engine(
        url,
        connect_args=arguments,
        hide_parameters=True,
        poolclass=QueuePool,
        pool_size=4,
        max_overflow=28,
    )


def lock_schema(connection: Connection) -> None:
    """Stop other processes from migrating until this transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7096542187)")
    # In SQLite the transaction began with BEGIN IMMEDIATE, which is such a lock.


def read_leniently(raw: sqlite3.Connection, error: BaseException) -> None:
    """Let an SQLite connection give bytes for text that is none, after it has failed on such text.

    One damaged cell would otherwise make a whole query fail. The next try finds it, and only it.
    """
    if _is_undecodable(error):
        raw.text_factory = _text_or_bytes


def fetched(cursor: Any) -> list[Row]:
    """All rows of a cursor.

    A time for which Python has none, such as PostgreSQL's 'infinity', is given as text. One such
    cell would otherwise make the whole query fail.
    """
    try:
        rows: list[Row] = cursor.fetchall()
    except Exception as error:
        if not _is_psycopg_error(error) or type(error).__name__ != "DataError":
            raise
        return _fetched_as_text(cursor)
    return rows


def _fetched_as_text(cursor: Any) -> list[Row]:
    from psycopg import DataError
    from psycopg.adapt import Transformer
    from psycopg.types.datetime import TimestamptzLoader
    from psycopg.types.string import TextLoader

    class Lenient(TimestamptzLoader):
        def load(self, data: Any) -> Any:
            try:
                return super().load(data)
            except DataError:
                return TextLoader(self.oid).load(data)

    result = cursor.pgresult
    cursor.adapters.register_loader("timestamptz", Lenient)
    transformer = Transformer(cursor)
    transformer.set_pgresult(result)
    return transformer.load_rows(0, result.ntuples, tuple)


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _is_undecodable(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "Could not decode to UTF-8" in str(error)


def _original(error: BaseException) -> BaseException:
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def _is_locked(error: BaseException) -> bool:
    code = getattr(_original(error), "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (5, 6)


def is_database_error(error: BaseException) -> bool:
    """Whether the error comes from the database or its driver, and not from the calling code."""
    return isinstance(error, SQLAlchemyError | sqlite3.Error) or _is_psycopg_error(error)


def _is_psycopg_error(error: BaseException) -> bool:
    # Compared by name: psycopg is an extra, and may not be installed.
    return any(cls.__module__ == "psycopg" and cls.__name__ == "Error" for cls in type(error).__mro__)


def summary(error: BaseException) -> str:
    """The first line of the database's message. The lines after it can hold values."""
    original = _original(error)
    lines = str(original).strip().splitlines() or [type(original).__name__]
    return " ".join(lines) if getattr(original, "sqlstate", None) is None else lines[0]


def is_connection_suspect(error: BaseException) -> bool:
    """Whether the connection itself may be broken, so that a new one is needed."""
    is_fine = _is_locked(error) or is_deadlock(error) or _is_undecodable(_original(error))
    return is_transient(error) and not is_fine


def is_deadlock(error: BaseException) -> bool:
    """Whether the transaction and another one waited for each other, and this one was undone."""
    return getattr(_original(error), "sqlstate", None) == "40P01"


def is_transient(error: BaseException) -> bool:
    """Whether the same work may succeed later: locked, connection lost, server restarting, disk full."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    original = _original(error)
    if _is_undecodable(original):
        return True  # see `read_leniently`
    code = getattr(original, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _TRANSIENT_SQLITE
    if not _is_psycopg_error(original):
        return False
    state = getattr(original, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_TRANSIENT_POSTGRESQL)
    # There is no state: the error is not an answer of the server; an answer is missing.
    return type(original).__name__ in ("OperationalError", "InterfaceError")


def attribute_equals(dialect: str, key: str, value: str) -> TextClause:
    """The condition that a run has the top-level attribute `key`, equal to the JSON text `value`."""
    # In SQLite a path such as '$."key"' cannot name every key, so the members are compared. In PostgreSQL,
    # jsonb cannot hold a NUL character, and one text that has it must not make the whole list fail.
    condition = (
        """EXISTS (
            SELECT 1 FROM json_each(runs.attributes) AS member, json_each('[' || :value || ']') AS wanted
            WHERE member.key = :key AND member.type = wanted.type AND member.value IS wanted.value
        )"""
        if dialect == "sqlite"
        else r"""CASE WHEN position('\u0000' IN runs.attributes) > 0 THEN false
            ELSE CAST(runs.attributes AS jsonb) -> CAST(:key AS text) = CAST(:value AS jsonb) END"""
    )
    return text(condition).bindparams(
        bindparam("key", key, unique=True), bindparam("value", value, unique=True)
    )
