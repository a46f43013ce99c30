"""The pytest plugin of pyworkflow_ray: fixtures for tests of workflows, and recorded histories as tests.

This module imports nothing but pytest. Pytest loads plugins in every project of an environment, and few of
these projects test workflows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pyworkflow_ray.testing import MockContext, WorkflowEnvironment

_HISTORIES = pytest.StashKey[list[Path]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    what = "replay the recorded histories (*.json) in this folder, each as a test"
    group = parser.getgroup("pyworkflow_ray", "durable workflows")
    group.addoption("--workflow-histories", action="append", default=[], metavar="DIR", help=what)
    parser.addini(
        "workflow_histories", f"{what}; several folders, relative to this file", type="paths", default=[]
    )


def pytest_configure(config: pytest.Config) -> None:
    asked = [
        (config.invocation_params.dir / folder).resolve() for folder in config.getoption("workflow_histories")
    ]
    configured = [Path(folder).resolve() for folder in config.getini("workflow_histories")]
    config.stash[_HISTORIES] = [*asked, *configured]
    for folder in asked:
        if not folder.is_dir():
            raise pytest.UsageError(f"--workflow-histories: there is no folder {folder}.")
    # Folders of the settings are added to a run of all tests; folders of the command line to every run.
    is_of_all = config.args_source is not pytest.Config.ArgsSource.ARGS
    for folder in [*asked, *(configured if is_of_all else [])]:
        # Before pytest 9, a folder named beside one that holds it is not collected at all.
        given = [(config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args]
        if folder.is_dir() and not any(folder.is_relative_to(path) for path in given):
            config.args.append(str(folder))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix != ".json":
        return None
    file = file_path.resolve()
    if not any(file.is_relative_to(folder) for folder in parent.config.stash[_HISTORIES]):
        return None
    from pyworkflow_ray.testing.history_tests import HistoryFile

    return HistoryFile.from_parent(parent, path=file_path)


@pytest.fixture
def pyworkflow_settings() -> Iterator[Callable[..., Any]]:
    """`configure`. The test begins with the settings of the environment and the files, and leaves none."""
    from pyworkflow_ray import configure, reset_config

    reset_config()
    yield configure
    reset_config()


@pytest.fixture
def workflow_environment(pyworkflow_settings: Any) -> type[WorkflowEnvironment]:
    """Makes environments: ``async with workflow_environment() as env: assert await env.run(order) == 42``."""
    from pyworkflow_ray.testing import WorkflowEnvironment

    return WorkflowEnvironment


@pytest.fixture
def mock_context(pyworkflow_settings: Any) -> type[MockContext]:
    """Makes mock contexts: ``with mock_context(mock_results={...}) as context: await order()``."""
    from pyworkflow_ray.testing import MockContext

    return MockContext
