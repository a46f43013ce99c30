"""The storage and the runtime that this process's client uses, opened once for its settings."""

from __future__ import annotations

import atexit
import threading
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyworkflow_ray.actors.payloads import configured_values
from pyworkflow_ray.client.runtimes import LOCAL, LocalRuntime, RayRuntime, Runtime
from pyworkflow_ray.config import Settings, get_config
from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.values import Values

_lock = threading.Lock()
_sessions: dict[tuple[Any, ...], Session] = {}


@dataclass(frozen=True, slots=True)
class Session:
    """A client's way to one engine."""

    settings: Settings
    storage: Storage
    runtime: Runtime
    values: Values = field(repr=False)


def session(runtime: str | None = None, storage: Any = None) -> Session:
    """The session for the settings in force, or for another runtime or storage than they name.

    Raises:
        ConfigurationError: The runtime is unknown, or the storage is nothing that names a database.
    """
    entered = _entered.get()
    if entered is not None and runtime is None and storage is None:
        return entered
    settings = get_config()
    name = runtime or settings.default_runtime
    if name not in ("ray", LOCAL):
        raise ConfigurationError(f"runtime is {name!r}: give 'ray' or 'local'.")
    url = _url(storage) if storage is not None else settings.storage_url
    key = (
        name,
        url,
        settings.namespace,
        settings.address,
        settings.coordinators,
        settings.sqlite_synchronous,
    )
    with _lock:
        known = _sessions.get(key)
        if known is None or known.settings is not settings:
            known = _open(known, name, url, settings)
            _sessions[key] = known
        return known


def _open(known: Session | None, name: str, url: str, settings: Settings) -> Session:
    storage = known.storage if known else Storage(url, synchronous=settings.sqlite_synchronous)
    settings = settings.model_copy(update={"storage": _secret(url)})
    runtime = RayRuntime(settings, storage) if name == "ray" else LocalRuntime(settings, storage)
    return Session(
        get_config(), storage, runtime, configured_values(settings.payload_codec, settings.payload_limit)
    )


def _secret(url: str) -> Any:
    from pydantic import SecretStr

    return SecretStr(url)


def _url(storage: Any) -> str:
    if isinstance(storage, Storage):
        return storage.database.secret_url
    if isinstance(storage, str | Path):
        return str(storage)
    raise ConfigurationError(
        f"storage is {storage!r}: give a database URL, a file path, 'memory' or a Storage."
    )


def enter(of: Session) -> Token[Session | None]:
    """Make this the session of the code that runs in this context; `leave` with the token ends that."""
    return _entered.set(of)


def leave(token: Token[Session | None]) -> None:
    """End what `enter` began."""
    _entered.reset(token)


_entered: ContextVar[Session | None] = ContextVar("pyworkflow_ray_session", default=None)


def close_sessions() -> None:
    """Let go of every storage that this process has opened; what was written is safe."""
    with _lock:
        for known in _sessions.values():
            known.storage.close()
        _sessions.clear()


atexit.register(close_sessions)
