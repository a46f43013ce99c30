"""`pyworkflow-ray hooks`: answers from options, from files, and from a person at a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.client.hooks import Hook
from tests.cli import flows
from tests.cli.conftest import Call

SECONDS = 60.0


def waiting(workflow: Any) -> tuple[pr.RunHandle[Any], Hook]:
    """A run that waits, and its hook."""
    run = pr.start_sync(workflow)
    (hook,), _ = pr.run_sync(pr.list_hooks(run))
    return run, hook


def test_hooks_are_listed_with_the_tokens_that_answer_them(cli: Call, local: Path) -> None:
    run, hook = waiting(flows.cli_asks)
    waiting(flows.cli_hears)
    assert cli("hooks", "list", "--run", run[:12], "--output", "plain").lines[0].split("\t")[5] == hook.token
    assert hook.token in cli("hooks", "list", "--status", "pending").out
    pr.resume_hook_sync(hook.token, {"approved": True, "by": "Ada"})
    answer = cli("hooks", "list", "--status", "received", "--output", "json").json
    assert [each["hook_id"] for each in answer] == ["cli_approval#1"]
    assert cli("hooks", "list", "--status", "expired", "--output", "json").json == []


def test_a_hook_is_shown_with_what_its_payload_must_be(cli: Call, local: Path) -> None:
    run, hook = waiting(flows.cli_asks)
    answer = cli("hooks", "info", hook.token, "--output", "json").json
    assert (answer["run_id"], answer["status"], answer["metadata"]) == (run, "pending", {"order": 7})
    assert sorted(answer["payload_schema"]["properties"]) == ["approved", "by", "level", "share"]
    assert "Who decides" in cli("hooks", "info", hook.token).out


def test_an_unknown_token_is_told_and_not_repeated(cli: Call, local: Path) -> None:
    waiting(flows.cli_hears)
    for command in (("info", "secret"), ("resume", "secret", "-p", "1")):
        answer = cli("hooks", *command)
        assert answer.code == 1
        assert "secret" not in answer.err
        assert "pyworkflow-ray hooks list --status pending" in answer.err


def test_a_payload_wakes_the_run(cli: Call, local: Path) -> None:
    run, hook = waiting(flows.cli_hears)
    answer = cli("hooks", "resume", hook.token, "-p", '{"a": [1, 2.5, null]}', "--output", "json")
    assert answer.json == {"run_id": run, "hook_id": "cli_ear#1", "status": "resumed"}
    assert run.wait() == {"a": [1, 2.5, None]}
    again = cli("hooks", "resume", hook.token, "-p", "1")
    assert again.code == 1
    assert "received its payload already" in again.err


def test_a_payload_comes_from_a_file_or_from_standard_input(cli: Call, local: Path) -> None:
    one, of_one = waiting(flows.cli_hears)
    two, of_two = waiting(flows.cli_hears)
    (local / "payload.json").write_text('"from a file"')
    assert cli("hooks", "resume", of_one.token, "-f", "payload.json").code == 0
    assert cli("hooks", "resume", of_two.token, "-f", "-", input='"from a pipe"').code == 0
    assert (one.wait(), two.wait()) == ("from a file", "from a pipe")


def test_a_hook_is_rejected_with_a_text(cli: Call, local: Path) -> None:
    run, hook = waiting(flows.cli_hears)
    answer = cli("hooks", "resume", hook.token, "--reject", "not today")
    assert answer.out == f"cli_ear#1 of {run} is rejected\n"
    assert run.wait() == "rejected: not today"


def test_a_payload_that_does_not_fit_is_refused_and_the_hook_stays_open(cli: Call, local: Path) -> None:
    _, hook = waiting(flows.cli_asks)
    answer = cli("hooks", "resume", hook.token, "-p", '{"approved": "perhaps", "by": "Ada"}')
    assert answer.code == 1
    assert "approved" in answer.err
    found = pr.run_sync(pr.get_hook(hook.token))
    assert found is not None
    assert found.status is pr.HookStatus.PENDING


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "give the token"),
        (("TOKEN",), "-p null"),
        (("TOKEN", "-p", "{no"), "not JSON"),
        (("TOKEN", "-p", "1", "--reject", "x"), "one answer"),
        (("TOKEN", "-f", "nowhere.json"), "cannot be read"),
    ],
)
def test_without_a_terminal_what_is_missing_is_a_usage_error(
    cli: Call, local: Path, options: tuple[str, ...], said: str
) -> None:
    answer = cli("hooks", "resume", *options)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err


def test_an_answer_is_stored_where_no_cluster_runs(cli: Call, local: Path, no_cluster: None) -> None:
    run, hook = waiting(flows.cli_asks)
    pr.configure(default_runtime="ray")
    refused = cli("hooks", "resume", hook.token, "-p", "{}")
    assert refused.code == 1
    answer = cli("hooks", "resume", hook.token, "-p", '{"approved": true, "by": "Ada"}')
    assert answer.code == 0
    assert "is stored" in answer.err
    assert run.status_sync() is pr.RunStatus.SUSPENDED
    pr.configure(default_runtime="local")
    pr.run_sync(pr.resume(run))
    assert run.wait() == [True, "Ada", "low", None]


# --- at a terminal --------------------------------------------------------------------------------


class Terminal:
    """A command at a pseudo-terminal, and whoever sits there."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.text = ""
        self._fd, inner = pty.openpty()
        environment = {
            **os.environ,
            "PYWORKFLOW_DEFAULT_RUNTIME": "local",
            "PYWORKFLOW_STORAGE": str(folder / "cli.db"),
            "NO_COLOR": "1",
            "TERM": "dumb",
            "COLUMNS": "100",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pyworkflow_ray", *args],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env=environment,
            cwd=folder,
        )
        os.close(inner)

    def expect(self, text: str) -> str:
        """What has come up to and with this text, since the text expected before."""
        deadline = time.monotonic() + SECONDS
        while text not in self.text:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.text!r}"
            assert self._read(), f"ended without {text!r}: {self.text!r}"
        seen, _, self.text = self.text.partition(text)
        return seen + text

    def type(self, text: str) -> None:
        os.write(self._fd, f"{text}\n".encode())

    def end(self) -> tuple[int, str]:
        """The exit code, and what was left to read."""
        while self._read():
            pass
        os.close(self._fd)
        return self._process.wait(SECONDS), self.text

    def _read(self) -> bool:
        ready, _, _ = select.select([self._fd], [], [], SECONDS)
        try:
            data = os.read(self._fd, 65_536) if ready else b""
        except OSError:  # the other end is closed
            data = b""
        self.text += data.decode(errors="replace")
        return bool(data)


