"""Run works on the one connection that writes, with as few round trips as their answers allow.

Theory of operation. Works run one after another in one transaction, so each sees what the earlier ones wrote.
Their batches are sent without waiting, as long as no work needs an answer. So a hundred works of one batch
each are one pipeline, with BEGIN before them and COMMIT after them. A work that asks before it goes on costs
a round trip for each batch whose answers it needs. The rows that the works lock are locked first, in the same
pipeline (`locks`).

SQLite is in this process. There each batch is run at once, and the same rules hold.

An error belongs to the work whose statement raised it. The whole transaction is undone. The caller then runs
the guilty work alone, and runs the works around it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sqlalchemy.engine import Connection

from pyworkflow_ray.storage.dialects import begin_immediate, driver_of, is_refusal, is_transient
from pyworkflow_ray.storage.locks import merged, taking
from pyworkflow_ray.storage.statements import Bound, Parameters, RefusedError
from pyworkflow_ray.storage.works import Batch, Call, Request, Steps, Work

_IDLE = 0
"""The driver's word for a connection that has no transaction open."""


class GuiltyError(Exception):
    """A statement of a transaction failed, and the transaction must be undone.

    `owner` is the index of the guilty work in its group; None when no single work is to blame.
    """

    def __init__(self, owner: int | None, error: BaseException) -> None:
        super().__init__(owner, error)
        self.owner, self.error = owner, error


class Sent:
    """A batch that was sent. `answers` is filled when the session receives them."""

    __slots__ = ("answers",)

    def __init__(self) -> None:
        self.answers: list[Any] = []


class Session(Protocol):
    """One connection, as transactions use it.

    A statement's error is raised as `GuiltyError`. A transient error (a lost connection, a lock) is raised
    unchanged.
    """

    def begin(self) -> None:
        """Begin a transaction. It may be sent together with the next batch."""

    def lock(self, works: Sequence[Work[Any]]) -> Sequence[int]:
        """Lock the rows that these works lock, after all that was sent before; in which order to run them."""

    def send(self, batch: Batch, owner: int) -> Sent:
        """Run a batch after all that was sent before."""

    def call(self, function: Callable[[Connection], Any], owner: int) -> Any:
        """Call the function with the connection, after all that was sent before; its result."""

    def commit(self) -> None:
        """Commit after all that was sent before."""

    def receive(self) -> None:
        """Wait until all that was sent is answered."""

    def rollback(self) -> None:
        """Undo the transaction, and forget what was sent and not answered."""

    def close(self) -> None:
        """Leave the connection in the state that another user expects."""


class SQLiteSession:
    """Runs each statement at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._driver = driver_of(connection)

    def begin(self) -> None:
        begin_immediate(self._driver)

    def lock(self, works: Sequence[Work[Any]]) -> Sequence[int]:
        return range(len(works))  # the whole database is locked

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
        # A call may have begun a transaction in SQLAlchemy. It is the same transaction, so SQLAlchemy must
        # end it.
        getattr(self._connection if self._connection.in_transaction() else self._driver, verb)()


class PostgreSQLSession:
    """Sends statements in a pipeline; `receive` waits for the answers of all of them at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._driver = driver_of(connection)
        # The driver's open pipeline, or None. `_exit` closes it.
        self._pipeline: Any = None
        self._exit = contextlib.ExitStack()
        # What was sent and not yet answered, in the order of sending: `(owner, statement, cursor, sent)`.
        # BEGIN, COMMIT and the locks have no owner, no statement and no `sent`.
        self._unanswered: list[tuple[int | None, Bound | None, Any, Sent | None]] = []

    def begin(self) -> None:
        self._queue_text("BEGIN")

    def lock(self, works: Sequence[Work[Any]]) -> Sequence[int]:
        locks = [each.locks() for each in works]
        changed = [each.changed for each in locks]
        if all(run_id is not None for run_id in changed):
            # Each changes one run. Their own order does what locks would do, and costs nothing.
            return sorted(range(len(works)), key=lambda index: str(changed[index]))
        for statement in taking(merged(locks)):
            self._queue_text(*statement.resolved("postgresql"))
        return range(len(works))

    def send(self, batch: Batch, owner: int) -> Sent:
        self._enter()
        sent = Sent()
        for statement in batch.statements:
            try:
                cursor = statement.queue(self._driver)
            except BaseException as error:
                # The error of an earlier statement, or of this one, if the server was quick to answer.
                raise self._blamed(error, owner, statement) from error
            self._unanswered.append((owner, statement, cursor, sent))
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
            raise self._blamed(error) from error
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
            self._leave()  # closes the pipeline with what the error has left in it
        # Not the text ROLLBACK: the driver's own method also forgets which statements are prepared. The
        # server skipped the statements after the error. They are not prepared, and the driver does not
        # notice.
        self._driver.rollback()
        self._forget_call()

    def close(self) -> None:
        self._leave()

    def _forget_call(self) -> None:
        """Let SQLAlchemy know that its transaction has ended, if a call began one.

        SQLAlchemy's `rollback` rolls back what is open on the server. So it runs only when nothing is open.
        """
        if self._connection.in_transaction() and self._driver.info.transaction_status == _IDLE:
            self._connection.rollback()

    def _queue_text(self, sql: str, parameters: Parameters | None = None) -> None:
        self._enter()
        cursor = self._driver.cursor()
        try:
            cursor.execute(sql, parameters)
        except BaseException as error:
            raise self._blamed(error) from error  # the error of an earlier statement
        self._unanswered.append((None, None, cursor, None))

    def _enter(self) -> None:
        if self._pipeline is None:
            self._pipeline = self._exit.enter_context(self._driver.pipeline())

    def _leave(self) -> None:
        if self._pipeline is not None:
            self._pipeline = None
            self._exit.close()

    def _blamed(
        self, error: BaseException, owner: int | None = None, statement: Bound | None = None
    ) -> BaseException:
        """The error with its work: the first work that has a statement without an answer.

        Args:
            owner, statement: What is just being sent. It is to blame if all others are answered.
        """
        if is_transient(error):
            return error
        for sender, sent, cursor, _ in self._unanswered:
            if cursor is not None and cursor.pgresult is None and cursor.statusmessage is None:
                owner, statement = sender, sent
                break
        if statement is not None and statement.kind == "require" and is_refusal(error):
            return GuiltyError(owner, RefusedError())
        return GuiltyError(owner, error)


