"""Exceptions as pickles that call none of their code, and keep what can be kept.

Python pickles an exception as a call of its class with its `args`. That fails, or doubles the message, for
each class whose own `__init__` calls ``super().__init__(f"...")``, and most do. So there are three forms. The
first that gives an equal exception is taken: Python's own; the instance's class, `args` and attributes; and,
if neither does, the *remains*, in which what cannot be stored is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, NamedTuple, TypeVar

import pydantic_core
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError

from pyworkflow_ray.ids import storable
from pyworkflow_ray.values import pickles

MAX_PICKLE = 256 * 1024
MAX_TEXT = 20_000
_MAX_PART = 64 * 1024
_MAX_DEPTH = 5
_MAX_REPR = 200
_MAX_ITEMS = 100
LOST = "Not all of this error could be stored. Lost: "
"""The beginning of the note that says what an exception is without."""
_T = TypeVar("_T")


class ErrorPickle(NamedTuple):
    """The pickle of an exception; None if its class cannot be stored."""

    data: bytes | None
    lost: tuple[str, ...] = ()
    """What is not in the pickle, for people: the place, and the type of what was there."""


def pickle_error(error: BaseException) -> ErrorPickle:
    """The exception's pickle, without traceback and causes. Nothing that the exception does is raised."""
    for form in (error, _ByState(error)):
        data = tried(None, lambda form=form: _round_trip(form, error))  # type: ignore[misc]
        if data is not None:
            return ErrorPickle(data)
    return tried(ErrorPickle(None), lambda: _pickle_of_remains(error))


def pickled_value(error: BaseException) -> bytes:
    """The pickle of an exception that is a value, and not raised: a result, or an argument.

    Raises:
        Exception: It cannot be pickled, also without what cannot be stored of it.
    """
    for form in (error, _ByState(error)):
        data = tried(None, lambda form=form: _round_trip(form, error, None))  # type: ignore[misc]
        if data is not None:
            return data
    return tried(None, lambda: _pickle_of_noted_remains(error)) or pickles.pickled(error)


def _pickle_of_noted_remains(error: BaseException) -> bytes:
    str(error)  # see `_pickle_of_remains`
    lost: list[str] = []
    remains = _remains_of(error, "", lost, _MAX_DEPTH)
    data = pickles.pickled(_Call(noted, remains, lost))
    pickles.unpickle(data)
    return data


def noted(error: BaseException, lost: Sequence[str]) -> BaseException:
    """The exception, with a note about what it is without."""
    if lost:
        add_note(error, f"{LOST}{'; '.join(lost)}.")
    return error


def add_note(error: BaseException, text: str) -> None:
    """Add a note to an exception, if its class lets anybody."""
    tried(None, lambda: error.add_note(text))


def load_error(data: bytes) -> BaseException | None:
    """The exception that `pickle_error` was given; None if it is none.

    Raises:
        Exception: Whatever loading it raises.
    """
    error = pickles.unpickle(data)
    return error if isinstance(error, BaseException) else None


def tried(default: _T, function: Callable[[], _T]) -> _T:
    """What the function returns; the default if it raises. An exception's own methods may raise anything."""
    try:
        return function()
    except KeyboardInterrupt:
        raise
    except BaseException:
        return default


def text_of(error: BaseException) -> str:
    """The text of an error. Its own `__str__` may raise anything."""
    try:
        text = str(error)
    except KeyboardInterrupt:
        raise  # somebody interrupts this code
    except BaseException as second:
        return f"<its __str__ raised {type(second).__name__}>"
    return storable(_cut(text, MAX_TEXT))


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _round_trip(form: Any, error: BaseException, limit: int | None = MAX_PICKLE) -> bytes | None:
    data = pickles.pickled(form)
    return data if (limit is None or len(data) <= limit) and _is_same(error, pickles.unpickle(data)) else None


def _is_same(error: BaseException, copy: Any) -> bool:
    return _are_alike(error, copy) and text_of(error) == text_of(copy)


