"""Values as JSON that keeps their types: what JSON has no form for becomes an object with the key ``$``.

`tagged` returns the plain form (dicts, lists, text, numbers) of any value, and `untagged` the value of a
plain form. A tag defines the meaning of the other keys of its object. The tags and their keys are a storage
format: every later version must read the rows of today. So a tag never gets a second meaning. A new form gets
a new tag.

Only exact types are tagged. An instance of a subclass (`OrderedDict`, an int with a unit, a str enum) is not
its base. It is pickled if `values/objects.py` cannot take it apart.
"""

from __future__ import annotations

import base64
import math
import platform
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from pyworkflow_ray.exceptions import SerializationError
from pyworkflow_ray.ids import fits_utf8, storable
from pyworkflow_ray.values import pickles
from pyworkflow_ray.values.error_pickles import pickled_value, text_of
from pyworkflow_ray.values.objects import OBJECT_TAGS, put_together, take_apart

TAG = "$"
MAX_DEPTH = 100
PYTHON = ".".join(platform.python_version_tuple()[:2])
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
_REPR_LENGTH = 200
_REASON_LENGTH = 1000

# A place inside a value: the place of its container, and the step from there. Only an error makes text of
# it.
Place = tuple[Any, str]
Plain = Any


class TooDeepError(Exception):
    """A value is nested deeper than `MAX_DEPTH`, or contains itself. Only a pickle may hold it."""


class UnstorableError(Exception):
    """A value has no stored form. The error has its place and type."""

    def __init__(self, place: str, type_name: str, reason: str) -> None:
        super().__init__(place, type_name, reason)
        self.place, self.type_name, self.reason = place, type_name, reason


_ATOMS = frozenset({str, bool, type(None)})


