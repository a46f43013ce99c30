"""Outcomes of a batch as files of the node that runs it, for the case that the worker dies.

A worker tells its coordinator what its batch has come to now and then, and at the end. If it is killed in
between, what it has not told would be lost with it. So each outcome is also written to a file of the node. A
`kill -9` takes nothing of that: a write needs no sync to outlive its process. The worker removes the file
when it begins its next batch: the result of the last one has gone out by then. Whoever reads the file after
the worker's death removes it, too.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import stat
import struct
import tempfile
import time
from functools import lru_cache
from pathlib import Path

Answer = tuple[int, bytes]
"""An attempt's index in its batch, and its outcome, encoded."""

_HEAD = struct.Struct(">II")
STALE_AFTER = 24 * 3600.0
"""Seconds after which nobody asks for a file any more: its worker and its coordinator have both died."""


class Spool:
    """A file for the outcomes of one batch. Where it cannot be written, the batch goes on without it."""

    def __init__(self, batch_id: str) -> None:
        self._batch_id = batch_id
        self._file: int | None = None

    def add(self, index: int, outcome: bytes) -> None:
        """Keep an outcome. When this returns, the worker may die."""
        with contextlib.suppress(OSError):
            if self._file is None:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND
                self._file = os.open(_folder() / self._batch_id, flags, 0o600)
            os.write(self._file, _HEAD.pack(index, len(outcome)) + outcome)

    def discard(self) -> None:
        """Remove the file: the outcomes have gone another way."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
                (_folder() / self._batch_id).unlink()
            self._file = None


_last: list[Spool] = []
"""The file of this worker's last batch."""


def next_spool(batch_id: str) -> Spool:
    """The file for this worker's next batch. The file of its last one is removed."""
    if _last:
        _discard_last()
    else:
        atexit.register(_discard_last)
    _last.append(Spool(batch_id))
    return _last[0]


def _discard_last() -> None:
    while _last:
        _last.pop().discard()


def take_spooled(batch_id: str) -> list[Answer]:
    """The outcomes in this node's file of the batch, and an end of the file."""
    try:
        path = _folder() / batch_id
        data = path.read_bytes()
        path.unlink()
    except OSError:
        return []
    answers, at = [], 0
    while at + _HEAD.size <= len(data):
        index, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if at + length > len(data):
            break  # the worker died in the middle of its write
        answers.append((index, data[at : at + length]))
        at += length
    return answers


@lru_cache(maxsize=1)
def _folder() -> Path:
    """The folder of this user's files. Nobody else may write there, since what lies there is believed."""
    folder = Path(tempfile.gettempdir()) / f"pyworkflow-ray-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is not a folder that only its user can write to")
    _remove_stale(folder)
    return folder


def _remove_stale(folder: Path) -> None:
    oldest = time.time() - STALE_AFTER
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
