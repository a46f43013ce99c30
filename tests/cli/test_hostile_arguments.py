"""Whatever is typed, a command answers, or says in a few words what is wrong: never with a traceback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.main import get_command

import pyworkflow_ray as pr
from pyworkflow_ray.cli.app import app
from tests.cli import flows
from tests.cli.conftest import Call

BOUNDED = settings(
    max_examples=int(os.environ.get("PYWORKFLOW_TEST_EXAMPLES", "8")),
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
# They start or end an engine, write files where they are called, or look at this machine.
ELSEWHERE = {"up", "down", "doctor", "quickstart"}


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from _commands(inner, (*path, name))
    elif path[0] not in ELSEWHERE:
        yield path, command.params


COMMANDS = {" ".join(path): (path, params) for path, params in _commands(get_command(app))}
WORDS = st.sampled_from(
    [
        *("", " ", "-", "--", "-1", "0", "1e999", "9" * 40, "٣", "\udcff", "a\x1b[31mb", "x" * 3000, "run_"),
        *("*", "%", "'; DROP TABLE runs;--", "../..", "~", "/dev/null", "/", "::", "\n", "run_0", "http://x"),
        *(
            "{",
            '{"a":',
            "[1]",
            "null",
            "NaN",
            "true",
            "a=b",
            "=",
            "=b",
            "a=",
            "tests.cli.flows",
            "cli_doubles",
        ),
        *("1d", "-1d", "2026-01-01", "2026-13-01", "0001-01-01", "9999-12-31T23:59:59Z", "now"),
        *("sqlite:///nowhere/x.db", "postgresql://nobody:secret@127.0.0.1:1/x"),
    ]
)


@pytest.fixture
def runs(local: Path) -> Path:
    pr.run_workflow(flows.cli_doubles, [1])
    return local


@pytest.mark.parametrize("command", COMMANDS)
def test_any_arguments_are_taken_or_refused_in_a_few_words(
    command: str, cli: Call, runs: Path, no_cluster: None
) -> None:
    path, params = COMMANDS[command]
    options = sorted(
        option
        for each in params
        for option in each.opts
        if option.startswith("--") and option not in _WAITING
    )
    given_options = st.lists(st.tuples(st.sampled_from(options or ["--x"]), WORDS), max_size=3)

    @BOUNDED
    @given(st.lists(WORDS, max_size=3), given_options)
    def check(words: list[str], chosen: list[tuple[str, str]]) -> None:
        arguments = [f"{option}={word}" for option, word in chosen]
        answer = cli(*path, *arguments, *words, input="")
        assert answer.code in (0, 1, 2, 130)
        assert "Traceback" not in answer.err
        assert answer.code == 0 or answer.err.strip() or answer.out.strip()

    check()


_WAITING = {"--watch", "--follow", "--wait", "--help"}