def is_plain(value: Any, depth: int = MAX_DEPTH) -> bool:  # flat because every value passes
    """Whether JSON holds this value with its type. Text is assumed to be well-formed."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is int:
        return _MIN_INT <= value <= _MAX_INT  # type: ignore[no-any-return]
    if kind is float:
        return math.isfinite(value)
    if kind is dict:
        if TAG in value or not depth:
            return False
        for key, item in value.items():
            if type(key) is not str or not (type(item) in _ATOMS or is_plain(item, depth - 1)):
                return False
        return True
    if kind is list:
        if not depth:
            return False
        for item in value:  # noqa: SIM110  # `all` would make a generator for each list
            if not (type(item) in _ATOMS or is_plain(item, depth - 1)):
                return False
        return True
    return False


def tagged(value: Any, place: Place | None, depth: int = MAX_DEPTH) -> Plain:
    """The plain form of a value.

    Raises:
        TooDeepError: It nests deeper than `depth`.
        UnstorableError: It, or something in it, has no stored form.
    """
    if not depth:
        raise TooDeepError
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](value, place, depth - 1)
    if kind in _SCALARS:
        plain = _SCALARS[kind](value)
        return pickled(value, place) if plain is None else plain
    parts = take_apart(value)
    if parts is None:
        return pickled(value, place)
    form: dict[str, Plain] = {TAG: parts.tag, "class": parts.ref}
    for name, state in parts.state.items():
        # The parts are ours. To the user, a field is right below the instance.
        form[name] = tagged(state, place, depth - 1)
    return form


def untagged(plain: Plain) -> Any:
    """The value that `tagged` was given.

    Raises:
        SerializationError: An object's tag is unknown, or its other keys do not fit the tag.
    """
    kind = type(plain)
    if kind is list:
        return [untagged(item) if type(item) in _NESTING else item for item in plain]
    if kind is not dict:
        return plain
    if TAG not in plain:
        return {key: untagged(item) if type(item) in _NESTING else item for key, item in plain.items()}
    tag = plain[TAG]
    read = _READERS.get(tag) if type(tag) is str else None
    if read is None:
        raise SerializationError(
            f"Cannot read a stored value: its tag {tag!r} is unknown. A newer version of this package may "
            "have written it; read it with that version."
        )
    try:
        return read(plain)
    except (SerializationError, KeyboardInterrupt, RecursionError):
        raise
    except BaseException as error:  # classes have code of their own
        raise SerializationError(
            f"Cannot read a stored value tagged {tag!r}: {type(error).__name__}: "
            f"{text_of(error)[:_REASON_LENGTH]}. The stored text is damaged, or was not written by this "
            f"package: {str(plain)[:_REPR_LENGTH]}"
        ) from error


_NESTING = frozenset({dict, list})


def path_of(place: Place | None, root: str) -> str:
    """The place as text, such as ``$.orders[3].lock``."""
    steps: list[str] = []
    while place is not None:
        place, step = place
        steps.append(step)
    path = root + "".join(reversed(steps))
    return path if len(path) <= 300 else f"{path[:150]}...{path[-147:]}"


def _step(key: Any) -> str:
    if type(key) is str:
        return f".{key}" if key.isidentifier() else f"[{key!r}]"
    return f"[{key!r}]" if type(key) in (int, bool, float, type(None)) else f"[a {type(key).__name__}]"


# --- containers -----------------------------------------------------------------------------------


def _tagged_list(value: list[Any], place: Place | None, depth: int) -> Plain:
    return _tagged_items(value, place, depth)


def _tagged_items(items: Iterable[Any], place: Place | None, depth: int) -> list[Plain]:
    return [tagged(item, (place, f"[{index}]"), depth) for index, item in enumerate(items)]


def _tagged_dict(value: dict[Any, Any], place: Place | None, depth: int) -> Plain:
    if all(type(key) is str and key != TAG and fits_utf8(key) for key in value):
        return {key: tagged(item, (place, _step(key)), depth) for key, item in value.items()}
    pairs = []
    for key, item in value.items():
        inside = (place, _step(key))
        pairs.append([tagged(key, inside, depth), tagged(item, inside, depth)])
    return {TAG: "dict", "items": pairs}


def _tagged_tuple(value: tuple[Any, ...], place: Place | None, depth: int) -> Plain:
    return {TAG: "tuple", "items": _tagged_items(value, place, depth)}


def _tagged_set(value: set[Any] | frozenset[Any], place: Place | None, depth: int) -> Plain:
    # Equal sets give equal text, in whatever order they iterate.
    kinds = {type(item) for item in value}
    if kinds <= {int} or kinds <= {str}:
        items = _tagged_items(sorted(value), place, depth)
    else:
        items = sorted(_tagged_items(value, place, depth), key=msgspec.json.encode)
    return {TAG: type(value).__name__, "items": items}


_CONTAINERS: dict[type, Callable[[Any, Place | None, int], Plain]] = {
    list: _tagged_list,
    dict: _tagged_dict,
    tuple: _tagged_tuple,
    set: _tagged_set,
    frozenset: _tagged_set,
}


# --- scalars: the plain form, or None where there is none -------------------------------------------


def _tagged_int(value: int) -> Plain:
    if _MIN_INT <= value <= _MAX_INT:
        return value
    # Python refuses to write thousands of decimal digits. Hexadecimal digits have no limit.
    return {TAG: "int", "value": str(value) if value.bit_length() < 2000 else hex(value)}


def _tagged_float(value: float) -> Plain:
    return value if math.isfinite(value) else {TAG: "float", "value": repr(value)}


def _tagged_str(value: str) -> Plain:
    return value if fits_utf8(value) else {TAG: "str", "escaped": _escaped(value)}


def _escaped(value: str) -> str:
    return value.encode("unicode_escape").decode("ascii")


def _tagged_bytes(value: bytes | bytearray) -> Plain:
    return {TAG: type(value).__name__, "base64": base64.b64encode(value).decode()}


def _tagged_complex(value: complex) -> Plain:
    return {TAG: "complex", "real": _tagged_float(value.real), "imag": _tagged_float(value.imag)}


def _tagged_date(value: date) -> Plain:
    return {TAG: "date", "value": value.isoformat()}


def _tagged_clock(value: datetime | time) -> Plain:
    zone = _zone_of(value.tzinfo)
    if zone is None:
        return None
    form = {TAG: type(value).__name__, "value": value.isoformat(), **zone}
    if value.fold:
        form["fold"] = 1
    return form


def _zone_of(zone: tzinfo | None) -> dict[str, Any] | None:
    """The keys for the zone, beside the ISO text; None for a kind of zone that only a pickle keeps."""
    if zone is None:
        return {}
    if type(zone) is timezone:
        # Only this distinguishes a name that was given from one that Python derives from the offset.
        named = zone.__getinitargs__()[1:]  # type: ignore[attr-defined]
        return {"zone_name": _tagged_str(named[0])} if named and type(named[0]) is str else {}
    if type(zone) is ZoneInfo and type(zone.key) is str:
        return {"zone": zone.key}
    return None


def _tagged_timedelta(value: timedelta) -> Plain:
    return {
        TAG: "timedelta",
        "days": value.days,
        "seconds": value.seconds,
        "microseconds": value.microseconds,
    }


def _tagged_text_of(tag: str) -> Callable[[Any], Plain]:
    return lambda value: {TAG: tag, "value": str(value)}


def _tagged_path(value: PurePosixPath | PureWindowsPath) -> Plain:
    return {TAG: "path", "kind": type(value).__name__, "value": _tagged_str(str(value))}


_PATHS: dict[str, Any] = {
    cls.__name__: cls for cls in (PosixPath, PurePosixPath, WindowsPath, PureWindowsPath)
}

_SCALARS: dict[type, Callable[[Any], Plain]] = {
    int: _tagged_int,
    float: _tagged_float,
    str: _tagged_str,
    bytes: _tagged_bytes,
    bytearray: _tagged_bytes,
    complex: _tagged_complex,
    date: _tagged_date,
    datetime: _tagged_clock,
    time: _tagged_clock,
    timedelta: _tagged_timedelta,
    Decimal: _tagged_text_of("decimal"),
    UUID: _tagged_text_of("uuid"),
    **dict.fromkeys(_PATHS.values(), _tagged_path),
}


# --- pickles ----------------------------------------------------------------------------------------


_OF_A_PROCESS = ("ray.ObjectRef", "ray._raylet.ObjectRef", "ray._raylet.ObjectRefGenerator")
"""Types that could be pickled, but mean nothing later."""


def pickled(value: Any, place: Place | None) -> Plain:
    """The value as a pickle, with text beside it that a person can read."""
    if type_name(value) in _OF_A_PROCESS:
        reason = (
            "it ends with the process that made it, and the history lasts longer. Return the value, or "
            "where it is kept"
        )
        raise UnstorableError(path_of(place, ""), type_name(value), reason)
    try:
        data = pickled_value(value) if isinstance(value, BaseException) else pickles.pickled(value)
    except KeyboardInterrupt:
        raise  # somebody interrupts this code
    except BaseException as error:  # the value's own code may raise anything, and even exit
        text = text_of(error)[:_REASON_LENGTH]
        reason = text if isinstance(error, TypeError) else f"{type(error).__name__}: {text}"
        raise UnstorableError(path_of(place, ""), type_name(value), reason) from error
    return {
        TAG: "pickle",
        "type": type_name(value),
        "repr": _repr_of(value),
        "python": PYTHON,
        "data": base64.b64encode(data).decode(),
    }


def type_name(value: Any) -> str:
    """The value's type as ``module.Name``."""
    cls = type(value)
    return storable(f"{cls.__module__}.{cls.__qualname__}")


