"""The decorators keep the user's signature, as mypy sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_decorated_functions_have_the_types_that_their_users_wrote() -> None:
    files = sorted(str(path) for path in HERE.glob("*.py") if not path.name.startswith(("test_", "__")))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--warn-unused-ignores",
            "--follow-imports=silent",
            *files,
        ],
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
