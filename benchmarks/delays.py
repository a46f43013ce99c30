"""A TCP proxy that delays a database by any time, and counts round trips.

As a program (``python delays.py TARGET MILLISECONDS``), this module is that proxy in its own process. It
listens on a free port of the loopback interface, and prints the port. It forwards to TARGET: the path of a
Unix socket, or ``host:port``. Data that arrives is sent on exactly MILLISECONDS later, in order. The proxy
limits only the time, never the throughput. When it reads a line on its standard input, it prints the number
of round trips so far. It ends when its input ends.

A round trip is a burst from the client after data from the server was delivered. So what a client sends
without waiting for an answer (a pipeline) is one round trip, if the client has sent all of it before the
first answer comes back. Round trips of all connections are counted together. Data on a connection is
delayed; opening a connection is not.

The loop uses `select`, since asyncio wakes at whole milliseconds only.
"""

from __future__ import annotations

import contextlib
import select
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator

CHUNK = 256 * 2**10


class Proxy:
    """The proxy's process, as the benchmarks use it.

    Args:
        target: The path of a Unix socket, or ``host:port``.
        delay_ms: How long each direction takes.
    """

    def __init__(self, target: str, delay_ms: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, target, str(delay_ms)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = self._read()

    def trips(self) -> int:
        """Round trips so far, of all connections together."""
        assert self._process.stdin is not None
        print("trips", file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        """End the process, and every connection with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _read(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the proxy has ended with {self._process.wait()}")
        return int(line)


@contextlib.contextmanager
def proxy_to(target: str, delay_ms: float) -> Iterator[Proxy]:
    """A proxy for as long as the block lasts."""
    proxy = Proxy(target, delay_ms)
    try:
        yield proxy
    finally:
        proxy.close()


# --- the process of the proxy -----------------------------------------------------------------------


class _Link:
    """One client's connection. It knows whether the client got an answer since it last sent something."""

    __slots__ = ("is_answered", "trips")

    def __init__(self) -> None:
        self.is_answered = True
        self.trips = 0


class _Way:
    """One direction of a connection: what was read, and when it is due at the other end."""

    __slots__ = ("_link", "_to_client", "blocked", "is_over", "queue", "source", "target")

    def __init__(self, source: socket.socket, target: socket.socket, link: _Link, *, to_client: bool) -> None:
        self.source, self.target = source, target
        self.queue: deque[tuple[float, memoryview]] = deque()
        self.blocked = False
        """Whether the other end accepts no more data at the moment."""
        self.is_over = False
        """Whether the source has closed; an empty chunk in the queue passes that on."""
        self._link, self._to_client = link, to_client

    def read(self, delay: float) -> None:
        """Read the data that has arrived."""
        try:
            data = self.source.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.is_over = not data
        if data and not self._to_client and self._link.is_answered:
            self._link.trips += 1
            self._link.is_answered = False
        self.queue.append((time.monotonic() + delay, memoryview(data)))

    def write(self, now: float) -> None:
        """Send on the data that is due."""
        self.blocked = False
        while self.queue and self.queue[0][0] <= now:
            due, data = self.queue.popleft()
            try:
                if not data:
                    self.target.shutdown(socket.SHUT_WR)
                    continue
                sent = self.target.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._give_up()
                return
            if self._to_client and sent:
                self._link.is_answered = True
            if sent < len(data):
                self.queue.appendleft((due, data[sent:]))
                self.blocked = True
                return

    def _give_up(self) -> None:
        """Close this end, since the other end has closed."""
        self.queue.clear()
        self.is_over = True
        with contextlib.suppress(OSError):
            self.source.shutdown(socket.SHUT_RDWR)


class _Server:
    """Accepts connections, forwards data and counts, until standard input ends."""

    def __init__(self, target: str, delay: float) -> None:
        self._target, self._delay = target, delay
        self._lateness = _lateness()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._ways: list[_Way] = []
        self._links: list[_Link] = []

    def run(self) -> None:
        print(self._listener.getsockname()[1], flush=True)
        while True:
            listened = [sys.stdin, self._listener, *(way.source for way in self._ways if not way.is_over)]
            awaited = [way.target for way in self._ways if way.blocked]
            ready, writable, _ = select.select(listened, awaited, [], self._pause())
            if sys.stdin in ready:
                if not sys.stdin.readline():
                    return
                print(sum(link.trips for link in self._links), flush=True)
            if self._listener in ready:
                self._accept()
            for way in self._ways:
                if way.source in ready:
                    way.read(self._delay)
            now = time.monotonic()
            for way in self._ways:
                if way.queue and (not way.blocked or way.target in writable):
                    way.write(now)
            self._forget_ended()

    def _pause(self) -> float | None:
        due = min((way.queue[0][0] for way in self._ways if way.queue and not way.blocked), default=None)
        return None if due is None else max(due - time.monotonic() - self._lateness, 0.0)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            server = _connected(self._target)
        except OSError as error:
            print(f"the proxy cannot reach {self._target}: {error}", file=sys.stderr, flush=True)
            client.close()
            return
        for end in (client, server):
            end.setblocking(False)
        link = _Link()
        self._links.append(link)
        self._ways += [
            _Way(client, server, link, to_client=False),
            _Way(server, client, link, to_client=True),
        ]

    def _forget_ended(self) -> None:
        """Close the connections of which both directions have ended."""
        kept = []
        for there, back in zip(self._ways[::2], self._ways[1::2], strict=True):
            if all(way.is_over and not way.queue for way in (there, back)):
                there.source.close()
                there.target.close()
            else:
                kept += [there, back]
        self._ways = kept


def _lateness() -> float:
    """How many seconds too late this machine wakes from a short sleep. For that long the loop polls."""
    late = []
    for _ in range(21):
        started = time.monotonic()
        select.select([], [], [], 1e-3)
        late.append(time.monotonic() - started - 1e-3)
    return min(max(statistics.median(late), 0.0), 2e-4)


def _connected(target: str) -> socket.socket:
    if target.startswith("/"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(target)
        return connection
    host, _, port = target.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


if __name__ == "__main__":
    _Server(sys.argv[1], float(sys.argv[2]) / 1e3).run()