def test_a_person_chooses_a_hook_and_is_asked_for_each_field(local: Path) -> None:
    other, _ = waiting(flows.cli_hears)
    run, _ = waiting(flows.cli_asks)
    terminal = Terminal(local, "hooks", "resume")
    choices = terminal.expect("Which one?")
    assert f"1  cli_approval#1  {run}" in choices
    assert f"2  cli_ear#1  {other}" in choices
    terminal.type("3")
    terminal.expect("from 1 to 2")
    terminal.type("1")
    assert "What the boss says." in terminal.expect("approved (y/n):")
    terminal.type("perhaps")
    terminal.expect("not of type 'boolean'")
    terminal.type("y")
    terminal.expect("by (text) – Who decides:")
    terminal.type("A")
    terminal.expect("too short")
    terminal.type("Ada")
    terminal.expect("[low/high] (low):")
    terminal.type("middle")
    terminal.expect("not one of")
    terminal.type("high")
    terminal.expect("share (whole number)")
    terminal.type("")
    code, rest = terminal.end()
    assert code == 0, rest
    assert f"cli_approval#1 of {run} is answered" in rest
    assert run.wait() == [True, "Ada", "high", None]


def test_a_person_answers_a_hook_without_a_schema_in_json_or_text(local: Path) -> None:
    run, hook = waiting(flows.cli_hears)
    terminal = Terminal(local, "hooks", "resume", hook.token)
    terminal.expect("payload (JSON):")
    terminal.type('{"a": 1}')
    assert terminal.end()[0] == 0
    assert run.wait() == {"a": 1}


def test_where_nobody_is_waited_for_there_is_nothing_to_choose(local: Path) -> None:
    run, hook = waiting(flows.cli_hears)
    pr.resume_hook_sync(hook.token, None)
    code, rest = Terminal(local, "hooks", "resume").end()
    assert code == 1
    assert "No run waits for an answer." in rest
    assert run.wait() is None
