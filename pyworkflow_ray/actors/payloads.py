"""Values between code and rows: their limits, their encryption, and large ones kept beside the history."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import msgspec
from loguru import logger
from msgspec import Raw

from pyworkflow_ray.engine.events import Event
from pyworkflow_ray.exceptions import ConfigurationError, StorageError
from pyworkflow_ray.storage.blobs import load_blob
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.values import codec, modules
from pyworkflow_ray.values.codec import Values

_VALUE_FIELDS = ("args", "kwargs", "result", "value", "payload", "attributes")


@functools.lru_cache(maxsize=16)
def configured_values(payload_codec: str | None, limit: int | None) -> Values:
    """The codec that the settings `payload_codec` ("module:attribute") and `payload_limit` ask for.

    Raises:
        ConfigurationError: The payload codec cannot be imported, or lacks `encode` or `decode`.
    """
    if payload_codec is None:
        return Values(limit=limit)
    try:
        codec = modules.load_reference(payload_codec)
    except Exception as error:
        raise ConfigurationError(
            f"The payload codec {payload_codec!r} cannot be imported here: {error}. It must be installed "
            "wherever runs and steps execute."
        ) from error
    if not callable(getattr(codec, "encode", None)) or not callable(getattr(codec, "decode", None)):
        raise ConfigurationError(f"The payload codec {payload_codec!r} must have encode() and decode().")
    return Values(payload_codec=codec, limit=limit)


class Payloads:
    """The codec of a coordinator, which also fetches large values.

    Args:
        plain: The codec itself.
        fetch: Gives a blob's bytes by hash.
        threshold: Values of this many bytes and more are stored as blobs, equal ones once.
    """

    def __init__(self, plain: Values, fetch: Callable[[str], bytes], threshold: int) -> None:
        self._plain, self._fetch, self._threshold = plain, fetch, threshold

    def encode(self, value: Any, what: str) -> bytes:
        return self._plain.encode(value, what)

    def decode(self, data: Raw) -> Any:
        return self._plain.decode(self.resolve(data))

    def resolve(self, data: Raw | bytes) -> bytes:
        """The value's encoded text, fetched if the history only has a reference to it."""
        text = bytes(data)
        reference = codec.blob_reference(text)
        return text if reference is None else self._fetch(reference)

    def split(self, event: Event) -> tuple[Event, list[tuple[str, bytes]]]:
        """The event as it is stored, and the blobs that must be stored with it."""
        changes: dict[str, Raw] = {}
        blobs: list[tuple[str, bytes]] = []
        for field in _VALUE_FIELDS:
            value = getattr(event, field, None)
            if isinstance(value, Raw) and memoryview(value).nbytes >= self._threshold:
                stored, blob = split_value(bytes(value), self._threshold)
                if blob is not None:
                    changes[field] = Raw(stored)
                    blobs.append(blob)
        return (msgspec.structs.replace(event, **changes) if changes else event), blobs


def split_value(data: bytes, threshold: int) -> tuple[bytes, tuple[str, bytes] | None]:
    """The text to store for an encoded value, and its blob when it is large."""
    if len(data) < threshold or codec.blob_reference(data) is not None:
        return data, None
    digest, reference = codec.make_blob_reference(data)
    return reference, (digest, data)


def blob_fetcher(storage: Storage) -> Callable[[str], bytes]:
    """What fetches blobs from this storage, and waits while the storage is away."""

    @functools.lru_cache(maxsize=64)
    def fetch(digest: str) -> bytes:
        while True:
            try:
                return storage.read(load_blob(digest))
            except StorageError as error:
                if error.__cause__ is None:
                    raise  # the storage is closed
                # An error in the run's code would end the run. An outage must not: wait, as commits do.
                logger.warning("A blob cannot be read now: {}", error)
            time.sleep(1.0)

    return fetch
