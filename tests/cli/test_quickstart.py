"""`pyworkflow-ray quickstart`: the project that it writes runs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import Call


def typed(folder: Path, command: str, suspend_after: str = "3s") -> subprocess.CompletedProcess[str]:
    """A command as it is printed, typed in this folder, with the in-process runtime."""
    program, *args = shlex.split(command)
    assert program == "pyworkflow-ray"
    return subprocess.run(
        [sys.executable, "-m", "pyworkflow_ray", *args],
        cwd=folder,
        env={**os.environ, "PYWORKFLOW_DEFAULT_RUNTIME": "local", "PYWORKFLOW_SUSPEND_AFTER": suspend_after},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_project_runs_by_the_command_that_is_printed(cli: Call, tmp_path: Path) -> None:
    answer = cli("quickstart", "shop")
    assert answer.code == 0
    change, _, command = answer.out.strip().partition(" && ")
    assert change == "cd shop"
    done = typed(tmp_path / "shop", command)
    assert (done.returncode, done.stdout) == (0, "order A-17 is on its way, in 8 parcels\n"), done.stderr
    assert "↻ charge#1" in done.stderr


def test_its_large_orders_wait_for_an_answer(cli: Call, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    command = cli("quickstart", str(folder), "--output", "json").json["first_command"].partition(" && ")[2]
    waits = typed(folder, command.replace("1250", "250000"), "50ms")
    assert waits.returncode == 0, waits.stderr
    storage = ("--storage", str(folder / ".pyworkflow" / "orders.db"), "--output", "json")
    (hook,) = cli("hooks", "list", *storage).json
    answer = f'pyworkflow-ray hooks resume {hook["token"]} -p \'{{"approved": false, "by": "Ada"}}\''
    assert typed(folder, answer).returncode == 0
    (run,) = cli("runs", "list", *storage).json
    assert (run["status"], run["result"]) == ("completed", "order A-17 was declined by Ada")


def test_nothing_is_overwritten(cli: Call, tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "orders.py").write_text("mine")
    answer = cli("quickstart", "shop")
    assert answer.code == 1
    assert "not overwritten" in answer.err
    assert [path.name for path in (tmp_path / "shop").iterdir()] == ["orders.py"]
    assert (tmp_path / "shop" / "orders.py").read_text() == "mine"
