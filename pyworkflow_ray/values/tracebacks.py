"""Tracebacks as data, and real tracebacks made of that data.

The frames of this package are left out: they show how the user's code was called, and nobody can mend
anything there.
"""

from __future__ import annotations

import ast
import itertools
import linecache
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import CodeType, TracebackType
from typing import Any

import msgspec

from pyworkflow_ray.exceptions import WorkflowError
from pyworkflow_ray.ids import storable
from pyworkflow_ray.values.bundles import installed_folder
from pyworkflow_ray.values.pickles import keep_source
from pyworkflow_ray.values.scripts import MAIN, script_name
from pyworkflow_ray.values.syntax import compiled

_OURS = "pyworkflow_ray"
MAX_FRAMES = 100
"""More frames than these are a recursion, and its beginning and end tell it."""
_FIRST = 20
_LONGEST_LINE = 300


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """One line of a traceback: where the code was, as Python counts lines and columns."""

    file: str
    function: str
    line: int
    end_line: int = 0
    column: int = -1
    """-1 where nobody knows which part of the line it was."""
    end_column: int = -1
    module: str = ""
    source: str = ""
    """The text of the line, for machines that do not have the file."""


def frames_of(error: BaseException, skipped: Sequence[str] = ()) -> tuple[Frame, ...]:
    """The frames of an exception's traceback, without this package's own.

    Args:
        skipped: Names of modules and packages whose frames at the top of the stack are left out too.
    """
    entries = list(_entries(error.__traceback__))
    frames = tuple(_frame(entries[index]) for index in _told(error, entries, skipped))
    if len(frames) > MAX_FRAMES:
        frames = frames[:_FIRST] + frames[_FIRST - MAX_FRAMES :]
    return frames


def text_of_traceback(error: BaseException, skipped: Sequence[str] = ()) -> str:
    """What Python prints of an exception, without its causes and without the frames of this package.

    Files of a bundle are named from its folder on, which is another one on each node.
    """
    told = traceback.TracebackException(type(error), error, error.__traceback__)
    _leave_out(told, error, skipped)
    text, folder = "".join(told.format(chain=False)), installed_folder()
    return text if folder is None else text.replace(folder, "")


def _leave_out(told: traceback.TracebackException, error: BaseException, skipped: Sequence[str]) -> None:
    entries = list(_entries(error.__traceback__))
    if len(told.stack) == len(entries):
        told.stack[:] = [told.stack[index] for index in _told(error, entries, skipped)]
    if isinstance(error, BaseExceptionGroup):
        for part, inner in zip(told.exceptions or (), error.exceptions, strict=False):
            _leave_out(part, inner, skipped)


def _entries(top: TracebackType | None) -> Iterator[TracebackType]:
    while top is not None:
        yield top
        top = top.tb_next


def _told(error: BaseException, entries: list[TracebackType], skipped: Sequence[str]) -> list[int]:
    """The indices of the entries that say something to the user."""
    modules = [_module_of(entry) for entry in entries]
    begin = 0
    while begin < len(entries) and _is_of(modules[begin], (_OURS, *skipped)):
        begin += 1
    ours = [_is_of(module, (_OURS,)) for module in modules]
    end = len(entries)
    # An error of this package's own says all by itself. With any other it is worth knowing where in here it
    # was raised.
    if not isinstance(error, WorkflowError):
        if begin == end:
            return list(range(end))
        while end and ours[end - 1]:
            end -= 1
    told = [index for index in range(begin, end) if not ours[index]]
    return told + list(range(end, len(entries)))


def _module_of(entry: TracebackType) -> str:
    return str(entry.tb_frame.f_globals.get("__name__", ""))


