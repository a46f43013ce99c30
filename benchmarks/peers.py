"""The systems that our engine is compared with. Each has its own process, which answers requests.

A peer's process is a program of this folder (`dbos_peer.py`, `restate_peer.py`). It first prints the
settings in force there. Then it reads requests, one per line, and prints how many seconds each took. So the
peer's threads and polling are not in our process, and ours are not in the peer's. A peer that is not
installed says so, and every line that would compare us with it repeats that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from measurements import Side

HERE = Path(__file__).parent


class Peer:
    """A peer's process. Every method blocks, so call it outside the event loop.

    Args:
        program: The module of this folder that is its program.
        where: What the peer works on: a database's URL, or a folder.
    """

    def __init__(self, program: str, where: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / f"{program}.py"), where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts: dict[str, str] = self._read()

    @property
    def absence(self) -> str | None:
        """Why the peer is not installed; None if it is."""
        return self.facts.get("absent")

    def sequential_steps(self, count: int) -> float:
        """Steps per second of one workflow that calls so many steps, one after another."""
        return self._rate("sequential_steps", count)

    def one_step_runs(self, count: int) -> float:
        """Workflows per second when so many are started together, until the last has ended."""
        return self._rate("one_step_runs", count)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _rate(self, what: str, count: int) -> float:
        assert self._process.stdin is not None
        print(json.dumps([what, count]), file=self._process.stdin, flush=True)
        return count / float(self._read())

    def _read(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("="):
                return json.loads(line[1:])
        raise RuntimeError(f"the peer's process has ended with {self._process.wait()}")


@contextlib.contextmanager
def dbos_on(url: str) -> Iterator[Peer]:
    """DBOS on a database, while the block runs."""
    with _peer("dbos_peer", url) as peer:
        yield peer


@contextlib.contextmanager
def restate_in(folder: Path) -> Iterator[Peer]:
    """Restate with its own log in a folder, while the block runs."""
    with _peer("restate_peer", str(folder)) as peer:
        yield peer


@contextlib.contextmanager
def _peer(program: str, where: str) -> Iterator[Peer]:
    peer = Peer(program, where)
    try:
        yield peer
    finally:
        peer.close()


def sides_of(peers: Mapping[str, tuple[Peer, int]], method: str) -> tuple[dict[str, Side], dict[str, str]]:
    """The sides of the peers that are installed, and the reasons why the others are not.

    Args:
        peers: The peers by the name of their side, each with how much it has to do.
        method: Which of `Peer`'s workloads.
    """
    sides: dict[str, Side] = {}
    absent: dict[str, str] = {}
    for name, (peer, count) in peers.items():
        if peer.absence is not None:
            absent[name] = peer.absence
        else:
            sides[name] = _side(getattr(peer, method), count)
    return sides, absent


def _side(measure: Callable[[int], float], count: int) -> Side:
    async def side() -> float:
        return await asyncio.to_thread(measure, count)

    return side


# --- in the process of a peer -----------------------------------------------------------------------


class Answers:
    """The standard output of a peer's process. Anything else that it prints goes to standard error."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def give(self, value: Any) -> None:
        """Answer a request with a value."""
        print("=" + json.dumps(value), file=self._file, flush=True)

    def give_absence(self, why: str) -> None:
        """Say that the peer is not installed, and wait for the end of the requests."""
        self.give({"absent": why})
        sys.stdin.read()


async def serve(answers: Answers, works: Mapping[str, Callable[[int], Awaitable[None]]]) -> None:
    """Carry out each request, and answer with the seconds that it took, until the requests end."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        what, count = json.loads(line)
        started = time.perf_counter()
        await works[what](count)
        answers.give(time.perf_counter() - started)
