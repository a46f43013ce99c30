"""Hooks: a run waits for one payload from anybody who has the hook's token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from msgspec import Raw

from pyworkflow_ray.authoring.awaited_calls import must_be_awaited
from pyworkflow_ray.authoring.steps import StepFunction, run_step
from pyworkflow_ray.durations import Duration, parse_timeout
from pyworkflow_ray.engine.executions import Execution, require_execution
from pyworkflow_ray.exceptions import InvalidTokenError
from pyworkflow_ray.values import codec
from pyworkflow_ray.values.schemas import schema_text, validated

T = TypeVar("T")

LONGEST_TOKEN = 255


@must_be_awaited("hook()")
async def hook(
    name: str,
    *,
    timeout: Duration | None = None,
    on_created: Callable[[str], Any] | None = None,
    payload_schema: Any = None,
    on_received: Callable[[Any], Any] | None = None,
    token: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """Wait until somebody calls `resume_hook` with this hook's token, and return the payload.

    Args:
        name: What the hook is for. It is the hook's name in the history.
        timeout: How long to wait. None waits for ever.
        on_created: Called once with the token, to hand the token on. It is recorded as a local step.
        payload_schema: A type that payloads must fit, such as a pydantic model. One that does not fit is not
            accepted.
        on_received: Called once with the payload. It is recorded as a local step.
        token: A token of your own. The default cannot be guessed.
        metadata: Shown with the hook.

    Raises:
        HookExpiredError: The timeout has passed.
        HookConflictError: Another run waits for a hook with the same token.
        Exception: The error that `reject_hook` was called with.
    """
    execution = require_execution("hook")
    execution.require_durable("hook()")
    schema_text(payload_schema)  # refuses a schema that describes nothing, before anything is recorded
    limit = parse_timeout(timeout)
    expires_at = None if limit is None else execution.now + limit
    if token is not None:
        _check_token(token)
    labels = Raw(codec.encode(dict(metadata))) if metadata else _NONE
    pending = await execution.scope.decided(
        lambda: execution.hooks.create(
            name, token=token, expires_at=expires_at, schema=payload_schema, metadata=labels
        )
    )
    if on_created is not None:
        try:
            await _effect(on_created, pending.command.token, f"{name}.on_created")
        except BaseException:
            await _dispose(execution, pending)
            raise
    payload = await execution.call_hook(pending)
    if payload_schema is not None:
        payload = validated(payload_schema, payload, name)
    if on_received is not None:
        await _effect(on_received, payload, f"{name}.on_received")
    return payload


_NONE = Raw(b"null")


async def _dispose(execution: Execution, pending: Any) -> None:
    await execution.scope.decided(lambda: execution.hooks.dispose(pending))


async def _effect(function: Callable[..., Any], value: Any, name: str) -> None:
    if isinstance(function, StepFunction):
        await function(value)
    else:
        await run_step(function, value, name=name, local=True)


def _check_token(token: Any) -> None:
    if (
        not isinstance(token, str)
        or not token.strip()
        or len(token) > LONGEST_TOKEN
        or not token.isprintable()
    ):
        raise InvalidTokenError("")


class TypedHook(Generic[T]):
    """A hook whose payloads are of one type: ``decision = await Approval(timeout="2d")``."""

    def __init__(self, name: str, schema: type[T]) -> None:
        self.name, self.schema = name, schema

    @must_be_awaited("hook()")
    async def __call__(
        self,
        *,
        timeout: Duration | None = None,
        on_created: Callable[[str], Any] | None = None,
        on_received: Callable[[T], Any] | None = None,
        token: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> T:
        """Wait for a payload; see `hook`."""
        payload: T = await hook(
            self.name,
            timeout=timeout,
            on_created=on_created,
            payload_schema=self.schema,
            on_received=on_received,
            token=token,
            metadata=metadata,
        )
        return payload

    def __repr__(self) -> str:
        return f"<hook {self.name!r} of {getattr(self.schema, '__name__', self.schema)}>"


def define_hook(name: str, schema: type[T]) -> TypedHook[T]:
    """A hook that takes payloads of this type, a pydantic model or any other that pydantic validates."""
    return TypedHook(name, schema)
