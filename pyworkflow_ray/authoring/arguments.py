"""Checks whether the arguments of a call fit its function, before anything is recorded."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from pyworkflow_ray.exceptions import StepValidationError

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


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
        self._checks: dict[str, _Check] | None = None
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
            self._checks = self._build_checks()
            self._exact = self._exact_types(self._checks)
        for name, check in self._checks.items():
            if name in bound.arguments:
                bound.arguments[name] = check(bound.arguments[name])
        return bound.args, bound.kwargs

    def _exact_types(self, checks: Mapping[str, _Check]) -> tuple[type | None, ...] | None:
        """The types of which a call by position needs no closer look; None if no call is that simple."""
        exact: list[type | None] = []
        for name, parameter in self.signature.parameters.items():
            check = checks.get(name)
            if parameter.kind not in _BY_POSITION or (check is not None and check.exact is None):
                return None
            exact.append(None if check is None else check.exact)
        return tuple(exact)

    def _build_checks(self) -> dict[str, _Check]:
        try:
            hints = typing.get_type_hints(self._function, include_extras=True)
        except Exception:
            return {}
        checks = {}
        for name, parameter in self.signature.parameters.items():
            annotation = hints.get(name, Any)
            if parameter.kind in _VARIADIC or annotation is Any or isinstance(annotation, typing.TypeVar):
                continue
            adapter = _adapter(annotation)
            if adapter is not None:
                checks[name] = _Check(self._what, name, annotation, adapter)
        return checks


def _are_exact(args: tuple[Any, ...], types: tuple[type | None, ...]) -> bool:
    # The short way for most calls: as many as there are parameters, all of the very types annotated.
    if len(args) != len(types):
        return False
    for value, exact in zip(args, types, strict=True):
        if exact is not None and type(value) is not exact:
            return False
    return True


class _Check:
    """Validates one parameter."""

    def __init__(self, what: str, name: str, annotation: Any, adapter: TypeAdapter[Any]) -> None:
        self._what, self._name, self._annotation, self._adapter = what, name, annotation, adapter
        # Exact instances of a class need no rebuilding, and most arguments are such.
        self.exact = annotation if isinstance(annotation, type) else None

    def __call__(self, value: Any) -> Any:
        if type(value) is self.exact:
            return value
        try:
            return self._adapter.validate_python(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = "".join(f"[{part!r}]" for part in first["loc"])
            raise StepValidationError(
                f"Argument {self._name + where!r} of {self._what} must be "
                f"{inspect.formatannotation(self._annotation)}, and a value of type "
                f"{type(value).__name__} was given: {first['msg']}."
            ) from None


def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:
        pass  # models and dataclasses bring their own configuration
    except Exception:
        return None
    try:
        return TypeAdapter(annotation)
    except Exception:
        return None
