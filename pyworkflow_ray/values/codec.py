"""The codec: the user's values as JSON text that keeps value and type, and back.

`decode(encode(x)) == x`, with the same types at every depth. Plain JSON values are written as they are, so
that a person can read them in SQL. `values/tags.py` has the forms of everything else.

A row may hold one of two wrappings instead of a value: a *blob reference*, if the value itself is in the
`blobs` table, or a *sealed* value, which the user's payload codec has encoded. Both are objects whose first
key is ``$``. A dict of the user's is never written so, and cannot be taken for one of them.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import msgspec

from pyworkflow_ray.exceptions import PayloadTooLargeError, SerializationError
from pyworkflow_ray.values.error_pickles import text_of
from pyworkflow_ray.values.tags import (
    MAX_DEPTH,
    TooDeepError,
    UnstorableError,
    is_plain,
    pickled,
    tagged,
    type_name,
    untagged,
)
from pyworkflow_ray.values.views import view

Data = bytes | msgspec.Raw | str

_write = msgspec.json.encode
_read = msgspec.json.decode


@runtime_checkable
class PayloadCodec(Protocol):
    """Turns every stored value into other bytes and back: to encrypt payloads, or to compress them.

    `decode(encode(data)) == data` must hold in every process that reads or writes this storage, for as
    long as the rows live.
    """

    def encode(self, data: bytes) -> bytes:
        """The bytes to store in place of `data`."""
        ...

    def decode(self, data: bytes) -> bytes:
        """The bytes that `encode` was given."""
        ...


def encode(value: Any, *, path: str = "$") -> bytes:
    """The JSON text that stores a value.

    Args:
        value: Anything that is plain data, or that can be pickled.
        path: The value's name in errors. The path of a place inside the value begins with it.

    Raises:
        SerializationError: The value, or something in it, cannot be stored.
    """
    try:
        if is_plain(value):
            return _write(value)
    except (UnicodeEncodeError, RecursionError):
        pass  # text that UTF-8 cannot hold, or little stack left: the code below finds out which
    try:
        return _write(_tagged(value))
    except UnstorableError as error:
        raise SerializationError(
            f"Cannot store {path}{error.place}: a value of type {error.type_name} ({error.reason}). "
            "Pass data that describes it (an id, a path, a URL) and make the object where it is used."
        ) from error
    except RecursionError:
        raise SerializationError(
            f"Cannot store {path}: the value, of type {type_name(value)}, is nested deeper than Python's "
            "stack reaches. Flatten it, or pass a reference to it."
        ) from None


def _tagged(value: Any) -> Any:
    try:
        return tagged(value, None)
    except TooDeepError:
        pass
    # The value is nested deeper than MAX_DEPTH, or contains itself. A pickle can hold the latter, and some of
    # the former.
    try:
        return pickled(value, None)
    except UnstorableError as error:
        reason = f"it nests deeper than {MAX_DEPTH} levels or contains itself, and a pickle: {error.reason}"
        raise UnstorableError("", error.type_name, reason) from error


def decode(data: Data) -> Any:
    """The value that `encode` was given.

    Raises:
        SerializationError: The text is damaged, a class no longer exists, or the value is still wrapped (a
            blob reference, or sealed).
    """
    text = _bytes_of(data)
    plain = _parsed(text)
    if b'"$"' not in text:
        return plain
    try:
        return untagged(plain)
    except RecursionError:
        raise SerializationError(
            "Cannot read a stored value: it is nested deeper than the stack reaches."
        ) from None


def _bytes_of(data: Data) -> bytes:
    if type(data) is bytes:
        return data
    try:
        return data.encode() if isinstance(data, str) else bytes(data)
    except UnicodeEncodeError as error:
        raise SerializationError(f"Cannot read a stored value: it is not UTF-8 text: {error}.") from error


def _parsed(text: bytes) -> Any:
    try:
        return _read(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SerializationError(f"Cannot read a stored value: it is not JSON text: {error}.") from error


# --- looking, without running anything ----------------------------------------------------------------


def describe(data: Data) -> Any:
    """A stored value as plain JSON, for tools that only look.

    It never unpickles and never imports. A pickled value shows its type and repr, and an instance its class
    and fields. Text that cannot be read is described as unreadable.
    """
    try:
        return view(_parsed(_bytes_of(data)))
    except (SerializationError, RecursionError) as error:
        return f"<unreadable: {error}>"


def preview(data: Data, limit: int = 200) -> str:
    """`describe` in one line of at most `limit` characters."""
    shown = describe(data)
    text = shown if type(shown) is str and shown.startswith("<") else _write(shown).decode()
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"


# --- blobs --------------------------------------------------------------------------------------------

_BLOB = re.compile(rb'\{"\$":"blob","hash":"([0-9a-f]{64})","size":\d+\}')
_SEALED_PREFIX = b'{"$":"sealed","data":"'


def blob_reference(data: Data) -> str | None:
    """The hash of the blob that holds the value, or None when `data` is the value itself."""
    text = _bytes_of(data)
    if not text.startswith(b'{"$":"blob",'):
        return None
    match = _BLOB.fullmatch(text)
    if match is None:
        raise SerializationError(f"A blob reference is damaged: {text[:200]!r}.")
    return match[1].decode()


def make_blob_reference(data: bytes) -> tuple[str, bytes]:
    """The hash of `data`, which is its key among the blobs, and the reference to store instead of it."""
    digest = hashlib.sha256(data).hexdigest()
    return digest, b'{"$":"blob","hash":"%s","size":%d}' % (digest.encode(), len(data))


# --- sealing ------------------------------------------------------------------------------------------


def seal(data: bytes, codec: PayloadCodec) -> bytes:
    """`data` encoded by the codec, and wrapped so that every reader sees that it is sealed."""
    return _SEALED_PREFIX + base64.b64encode(_coded(codec, "encode", data)) + b'"}'


def unseal(data: Data, codec: PayloadCodec | None) -> bytes:
    """The bytes that `seal` was given. Data from before there was a codec is not sealed, and stays as it is.

    Raises:
        SerializationError: There is no codec, or it cannot read the data (usually: it has another key).
    """
    text = _bytes_of(data)
    if not text.startswith(_SEALED_PREFIX):
        return text
    if codec is None:
        untagged({"$": "sealed"})  # raises an error that names the cure
    try:
        inner = base64.b64decode(_taken_from_seal(text), validate=True)
    except ValueError as error:
        raise SerializationError(f"A sealed value is damaged: {error}.") from error
    assert codec is not None
    return _coded(codec, "decode", inner)


def _taken_from_seal(text: bytes) -> bytes:
    if not text.endswith(b'"}'):
        raise ValueError("its end is missing")
    return text[len(_SEALED_PREFIX) : -2]


def _coded(codec: PayloadCodec, verb: str, data: bytes) -> bytes:
    name = f"{type(codec).__module__}.{type(codec).__qualname__}.{verb}"
    try:
        result = getattr(codec, verb)(data)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a codec of the user's may raise anything
        raise SerializationError(
            f"The payload codec failed: {name} raised {type(error).__name__}: {text_of(error)}."
        ) from error
    if not isinstance(result, bytes):
        raise SerializationError(
            f"The payload codec's {name} gave a {type(result).__name__}; it must give bytes."
        )
    return result


_relays: list[Callable[[bytes], bytes]] = []


@contextmanager
def relayed(relay: Callable[[bytes], bytes]) -> Iterator[None]:
    """Within it, each value that this process stores is what `relay` makes of it. For tests."""
    _relays.append(relay)
    try:
        yield
    finally:
        _relays.remove(relay)


@dataclass(frozen=True, slots=True)
class Values:
    """The codec of one deployment, with its payload codec and its size limit.

    Args:
        payload_codec: Seals each stored value. None stores values unsealed.
        limit: How many bytes one stored value may have. None means no limit.
    """

    payload_codec: PayloadCodec | None = None
    limit: int | None = None

    def encode(self, value: Any, what: str) -> bytes:
        """The JSON text that stores a value, sealed if there is a payload codec.

        Args:
            value: Anything that is plain data, or that can be pickled.
            what: The value's name in errors, such as "the result of step 'charge'".

        Raises:
            SerializationError: The value, or something in it, cannot be stored.
            PayloadTooLargeError: It is larger than the limit.
        """
        try:
            data = encode(value)
            for relay in _relays:
                data = relay(data)
            if self.payload_codec is not None:
                data = seal(data, self.payload_codec)
        except SerializationError as error:
            raise SerializationError(f"{what[:1].upper()}{what[1:]} cannot be stored. {error}") from error
        if self.limit is not None and len(data) > self.limit:
            raise PayloadTooLargeError(
                f"{what[:1].upper()}{what[1:]} is {len(data)} bytes when stored, and payload_limit is "
                f"{self.limit}. Store it elsewhere and pass a reference to it, or raise the limit."
            )
        return data

    def decode(self, data: Data) -> Any:
        """The value that `encode` was given. It raises the errors of the function `decode`."""
        return decode(unseal(data, self.payload_codec))
