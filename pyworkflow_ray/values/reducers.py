"""How code by value is taken apart where cloudpickle does not know how, or loses something.

These are definitions of notebooks and of scripts without a guard: enums with aliases or attributes, `msgspec`
structs, caches, weak dictionaries (those of `singledispatch`), `NewType`, `ParamSpec`, `ContextVar` and
markers of `dataclasses`. What refers to itself, such as a class in its own methods, is filled in last.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
import weakref
from collections.abc import Callable
from contextvars import Context, ContextVar
from enum import EnumType, Flag
from types import MemberDescriptorType
from typing import Any

import msgspec
from cloudpickle import cloudpickle  # type: ignore[import-untyped]

Reduced = tuple[Any, ...]

CACHE = type(functools.lru_cache(print))


def reduced(obj: Any) -> Reduced | None:
    """How to make the object again, in the form of `__reduce__`; None leaves that to cloudpickle."""
    reduce = _REDUCERS.get(type(obj))
    if reduce is not None:
        return reduce(obj)
    if isinstance(obj, EnumType) and _is_dynamic(obj):
        return _reduce_enum(obj)
    if isinstance(obj, type) and issubclass(obj, msgspec.Struct) and _is_dynamic(obj):
        return _reduce_struct(obj)
    return None


def _is_dynamic(cls: type) -> bool:
    return not cloudpickle._should_pickle_by_reference(cls)


# --- enums ----------------------------------------------------------------------------------------

_PLAIN: dict[type, Callable[[Any], Any]] = {
    object: lambda member: None,
    int: int.__int__,
    str: str.__str__,
    float: float.__float__,
}
_OF_EVERY_MEMBER = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_"})


class _Given:
    """What a member is made from, in place of a value that the enum's own code would take apart."""

    def __init__(self, value: Any, plain: Any) -> None:
        self.value, self.plain = value, plain


def _reduce_enum(cls: Any) -> Reduced | None:
    members: dict[str, Any] = dict(cls.__members__)
    attributes = {
        name: {key: value for key, value in vars(member).items() if key not in _OF_EVERY_MEMBER}
        for name, member in members.items()
    }
    is_plain = len(members) == len(list(cls)) and not any(attributes.values())
    if is_plain or cls._member_type_ not in _PLAIN:
        return None
    plain = _PLAIN[cls._member_type_]
    given = {name: (member._value_, plain(member)) for name, member in members.items()}
    state, slots = cloudpickle._enum_getstate(cls)
    for name in members:
        state.pop(name, None)
    identity = cloudpickle._get_or_create_tracker_id(cls)
    options = {"boundary": cls._boundary_} if issubclass(cls, Flag) else {}
    made = (cls.__bases__, cls.__name__, cls.__qualname__, cls.__module__, given, options, identity)
    return _make_enum, made, (state, slots, attributes), None, None, _fill_enum


def _make_enum(
    bases: tuple[type, ...],
    name: str,
    qualname: str,
    module: str,
    given: dict[str, tuple[Any, Any]],
    options: dict[str, Any],
    identity: str,
) -> Any:
    base: Any = bases[-1]
    metacls = type(base)
    body: Any = metacls.__prepare__(name, bases)

    def new(cls: Any, value: Any) -> Any:
        # A flag calls it later, too, with the value of a combination.
        made_from = value if isinstance(value, _Given) else _Given(value, value)
        kind = cls._member_type_
        member = object.__new__(cls) if kind is object else kind.__new__(cls, made_from.plain)
        member._value_ = made_from.value
        return member

    body["__new__"] = new
    body["__init__"] = lambda self, value: None
    for member, (value, plain) in given.items():
        body[member] = _Given(value, plain)
    cls = metacls.__new__(metacls, name, bases, body, **options)
    cls.__module__, cls.__qualname__ = module, qualname
    del cls.__init__
    return cloudpickle._lookup_class_or_track(identity, cls)


def _fill_enum(cls: Any, state: tuple[dict[str, Any], Any, dict[str, dict[str, Any]]]) -> Any:
    names, slots, attributes = state
    cloudpickle._class_setstate(cls, (names, slots))
    for name, values in attributes.items():
        for key, value in values.items():
            setattr(cls.__members__[name], key, value)
    return cls


# --- structs --------------------------------------------------------------------------------------

_CONFIG = (
    *("frozen", "order", "eq", "kw_only", "omit_defaults", "forbid_unknown_fields", "repr_omit_defaults"),
    *("array_like", "gc", "weakref", "dict", "cache_hash", "tag", "tag_field"),
)
_OF_EVERY_CLASS = frozenset(
    {"__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__slots__", "__annotations__"}
)


