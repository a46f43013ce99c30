"""Stored values for people to look at: plain JSON in, plain JSON out, and nothing is run or imported.

It works on text alone, so it is safe for values from anywhere. It is lenient where the codec is strict: a tag
of a newer version, or a damaged object, is shown as it is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Plain = Any


def view(plain: Plain) -> Plain:
    """The parsed text of a stored value, in a form for people."""
    if isinstance(plain, list):
        return [view(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    tag = plain.get("$")
    show = _VIEWS.get(tag) if isinstance(tag, str) else None
    if show is not None:
        try:
            return show(plain)
        except RecursionError:
            raise
        except Exception:  # damaged, in whatever way
            pass
    return {key: view(item) for key, item in plain.items()}


def _value(plain: dict[str, Any]) -> Plain:
    return view(plain["value"])


def _items(plain: dict[str, Any]) -> Plain:
    return [view(item) for item in plain["items"]]


def _instant(plain: dict[str, Any]) -> Plain:
    zone = plain.get("zone", plain.get("zone_name"))
    return plain["value"] if zone is None else f"{plain['value']}[{view(zone)}]"


def _dict(plain: dict[str, Any]) -> Plain:
    pairs = [(view(key), view(item)) for key, item in plain["items"]]
    keys = [key if isinstance(key, str) else _compact(key) for key, _ in pairs]
    # 1 and "1" are two keys, and would look like one.
    if len(set(keys)) < len(keys):
        return [[key, item] for key, item in pairs]
    return {key: item for key, (_, item) in zip(keys, pairs, strict=True)}


def _compact(key: Plain) -> str:
    if isinstance(key, list):
        return f"({', '.join(map(_compact, key))})"
    return str(key)


def _timedelta(plain: dict[str, Any]) -> Plain:
    micros = (plain["days"] * 86_400 + plain["seconds"]) * 1_000_000 + plain["microseconds"]
    sign, (seconds, rest) = "-" if micros < 0 else "", divmod(abs(micros), 1_000_000)
    clock = f"{seconds % 86_400 // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    days = f"{seconds // 86_400}d " if seconds >= 86_400 else ""
    return sign + days + clock + (f".{rest:06d}" if rest else "")


def _complex(plain: dict[str, Any]) -> Plain:
    return f"{view(plain['real'])}+{view(plain['imag'])}j".replace("+-", "-")


def _size(plain: dict[str, Any]) -> Plain:
    text = plain["base64"]
    size = len(text) // 4 * 3 - text[-2:].count("=")
    return f"<{plain['$']} of {size} bytes>"


def _enum(plain: dict[str, Any]) -> Plain:
    name = plain["name"] if plain.get("name") is not None else plain["value"]
    return f"{plain['class'].partition(':')[2]}.{name}"


def _instance(plain: dict[str, Any]) -> Plain:
    fields = view(plain["fields"])
    extra = view(plain.get("extra", {}))
    return {"$type": plain["class"], **fields, **extra}


def _pickle(plain: dict[str, Any]) -> Plain:
    return {"$type": plain["type"], "repr": plain["repr"]}


_VIEWS: dict[str, Callable[[dict[str, Any]], Plain]] = {
    "int": _value,
    "float": _value,
    "str": lambda plain: plain["escaped"],
    "bytes": _size,
    "bytearray": _size,
    "complex": _complex,
    "dict": _dict,
    "tuple": _items,
    "set": _items,
    "frozenset": _items,
    "date": _value,
    "datetime": _instant,
    "time": _instant,
    "timedelta": _timedelta,
    "decimal": _value,
    "uuid": _value,
    "path": _value,
    "enum": _enum,
    "dataclass": _instance,
    "pydantic": _instance,
    "struct": _instance,
    "namedtuple": _instance,
    "pickle": _pickle,
    "blob": lambda plain: f"<blob of {int(plain['size'])} bytes>",
    "sealed": lambda plain: "<sealed>",
}
