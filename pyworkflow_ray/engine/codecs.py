"""The interface of what encodes values for the engine."""

from __future__ import annotations

from typing import Any, Protocol

from msgspec import Raw


class Codec(Protocol):
    """How values get into the history and out of it."""

    def encode(self, value: Any, what: str) -> bytes:
        """The value as JSON text. `what` names the value in errors."""
        ...

    def decode(self, data: Raw) -> Any:
        """The value that the text holds."""
        ...