def _are_alike(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, BaseException):
        held, others = _held_by(one), _held_by(other)
        is_held = held.keys() == others.keys() and all(type(held[key]) is type(others[key]) for key in held)
        return is_held and _are_alike(one.args, other.args)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_are_alike, one, other))
    # An object without an `__eq__` equals no copy of it. NaN does not even equal itself.
    has_equality: bool = type(one).__eq__ is not object.__eq__  # type: ignore[comparison-overlap]
    return not has_equality or bool(one == other) or bool(one != one and other != other)  # noqa: PLR0124


def _held_by(error: BaseException) -> dict[str, Any]:
    """What the instance holds besides its `args`: in its dict, and in the slots of its bases."""
    held = {}
    for name, member in _slots_of(type(error)):  # type: ignore[arg-type]  # a class can be hashed
        value = tried(None, lambda member=member: member.__get__(error))  # type: ignore[misc]
        if value is not None:
            held[name] = value
    return held | error.__dict__


@lru_cache(maxsize=256)
def _slots_of(cls: type[BaseException]) -> list[tuple[str, Any]]:
    return [
        (name, member)
        for base in reversed(cls.__mro__[:-1])
        for name, member in vars(base).items()
        if isinstance(member, _SLOTS) and not name.startswith("__") and name not in _GIVEN
    ]


_SLOTS = (MemberDescriptorType, GetSetDescriptorType)
_GIVEN = frozenset({"args", "exceptions", "message"})
"""What an exception is made with: `args`, or what a group has in their place."""


# --- by state -----------------------------------------------------------------------------------------


class _ByState:
    """An exception in the form of a pickle that calls no `__init__`."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        error = self.error
        if not _is_pickled_as_usual(type(error)):
            raise TypeError(f"{type(error).__qualname__} defines how it is pickled.")
        args = error.args
        if isinstance(error, BaseExceptionGroup):
            args = (error.message, [_form_of(part) for part in error.exceptions])
        return by_state, (type(error), args, error.__dict__)


def _form_of(error: BaseException) -> Any:
    return _ByState(error) if _is_pickled_as_usual(type(error)) else error


def _is_pickled_as_usual(cls: type[BaseException]) -> bool:
    return cls.__reduce__ is BaseException.__reduce__ and cls.__reduce_ex__ is object.__reduce_ex__


def by_state(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


# --- remains ------------------------------------------------------------------------------------------


class LostValue:
    """Stands among the `args` of an exception for what could not be stored, and shows itself as that did."""

    def __init__(self, type_name: str, text: str, representation: str) -> None:
        self.type_name, self._text, self._representation = type_name, text, representation

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self._representation


class _Call:
    """Something in the form of a pickle that makes it by a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _pickle_of_remains(error: BaseException) -> ErrorPickle:
    str(error)  # what is not even whole here is nothing to hand on in parts: this raises
    lost: list[str] = []
    data = pickles.pickled(_remains_of(error, "", lost, _MAX_DEPTH))
    copy = pickles.unpickle(data)
    if type(copy) is not type(error) or len(data) > MAX_PICKLE:
        return ErrorPickle(None)
    text = text_of(error)
    if text_of(copy) != text:
        lost.append(f"its text, which was: {text}")
    return ErrorPickle(data, tuple(lost))


def _remains_of(error: BaseException, place: str, lost: list[str], depth: int) -> _Call:
    cls = type(error)
    if cls is pydantic_core.ValidationError:
        return _validation_remains(error, place, lost, depth)
    args: tuple[Any, ...]
    if isinstance(error, BaseExceptionGroup):
        inner = [
            _part_of(each, f"{place}exceptions[{index}]", lost, depth)
            for index, each in enumerate(error.exceptions)
        ]
        args = (error.message, inner)
    else:
        args = tuple(
            _part_of(each, f"{place}args[{index}]", lost, depth) for index, each in enumerate(error.args)
        )
    parts = {name: _part_of(value, f"{place}{name}", lost, depth) for name, value in _held_by(error).items()}
    attributes = {name: value for name, value in parts.items() if not isinstance(value, LostValue)}
    return _Call(put_together, cls, args, attributes)