class PostgreSQLSnapshot(PostgreSQLSession):
    """As `PostgreSQLSession`, for reading: all statements see one state of the database.

    A single statement needs no transaction. The pipeline is closed when the answers are received, since
    the connection then goes back to the pool.
    """

    def begin(self) -> None:
        self._has_begun = False

    def lock(self, works: Sequence[Work[Any]]) -> Sequence[int]:
        return range(len(works))  # it only reads

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
    """The outcome of a work after the commit: its result or its error."""

    __slots__ = ("error", "result")

    def __init__(self, result: Any = None, error: BaseException | None = None) -> None:
        self.result, self.error = result, error


def run_all(session: Session, works: Sequence[Work[Any]]) -> list[Outcome]:
    """Run works one after another in one transaction, and commit it.

    Raises:
        GuiltyError: One of several works is to blame. Nothing that any of them wrote is kept.
        Exception: A transient error. It is unknown whether the commit went through.
    """
    if len(works) == 1:
        return [run_alone(session, works[0].at_end(), locks_of=works)]
    session.begin()
    by_owner: dict[int, tuple[Steps[Any], Sent | None, Outcome]] = {}
    for owner in session.lock(works):
        by_owner[owner] = _run_to_last(session, works[owner].at_end(), owner)
    begun = [by_owner[owner] for owner in range(len(works))]
    session.commit()
    session.receive()
    return [outcome if sent is None else _conclude(session, steps, sent) for steps, sent, outcome in begun]


def _run_to_last(session: Session, steps: Steps[Any], owner: int) -> tuple[Steps[Any], Sent | None, Outcome]:
    """Run a work until its result is known, or until only the answers of its last batch are missing."""
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
        # The work itself raised this. What it wrote before must not be kept.
        raise (error if is_transient(error) else GuiltyError(owner, error)) from error


def _conclude(session: Session, steps: Steps[Any], sent: Sent) -> Outcome:
    """The outcome of a work whose last batch is committed. The work may go on in its own transaction."""
    return run_alone(session, steps, lambda: steps.send(sent.answers))


def run_alone(
    session: Session,
    steps: Steps[Any],
    advance: Callable[[], Request] | None = None,
    *,
    locks_of: Sequence[Work[Any]] = (),
) -> Outcome:
    """Run one work, or the rest of it, to its end, in its own transactions.

    Args:
        locks_of: The work, whose rows are locked at the beginning of each transaction.

    Raises:
        Exception: A transient error. It is unknown whether the commit went through.
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
        try:
            if not is_open:
                session.begin()
                session.lock(locks_of)
                is_open = True
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
