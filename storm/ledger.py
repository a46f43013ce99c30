"""The ledger: a file outside the database to which every process of a storm appends lines.

A line is one JSON object, written by one call to an append-only file, so lines never mix. A process that is
killed leaves whole lines. `what` says what a line is:

| `what` | written by | when |
|---|---|---|
| begin, end | a step | an attempt's code begins; it is about to return or raise |
| try, done, refused | a driver | before it sends something; it was acknowledged; it was refused for good |
| saw | a driver | it has waited for a run, and got this outcome |
| actor | a driver | it has seen that an actor of this name has this process |
| fault, over | the monkey | it begins a fault; it has ended it |
| note | anyone | something worth reading |
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Line = dict[str, Any]

VARIABLE = "STORM_LEDGER"
"""The variable of the environment that names the file."""


def write(what: str, **more: Any) -> None:
    """Append a line to the ledger that the environment names; nothing where it names none."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    line = {"what": what, "at": time.time(), "pid": os.getpid(), **more}
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, json.dumps(line, default=str).encode() + b"\n")
    finally:
        os.close(file)


def read(path: Path) -> list[Line]:
    """All lines."""
    return Reader(path).read()


class Reader:
    """Reads a ledger that grows."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read(self) -> list[Line]:
        """The lines that are new since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def of(lines: Iterable[Line], what: str, kind: str | None = None) -> list[Line]:
    """The lines of this sort: `kind` is what a driver sent, or the kind of a fault."""
    return [line for line in lines if line["what"] == what and kind in (None, line.get("kind"))]