def _reduce_struct(cls: Any) -> Reduced:
    own = inspect.get_annotations(cls)
    fields = {field.name: field for field in msgspec.structs.fields(cls) if field.name in own}
    given = [(name, own[name], field.default, field.default_factory) for name, field in fields.items()]
    renamed = {name: field.encode_name for name, field in fields.items() if field.encode_name != name}
    settings = cls.__struct_config__
    config = {name: getattr(settings, name) for name in _CONFIG if hasattr(settings, name)}
    names = {
        name: value
        for name, value in vars(cls).items()
        if name not in _OF_EVERY_CLASS
        and not name.startswith(("__struct_", "__match_args__", "__rich_repr__"))
        and not isinstance(value, MemberDescriptorType)
    }
    identity = cloudpickle._get_or_create_tracker_id(cls)
    made = (cls.__bases__, cls.__name__, cls.__qualname__, cls.__module__, given, renamed, config, identity)
    return _make_struct, made, (names, cls.__doc__), None, None, _fill_class


def _make_struct(
    bases: tuple[type, ...],
    name: str,
    qualname: str,
    module: str,
    given: list[tuple[str, Any, Any, Any]],
    renamed: dict[str, str],
    config: dict[str, Any],
    identity: str,
) -> Any:
    fields: list[Any] = []
    for each, kind, default, factory in given:
        if factory is not msgspec.NODEFAULT:
            fields.append((each, kind, msgspec.field(default_factory=factory)))
        else:
            fields.append((each, kind) if default is msgspec.NODEFAULT else (each, kind, default))
    cls = msgspec.defstruct(name, fields, bases=bases, module=module, rename=renamed or None, **config)
    cls.__qualname__ = qualname
    return cloudpickle._lookup_class_or_track(identity, cls)


def _fill_class(cls: Any, state: tuple[dict[str, Any], str | None]) -> Any:
    names, cls.__doc__ = state
    for name, value in names.items():
        setattr(cls, name, value)
    return cls


# --- caches, types and variables ------------------------------------------------------------------


class _Late:
    """A function that is known later."""

    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def _reduce_cache(cache: Any) -> Reduced:
    options = cache.cache_parameters()
    return _make_cache, (options["maxsize"], options["typed"]), cache.__wrapped__, None, None, _fill_cache


def _make_cache(maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(_Late())


def _fill_cache(cache: Any, function: Callable[..., Any]) -> Any:
    cache.__wrapped__.function = function
    return functools.update_wrapper(cache, function)


def _reduce_cached_property(cached: Any) -> Reduced:
    return _make_cached_property, (), (cached.func, cached.attrname), None, None, _fill_cached_property


def _make_cached_property() -> Any:
    return functools.cached_property(_Late())


def _fill_cached_property(cached: Any, state: tuple[Any, str | None]) -> Any:
    cached.func, cached.attrname = state
    cached.__doc__ = cached.func.__doc__
    return cached


def _reduce_new_type(kind: Any) -> Reduced:
    return _make_new_type, (kind.__name__, kind.__qualname__, kind.__module__, kind.__supertype__)


def _make_new_type(name: str, qualname: str, module: str, supertype: Any) -> Any:
    new_type: Any = typing.NewType
    made = new_type(name, supertype)
    made.__qualname__, made.__module__ = qualname, module
    return made


def _reduce_context_var(variable: ContextVar[Any]) -> Reduced:
    try:
        return _make_context_var, (variable.name, True, Context().run(variable.get))
    except LookupError:
        return _make_context_var, (variable.name, False, None)


def _make_context_var(name: str, has_default: bool, default: Any) -> ContextVar[Any]:
    return ContextVar(name, default=default) if has_default else ContextVar(name)


def _reduce_weak_keys(names: Any) -> Reduced:
    return weakref.WeakKeyDictionary, (), None, None, iter(list(names.items()))


def _reduce_weak_values(names: Any) -> Reduced:
    return weakref.WeakValueDictionary, (), None, None, iter(list(names.items()))


def _marker(name: str) -> Any:
    return getattr(dataclasses, name)


_REDUCERS: dict[type, Callable[[Any], Reduced | None]] = {
    CACHE: _reduce_cache,
    functools.cached_property: _reduce_cached_property,
    typing.NewType: _reduce_new_type,
    ContextVar: _reduce_context_var,
    weakref.WeakKeyDictionary: _reduce_weak_keys,
    weakref.WeakValueDictionary: _reduce_weak_values,
    typing.ParamSpec: lambda variable: (typing.ParamSpec, (variable.__name__,)),
    typing.TypeVarTuple: lambda variable: (typing.TypeVarTuple, (variable.__name__,)),
    typing.ParamSpecArgs: lambda args: (typing.ParamSpecArgs, (args.__origin__,)),
    typing.ParamSpecKwargs: lambda kwargs: (typing.ParamSpecKwargs, (kwargs.__origin__,)),
    **{
        type(getattr(dataclasses, name)): functools.partial(lambda name, _: (_marker, (name,)), name)
        for name in ("MISSING", "KW_ONLY", "_HAS_DEFAULT_FACTORY")
        if hasattr(dataclasses, name)
    },
}
