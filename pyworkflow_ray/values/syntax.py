"""Sources and syntax trees, worked on by one thread at a time.

Some Pythons (3.11) keep the depth of a tree that they convert in one place for all threads. They raise
`SystemError` if two threads convert one at once.
"""

from __future__ import annotations

import ast
import contextlib
import threading
from collections.abc import Callable
from types import CodeType
from typing import TypeVar

_T = TypeVar("_T")
_lock = threading.Lock()
_TRIES = 5


def parsed(source: bytes | str) -> ast.Module | None:
    """The syntax tree of a source; None if it is no Python."""
    try:
        return _alone(lambda: ast.parse(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def compiled(tree: ast.Module, file: str) -> CodeType:
    """The code of a syntax tree."""
    return _alone(lambda: compile(tree, file, "exec", dont_inherit=True))


def _alone(work: Callable[[], _T]) -> _T:
    for _ in range(_TRIES):
        with _lock, contextlib.suppress(SystemError):  # code of somebody else parses at the same time
            return work()
    with _lock:
        return work()
