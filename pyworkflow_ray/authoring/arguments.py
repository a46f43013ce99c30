"""Checks whether the arguments of a call fit its function, before anything is recorded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pyworkflow_ray.authoring.annotations import Check, checks_of
from pyworkflow_ray.exceptions import StepValidationError

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Arguments:
    """Checks calls of one function: names and number against its signature, values against annotations.

    Args:
        function: The function; annotations that cannot be resolved are not checked.
        what: Names the function in errors, as "step 'charge'".
    """

    def __init__(self, function: Callable[..., Any], what: str) -> None:
        self.signature = inspect.signature(function)
        self._function = function
        self._what = what
        self._checks: dict[str, Check] | None = None
        self._exact: tuple[type | None, ...] | None = None

    def check(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as the function will get them, validated and rebuilt by pydantic where annotated.

        Raises:
            StepValidationError: The arguments do not fit; it names function, parameter and expected type.
        """
        if self._exact is not None and not kwargs and _are_exact(args, self._exact):
            return args, {}
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise StepValidationError(
                f"The arguments do not fit {self._what}: {error}. "
                f"It takes {self.signature.replace(return_annotation=inspect.Signature.empty)}."
            ) from None
        if self._checks is None:
            self._checks = checks_of(self._function, self.signature, self._what)
            self._exact = self._exact_types(self._checks)
        for name, check in self._checks.items():
            if name in bound.arguments:
                bound.arguments[name] = check(bound.arguments[name])
        return bound.args, bound.kwargs

    def _exact_types(self, checks: Mapping[str, Check]) -> tuple[type | None, ...] | None:
        """The types of which a call by position needs no closer look; None if no call is that simple."""
        exact: list[type | None] = []
        for name, parameter in self.signature.parameters.items():
            check = checks.get(name)
            if parameter.kind not in _BY_POSITION or (check is not None and check.exact is None):
                return None
            exact.append(None if check is None else check.exact)
        return tuple(exact)


def _are_exact(args: tuple[Any, ...], types: tuple[type | None, ...]) -> bool:
    # The short way for most calls: as many as there are parameters, all of the very types annotated.
    if len(args) != len(types):
        return False
    for value, exact in zip(args, types, strict=True):
        if exact is not None and type(value) is not exact:
            return False
    return True
