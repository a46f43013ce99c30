"""A PostgreSQL proxy that reads the protocol: it counts who waits, and cuts connections at a message."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit

_SYNC, _QUERY = b"S", b"Q"


class Cut(Exception):
    """The connection is to end here."""


class PostgreSQLProxy:
    """Stands between a client and a server, on a port of its own.

    `waits` counts the messages that a client waits behind: Sync and simple queries. A pipeline has one,
    however many statements it holds, so this is the number of round trips.

    Args:
        url: The server's, with a Unix socket's folder as `host` in the query.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        folder = Path(query["host"][0])
        (self._target,) = (path for path in folder.glob(".s.PGSQL.*") if path.suffix != ".lock")
        self._database = parts.path.lstrip("/")
        self._user = parts.username or "postgres"
        self._options = query.get("options", [""])[0]
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.waits = 0
        self.sent = 0
        """Messages from clients since `arm` or the beginning."""
        self.answered = 0
        """Messages to clients since then."""
        self._cut_before: int | None = None
        self._cut_answer: int | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()

    @property
    def url(self) -> str:
        """The database's URL through this proxy."""
        port = self._listening.getsockname()[1]
        options = f"&options={self._options.replace('=', '%3D')}" if self._options else ""
        return (
            f"postgresql://{self._user}@127.0.0.1:{port}/{self._database}"
            f"?sslmode=disable&gssencmode=disable{options}"
        )

    @contextmanager
    def counting(self) -> Iterator[list[int]]:
        """A list that holds, after the block, how many round trips the block took."""
        before, counted = self.waits, list[int]()
        yield counted
        counted.append(self.waits - before)

    def arm(self, *, before_message: int | None = None, before_answer: int | None = None) -> None:
        """Cut the next connection that sends this message, or is to get this answer, counted from now on.

        What is cut is not passed on, and nothing behind it. Other connections go on.
        """
        with self._lock:
            self.sent = self.answered = 0
            self._cut_before, self._cut_answer = before_message, before_answer

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self._target))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for pump in (self._from_client, self._from_server):
                threading.Thread(target=self._pump, args=(pump, client, server), daemon=True).start()

    def _pump(self, pump: object, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, Cut, EOFError):
            pump(client, server)  # type: ignore[operator]
        for each in (client, server):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _from_client(self, client: socket.socket, server: socket.socket) -> None:
        length = _read(client, 4)  # the start-up message has no type
        server.sendall(length + _read(client, struct.unpack("!i", length)[0] - 4))
        while True:
            kind, message = _message(client)
            with self._lock:
                if self._cut_before == self.sent:
                    self._cut_before = None
                    raise Cut
                self.sent += 1
                self.waits += kind in (_SYNC, _QUERY)
            server.sendall(message)

    def _from_server(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            _, message = _message(server)
            with self._lock:
                if self._cut_answer == self.answered:
                    self._cut_answer = None
                    raise Cut
                self.answered += 1
            client.sendall(message)


def _message(source: socket.socket) -> tuple[bytes, bytes]:
    head = _read(source, 5)
    return head[:1], head + _read(source, struct.unpack("!i", head[1:])[0] - 4)


def _read(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = source.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data
