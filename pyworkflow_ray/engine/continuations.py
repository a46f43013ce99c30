"""How code ends its run in order to continue in a new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ContinueAsNew(BaseException):
    """Ends the workflow's code, which continues in a new run. It is no `Exception`, so nothing catches it."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.call = (args, kwargs)


def continuation_in(error: BaseException | None) -> ContinueAsNew | None:
    """The continuation in this error, which a `TaskGroup` may wrap; None if there is none."""
    while isinstance(error, BaseExceptionGroup):
        error = error.subgroup(ContinueAsNew)
        error = None if error is None else error.exceptions[0]
    return error if isinstance(error, ContinueAsNew) else None
