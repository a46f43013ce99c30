"""Running works on the one connection that writes, as few round trips apart as their answers allow.

Theory of operation. Works run one after another in one transaction, so each sees what the ones before it
wrote. Their batches are sent without waiting, as long as nobody needs an answer: a group of a hundred works
of one batch each is one pipeline, with BEGIN in front and COMMIT behind. A work that asks before it goes on
costs a round trip for each answer it needs.

SQLite is in this process. There each batch is run at once, and the same rules hold.

An error belongs to the work whose statement met it. The transaction is undone as a whole; the caller runs the
guilty work alone, and those around it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sqlalchemy.engine import Connection

from pyworkflow_ray.storage.dialects import begin_immediate, driver_of, is_refusal, is_transient
from pyworkflow_ray.storage.statements import Bound, RefusedError
from pyworkflow_ray.storage.works import Batch, Call, Request, Steps, Work

_IDLE = 0
"""The driver's word for a connection that has no transaction open."""


class GuiltyError(Exception):
    """One work of a transaction met an error, and the transaction must be undone.

    `owner` is the work's place among those that were run together; None when no single work is to blame.
    """

    def __init__(self, owner: int | None, error: BaseException) -> None:
        super().__init__(owner, error)
        self.owner, self.error = owner, error


class Sent:
    """A batch that was sent. `answers` are there once the session has received them."""

    __slots__ = ("answers",)

    def __init__(self) -> None:
        self.answers: list[Any] = []


class Session(Protocol):
    """One connection, as transactions use it. Errors of statements are raised as `GuiltyError`; errors that
    may pass (a lost connection, a lock) are raised as they are."""

    def begin(self) -> None:
        """Begin a transaction, with what is sent next."""

    def send(self, batch: Batch, owner: int) -> Sent:
        """Have a batch run behind all that was sent before."""

    def call(self, function: Callable[[Connection], Any], owner: int) -> Any:
        """What the function does with the connection, behind all that was sent before."""

    def commit(self) -> None:
        """Commit behind all that was sent before."""

    def receive(self) -> None:
        """Wait until all that was sent has been answered."""

    def rollback(self) -> None:
        """Undo the transaction, and forget what was sent and not answered."""

    def close(self) -> None:
        """Leave the connection as any other user expects it."""


class SQLiteSession:
    """Runs each statement at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._driver = driver_of(connection)

    def begin(self) -> None:
        begin_immediate(self._driver)

    def send(self, batch: Batch, owner: int) -> Sent:
        sent = Sent()
        try:
            sent.answers = [statement.run(self._driver, "sqlite") for statement in batch.statements]
        except BaseException as error:
            raise _blamed(error, owner) from error
        return sent

    def call(self, function: Callable[[Connection], Any], owner: int) -> Any:
        return _called(function, self._connection, owner)

    def commit(self) -> None:
        self._end("commit")

    def receive(self) -> None:
        pass

    def rollback(self) -> None:
        self._end("rollback")

    def close(self) -> None:
        pass

    def _end(self, verb: str) -> None:
        # A call may have begun a transaction of SQLAlchemy's: it is the same one, and it must know.
        getattr(self._connection if self._connection.in_transaction() else self._driver, verb)()


class PostgreSQLSession:
    """Sends statements in a pipeline; `receive` waits for the answers of all of them at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._driver = driver_of(connection)
        self._pipeline: Any = None
        self._exit = contextlib.ExitStack()
        self._unanswered: list[tuple[int | None, Bound | None, Any, Sent | None]] = []

    def begin(self) -> None:
        self._queue_text("BEGIN")

    def send(self, batch: Batch, owner: int) -> Sent:
        self._enter()
        sent = Sent()
        try:
            for statement in batch.statements:
                self._unanswered.append((owner, statement, statement.queue(self._driver), sent))
        except BaseException as error:
            # The driver may raise here what an earlier statement has met on the server.
            raise self._blamed(error, owner) from error
        return sent

    def call(self, function: Callable[[Connection], Any], owner: int) -> Any:
        self.receive()
        self._leave()
        return _called(function, self._connection, owner)

    def commit(self) -> None:
        self._queue_text("COMMIT")

    def receive(self) -> None:
        if not self._unanswered:
            return
        try:
            self._answer_all()
        except BaseException as error:
            raise self._blamed(error, None) from error
        unanswered, self._unanswered = self._unanswered, []
        for _, statement, cursor, sent in unanswered:
            if statement is not None and sent is not None:
                sent.answers.append(None if cursor is None else statement.answer(cursor))
        self._forget_call()

    def _answer_all(self) -> None:
        self._pipeline.sync()

    def rollback(self) -> None:
        self._unanswered.clear()
        with contextlib.suppress(Exception):
            self._leave()  # with what the error has left in the pipeline
        # The driver's own word for it: it also forgets which statements it has prepared. Those that were
        # skipped behind the error were not prepared, and the driver does not notice.
        self._driver.rollback()
        self._forget_call()

    def close(self) -> None:
        self._leave()

    def _forget_call(self) -> None:
        """Let SQLAlchemy know that the transaction has ended in which a call used it.

        Its `rollback` rolls back whatever is open on the server, so it must wait until nothing is.
        """
        if self._connection.in_transaction() and self._driver.info.transaction_status == _IDLE:
            self._connection.rollback()

    def _queue_text(self, sql: str) -> None:
        self._enter()
        cursor = self._driver.cursor()
        try:
            cursor.execute(sql)
        except BaseException as error:
            raise self._blamed(error, None) from error  # what an earlier statement has met
        self._unanswered.append((None, None, cursor, None))

    def _enter(self) -> None:
        if self._pipeline is None:
            self._pipeline = self._exit.enter_context(self._driver.pipeline())

    def _leave(self) -> None:
        if self._pipeline is not None:
            self._pipeline = None
            self._exit.close()

    def _blamed(self, error: BaseException, sending: int | None) -> BaseException:
        """The error with the work that met it: the first whose statement the server has not answered."""
        if is_transient(error):
            return error
        for owner, statement, cursor, _ in self._unanswered:
            if cursor is not None and cursor.pgresult is None and cursor.statusmessage is None:
                if statement is not None and statement.kind == "require" and is_refusal(error):
                    return GuiltyError(owner, RefusedError())
                return GuiltyError(owner, error)
        return GuiltyError(sending, error)


