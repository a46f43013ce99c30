"""The workflows and steps that this process knows by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection
from types import CodeType
from typing import Any, Generic, Protocol, TypeVar

from pyworkflow_ray.exceptions import ConfigurationError, WorkflowNotFoundError


class Named(Protocol):
    """A definition that was made from a function."""

    name: str
    fn: Callable[..., Any]


_D = TypeVar("_D", bound=Named)


class Registry(Generic[_D]):
    """Definitions by name. Of those at the top of modules, a name belongs to one function.

    Defining the same function again (in a notebook cell that runs twice, in a reloaded module) replaces it. A
    definition inside a function replaces any other: the function may be a test, or make many. Runs are not
    affected by that, since each has its code with it.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._definitions: dict[str, _D] = {}
        self._of_modules: dict[str, _D] = {}

    def add(self, definition: _D) -> None:
        """Keep a definition under its name.

        Raises:
            ConfigurationError: Another function at the top of a module has this name. The error shows both
                places.
        """
        module, qualname = _home(definition.fn)
        if "<locals>" not in qualname:
            known = self._of_modules.get(definition.name)
            if known is not None and _home(known.fn) != (module, qualname):
                raise ConfigurationError(
                    f"Two {self._kind}s are named {definition.name!r}: {_place(known.fn)} and "
                    f"{_place(definition.fn)}. Give one of them another name: @{self._kind}(name='...')."
                )
            self._of_modules[definition.name] = definition
        self._definitions[definition.name] = definition

    def get(self, name: str) -> _D:
        """The definition of this name.

        Raises:
            WorkflowNotFoundError: There is none. The error suggests similar names.
        """
        try:
            return self._definitions[name]
        except KeyError:
            alike = difflib.get_close_matches(name, self._definitions, n=3)
            hint = f" Did you mean {' or '.join(map(repr, alike))}?" if alike else ""
            raise WorkflowNotFoundError(
                name,
                f"No {self._kind} named {name!r} is defined in this process.{hint} "
                "Import the module that defines it first.",
            ) from None

    def all(self) -> dict[str, _D]:
        """Every definition, by name."""
        return dict(self._definitions)

    def clear(self) -> None:
        """Forget every definition."""
        self._definitions.clear()
        self._of_modules.clear()


def refuse_misspelt(cls: type, kind: str, options: Collection[str]) -> None:
    """Refuse a class attribute that is nearly an option, and that no method of the class uses.

    Raises:
        ConfigurationError: There is one. The error suggests the option.
    """
    for name, value in vars(cls).items():
        if name.startswith("_") or name in options or hasattr(value, "__get__"):
            continue
        alike = difflib.get_close_matches(name, options, n=1, cutoff=0.75)
        if alike and name not in _names_used(cls):
            raise ConfigurationError(
                f"Class {cls.__qualname__} has an attribute {name!r}, which is no option of a {kind}; did "
                f"you mean {alike[0]!r}? If it is an attribute of the class's own, give it another name."
            )


def _names_used(cls: type) -> set[str]:
    found: set[str] = set()
    members = [value for base in cls.__mro__ for value in vars(base).values() if hasattr(value, "__get__")]
    methods = [inspect.unwrap(getattr(member, "fget", None) or member) for member in members]
    todo = [method.__code__ for method in methods if inspect.isfunction(method)]
    while todo:
        code = todo.pop()
        found |= set(code.co_names)
        todo += [const for const in code.co_consts if isinstance(const, CodeType)]
    return found


def function_name(fn: Callable[..., Any], kind: str) -> str:
    """The name that a definition takes from its function.

    Raises:
        ConfigurationError: The function is a generator, which cannot be run as one call.
    """
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise ConfigurationError(
            f"A {kind} cannot be a generator: {fn.__qualname__} yields. Return a list instead."
        )
    return getattr(fn, "__name__", type(fn).__name__)


def _home(function: Callable[..., Any]) -> tuple[str, str]:
    return getattr(function, "__module__", ""), getattr(function, "__qualname__", repr(function))


def _place(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return ".".join(_home(function)) + where
