"""The command line called in this process, on a database of the test's own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pyworkflow_ray as pr
from pyworkflow_ray.cli import invocations
from pyworkflow_ray.cli.app import app
from pyworkflow_ray.client.sessions import close_sessions
from pyworkflow_ray.exceptions import ConfigurationError


@dataclass(frozen=True)
class Answer:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Call = Callable[..., Answer]


@pytest.fixture
def cli() -> Call:
    """Calls the command line: `cli("runs", "list")`; an error that it does not tell fails the test."""

    def call(*args: str, input: str | None = None, **environment: str) -> Answer:
        done = CliRunner().invoke(app, list(args), input=input, env=environment, prog_name="pyworkflow-ray")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Answer(done.exit_code, done.stdout, done.stderr)

    return call


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A working directory and an environment of the test's own."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("PYWORKFLOW_") or name in ("RAY_ADDRESS", "FORCE_COLOR", "COLUMNS"):
            monkeypatch.delenv(name)
    close_sessions()  # one that another test left open would be on a database in that one's folder
    yield
    close_sessions()


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """The in-process runtime, on a database in a file; a run that waits is let go at once."""
    pr.configure(default_runtime="local", storage=tmp_path / "cli.db", suspend_after="30ms")
    return tmp_path


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no Ray cluster runs, whatever other tests have running."""

    async def join(*, may_start: bool = False, must_last: bool = False) -> bool:
        raise ConfigurationError("The Ray cluster at this machine cannot be joined: there is none.")

    monkeypatch.setattr(invocations, "join", join)
    monkeypatch.setattr("pyworkflow_ray.cli.doctors.join", join)
    monkeypatch.setattr("pyworkflow_ray.cli.engine_actors.join", join)
