"""Where a process's log lines go, and what they look like: text or JSON, to standard error and to a file.

Sinks that the application has added are left as they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC
from pathlib import Path
from typing import Any, TextIO

from loguru import logger

from pyworkflow_ray.config import LogSettings
from pyworkflow_ray.exceptions import ConfigurationError

RUN_FIELDS = ("run_id", "workflow", "step_id", "step", "attempt")
"""What a line of a run carries in `extra`. The last three are for lines of steps."""
TEXT = "<green>{time:YYYY-MM-DD HH:mm:ss.SSS!UTC}Z</green> | <level>{level: <8}</level> | <cyan>{name}</cyan>"
_OFF = ("0", "false", "no", "n", "nok", "off")

Admit = Callable[[Any], bool]
"""Says whether a record is written. It may add to the record's `extra`."""


_lock = threading.Lock()
_added: list[int] = []
_file: TextIO | None = None
_has_default = os.environ.get("LOGURU_AUTOINIT", "true").lower() not in _OFF
"""Whether loguru's own first sink, number 0, may still be there."""


def use_sinks(settings: LogSettings, admit: Admit) -> None:
    """Write log lines as these settings say. Sinks of an earlier call, and loguru's own, are removed.

    Raises:
        ConfigurationError: The file cannot be opened. The sinks stay as they were.
    """
    global _file, _has_default
    with _lock:
        file = None if settings.file is None else _opened(settings.file)
        old, old_file = list(_added), _file
        _added[:] = [_add(stream, settings, admit) for stream in (sys.stderr, file) if stream is not None]
        _file = file
        if _has_default:
            old.append(0)
            _has_default = False
        for number in old:
            with contextlib.suppress(ValueError):  # the application has removed it already
                logger.remove(number)
        if old_file is not None:
            old_file.close()


def _opened(path: str) -> TextIO:
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # Buffered by lines: several processes of a node write to one file.
        return Path(path).open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigurationError(
            f"The log file {path} cannot be opened: {error.strerror}. Give a path that this process may "
            "write to."
        ) from error


def _add(stream: TextIO, settings: LogSettings, admit: Admit) -> int:
    sink: Any = _JsonSink(stream, settings.context) if settings.json else stream
    form = (lambda record: "") if settings.json else _TextForm(settings.context)
    # Without `diagnose`: values in a traceback's frames (payloads, a password) do not belong in a log.
    return logger.add(
        sink, level=settings.level, format=form, filter=admit, backtrace=False, diagnose=False, catch=True
    )


class _TextForm:
    """The form of a line of text, as loguru's `format` takes it."""

    def __init__(self, context: bool) -> None:
        self._context = context

    def __call__(self, record: Any) -> str:
        shown = "".join(
            # Only the name goes into the form: loguru could take something in a value for markup.
            f" {name}={{extra[{name}]}}"
            for name in _ordered(record["extra"])
            if name.isidentifier() and (self._context or name not in RUN_FIELDS)
        )
        return f"{TEXT} | {{message}}<dim>{shown}</dim>\n{{exception}}"


class _JsonSink:
    """Writes each record as a JSON object on a line of its own."""

    def __init__(self, stream: TextIO, context: bool) -> None:
        self._stream, self._context = stream, context

    def write(self, message: Any) -> None:
        self._stream.write(json_line(message.record, context=self._context))

    def flush(self) -> None:
        self._stream.flush()


def json_line(record: Any, *, context: bool = True) -> str:
    """A record as a JSON object, with a newline: time (UTC), level, message and logger, then the ids of the
    run and step, `exception` (its traceback), and under `extra` whatever else was bound."""
    line = {
        "time": record["time"].astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "level": record["level"].name,
        "message": record["message"],
        "logger": record["name"],
    }
    extra = record["extra"]
    if context:
        line |= {name: extra[name] for name in RUN_FIELDS if name in extra}
    if record["exception"] is not None:
        line["exception"] = "".join(traceback.format_exception(*record["exception"])).rstrip()
    rest = {str(name): extra[name] for name in extra if name not in RUN_FIELDS}
    if rest:
        line["extra"] = rest
    try:
        return json.dumps(line, default=str, allow_nan=False) + "\n"
    except (TypeError, ValueError):  # keys of a mapping that are no text, or a value that holds itself
        plain = {name: repr(value) for name, value in rest.items()}
        return json.dumps({name: str(value) for name, value in line.items()} | {"extra": plain}) + "\n"


def _ordered(extra: dict[str, Any]) -> Iterator[str]:
    yield from (name for name in RUN_FIELDS if name in extra)
    yield from (name for name in extra if name not in RUN_FIELDS)
