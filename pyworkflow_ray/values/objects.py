"""Taking instances of classes apart into named parts, and putting them together again.

This is done only where nothing is lost: every process can import the class by the reference that is written,
and the instance holds exactly what its kind of class declares. An instance that has other state, or defines
how it is pickled, is pickled.
"""

from __future__ import annotations

import dataclasses
from enum import Enum, EnumType, Flag
from types import MemberDescriptorType
from typing import Any, NamedTuple

import msgspec
from pydantic import BaseModel

from pyworkflow_ray.exceptions import SerializationError
from pyworkflow_ray.values.modules import load_reference, reference_of


class Parts(NamedTuple):
    """An instance in parts: the tag of its kind, the reference of its class, and its state by name."""

    tag: str
    ref: str
    state: dict[str, Any]


def take_apart(value: Any) -> Parts | None:
    """The parts of an instance; None if something of it would be lost."""
    cls = type(value)
    kind = _kind_of(cls)
    if kind is None:
        return None
    ref = reference_of(cls)
    if ref is None:
        return None
    state = _TAKE[kind](value)
    return None if state is None else Parts(kind, ref, state)


def put_together(tag: str, ref: Any, state: dict[str, Any]) -> Any:
    """The instance that `take_apart` was given.

    Raises:
        SerializationError: The class is not there, or is not of the tag's kind.
        Exception: The state does not fit. The class's own code may raise anything.
    """
    if type(ref) is not str:
        raise ValueError("its 'class' is not text")
    cls = load_reference(ref)
    if not isinstance(cls, type) or _kind_of(cls) != tag:
        raise SerializationError(f"{ref!r} is stored as a {tag}, but it names no class of this kind now.")
    return _PUT[tag](cls, state)


OBJECT_TAGS = ("enum", "dataclass", "pydantic", "struct", "namedtuple")


def _kind_of(cls: type) -> str | None:
    if isinstance(cls, EnumType):
        return "enum"
    if issubclass(cls, BaseModel):
        return "pydantic" if _is_pickled_as(cls, "pydantic.main", "pydantic.root_model") else None
    if issubclass(cls, msgspec.Struct):
        own = cls.__reduce__ is msgspec.Struct.__reduce__ and cls.__reduce_ex__ is object.__reduce_ex__
        return "struct" if own else None
    if issubclass(cls, tuple):
        return "namedtuple" if _is_namedtuple(cls) else None
    # A base with a layout of its own (dict, Exception) has state beside the fields.
    if dataclasses.is_dataclass(cls) and cls.__new__ is object.__new__:
        return "dataclass" if _is_pickled_as(cls, "dataclasses") else None
    return None


def _is_pickled_as(cls: type, *modules: str) -> bool:
    """Whether the class leaves its pickling to `object`, or to one of these modules."""
    for name in ("__reduce__", "__reduce_ex__", "__getstate__"):
        method = getattr(cls, name)
        if method is not getattr(object, name) and getattr(method, "__module__", None) not in modules:
            return False
    restore = getattr(cls, "__setstate__", None)
    return (restore is None or getattr(restore, "__module__", None) in modules) and not hasattr(
        cls, "__getnewargs_ex__"
    )


# --- enums ----------------------------------------------------------------------------------------


def _take_enum(value: Enum) -> dict[str, Any] | None:
    name = value._name_
    if type(value).__members__.get(name) is value:
        return {"name": name}
    if isinstance(value, Flag) and type(value._value_) is int:  # a combination: its name is for people
        return {"name": name, "value": value._value_}
    return None


def _put_enum(cls: Any, state: dict[str, Any]) -> Any:
    if "value" in state:
        if not issubclass(cls, Flag) or type(state["value"]) is not int:
            raise ValueError("only flags have a number for their value")
        return cls(state["value"])
    name = state["name"]
    if type(name) is not str or name not in cls.__members__:
        raise SerializationError(f"The enum {cls.__module__}.{cls.__qualname__} has no member {name!r} now.")
    return cls.__members__[name]


# --- dataclasses ----------------------------------------------------------------------------------


def _slots_of(cls: type) -> set[str]:
    return {
        name
        for base in cls.__mro__
        for name, member in vars(base).items()
        if isinstance(member, MemberDescriptorType)
    }


def _attributes_of(value: Any) -> dict[str, Any] | None:
    """All that the instance holds, in its dict and its slots, read without running its code.

    None if two of its base classes have a slot of the same name, because one hides the other.
    """
    attributes: dict[str, Any] = {}
    for base in type(value).__mro__:
        for name, member in vars(base).items():
            if isinstance(member, MemberDescriptorType):
                if name in attributes:
                    return None
                try:
                    attributes[name] = member.__get__(value)
                except AttributeError:  # declared, never set
                    continue
    try:
        held = object.__getattribute__(value, "__dict__")
    except AttributeError:
        held = {}
    return {**attributes, **held}


def _take_dataclass(value: Any) -> dict[str, Any] | None:
    fields = dataclasses.fields(value)
    attributes = _attributes_of(value)
    if attributes is None:
        return None
    for field in fields:
        # The default of such a field is on the class until somebody sets the field.
        if not field.init and field.default is not dataclasses.MISSING:
            attributes.setdefault(field.name, field.default)
    if attributes.keys() != {field.name for field in fields}:
        return None
    return {"fields": {field.name: attributes[field.name] for field in fields}}


