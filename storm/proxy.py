"""A proxy before PostgreSQL that cuts connections, holds them up, and loses the answers to COMMITs.

As a program (``python -m storm.proxy SOCKET PORT CONTROL``), it listens on PORT of the loopback interface and
forwards to the server's Unix socket. On the port CONTROL it takes one command a connection, and answers "ok":

- ``cut``: end all connections.
- ``lose N``: do not pass on the next N answers to a COMMIT, and end their connections.
- ``hold SECONDS``: pass on nothing for so long.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

_COMMAND_COMPLETE = b"C"


class Proxy:
    """The proxy's process, as the storm uses it.

    Args:
        target: The server's Unix socket.
    """

    def __init__(self, target: Path, log: Path) -> None:
        self.port, self.control = _free_port(), _free_port()
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "storm.proxy", str(target), str(self.port), str(self.control)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=Path(__file__).resolve().parent.parent,
            )
        _wait_for(self.port)

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)


def tell(control: int, command: str) -> None:
    """Give the proxy with this control port a command."""
    with socket.create_connection(("127.0.0.1", control), timeout=10) as connection:
        connection.sendall(command.encode() + b"\n")
        connection.recv(16)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


# --- the process of the proxy -----------------------------------------------------------------------


class _Server:
    def __init__(self, target: str) -> None:
        self._target = target
        self._to_lose = 0
        self._held_until = 0.0
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, port: int, control: int) -> None:
        servers = [
            await asyncio.start_server(self._forward, "127.0.0.1", port, backlog=256),
            await asyncio.start_server(self._control, "127.0.0.1", control),
        ]
        await asyncio.gather(*(server.serve_forever() for server in servers))

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            match (await reader.readline()).decode().split():
                case ["cut"]:
                    for each in list(self._writers):
                        each.transport.abort()
                case ["lose", count]:
                    self._to_lose += int(count)
                case ["hold", seconds]:
                    self._held_until = time.monotonic() + float(seconds)
            writer.write(b"ok\n")
            await writer.drain()
        writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_unix_connection(self._target)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, to_server}
        self._writers |= both
        ways = [
            asyncio.create_task(self._questions(reader, to_server)),
            asyncio.create_task(self._answers(from_server, writer)),
        ]
        await asyncio.wait(ways, return_when="FIRST_COMPLETED")
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        self._writers -= both
        for each in both:
            each.transport.abort()

    async def _questions(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(2**16):
            await self._pass(target, data)

    async def _answers(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """The server's messages, one by one: a type, a length, and what follows."""
        while True:
            head = await source.readexactly(5)
            body = await source.readexactly(struct.unpack("!i", head[1:])[0] - 4)
            if head[:1] == _COMMAND_COMPLETE and body == b"COMMIT\0" and self._to_lose > 0:
                self._to_lose -= 1
                return
            await self._pass(target, head + body)

    async def _pass(self, target: asyncio.StreamWriter, data: bytes) -> None:
        while (left := self._held_until - time.monotonic()) > 0:
            await asyncio.sleep(left)
        target.write(data)
        await target.drain()


if __name__ == "__main__":
    asyncio.run(_Server(sys.argv[1]).serve(int(sys.argv[2]), int(sys.argv[3])))