def _part_of(value: Any, place: str, lost: list[str], depth: int) -> Any:
    """A value that is a part of an exception, in a form that can be pickled."""
    if isinstance(value, BaseException) and depth:
        for form in (value, _ByState(value)):
            if tried(None, lambda form=form: _round_trip(form, value)) is not None:  # type: ignore[misc]
                return form
        return _remains_of(value, f"{place}.", lost, depth - 1)
    if value is None or type(value) in (bool, int, float):
        return value
    if tried(False, lambda: _can_be_pickled(value)):
        return value
    inside = _inside_of(value, place, lost, depth - 1) if depth else None
    if inside is not None:
        return inside
    name = storable(f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins."))
    lost.append(f"{place} (a value of type {name})")
    text, shown = (tried(f"<{name}>", lambda show=show: storable(show(value))) for show in (str, repr))  # type: ignore[misc]
    return LostValue(name, _cut(text, MAX_TEXT), _cut(shown, _MAX_REPR))


def _inside_of(value: Any, place: str, lost: list[str], depth: int) -> Any:
    """A small container without what cannot be pickled in it; None if the value is none."""
    kind = type(value)
    if kind is dict and 0 < len(value) <= _MAX_ITEMS and all(type(key) is str for key in value):
        return {key: _part_of(item, f"{place}[{key!r}]", lost, depth) for key, item in value.items()}
    names = getattr(kind, "_fields", None)
    if kind not in (list, tuple) and not (isinstance(value, tuple) and isinstance(names, tuple)):
        return None
    if not 0 < len(value) <= _MAX_ITEMS:
        return None
    places = [f".{name}" for name in names] if names else [f"[{index}]" for index in range(len(value))]
    items = [
        _part_of(item, f"{place}{where}", lost, depth) for where, item in zip(places, value, strict=True)
    ]
    return items if kind is list else _Call(tuple.__new__, kind, items)


def _can_be_pickled(value: Any) -> bool:
    data = pickles.pickled(value)
    return len(data) <= _MAX_PART and type(pickles.unpickle(data)) is type(value)


def put_together(
    cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]
) -> BaseException:
    """An instance of the class, made without its own `__new__` and `__init__`."""
    native: Any = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    given = args
    if issubclass(cls, OSError) and len(args) == 2 and "filename" in attributes:
        # Python takes the names of files off the `args` of such an error.
        given = (*args, attributes["filename"], None, attributes.get("filename2"))
    error: BaseException = native.__new__(cls, *given)
    with contextlib.suppress(Exception):
        native.__init__(error, *given)
    error.args = args
    for name, value in attributes.items():
        if isinstance(getattr(cls, name, None), _SLOTS):
            with contextlib.suppress(Exception):
                getattr(cls, name).__set__(error, value)
        else:
            error.__dict__[name] = value
    return error


# --- pydantic's errors --------------------------------------------------------------------------------


def _validation_remains(error: Any, place: str, lost: list[str], depth: int) -> _Call:
    # The class has no constructor and cannot be subclassed; it is made of its errors.
    lines = []
    for line in error.errors(include_url=False):
        for name in ("input", "ctx"):
            if name in line:
                line[name] = _part_of(line[name], f"{place}{name}", lost, depth)
        lines.append(line)
    hides_input = "input_value=" not in str(error)
    return _Call(validation_error, error.title, lines, hides_input, dict(error.__dict__))


def validation_error(
    title: str, lines: list[dict[str, Any]], hides_input: bool, attributes: dict[str, Any]
) -> BaseException:
    """The error with which pydantic refused a value."""
    errors = [
        InitErrorDetails(type=_kind_of(line), loc=line["loc"], input=line["input"], ctx=line.get("ctx", {}))
        for line in lines
    ]
    error = pydantic_core.ValidationError.from_exception_data(title, errors, hide_input=hides_input)
    error.__dict__.update(attributes)
    return error


def _kind_of(line: dict[str, Any]) -> Any:
    try:
        PydanticKnownError(line["type"], line.get("ctx"))
    except KeyError:
        return PydanticCustomError(line["type"], line["msg"].replace("{", "{{").replace("}", "}}"))
    return line["type"]