def _is_of(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _frame(entry: TracebackType) -> Frame:
    code = entry.tb_frame.f_code
    line, end_line, column, end_column = _position(code, entry)
    return Frame(
        file=storable(code.co_filename),
        function=storable(code.co_name),
        line=line,
        end_line=end_line,
        column=column,
        end_column=end_column,
        module=storable(_module_of(entry)),
        source=storable(_source_of(code.co_filename, line, entry.tb_frame.f_globals)),
    )


def _source_of(file: str, line: int, names: dict[str, Any] | None = None) -> str:
    text = linecache.getline(file, line, names).rstrip()
    return text if len(text) <= _LONGEST_LINE else ""


def _position(code: CodeType, entry: TracebackType) -> tuple[int, int, int, int]:
    place = next(itertools.islice(code.co_positions(), entry.tb_lasti // 2, None), (None,) * 4)
    # Python counts the line of a frame by another table, and that is the one that it shows.
    line = entry.tb_lineno or place[0] or 1
    if place[0] != line or None in place:
        return line, line, -1, -1
    return line, place[1] or line, place[2] or 0, place[3] or 0


# --- back ---------------------------------------------------------------------------------------------


def traceback_of(frames: Sequence[Frame]) -> TracebackType | None:
    """A traceback that Python prints as the one of which these are the frames."""
    top: TracebackType | None = None
    for frame in reversed(frames):
        here = _raised_at(_here(frame))
        here.tb_next = top
        top = here
    return top


def _here(frame: Frame) -> Frame:
    """The frame as this process can show it."""
    if not frame.source:
        return frame
    own = _own_file_of(frame)
    if own != frame.file:
        return msgspec.structs.replace(frame, file=own)
    if not linecache.getline(frame.file, frame.line):
        keep_source(frame.file, frame.line, frame.source)
    return frame


def _own_file_of(frame: Frame) -> str:
    """The file that this process has of the frame's module, if the line is the same in it.

    The engine runs local code from a folder of its own. The user knows the file that it came from.
    """
    module = sys.modules.get(MAIN if frame.module == script_name() else frame.module)
    file: Any = getattr(module, "__dict__", {}).get("__file__")
    if type(file) is not str or os.path.basename(file) != os.path.basename(frame.file):
        return frame.file
    return file if _source_of(file, frame.line) == frame.source else frame.file


class _RaisedError(Exception):
    pass


def _raised_at(frame: Frame) -> TracebackType:
    names: dict[str, Any] = {"__name__": frame.module, "__file__": frame.file, "raised": _RaisedError}
    try:
        exec(_code(frame), names, {})
    except _RaisedError as error:
        here = error.__traceback__
        assert here is not None
        assert here.tb_next is not None
        return here.tb_next
    raise AssertionError("the code raises")


@lru_cache(maxsize=4096)
def _code(frame: Frame) -> CodeType:
    """Code that raises where the frame says."""
    is_known = frame.column >= 0
    place: dict[str, int] = {
        "lineno": frame.line,
        "end_lineno": frame.end_line if is_known else frame.line,
        "col_offset": frame.column if is_known else 0,
        "end_col_offset": frame.end_column if is_known else 0,
    }
    name = ast.Name("raised", ast.Load(), **place)
    module = ast.Module([ast.Raise(name, None, **place)], [])
    code = compiled(module, frame.file)
    return code.replace(co_name=frame.function, co_qualname=frame.function)


def leave_out_own_frames(error: BaseException, skipped: Sequence[str] = ()) -> None:
    """Have the exception's traceback begin with code of the user's, if any of its frames is that.

    Args:
        skipped: Names of modules and packages that are no code of the user's either.
    """
    here = error.__traceback__
    while here is not None and _is_of(_module_of(here), (_OURS, *skipped)):
        here = here.tb_next
    if here is not None:
        set_of_raise(error, "__traceback__", here)


def set_of_raise(error: BaseException, name: str, value: Any) -> None:
    """Set what `raise` sets of an exception: its traceback, cause or context."""
    # A class may let nobody set an attribute of its instances. Python's own `raise` does not ask it either.
    vars(BaseException)[name].__set__(error, value)
