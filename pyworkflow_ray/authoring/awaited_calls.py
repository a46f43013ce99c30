"""Functions whose calls a run's code must await: a call that it has not awaited fails the run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from pyworkflow_ray.engine.executions import current

_F = TypeVar("_F", bound=Callable[..., Coroutine[Any, Any, Any]])
_mark: Callable[[Any], Any] = getattr(inspect, "markcoroutinefunction", lambda function: function)


def must_be_awaited(what: str) -> Callable[[_F], _F]:
    """Have the calls of an `async def` function told as forgotten when a run's code does not await them.

    Args:
        what: Names the function in the error, as "sleep()".
    """

    def decorate(function: _F) -> _F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
            execution = current.get()
            if execution is None:
                return function(*args, **kwargs)
            return execution.scope.unawaited.kept(what, function, args, kwargs)

        return cast(_F, _mark(call))

    return decorate
