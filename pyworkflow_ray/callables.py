"""What is known of a function before it is called: which arguments it takes, and whether it is async.

A function behind a `functools.wraps` decorator has two signatures. People read that of the function inside.
A call goes by that of the decorator's own function, which may hand on other arguments than it was given.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from functools import partial
from types import FunctionType, MethodType
from typing import Any

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def shown_signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """The signature that people read. None for what has none, as some builtins."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def method_of(function: Any) -> Any:
    """The method that an object of ours stands for, and calls with a first argument of its own; else None."""
    return getattr(function, "__method__", None)


def own_signature(function: Any) -> inspect.Signature | None:
    """The signature by which a call of this very function goes. None if Python does not know it."""
    method = method_of(function)
    if method is not None:
        return without_first(own_signature(method))
    if isinstance(function, MethodType):
        return without_first(own_signature(function.__func__))
    if isinstance(function, FunctionType):
        return _of_function(function)
    if isinstance(function, partial):
        return _of_partial(function)
    called = _called(function)
    if called is not None and not isinstance(function, type):
        return without_first(own_signature(called))
    try:
        return inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None


def _of_function(function: FunctionType) -> inspect.Signature:
    if "__signature__" in vars(function):  # what a decorator wants to be shown
        code, closure = function.__code__, function.__closure__
        bare = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
        bare.__kwdefaults__ = function.__kwdefaults__
        function = bare
    return inspect.signature(function, follow_wrapped=False)


def _of_partial(function: partial[Any]) -> inspect.Signature | None:
    signature = own_signature(function.func)
    if signature is None:
        return None

    def stand_in() -> None: ...

    stand_in.__signature__ = signature  # type: ignore[attr-defined]
    return inspect.signature(partial(stand_in, *function.args, **function.keywords))


def without_first(signature: inspect.Signature | None) -> inspect.Signature | None:
    """The signature of a bound method, from that of its function."""
    if signature is None:
        return None
    parameters = list(signature.parameters.values())
    if parameters and parameters[0].kind in _BY_POSITION:
        del parameters[0]
    return signature.replace(parameters=parameters)


def annotated(function: Any) -> Any:
    """What holds the annotations of a function's parameters; None if nothing does."""
    while isinstance(function, partial):
        function = function.func
    if (method := method_of(function)) is not None:
        return annotated(method)
    if isinstance(function, FunctionType | MethodType):
        return function
    return _called(function)


def _called(function: Any) -> FunctionType | None:
    """The function in Python that a call of an object, or of a class, leads to; None if there is none."""
    names = ("__init__", "__new__") if isinstance(function, type) else ("__call__",)
    owner = function if isinstance(function, type) else type(function)
    methods = (getattr(owner, name, None) for name in names)
    return next((method for method in methods if isinstance(method, FunctionType)), None)


def is_async(function: Any) -> bool:
    """Whether a call of this makes a coroutine, as far as one can see."""
    while isinstance(function, partial):
        function = function.func
    if inspect.iscoroutinefunction(function):
        return True
    return not isinstance(function, type) and inspect.iscoroutinefunction(_called(function))


def is_unfinished(value: Any) -> bool:
    """Whether a call has returned a coroutine or a future, which has yet to be awaited.

    Other objects that can be awaited are results: a run's handle is one.
    """
    return isinstance(value, Coroutine) or asyncio.isfuture(value)
