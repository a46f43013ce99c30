"""Errors as data: what a failure tells when its exception cannot travel."""

from __future__ import annotations

import msgspec


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error as it travels and is stored.

    `exception` is the pickled exception itself when it round-trips; `python` is the version that
    pickled it, as "3.11".
    """

    error: str
    error_type: str
    traceback: str = ""
    is_retryable: bool = True
    retry_after: float | None = None
    exception: bytes | None = None
    python: str = ""
    cause: Failure | None = None