def _put_dataclass(cls: Any, state: dict[str, Any]) -> Any:
    stored = _names(state, "fields")
    values = {}
    for field in dataclasses.fields(cls):
        # The class may have gained a field since then. If it has a default, that is what was meant.
        if field.name in stored:
            values[field.name] = stored.pop(field.name)
        elif field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
        else:
            raise _changed(cls, f"the stored value has no {field.name!r}")
    if stored:
        raise _changed(cls, f"the class has no {', '.join(map(repr, stored))}")
    made = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


# --- pydantic models -------------------------------------------------------------------------------


def _take_model(value: BaseModel) -> dict[str, Any] | None:
    held = object.__getattribute__(value, "__dict__")
    extra, private = value.__pydantic_extra__, value.__pydantic_private__
    # More than the fields is a cached property or the like. Less is a model that skipped validation. Only a
    # pickle keeps these.
    if held.keys() != type(value).model_fields.keys() or _slots_of(type(value)) - _MODEL_SLOTS:
        return None
    state: dict[str, Any] = {"fields": dict(held), "set": sorted(value.__pydantic_fields_set__)}
    if extra is not None:
        state["extra"] = dict(extra)
    if private is not None:
        state["private"] = {name: item for name, item in private.items() if not _is_undefined(item)}
    return state


_MODEL_SLOTS = _slots_of(BaseModel)


def _is_undefined(item: Any) -> bool:
    return type(item).__name__ == "PydanticUndefinedType"


def _put_model(cls: Any, state: dict[str, Any]) -> Any:
    fields, names = _names(state, "fields"), state["set"]
    if type(names) is not list or not all(type(name) is str for name in names):
        raise ValueError("its 'set' is not a list of names")
    unknown = fields.keys() - cls.model_fields.keys()
    if unknown:
        raise _changed(cls, f"the class has no {', '.join(map(repr, sorted(unknown)))}")
    for name, field in cls.model_fields.items():
        if name not in fields:  # the class has gained it since then, as for dataclasses
            if field.is_required():
                raise _changed(cls, f"the stored value has no {name!r}")
            fields[name] = field.get_default(call_default_factory=True, validated_data=fields)
    made = cls.__new__(cls)
    object.__setattr__(made, "__dict__", fields)
    object.__setattr__(made, "__pydantic_fields_set__", set(names))
    for name in ("extra", "private"):
        object.__setattr__(made, f"__pydantic_{name}__", _names(state, name) if name in state else None)
    return made


# --- msgspec structs --------------------------------------------------------------------------------


def _take_struct(value: Any) -> dict[str, Any] | None:
    try:
        fields = {name: getattr(value, name) for name in type(value).__struct_fields__}
    except AttributeError:  # a field was deleted, which the constructor could not repeat
        return None
    state: dict[str, Any] = {"fields": fields}
    attributes = getattr(value, "__dict__", None)
    if attributes:  # `class S(Struct, dict=True)`; a pickle would lose these
        state["attributes"] = dict(attributes)
    return state


def _put_struct(cls: Any, state: dict[str, Any]) -> Any:
    fields = _names(state, "fields")
    unknown = fields.keys() - set(cls.__struct_fields__)
    if unknown:
        raise _changed(cls, f"the class has no {', '.join(map(repr, sorted(unknown)))}")
    made = cls(**fields)
    for name, value in fields.items():
        # `__post_init__` has run a second time, and may have changed what it changed before.
        if getattr(made, name) is not value:
            msgspec.structs.force_setattr(made, name, value)
    if "attributes" in state:
        made.__dict__.update(_names(state, "attributes"))
    return made


# --- named tuples -------------------------------------------------------------------------------------


def _is_namedtuple(cls: type) -> bool:
    names = getattr(cls, "_fields", None)
    return (
        type(names) is tuple
        and all(type(name) is str for name in names)
        and isinstance(getattr(cls, "_field_defaults", None), dict)
        and _is_pickled_as(cls)
    )


def _take_namedtuple(value: Any) -> dict[str, Any] | None:
    names = type(value)._fields
    if tuple.__len__(value) != len(names) or getattr(value, "__dict__", None):
        return None
    return {"fields": dict(zip(names, tuple.__iter__(value), strict=True))}


def _put_namedtuple(cls: Any, state: dict[str, Any]) -> Any:
    fields = {**cls._field_defaults, **_names(state, "fields")}
    if fields.keys() != set(cls._fields):
        raise _changed(cls, f"the stored value has {', '.join(fields)}, the class {', '.join(cls._fields)}")
    return tuple.__new__(cls, [fields[name] for name in cls._fields])


def _names(state: dict[str, Any], part: str) -> dict[str, Any]:
    names = state[part]
    if type(names) is not dict or not all(type(name) is str for name in names):
        raise ValueError(f"its {part!r} is not an object")
    return names


def _changed(cls: type, difference: str) -> SerializationError:
    return SerializationError(
        f"The class {cls.__module__}.{cls.__qualname__} has changed since a value of it was stored: "
        f"{difference}."
    )


_TAKE: dict[str, Any] = {
    "enum": _take_enum,
    "dataclass": _take_dataclass,
    "pydantic": _take_model,
    "struct": _take_struct,
    "namedtuple": _take_namedtuple,
}
_PUT: dict[str, Any] = {
    "enum": _put_enum,
    "dataclass": _put_dataclass,
    "pydantic": _put_model,
    "struct": _put_struct,
    "namedtuple": _put_namedtuple,
}
