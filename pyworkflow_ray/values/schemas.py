"""What a hook's payload must be: any type that pydantic validates."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from pyworkflow_ray.exceptions import ConfigurationError, HookValidationError


@lru_cache(maxsize=256)
def _adapter(schema: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(schema)
    except Exception as error:
        raise ConfigurationError(
            f"{schema!r} cannot describe a hook's payload: give a pydantic model, a dataclass, or another "
            f"type that pydantic validates ({error})."
        ) from error


def schema_text(schema: Any) -> str | None:
    """The JSON schema of a type, by which a tool asks for a payload; None if the type has none."""
    if schema is None:
        return None
    try:
        return json.dumps(_adapter(schema).json_schema())
    except ConfigurationError:
        raise
    except Exception:
        return None


def validated(schema: Any, payload: Any, name: str) -> Any:
    """The payload as a value of the type.

    Raises:
        HookValidationError: It does not fit. The error names the field and what was expected.
    """
    try:
        return _adapter(schema).validate_python(payload)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'payload'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        )
        raise HookValidationError(f"The payload does not fit hook {name!r}: {problems}.") from None


def plain(payload: Any) -> Any:
    """The payload in a form that can be validated again without its class."""
    return payload.model_dump(mode="json") if isinstance(payload, BaseModel) else payload
