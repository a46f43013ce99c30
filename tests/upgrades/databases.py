"""The recorded databases, made again for a test."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import psycopg

FOLDER = Path(__file__).parent / "databases"


def recorded(version: int, database: str) -> Path:
    """The file with the database of this version, as SQL."""
    return FOLDER / f"version_{version}.{database}.sql"


def fill(url: str, version: int) -> None:
    """Make the tables and the rows of this version in an empty database."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            connection.executescript(recorded(version, "sqlite").read_text())
        return
    with psycopg.connect(url) as connection:
        connection.execute(recorded(version, "postgresql").read_text().encode())
