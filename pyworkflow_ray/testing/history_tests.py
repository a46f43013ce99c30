"""Histories as tests of pytest: each file is one test, which replays it.

`pytest_pyworkflow_ray` is the plugin itself. It stands outside of this package and imports the package only
when it is used, since pytest loads plugins in every project of an environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyworkflow_ray.authoring.discovery import discover_workflows
from pyworkflow_ray.exceptions import WorkflowError
from pyworkflow_ray.testing.histories import load_history
from pyworkflow_ray.testing.replays import replay


class HistoryFile(pytest.File):
    """A file of `save_history`."""

    def collect(self) -> Iterator[pytest.Item]:
        yield HistoryItem.from_parent(self, name="replay")


class HistoryItem(pytest.Item):
    """Replays a history with today's code of its workflow."""

    def runtest(self) -> None:
        discover_workflows()
        replay(load_history(self.path))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, WorkflowError):
            return f"{type(excinfo.value).__name__}: {excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        return self.path, None, f"replay of {Path(self.path).name}"
