"""What a hook's payload must be: any type that pydantic or msgspec validates."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from pydantic import AliasChoices, BaseModel, TypeAdapter, ValidationError

from pyworkflow_ray.exceptions import ConfigurationError, HookValidationError


class _Schema(NamedTuple):
    """Validates payloads of one type, and describes the type."""

    validate: Callable[[Any], Any]
    json_schema: Callable[[], Any]


@lru_cache(maxsize=256)
def _schema(schema: Any) -> _Schema:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(schema)
        return _Schema(adapter.validate_python, adapter.json_schema)
    except Exception as error:
        of_structs = _schema_of_structs(schema)
        if of_structs is not None:
            return of_structs
        raise ConfigurationError(
            f"{schema!r} cannot describe a hook's payload: give a pydantic model, a dataclass, or another "
            f"type that pydantic or msgspec validates ({error})."
        ) from error


def _schema_of_structs(schema: Any) -> _Schema | None:
    """The schema of a type with msgspec's structs in it, which pydantic does not know."""
    try:
        described = msgspec.json.schema(schema)
    except Exception:
        return None

    def validate(payload: Any) -> Any:
        # msgspec takes an instance of the class itself as it is, and refuses one of a subclass.
        is_instance = isinstance(schema, type) and isinstance(payload, schema)
        return payload if is_instance else msgspec.convert(payload, schema)

    return _Schema(validate, lambda: described)


def schema_text(schema: Any) -> str | None:
    """The JSON schema of a type, by which a tool asks for a payload; None if the type has none."""
    if schema is None:
        return None
    described = _schema(schema).json_schema
    try:
        return json.dumps(described())
    except Exception:
        return None


def validated(schema: Any, payload: Any, name: str) -> Any:
    """The payload as a value of the type. What is an instance of the type already is the same object.

    Raises:
        HookValidationError: It does not fit. The error names the field and what was expected.
    """
    validate = _schema(schema).validate
    try:
        return validate(payload)
    except (ValidationError, msgspec.ValidationError) as error:
        refusal = error
    # An instance of the class of this name as another process has it, or of a class that is much like it.
    parts = _in_parts(payload)
    if parts is not payload:
        try:
            return validate(parts)
        except (ValidationError, msgspec.ValidationError) as error:
            refusal = error
    raise HookValidationError(f"The payload does not fit hook {name!r}: {_problems_in(refusal)}.")


def _problems_in(refusal: ValidationError | msgspec.ValidationError) -> str:
    if isinstance(refusal, msgspec.ValidationError):
        return str(refusal).removesuffix(".")
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'payload'}: {problem['msg']}"
        for problem in refusal.errors(include_url=False, include_input=False)
    )


def _in_parts(payload: Any) -> Any:
    """The payload with dicts in the places of instances; the same object if it has none."""
    if isinstance(payload, BaseModel):
        fields = type(payload).model_fields
        held = {_key_of(name, fields.get(name)): value for name, value in vars(payload).items()}
        return {name: _in_parts(value) for name, value in (held | (payload.model_extra or {})).items()}
    if isinstance(payload, msgspec.Struct):
        return {name: _in_parts(value) for name, value in msgspec.structs.asdict(payload).items()}
    if dataclasses.is_dataclass(payload) and not isinstance(payload, type):
        return {field.name: _in_parts(getattr(payload, field.name)) for field in dataclasses.fields(payload)}
    if type(payload) is list:
        items = [_in_parts(item) for item in payload]
        return items if any(new is not old for new, old in zip(items, payload, strict=True)) else payload
    if type(payload) is dict:
        parts = {key: _in_parts(value) for key, value in payload.items()}
        return parts if any(parts[key] is not payload[key] for key in payload) else payload
    return payload


def _key_of(name: str, field: Any) -> str:
    """The name under which a model takes the value of this field."""
    alias = None if field is None else field.validation_alias
    if isinstance(alias, AliasChoices):
        alias = next((choice for choice in alias.choices if isinstance(choice, str)), None)
    return alias if isinstance(alias, str) else name
