"""Queries whose text depends on their arguments: filters, pages of lists.

SQLAlchemy builds them. They run like every other statement: by the driver itself, in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Dialect, Select
from sqlalchemy.dialects import sqlite

from pyworkflow_ray.storage.dialects import Parameters, encode
from pyworkflow_ray.storage.statements import Bound, Statement

_NO_TEXT = Statement("")


class Selection(Bound):
    """A query that is built for its database when it runs. Its answer is a list of all rows.

    Args:
        build: Builds the query for a database, "sqlite" or "postgresql".
    """

    __slots__ = ("_build",)

    def __init__(self, build: Callable[[str], Select[Any]]) -> None:
        super().__init__(_NO_TEXT, "find all", {})
        self._build = build

    def resolved(self, dialect: str) -> tuple[str, Parameters]:
        query = self._build(dialect)
        compiled = query.compile(dialect=_dialect(dialect), compile_kwargs={"render_postcompile": True})
        return str(compiled), encode(dialect, compiled.params)


def selecting(query: Select[Any]) -> Selection:
    """A query that is the same for both databases."""
    return Selection(lambda _: query)


def _dialect(name: str) -> Dialect:
    if name == "sqlite":
        return sqlite.dialect(paramstyle="named")
    from sqlalchemy.dialects.postgresql import psycopg

    return psycopg.dialect()  # type: ignore[no-untyped-call]
