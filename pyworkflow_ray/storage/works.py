"""Units of work: what a transaction does, written as batches of statements.

Theory of operation. The database is often across a network, so the number of waits for it matters most. A
*work* is a generator that yields batches. No statement of a batch needs an answer of the same batch, so a
batch is sent as a whole and costs one round trip. The generator receives the answers. Then it yields the next
batch or returns its result.

- `ask` makes a batch whose answers the work needs before it can go on.
- `last` makes a batch that is safe to commit whatever its answers are. COMMIT is sent with it. The work uses
  the answers after the commit: it returns, raises, or goes on in a new transaction.
- A statement of `Statement.require` must change a row. If it finds none, the transaction is undone, and
  `RefusedError` is raised at the work's `yield`. The next batch of the work begins a new transaction.

A work may be run more than once: after a lost connection, or after it was undone together with another work.
So **every work must be safe to run again**, also when the first time was committed and only the answer got
lost. A work that finds what it wrote before must count that as a success.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial, update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar

from sqlalchemy.engine import Connection

from pyworkflow_ray.storage.locks import NO_LOCKS, Locks, merged
from pyworkflow_ray.storage.statements import Bound, RefusedError

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Batch:
    """Statements that are sent together. With `is_last`, they may be committed whatever the answers are."""

    __slots__ = ("is_last", "statements")

    def __init__(self, statements: Sequence[Bound], *, is_last: bool = False) -> None:
        self.statements, self.is_last = statements, is_last


class Call:
    """A function that a work calls with the connection itself. Its answer is what `function` returns."""

    __slots__ = ("function",)
    is_last = False

    def __init__(self, function: Callable[[Connection], Any]) -> None:
        self.function = function


Request = Batch | Call
Steps = Generator[Request, list[Any], T]
"""A work that is under way: it yields requests, is sent their answers, and returns its result."""


def ask(*statements: Bound) -> Batch:
    """A batch whose answers are needed before the commit."""
    return Batch(statements)


def last(*statements: Bound) -> Batch:
    """A batch that may be committed whatever the answers are."""
    return Batch(statements, is_last=True)


class Work(Generic[T_co]):
    """A unit of work that can be run, and run again.

    In another work, ``result = yield from a_work`` makes it a part. Its `last` batches are then only asked,
    since the other work is not done yet. ``yield from a_work.at_end()`` makes it the end of the other work.
    The other work says itself which rows it locks (`locking`).
    """

    __slots__ = ("_begin", "locks")

    def __init__(
        self, begin: Callable[[], Steps[T_co]], locks: Callable[[], Locks] = lambda: NO_LOCKS
    ) -> None:
        self._begin = begin
        self.locks = locks
        """The rows that the work locks. Its transaction locks them first, in one order with all others."""

    def at_end(self) -> Steps[T_co]:
        """The work from its beginning. The caller runs it to its end and commits with its last batch."""
        return self._begin()

    def __iter__(self) -> Steps[T_co]:
        return _as_part(self._begin())

    def on(self, connection: Connection) -> T_co:
        """The result; each statement is run on this connection now.

        The caller begins and ends the transaction. Nothing is undone when a statement is refused.
        """
        steps = self._begin()
        advance: Callable[[], Request] = steps.__next__
        while True:
            try:
                request = advance()
            except StopIteration as end:
                result: T_co = end.value
                return result
            try:
                if isinstance(request, Call):
                    answers = [request.function(connection)]
                else:
                    answers = [each.on(connection) for each in request.statements]
            except RefusedError as refused:
                advance = partial(steps.throw, refused)
            else:
                advance = partial(steps.send, answers)


def _as_part(steps: Steps[T]) -> Steps[T]:
    advance: Callable[[], Request] = steps.__next__
    while True:
        try:
            request = advance()
        except StopIteration as end:
            result: T = end.value
            return result
        if isinstance(request, Batch) and request.is_last:
            request = Batch(request.statements)
        try:
            answers = yield request
        except RefusedError as refused:
            advance = partial(steps.throw, refused)
        else:
            advance = partial(steps.send, answers)


def work(function: Callable[P, Steps[T]]) -> Callable[P, Work[T]]:
    """Turn a generator function into one whose calls can be run again.

    ```python
    @work
    def rename(run_id: str, name: str) -> Steps[bool]:
        (changed,) = yield last(_RENAME.change(run_id=run_id, name=name))
        return changed == 1
    ```
    """

    def make(*args: P.args, **kwargs: P.kwargs) -> Work[T]:
        return Work(lambda: function(*args, **kwargs))

    update_wrapper(make, function)
    return make


def locking(
    locks_of: Callable[P, Locks],
) -> Callable[[Callable[P, Work[T]]], Callable[P, Work[T]]]:
    """Say which rows the works of a function lock; `locks_of` is called with the function's arguments.

    ```python
    @locking(lambda run_id, name: changing(run_id))
    @work
    def rename(run_id: str, name: str) -> Steps[bool]: ...
    ```
    """

    def decorate(function: Callable[P, Work[T]]) -> Callable[P, Work[T]]:
        def make(*args: P.args, **kwargs: P.kwargs) -> Work[T]:
            made = function(*args, **kwargs)
            made.locks = lambda: locks_of(*args, **kwargs)
            return made

        update_wrapper(make, function)
        return make

    return decorate


def as_work(task: Work[T] | Callable[[Connection], T]) -> Work[T]:
    """The work itself, or one that calls a function with the connection."""
    return task if isinstance(task, Work) else called(task)


@work
def called(function: Callable[[Connection], T]) -> Steps[T]:
    """A work that calls a function with the connection. It costs a round trip for each statement."""
    (result,) = yield Call(function)
    return result  # type: ignore[no-any-return]


@locking(lambda *works: merged(each.locks() for each in works))
@work
def together(*works: Work[Any]) -> Steps[list[Any]]:
    """The results of works that do not depend on each other: their batches are sent as one.

    Their statements run in the order of the works.
    """
    steps = [each.at_end() for each in works]
    results: list[Any] = [None] * len(steps)
    waiting: dict[int, Batch] = {}

    def advance(index: int, answers: list[Any] | None) -> None:
        waiting.pop(index, None)
        try:
            request = next(steps[index]) if answers is None else steps[index].send(answers)
        except StopIteration as end:
            results[index] = end.value
            return
        if isinstance(request, Call):
            raise TypeError("A work that needs the connection itself cannot run together with others.")
        waiting[index] = request

    for index in range(len(steps)):
        advance(index, None)
    while waiting:
        batches = list(waiting.items())
        statements = [statement for _, batch in batches for statement in batch.statements]
        answers = iter((yield Batch(statements, is_last=all(batch.is_last for _, batch in batches))))
        for index, batch in batches:
            advance(index, [next(answers) for _ in batch.statements])
    return results
