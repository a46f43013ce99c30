"""SQL text for both databases, and the same text with its parameters, ready to run.

A `Statement` is SQL that SQLite and PostgreSQL both understand. Parameters are written `:name`. Some tokens
stand for SQL that the two databases write differently:

- ``<now>`` is the database's own clock.
- ``<now + :seconds>`` is that clock plus some seconds.
- ``<json column>`` is the JSON text of a text column.
- ``<for update>`` and ``<for key share>`` lock the rows that a SELECT finds. SQLite has one writer anyway.

Leases and due times are always compared with the database's clock. The clocks of a cluster's hosts disagree
with each other; the database's clock agrees with itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy.engine import Connection

from pyworkflow_ray.storage.dialects import (
    Parameters,
    Row,
    driver_of,
    encode,
    fetched,
    guarded,
    read_leniently,
    translate,
)

__all__ = ["Bound", "Parameters", "RefusedError", "Row", "Statement"]

Kind = Literal["change", "require", "change each", "find", "find all"]


class RefusedError(Exception):
    """A statement that must change a row found none. Nothing that was written with it is kept."""


class Statement:
    """SQL text for both databases. It is translated once for each and run by the driver itself.

    SQLAlchemy's own execution costs about 100 µs for a row of forty columns. SQLite needs less than that to
    write the row. Instants among the parameters must be aware. Instants in rows are the driver's: give them
    to `decode_time`.
    """

    __slots__ = ("_guarded", "_sql", "_texts")

    def __init__(self, sql: str) -> None:
        self._sql = sql
        self._texts: dict[str, str] = {}
        self._guarded: str | None = None

    def change(self, **parameters: Any) -> Bound:
        """Its answer is how many rows it has changed."""
        return Bound(self, "change", parameters)

    def require(self, **parameters: Any) -> Bound:
        """As `change`, but it must find a row. If it finds none, its whole transaction is undone."""
        return Bound(self, "require", parameters)

    def change_each(self, rows: Sequence[Parameters]) -> Bound:
        """Runs once for each row of parameters. Its answer is None."""
        return Bound(self, "change each", rows)

    def find(self, **parameters: Any) -> Bound:
        """Its answer is the first row, or None."""
        return Bound(self, "find", parameters)

    def find_all(self, **parameters: Any) -> Bound:
        """Its answer is a list of all rows."""
        return Bound(self, "find all", parameters)

    def text(self, dialect: str) -> str:
        """The text in the form that this database's driver takes."""
        sql = self._texts.get(dialect)
        if sql is None:
            sql = self._texts[dialect] = translate(self._sql, dialect)
        return sql

    def guarded_text(self) -> str:
        """The text for PostgreSQL that fails when it changes nothing; see `guarded`."""
        if self._guarded is None:
            self._guarded = guarded(self.text("postgresql"))
        return self._guarded


class Bound:
    """A statement with its parameters and the kind of its answer."""

    __slots__ = ("kind", "parameters", "statement")

    def __init__(self, statement: Statement, kind: Kind, parameters: Any) -> None:
        self.statement, self.kind, self.parameters = statement, kind, parameters

    def on(self, connection: Connection) -> Any:
        """The statement's answer, run on this connection now.

        Raises:
            RefusedError: The statement must change a row, and found none.
        """
        return self.run(driver_of(connection), connection.dialect.name)

    def run(self, driver: Any, dialect: str) -> Any:
        """As `on`, with the driver's connection."""
        if self.kind == "change each":
            if self.parameters:
                cursor = driver.cursor()
                sql = self.statement.text(dialect)
                cursor.executemany(sql, [encode(dialect, row) for row in self.parameters])
                cursor.close()
            return None
        cursor = driver.execute(*self.resolved(dialect))
        try:
            return self.answer(cursor)
        except Exception as error:
            cursor.close()  # A statement that is not done would keep its transaction open.
            if dialect == "sqlite":
                read_leniently(driver, error)
            raise

    def resolved(self, dialect: str) -> tuple[str, Parameters]:
        """The text and the parameters in the form that this database's driver takes."""
        return self.statement.text(dialect), encode(dialect, self.parameters)

    def queue(self, driver: Any) -> Any:
        """Send the statement to PostgreSQL and do not wait; the cursor, for `answer`.

        None if there is nothing to run.
        """
        cursor = driver.cursor()
        if self.kind == "change each":
            rows = [encode("postgresql", row) for row in self.parameters]
            if not rows:
                return None
            cursor.executemany(self.statement.text("postgresql"), rows)
            return cursor
        sql, parameters = self.resolved("postgresql")
        cursor.execute(self.statement.guarded_text() if self.kind == "require" else sql, parameters)
        return cursor

    def answer(self, cursor: Any) -> Any:
        """The statement's answer, after it has run on this cursor."""
        match self.kind:
            case "change":
                return cursor.rowcount
            case "require":
                if cursor.rowcount < 1:
                    raise RefusedError
                return cursor.rowcount
            case "find":
                # SQLite commits a statement with RETURNING only if all its rows were read.
                rows = fetched(cursor)
                return rows[0] if rows else None
            case "find all":
                return fetched(cursor)
            case "change each":
                return None
