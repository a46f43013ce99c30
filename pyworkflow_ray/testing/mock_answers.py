"""Mock answers: what a test gives in place of the results of steps, hooks and children."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any


class MissingMockError(AssertionError):
    """A workflow in a `MockContext` needs an answer that the test has not given."""


class Never:
    """The answer that never comes, so that time passes instead."""

    def __repr__(self) -> str:
        return "NEVER"


NEVER = Never()
"""Give this to a `MockContext` as an answer: no answer comes, and time moves on to what is due next."""


class MockAnswers:
    """The answers to calls of one kind, by name.

    Args:
        option: The name of the option of `MockContext` that holds them, for error messages.
        given: The test's answers. They are read at each call, so that the test may change them meanwhile.
    """

    def __init__(self, option: str, given: Mapping[str, Any]) -> None:
        self._option, self._given = option, given
        self._turns: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def next(self, name: str) -> Any:
        """The answer to the next call of this name.

        Raises:
            MissingMockError: There is none, or all answers of a list are used up.
        """
        answer = self._given[name]
        if not isinstance(answer, list):
            return answer
        turn = self._turns.get(name, 0)
        if turn >= len(answer):
            raise MissingMockError(
                f"{name!r} is called for the {_th(turn + 1)} time, and {self._option}[{name!r}] is a list of "
                f"{len(answer)} answers, one for each call. Add one, or give a function that answers every "
                "call. (To answer with a list, put the list into a list.)"
            )
        self._turns[name] = turn + 1
        return answer[turn]

    def alike(self, name: str) -> str:
        """A hint: the most similar name that has an answer."""
        close = difflib.get_close_matches(name, self._given, n=1)
        return f" Did you mean {close[0]!r}?" if close else ""


def _th(number: int) -> str:
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if 10 < number % 100 < 14 else endings.get(number % 10, 'th')}"


async def resolve_answer(answer: Any, /, *args: Any, **kwargs: Any) -> Any:
    """The value of an answer: an exception is raised, a function is called, anything else is the value."""
    if isinstance(answer, BaseException) or (isinstance(answer, type) and issubclass(answer, BaseException)):
        raise answer
    if not callable(answer):
        return answer
    value = answer(*args, **kwargs)
    return await value if inspect.isawaitable(value) else value


async def resolve_hook_answer(answer: Any, token: str) -> Any:
    """As `resolve_answer`; a function may take the hook's token."""
    if callable(answer) and not isinstance(answer, type) and not _takes_one(answer):
        return await resolve_answer(answer)
    return await resolve_answer(answer, token)


def _takes_one(function: Any) -> bool:
    try:
        inspect.signature(function).bind("token")
    except (TypeError, ValueError):
        return False
    return True
