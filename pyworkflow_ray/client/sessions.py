"""Sessions: the storage and the runtime that a client uses, opened once for its settings."""

from __future__ import annotations

import atexit
import threading
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from loguru import logger

from pyworkflow_ray.actors.cluster import running_engine
from pyworkflow_ray.actors.connections import (
    address_of_local_cluster,
    connect,
    has_joined,
    joined_job,
    named_address,
)
from pyworkflow_ray.actors.payloads import configured_values
from pyworkflow_ray.client.runtimes import LOCAL, LocalRuntime, RayRuntime, Runtime
from pyworkflow_ray.config import Settings, get_config, is_in_memory, url_of
from pyworkflow_ray.engine.running_steps import current_step
from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.values.codec import Values

_lock = threading.Lock()
_sessions: dict[tuple[Any, ...], Session] = {}
_adopted: dict[tuple[str | None, str], str | None] = {}
_memories: dict[str, Storage] = {}


@dataclass(frozen=True, slots=True)
class Session:
    """What a client needs to reach one engine."""

    settings: Settings
    storage: Storage
    runtime: Runtime
    values: Values = field(repr=False)


def session(runtime: str | None = None, storage: Any = None) -> Session:
    """The session for the present settings, or for another runtime or storage.

    Raises:
        ConfigurationError: The runtime is unknown, or the storage does not name a database.
    """
    settings, step = get_config(), current_step.get()
    is_plain = runtime is None and storage is None
    in_step = is_plain and step is not None and bool(step.namespace)
    if in_step and step is not None:
        settings = _settings_in_step(settings, step.namespace)
    elif is_plain and (entered := _entered.get()) is not None:
        return entered
    name = runtime or (LOCAL if is_in_memory(storage) else settings.default_runtime)
    if name not in ("ray", LOCAL):
        raise ConfigurationError(f"runtime is {name!r}: give 'ray' or 'local'.")
    adopted = None
    if name == "ray" and storage is None and settings.storage is None and not _has_begun(settings):
        adopted = _running_storage(settings)
        if adopted is None and in_step:
            raise ConfigurationError(
                f"The engine in the namespace {settings.namespace!r} does not say which storage it uses: its "
                "timer is gone. Was it taken down? Give this call a storage: storage=..."
            )
    url = adopted or (settings.storage_url if storage is None else _url(storage))
    key = _key(name, url, settings)
    with _lock:
        known = _sessions.get(key)
        if known is None or known.settings is not settings:
            known = _open(known, name, url, settings, create=adopted is None)
            _sessions[key] = known
        return known


def _open(known: Session | None, name: str, url: str, settings: Settings, *, create: bool) -> Session:
    storage = known.storage if known else _storage(url, settings, create=create)
    of_url = settings.model_copy(update={"storage": _secret(url)})
    runtime = RayRuntime(of_url, storage) if name == "ray" else LocalRuntime(of_url, storage)
    return Session(
        settings, storage, runtime, configured_values(settings.payload_codec, settings.payload_limit)
    )


def _storage(url: str, settings: Settings, *, create: bool) -> Storage:
    if not is_in_memory(url):
        return Storage(url, create=create, synchronous=settings.sqlite_synchronous)
    # There is one database for each name, whatever the other settings: a second one would be empty.
    return _memories.setdefault(url, Storage(url))


@lru_cache(maxsize=16)
def _settings_in_step(settings: Settings, namespace: str) -> Settings:
    """The settings for calls in a step: those of the engine that runs it, and not the worker's own."""
    return settings.model_copy(
        update={"namespace": namespace, "default_runtime": "ray", "storage": None, "address": None}
    )


def _has_begun(settings: Settings) -> bool:
    """Whether this process has started an engine on its default storage, and so needs to adopt no other."""
    own = _sessions.get(_key("ray", settings.storage_url, settings))
    return own is not None and isinstance(own.runtime, RayRuntime) and own.runtime.is_open


def _key(name: str, url: str, settings: Settings) -> tuple[Any, ...]:
    return (
        name,
        url,
        settings.namespace,
        settings.address,
        settings.coordinators,
        settings.sqlite_synchronous,
    )


def _running_storage(settings: Settings) -> str | None:
    """The storage of the engine in the cluster where this process would start runs, or None."""
    if not has_joined():
        address = named_address(settings.address) or address_of_local_cluster()
        if address in (None, "local"):
            return None
        try:
            connect(settings.address, settings.namespace)
        except ConfigurationError:
            return None  # reads can do without Ray; what needs it will raise the error
    # Kept once known: an engine never changes its storage.
    key = (joined_job(), settings.namespace)
    with _lock:
        if _adopted.get(key) is None:
            engine = running_engine(settings.namespace)
            _adopted[key] = None if engine is None else engine.storage_url
            if engine is not None:
                logger.info(
                    "An engine runs in the namespace {!r} of this cluster. Its storage is used here: {}.",
                    *(settings.namespace, Storage(engine.storage_url).url),
                )
        return _adopted[key]


def _secret(url: str) -> Any:
    from pydantic import SecretStr

    return SecretStr(url)


def _url(storage: Any) -> str:
    if isinstance(storage, Storage):
        return storage.database.secret_url
    try:
        return url_of(storage)
    except ValueError as error:
        raise ConfigurationError(f"The storage is not valid: {error}.") from None


def enter(of: Session) -> Token[Session | None]:
    """Make this the session of the present context, until `leave` is called with the token."""
    return _entered.set(of)


def leave(token: Token[Session | None]) -> None:
    """Undo `enter`."""
    _entered.reset(token)


_entered: ContextVar[Session | None] = ContextVar("pyworkflow_ray_session", default=None)


def close_sessions() -> None:
    """Close every storage that this process has opened. What was written is safe."""
    with _lock:
        for known in _sessions.values():
            known.storage.close()
        _sessions.clear()
        _memories.clear()


atexit.register(close_sessions)
