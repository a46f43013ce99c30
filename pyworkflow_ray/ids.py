"""Names of things: run ids that cannot collide, and readable ids within a run."""

from __future__ import annotations

import secrets


def new_run_id() -> str:
    """A new run id: ``run_`` and 16 random hex digits."""
    return f"run_{secrets.token_hex(8)}"


def new_token() -> str:
    """A token that cannot be guessed: 192 random bits, in digits that need no quoting anywhere."""
    return secrets.token_hex(24)


def require_storable(name: str) -> None:
    """Refuse a name that some database cannot hold. One that was let through would stop its run for ever.

    Raises:
        ValueError: The name has a NUL, or a lone surrogate, such as those of an undecodable file name.
    """
    if "\0" in name or (not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name)):
        raise ValueError(
            f"The name {name[:100]!r} cannot be stored: names have no NUL and no lone surrogates. Give it "
            "another name, and pass the text as an argument."
        )


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
