"""Names of things: run ids that cannot collide, readable ids within a run, and which texts may be names."""

from __future__ import annotations

import re
import secrets
from typing import Any

from pyworkflow_ray.exceptions import ConfigurationError

LONGEST_ID = 200
"""The most characters of a run id."""
_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@=+~-]*")


def new_run_id() -> str:
    """A new run id: ``run_`` and 16 random hex digits."""
    return f"run_{secrets.token_hex(8)}"


def new_token() -> str:
    """A token that cannot be guessed: 192 random bits, in digits that need no quoting anywhere."""
    return secrets.token_hex(24)


def checked_run_id(run_id: Any) -> str:
    """The run id. It is a part of file names, of names of actors and of command lines.

    Raises:
        ConfigurationError: It is not of the form that run ids have.
    """
    if not isinstance(run_id, str) or len(run_id) > LONGEST_ID or not _RUN_ID.fullmatch(run_id):
        raise ConfigurationError(
            f"The run id {_shown(run_id)} is not valid: give 1 to {LONGEST_ID} of the characters A-Z a-z 0-9 "
            "_ . : @ = + ~ -, of which the first is a letter, a digit or _."
        )
    return str(run_id)


def checked_text(text: Any, what: str) -> str:
    """A text that is kept as it is and searched for: a name, a key, a token.

    Args:
        what: What the text is, for the error.

    Raises:
        ConfigurationError: It is no text, or has a character that no database can hold: NUL, or a half of a
            surrogate pair (of a file name that could not be decoded, for example).
    """
    if not isinstance(text, str):
        raise ConfigurationError(f"{what} must be a text, and not {_shown(text)}.")
    if not is_storable(text):
        raise ConfigurationError(
            f"{what} is {_shown(text)}: a NUL character or a lone surrogate cannot be stored. Leave it out."
        )
    return text


def is_storable(text: str) -> bool:
    """Whether every database can hold the text as it is."""
    return "\0" not in text and fits_utf8(text)


def fits_utf8(text: str) -> bool:
    """Whether UTF-8 can hold the text. It cannot hold a lone surrogate (of an undecodable file name)."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_storable(name: str) -> None:
    """Refuse a name that some database cannot hold. One that was let through would stop its run for ever.

    Raises:
        ValueError: The name has a NUL, or a lone surrogate, such as those of an undecodable file name.
    """
    if not is_storable(name):
        raise ValueError(
            f"The name {name[:100]!r} cannot be stored: names have no NUL and no lone surrogates. Give it "
            "another name, and pass the text as an argument."
        )


def storable(text: str) -> str:
    """The text with the characters written out that no database can hold."""
    if is_storable(text):
        return text
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\x00")


def file_name(text: str) -> str:
    """A text as a part of a file's name: what could lead to another folder is replaced."""
    return re.sub(r"[^\w.:@=+~-]", "_", storable(text)).lstrip(".-") or "_"


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


class Ordinals:
    """Numbers equal names in the order in which they are asked for: ``charge#1``, ``charge#2``.

    A step's identity is its name and its ordinal in the run, never its arguments: two equal calls are
    two steps, and the same code gives the same ids in every replay.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def next(self, name: str) -> str:
        """The next id of this name.

        Raises:
            ValueError: The name cannot be stored.
        """
        last = self._last.get(name)
        if last is None:
            require_storable(name)
        ordinal = (last or 0) + 1
        self._last[name] = ordinal
        return f"{name}#{ordinal}"
