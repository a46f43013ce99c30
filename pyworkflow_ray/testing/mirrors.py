"""A second process through which a test's code and values go, as they go from process to process on Ray.

In one process, everything is the same thing as itself. What a value loses on its way, or which code cannot be
loaded elsewhere, shows only where it is written by one process and read by another. The mirror is that other
one. It has the bundle of the test's code and knows nothing else of the test's process.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import msgspec

from pyworkflow_ray.actors.codes import CodeLoader
from pyworkflow_ray.exceptions import ConfigurationError, SerializationError
from pyworkflow_ray.storage.codes import Code
from pyworkflow_ray.values import bundles, codec
from pyworkflow_ray.values.bundles import Bundle


class _Question(msgspec.Struct, frozen=True):
    """A value to be read and written again, or code to be loaded."""

    value: bytes | None = None
    code: Code | None = None
    archive: bytes | None = None


class _Answer(msgspec.Struct, frozen=True):
    value: bytes = b""
    error: str | None = None


_encode = msgspec.msgpack.encode
_questions, _answers = msgspec.msgpack.Decoder(_Question), msgspec.msgpack.Decoder(_Answer)
_SERVE = f"from {__name__} import serve; serve()"


class Mirrors:
    """The mirrors of one test environment, one for each bundle."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: dict[str | None, subprocess.Popen[bytes]] = {}
        self._present: str | None = None

    def check_code(self, code: Code, bundle: Bundle | None) -> None:
        """Load code in the mirror that has its bundle. Values go through that mirror from now on.

        Raises:
            ConfigurationError: It cannot be loaded there.
        """
        self._present = code.bundle
        archive = None if bundle is None else bundle.data
        answer = self._ask(_Question(code=code, archive=archive))
        if answer.error is not None:
            raise ConfigurationError(f"The code cannot be loaded in another process: {answer.error}")

    def reflect(self, data: bytes) -> bytes:
        """An encoded value as another process writes it.

        Raises:
            SerializationError: It cannot be read there, or not be written again.
        """
        answer = self._ask(_Question(value=data))
        if answer.error is not None:
            raise SerializationError(f"Another process cannot take it: {answer.error}")
        return answer.value

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within it, every value that this process encodes goes through a mirror."""
        with codec.relayed(self.reflect):
            yield
        for process in self._processes.values():
            process.kill()
            process.communicate()

    def _ask(self, question: _Question) -> _Answer:
        with self._lock:
            process = self._processes.get(self._present)
            if process is None:
                process = self._processes[self._present] = _started()
            assert process.stdin is not None
            assert process.stdout is not None
            _write(process.stdin, _encode(question))
            data = _read(process.stdout)
        if data is None:
            return _Answer(error=f"the process ended (exit code {process.wait()})")
        return _answers.decode(data)


def _started() -> subprocess.Popen[bytes]:
    # "-P": the folder in which the test runs is not on its path.
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
    )


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(len(data).to_bytes(8, "big") + data)
    file.flush()


def _read(file: IO[bytes]) -> bytes | None:
    head = file.read(8)
    return file.read(int.from_bytes(head, "big")) if len(head) == 8 else None


def serve() -> None:
    """Answer until the asking process ends. This is the mirror's own process."""
    answers, sys.stdout = sys.stdout.buffer, sys.stderr  # what user code prints must not mix with answers
    bundles.enter_engine()
    archives: dict[str, bytes] = {}
    loader = CodeLoader(archives.__getitem__)
    while (data := _read(sys.stdin.buffer)) is not None:
        _write(answers, _encode(_answered(_questions.decode(data), loader, archives)))


def _answered(question: _Question, loader: CodeLoader, archives: dict[str, bytes]) -> _Answer:
    try:
        if question.code is not None:
            if question.code.bundle is not None and question.archive is not None:
                archives[question.code.bundle] = question.archive
            loader.load(question.code)
            return _Answer()
        value: Any = codec.decode(question.value or b"null")
        return _Answer(value=codec.encode(value))
    except BaseException as error:
        return _Answer(error=f"{type(error).__name__}: {error}")
