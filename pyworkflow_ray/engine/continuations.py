"""How code says that its run goes on in another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ContinueAsNew(BaseException):
    """Ends the workflow's code, which goes on in another run; no error, so that code does not catch it."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.call = (args, kwargs)


def continuation_in(error: BaseException | None) -> ContinueAsNew | None:
    """The continuation itself; a `TaskGroup` wraps what leaves its block."""
    while isinstance(error, BaseExceptionGroup):
        error = error.subgroup(ContinueAsNew)
        error = None if error is None else error.exceptions[0]
    return error if isinstance(error, ContinueAsNew) else None