class PostgreSQLSnapshot(PostgreSQLSession):
    """As `PostgreSQLSession`, for reading: all that is asked sees one state of the database.

    One statement alone goes without a transaction. The pipeline is left with the answers, since the
    connection goes back to others.
    """

    def begin(self) -> None:
        self._has_begun = False

    def send(self, batch: Batch, owner: int) -> Sent:
        if batch.is_last and not self._has_begun and len(batch.statements) == 1:
            sent = Sent()
            sent.answers = [batch.statements[0].run(self._driver, "postgresql")]
            return sent
        if not self._has_begun:
            self._has_begun = True
            self._queue_text("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return super().send(batch, owner)

    def commit(self) -> None:
        if self._has_begun:
            super().commit()

    def _answer_all(self) -> None:
        self._leave()

    def rollback(self) -> None:
        if self._has_begun:
            super().rollback()


def _called(function: Callable[[Connection], Any], connection: Connection, owner: int) -> Any:
    try:
        return function(connection)
    except BaseException as error:
        raise _blamed(error, owner) from error


def _blamed(error: BaseException, owner: int) -> BaseException:
    return error if is_transient(error) else GuiltyError(owner, error)


class Outcome:
    """What a work came to: its result or its error, both of them after the commit."""

    __slots__ = ("error", "result")

    def __init__(self, result: Any = None, error: BaseException | None = None) -> None:
        self.result, self.error = result, error


def run_all(session: Session, works: Sequence[Work[Any]]) -> list[Outcome]:
    """Run works one after another in one transaction, and commit it.

    Raises:
        GuiltyError: One of them is to blame, and there are others. Nothing of any of them is kept.
        Exception: An error that may pass. Nobody knows whether the commit went through.
    """
    if len(works) == 1:
        return [run_alone(session, works[0].at_end())]
    begun: list[tuple[Steps[Any], Sent | None, Outcome]] = []
    session.begin()
    for owner, each in enumerate(works):
        begun.append(_run_to_last(session, each.at_end(), owner))
    session.commit()
    session.receive()
    return [outcome if sent is None else _conclude(session, steps, sent) for steps, sent, outcome in begun]


def _run_to_last(session: Session, steps: Steps[Any], owner: int) -> tuple[Steps[Any], Sent | None, Outcome]:
    """Run a work until its result is known, or only the answers of its last batch are missing."""
    try:
        request = next(steps)
        while True:
            if isinstance(request, Call):
                answers = [session.call(request.function, owner)]
            else:
                sent = session.send(request, owner)
                if request.is_last:
                    return steps, sent, Outcome()
                session.receive()
                answers = sent.answers
            request = steps.send(answers)
    except StopIteration as end:
        return steps, None, Outcome(end.value)
    except GuiltyError:
        raise
    except BaseException as error:
        # The work's own error. What it wrote before must not be kept.
        raise (error if is_transient(error) else GuiltyError(owner, error)) from error


def _conclude(session: Session, steps: Steps[Any], sent: Sent) -> Outcome:
    """The outcome of a work whose last batch is committed; it may go on in a transaction of its own."""
    return run_alone(session, steps, lambda: steps.send(sent.answers))


def run_alone(session: Session, steps: Steps[Any], advance: Callable[[], Request] | None = None) -> Outcome:
    """Run one work to its end, or what is left of it, in transactions of its own.

    Raises:
        Exception: An error that may pass. Nobody knows whether the commit went through.
    """
    advance = advance or steps.__next__
    is_open = False
    while True:
        try:
            request = advance()
        except StopIteration as end:
            if is_open:
                session.commit()
                session.receive()
            return Outcome(end.value)
        except BaseException as error:
            if is_transient(error):
                raise
            if is_open:
                session.rollback()
            return Outcome(error=error)
        if not is_open:
            session.begin()
            is_open = True
        try:
            answers = _answered(session, request)
        except GuiltyError as guilty:
            session.rollback()
            is_open = False
            if not isinstance(guilty.error, RefusedError):
                return Outcome(error=guilty.error)
            refused = guilty.error
            advance = lambda refused=refused: steps.throw(refused)  # noqa: E731
        else:
            is_open = is_open and not request.is_last
            advance = lambda answers=answers: steps.send(answers)  # noqa: E731


def _answered(session: Session, request: Request) -> list[Any]:
    if isinstance(request, Call):
        return [session.call(request.function, 0)]
    sent = session.send(request, 0)
    if request.is_last:
        session.commit()
    session.receive()
    return sent.answers
