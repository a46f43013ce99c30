"""What a database holds at the end of a storm, read by plain SQL and in no other way."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from storm.programs import Node

ENDINGS = {
    "workflow.completed": "completed",
    "workflow.failed": "failed",
    "workflow.cancelled": "cancelled",
    "workflow.continued_as_new": "continued_as_new",
}
"""The events that end a history, and the status that the run has then."""


@dataclass(frozen=True)
class Event:
    position: int
    type: str
    at: float
    data: dict[str, Any]

    @property
    def is_unseen(self) -> bool:
        """Whether the run ended before its code saw it."""
        return bool(self.data.get("is_unseen"))


@dataclass(frozen=True)
class Run:
    """A run's row, and its history."""

    row: dict[str, Any]
    events: list[Event] = field(default_factory=list)

    @property
    def id(self) -> str:
        return str(self.row["run_id"])

    @property
    def status(self) -> str:
        return str(self.row["status"])

    @property
    def has_ended(self) -> bool:
        return self.status in ENDINGS.values()

    @property
    def arguments(self) -> list[Any]:
        """What the workflow got: a program; in a later run of a chain its number and what it carries too."""
        given: list[Any] = json.loads(self.row["input_args"])
        return given

    @property
    def program(self) -> Node:
        program: Node = self.arguments[0]
        return program

    def of(self, *types: str) -> Iterator[Event]:
        """The events of these types."""
        return (event for event in self.events if event.type in types)

    def seen(self, *types: str) -> Iterator[Event]:
        """The events of these types that the code has seen."""
        return (event for event in self.of(*types) if not event.is_unseen)

    def steps(self) -> dict[str, Node]:
        """The node of each step that was scheduled, by the step's id in the run."""
        return {event.data["step_id"]: event.data["args"][0] for event in self.of("step.started")}


@dataclass(frozen=True)
class Records:
    """All rows that the checks read."""

    runs: dict[str, Run]
    inbox: list[dict[str, Any]] = field(default_factory=list)
    hooks: list[dict[str, Any]] = field(default_factory=list)
    blobs: set[str] = field(default_factory=set)
    run_blobs: set[tuple[str, str]] = field(default_factory=set)

    def chain_of(self, run_id: str) -> list[Run]:
        """The runs that continued one another from this one on."""
        chain: list[Run] = []
        following: str | None = run_id
        while following in self.runs and following not in [run.id for run in chain]:
            chain.append(self.runs[following])
            following = self.runs[following].row["continued_to_run_id"]
        return chain


def read_records(url: str) -> Records:
    """All of it, from an SQLite file or a PostgreSQL server."""
    with closing(connect(url)) as connection:
        events: dict[str, list[Event]] = defaultdict(list)
        for row in rows_of(connection, "SELECT * FROM events ORDER BY run_id, position"):
            event = Event(row["position"], row["type"], seconds_of(row["timestamp"]), json.loads(row["data"]))
            events[row["run_id"]].append(event)
        runs = rows_of(connection, "SELECT * FROM runs ORDER BY created_at, run_id")
        return Records(
            runs={row["run_id"]: Run(row, events[row["run_id"]]) for row in runs},
            inbox=rows_of(connection, "SELECT * FROM inbox ORDER BY id"),
            hooks=rows_of(connection, "SELECT * FROM hooks"),
            blobs={row["hash"] for row in rows_of(connection, "SELECT hash FROM blobs")},
            run_blobs={
                (row["run_id"], row["hash"])
                for row in rows_of(connection, "SELECT run_id, hash FROM run_blobs")
            },
        )


def connect(url: str, timeout: float = 10.0) -> Any:
    """A connection of our own."""
    if url.startswith("postgresql:"):
        import psycopg

        return psycopg.connect(url, autocommit=True, connect_timeout=int(timeout))
    return sqlite3.connect(url, timeout=timeout, isolation_level=None)


def rows_of(connection: Any, query: str) -> list[dict[str, Any]]:
    """What a query finds, as dictionaries."""
    cursor = connection.execute(query)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def seconds_of(instant: Any) -> float:
    """A time of a row as seconds since 1970."""
    if isinstance(instant, str):
        instant = datetime.fromisoformat(instant)
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return float(instant.timestamp())
