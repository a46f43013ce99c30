"""What a test says that steps, hooks and children come to."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any


class MissingMockError(AssertionError):
    """A `MockContext` was asked for something that the test has given no answer to."""


class Never:
    """An answer that does not come, so that time passes instead."""

    def __repr__(self) -> str:
        return "NEVER"


NEVER = Never()
"""Give it to a `MockContext` in place of an answer: nobody answers, and time goes on to what is due next."""


class Answers:
    """The answers to calls of one kind, by name.

    Args:
        option: The option of `MockContext` that holds them, for errors.
        given: What the test gave; read anew at each call, so that the test may change it meanwhile.
    """

    def __init__(self, option: str, given: Mapping[str, Any]) -> None:
        self._option, self._given = option, given
        self._turns: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def next(self, name: str) -> Any:
        """The answer to the next call of this name.

        Raises:
            MissingMockError: There is none, or all answers of a list have been given.
        """
        answer = self._given[name]
        if not isinstance(answer, list):
            return answer
        turn = self._turns.get(name, 0)
        if turn >= len(answer):
            raise MissingMockError(
                f"{name!r} is asked for the {_th(turn + 1)} time, and {self._option}[{name!r}] is a list of "
                f"{len(answer)} answers, one for each time. Add one, or give a function that answers always "
                "(to answer with a list, put it into a list)."
            )
        self._turns[name] = turn + 1
        return answer[turn]

    def alike(self, name: str) -> str:
        """A hint at the names that there are answers for."""
        close = difflib.get_close_matches(name, self._given, n=1)
        return f" Did you mean {close[0]!r}?" if close else ""


def _th(number: int) -> str:
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if 10 < number % 100 < 14 else endings.get(number % 10, 'th')}"


async def give(answer: Any, *args: Any, **kwargs: Any) -> Any:
    """What an answer comes to: an exception is raised, a function is called, any other value is itself."""
    if isinstance(answer, BaseException) or (isinstance(answer, type) and issubclass(answer, BaseException)):
        raise answer
    if not callable(answer):
        return answer
    value = answer(*args, **kwargs)
    return await value if inspect.isawaitable(value) else value


async def give_to_hook(answer: Any, token: str) -> Any:
    """As `give`; the function may take the hook's token."""
    if callable(answer) and not isinstance(answer, type) and not _takes_one(answer):
        return await give(answer)
    return await give(answer, token)


def _takes_one(function: Any) -> bool:
    try:
        inspect.signature(function).bind("token")
    except (TypeError, ValueError):
        return False
    return True
