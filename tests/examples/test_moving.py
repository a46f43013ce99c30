"""An application that has moved over: what it had to change, and that it runs."""

from __future__ import annotations

import difflib
import subprocess
import sys
from pathlib import Path

MOVING = Path(__file__).parents[2] / "examples" / "moving"


def test_nothing_but_the_imports_has_changed() -> None:
    before, after = MOVING / "before", MOVING / "after"
    names = {path.name for path in before.glob("*.py")}
    assert names == {path.name for path in after.glob("*.py")}
    for name in names:
        old, new = (before / name).read_text(), (after / name).read_text()
        changed = [line[2:] for line in difflib.ndiff(old.splitlines(), new.splitlines()) if line[0] in "+-"]
        assert {line.partition(" import")[0] for line in changed} == {
            "from pyworkflow",
            "from pyworkflow_ray",
        }


def test_it_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, MOVING / "after" / "shop.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        "ordered twice, run once: True",
        "process_order completed ['a box for A-17', 'a mail: 12.50 paid']",
    ]
    assert lines[-1] == "refused: order A-18 costs nothing"
    assert [line.split()[1] for line in lines[2:-1]].count("step.retrying") == 1