def _repr_of(value: Any) -> str:
    try:
        text = repr(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the repr is for people; a broken one must not stop a value
        return f"<its repr raised {type(error).__name__}>"
    return storable(text if len(text) <= _REPR_LENGTH else text[: _REPR_LENGTH - 3] + "...")


def _read_pickle(plain: dict[str, Any]) -> Any:
    data = _bytes_in(plain, "data")
    try:
        return pickles.unpickle(data)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        written = plain.get("python")
        message = (
            f"Cannot unpickle a stored value of type {plain.get('type')}: {type(error).__name__}: "
            f"{text_of(error)[:_REASON_LENGTH]}."
        )
        if written != PYTHON:
            message += f" Python {written} pickled it, and this is Python {PYTHON}: use one version for both."
        raise SerializationError(message) from error


# --- readers ----------------------------------------------------------------------------------------


def _taken(plain: dict[str, Any], name: str, kind: type) -> Any:
    """The tagged object's key `name`, which must be there and be of this type."""
    item = plain[name]
    if type(item) is not kind:
        raise ValueError(f"its {name!r} is not of type {kind.__name__}")
    return item


def _items_in(plain: dict[str, Any]) -> list[Any]:
    items: list[Any] = untagged(_taken(plain, "items", list))
    return items


def _bytes_in(plain: dict[str, Any], name: str) -> bytes:
    return base64.b64decode(_taken(plain, name, str), validate=True)


def _text_in(plain: dict[str, Any], name: str) -> str:
    text = untagged(plain[name])
    if type(text) is not str:
        raise ValueError(f"its {name!r} is not text")
    return text


def _read_dict(plain: dict[str, Any]) -> Any:
    items = _taken(plain, "items", list)
    if not all(type(pair) is list and len(pair) == 2 for pair in items):
        raise ValueError("its 'items' are not pairs")
    return {untagged(key): untagged(item) for key, item in items}


def _read_int(plain: dict[str, Any]) -> Any:
    text = _taken(plain, "value", str)
    return int(text, 16 if "x" in text else 10)


def _read_clock(cls: Any) -> Callable[[dict[str, Any]], Any]:
    def read(plain: dict[str, Any]) -> Any:
        value = cls.fromisoformat(_taken(plain, "value", str))
        if "zone" in plain:
            value = value.replace(tzinfo=ZoneInfo(_taken(plain, "zone", str)))
        elif "zone_name" in plain:
            value = value.replace(tzinfo=timezone(value.utcoffset(), _text_in(plain, "zone_name")))
        return value.replace(fold=1) if plain.get("fold") == 1 else value

    return read


def _read_timedelta(plain: dict[str, Any]) -> Any:
    return timedelta(**{name: _taken(plain, name, int) for name in ("days", "seconds", "microseconds")})


def _read_complex(plain: dict[str, Any]) -> Any:
    real, imag = untagged(plain["real"]), untagged(plain["imag"])
    if type(real) is not float or type(imag) is not float:
        raise ValueError("its 'real' and 'imag' are not floats")
    return complex(real, imag)


def _read_object(plain: dict[str, Any]) -> Any:
    state = {name: untagged(item) for name, item in plain.items() if name not in (TAG, "class")}
    return put_together(plain[TAG], plain.get("class"), state)


def _read_blob(plain: dict[str, Any]) -> Any:
    raise SerializationError(
        f"This value is stored as blob {plain.get('hash')} of {plain.get('size')} bytes: fetch the blob and "
        "decode its bytes instead."
    )


def _read_sealed(plain: dict[str, Any]) -> Any:
    raise SerializationError(
        "This value is sealed (encrypted): configure the payload codec that sealed it to read it."
    )


_READERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "int": _read_int,
    "float": lambda plain: float(_taken(plain, "value", str)),
    "str": lambda plain: _taken(plain, "escaped", str).encode("ascii").decode("unicode_escape"),
    "bytes": lambda plain: _bytes_in(plain, "base64"),
    "bytearray": lambda plain: bytearray(_bytes_in(plain, "base64")),
    "complex": _read_complex,
    "dict": _read_dict,
    "tuple": lambda plain: tuple(_items_in(plain)),
    "set": lambda plain: set(_items_in(plain)),
    "frozenset": lambda plain: frozenset(_items_in(plain)),
    "date": lambda plain: date.fromisoformat(_taken(plain, "value", str)),
    "datetime": _read_clock(datetime),
    "time": _read_clock(time),
    "timedelta": _read_timedelta,
    "decimal": lambda plain: Decimal(_taken(plain, "value", str)),
    "uuid": lambda plain: UUID(_taken(plain, "value", str)),
    "path": lambda plain: _PATHS[_taken(plain, "kind", str)](_text_in(plain, "value")),
    "pickle": _read_pickle,
    "blob": _read_blob,
    "sealed": _read_sealed,
    **dict.fromkeys(OBJECT_TAGS, _read_object),
}
