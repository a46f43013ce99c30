"""What the annotation of a parameter says of its argument, as a check that pydantic carries out."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import operator
import types
import typing
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticCustomError, core_schema

from pyworkflow_ray.exceptions import StepValidationError

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Check:
    """Validates the argument of one parameter.

    Args:
        what: Names the function in errors, as "step 'charge'".
        name: The parameter.
        annotation: What it is annotated with.
        validator: What validates it.
    """

    def __init__(self, what: str, name: str, annotation: Any, validator: Validator) -> None:
        self._what, self._name, self._annotation, self._validator = what, name, annotation, validator
        # Instances of a class need no rebuilding, and most arguments are such. A check by `isinstance` may
        # run code of the class, so there is a short way for exact instances too.
        self.exact = annotation if isinstance(annotation, type) else None

    def __call__(self, value: Any) -> Any:
        if type(value) is self.exact or _is_instance(value, self.exact):
            return value
        try:
            return self._validator.validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = "".join(f"[{part!r}]" for part in first["loc"][self._validator.hidden :])
            raise StepValidationError(
                f"Argument {self._name + where!r} of {self._what} must be "
                f"{inspect.formatannotation(self._annotation)}, and a value of type "
                f"{type(value).__name__} was given: {first['msg']}."
            ) from None


def checks_of(function: Callable[..., Any], signature: inspect.Signature, what: str) -> dict[str, Check]:
    """The checks of a function's parameters, by name. What nothing can be said of has none."""
    hints = _hints_of(function)
    checks = {}
    for name, parameter in signature.parameters.items():
        annotation = hints.get(name, Any)
        if parameter.kind in _VARIADIC or annotation is Any or isinstance(annotation, typing.TypeVar):
            continue
        validator = _validator_of(annotation)
        if validator is not None:
            checks[name] = Check(what, name, annotation, validator)
    return checks


def _is_instance(value: Any, cls: type | None) -> bool:
    if cls is None:
        return False
    try:
        return isinstance(value, cls)
    except Exception:  # a protocol that is not for this, or a metaclass with a mind of its own
        return False


# --- annotations ------------------------------------------------------------------------------------


def _hints_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:
        pass
    # One of them names what is not there: something that is imported for type checkers alone, or defined in
    # a function. The others can be resolved.
    try:
        inner = inspect.unwrap(function)
        written = dict(inner.__annotations__)
    except Exception:
        return {}
    names = getattr(inner, "__globals__", {})
    hints: dict[str, Any] = {}
    for name, annotation in written.items():
        alone = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            hints |= typing.get_type_hints(alone, names, include_extras=True)
        except Exception:
            continue
    return hints


class Validator(NamedTuple):
    """Gives an argument as pydantic rebuilds it, or raises `ValidationError`."""

    validate: Callable[[Any], Any]
    hidden: int = 0
    """How many steps at the beginning of an error's place are not in the argument."""


def _validator_of(annotation: Any) -> Validator | None:
    annotation = _with_whole_iterables(annotation)
    try:
        return Validator(TypeAdapter(annotation, config=_ANYTHING).validate_python)
    except PydanticUserError:
        pass  # models and dataclasses bring their own configuration
    except Exception:
        return None
    for make in (_validator, _validator_inside):
        try:
            return make(annotation)
        except Exception:
            continue
    return None


_ANYTHING = ConfigDict(arbitrary_types_allowed=True)


def _validator(annotation: Any) -> Validator:
    return Validator(TypeAdapter(annotation).validate_python)


def _validator_inside(annotation: Any) -> Validator | None:
    """As `_validator`, for a dataclass with fields of types that pydantic does not know."""
    if not dataclasses.is_dataclass(annotation):
        return None
    # A dataclass of the standard library takes the configuration of what it is in, and only that.
    one: Any = types.GenericAlias(tuple, (annotation,))
    adapter: TypeAdapter[Any] = TypeAdapter(one, config=_ANYTHING)
    return Validator(lambda value: adapter.validate_python((value,))[0], hidden=1)


# --- iterables --------------------------------------------------------------------------------------

_ITERABLES = frozenset(
    {
        collections.abc.Iterable,
        collections.abc.Iterator,
        collections.abc.Generator,
        collections.abc.AsyncIterable,
        collections.abc.AsyncIterator,
        collections.abc.AsyncGenerator,
    }
)
_WITH_ITEMS = (list, tuple, set, frozenset, deque)


def _with_whole_iterables(annotation: Any) -> Any:
    """The annotation, with what leaves an iterable as it is in place of each ``Iterable[...]``.

    pydantic makes of it an iterator that can be read once and be stored nowhere.
    """
    if isinstance(annotation, str) or annotation in (Ellipsis, None):
        return annotation
    origin = typing.get_origin(annotation)
    if annotation in _ITERABLES or origin in _ITERABLES:
        items = typing.get_args(annotation)
        return Annotated[Any, _Whole(origin or annotation, items[0] if items else Any)]
    if origin is None or origin is typing.Literal:
        return annotation
    arguments = typing.get_args(annotation)
    if origin is Annotated:
        inner = _with_whole_iterables(arguments[0])
        return annotation if inner is arguments[0] else Annotated[(inner, *arguments[1:])]
    try:
        changed = tuple(map(_with_whole_iterables, arguments))
    except TypeError:  # of a form that cannot be hashed, such as the parameters of a Callable
        return annotation
    if all(map(operator.is_, arguments, changed)):
        return annotation
    if origin in (typing.Union, types.UnionType):
        return typing.Union[changed]  # noqa: UP007
    return origin[changed]


class _Whole:
    """An iterable that stays what it is. The items of lists, tuples and sets are checked."""

    def __init__(self, kind: Any, item: Any) -> None:
        self._kind, self._item = kind, item
        self._validators: dict[type, Validator | None] = {}

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._checked)

    def _checked(self, value: Any) -> Any:
        # A list is what a caller gives for an iterator as well: a step's arguments are stored.
        wanted: tuple[Any, ...] = (self._kind,)
        if not issubclass(self._kind, collections.abc.AsyncIterable):
            wanted = (self._kind, Iterable)
        if not isinstance(value, wanted):
            raise PydanticCustomError("iterable_type", "Input should be iterable")
        kind = type(value)
        if self._item is Any or kind not in _WITH_ITEMS:
            return value
        if kind not in self._validators:
            items = (self._item, ...) if kind is tuple else (self._item,)
            self._validators[kind] = _validator_of(types.GenericAlias(kind, items))
        validator = self._validators[kind]
        return value if validator is None else validator.validate(value)
