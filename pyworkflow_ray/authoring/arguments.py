"""Checks whether the arguments of a call fit its function, before anything is recorded."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pyworkflow_ray.authoring.annotations import Check, checks_of
from pyworkflow_ray.callables import annotated, own_signature, shown_signature
from pyworkflow_ray.exceptions import StepValidationError

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

Hint = Callable[[str], str]
"""What to say of a keyword that a function does not take; "" if there is nothing to say."""


class Arguments:
    """Checks calls of one function: names and number against its signature, values against annotations.

    A decorator's function gets what the call gives. Whether the function inside of it gets as much, or more,
    is for the decorator to know. So only the decorator's own signature can refuse a call.

    Args:
        function: The function; annotations that cannot be resolved are not checked.
        what: Names the function in errors, as "step 'charge'".
        hint: Asked about a keyword that the function does not take, if a call has no hint of its own.
    """

    def __init__(self, function: Callable[..., Any], what: str, hint: Hint | None = None) -> None:
        self._own = own_signature(function)
        self._shown = shown_signature(function) or self._own
        self._is_decorated = _forms(self._own) != _forms(self._shown)
        self._function = function
        self._what = what
        self._hint = hint
        self._checks: dict[str, Check] | None = None
        self._exact: tuple[type | None, ...] | None = None

    def names(self, parameter: str) -> bool:
        """Whether the function has a parameter of this name."""
        return self._shown is not None and parameter in self._shown.parameters

    def check(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], hint: Hint | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as the function will get them, validated and rebuilt by pydantic where annotated.

        Args:
            hint: Asked about a keyword that the function does not take.

        Raises:
            StepValidationError: The arguments do not fit; it names function, parameter and expected type.
        """
        if self._exact is not None and not kwargs and _are_exact(args, self._exact):
            return args, {}
        if self._own is None or self._shown is None:
            return args, dict(kwargs)
        try:
            bound = self._own.bind(*args, **kwargs)
        except TypeError as error:
            raise StepValidationError(
                f"The arguments do not fit {self._what}: {error}. "
                f"It takes {self._shown.replace(return_annotation=inspect.Signature.empty)}."
                f"{self._hints(self._shown, kwargs, hint or self._hint)}"
            ) from None
        if self._checks is None:
            self._checks = checks_of(annotated(self._function), self._shown, self._what)
            self._exact = None if self._is_decorated else self._exact_types(self._shown, self._checks)
        if self._is_decorated:
            checked, named = self._check_decorated(self._shown, args, kwargs)
            bound = self._own.bind(*checked, **named)
            return bound.args, bound.kwargs
        for name, check in self._checks.items():
            if name in bound.arguments:
                bound.arguments[name] = check(bound.arguments[name])
        return bound.args, bound.kwargs

    def _check_decorated(
        self, shown: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a call as it was made, each validated where it is clear which one it is."""
        checks = self._checks or {}
        try:
            shown.bind(*args, **kwargs)
        except TypeError:
            positions = []  # the decorator adds arguments, or takes some: only names say which is which
        else:
            positions = [p.name for p in shown.parameters.values() if p.kind in _BY_POSITION]
        checked = list(args)
        for at, name in enumerate(positions[: len(args)]):
            if name in checks:
                checked[at] = checks[name](args[at])
        return checked, {name: checks[name](v) if name in checks else v for name, v in kwargs.items()}

    def _hints(self, shown: inspect.Signature, kwargs: Mapping[str, Any], hint: Hint | None) -> str:
        parameters = shown.parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return ""
        names = [p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY]
        for name in kwargs:
            if name in names:
                continue
            if hint is not None and (said := hint(name)):
                return f" {said}"
            alike = difflib.get_close_matches(name, [n for n in names if n not in kwargs], n=1)
            return f" Did you mean {alike[0]!r}?" if alike else ""
        return ""

    def _exact_types(
        self, shown: inspect.Signature, checks: Mapping[str, Check]
    ) -> tuple[type | None, ...] | None:
        """The types of which a call by position needs no closer look; None if no call is that simple."""
        exact: list[type | None] = []
        for name, parameter in shown.parameters.items():
            check = checks.get(name)
            if parameter.kind not in _BY_POSITION or (check is not None and check.exact is None):
                return None
            exact.append(None if check is None else check.exact)
        return tuple(exact)


def _forms(signature: inspect.Signature | None) -> list[tuple[str, Any]] | None:
    return None if signature is None else [(p.name, p.kind) for p in signature.parameters.values()]


def _are_exact(args: tuple[Any, ...], types: tuple[type | None, ...]) -> bool:
    # The short way for most calls: as many as there are parameters, all of the very types annotated.
    if len(args) != len(types):
        return False
    for value, exact in zip(args, types, strict=True):
        if exact is not None and type(value) is not exact:
            return False
    return True
