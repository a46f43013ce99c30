"""The pytest plugin: what users' tests get, seen from outside."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pyworkflow_ray.cli.app import app

pytest_plugins = ["pytester"]

SHOP = textwrap.dedent("""
    import pyworkflow_ray as pr

    @pr.step
    def plugin_price(item: str) -> int:
        return len(item)

    @pr.workflow
    async def plugin_order(item: str) -> int:
        await pr.sleep("1d")
        return await plugin_price(item)
""")
SCOPE = "asyncio_default_fixture_loop_scope"
"""pytest-asyncio warns where it is not set."""
USERS_TESTS = """
    import pytest
    import pyworkflow_ray as pr
    from shop import plugin_order

    {mark}
    async def test_in_an_environment(workflow_environment):
        async with workflow_environment(skip_time=False) as env:
            run = await env.start(plugin_order, "tea")
            await env.advance("1d")
            assert await run == 3

    {mark}
    async def test_with_mocks(mock_context):
        with mock_context(mock_results={{"plugin_price": 7}}) as context:
            assert await plugin_order("tea") == 7
            context.assert_step_called("plugin_price", times=1)

    def test_without_async(mock_context):
        import asyncio
        with mock_context(mock_results={{"plugin_price": 7}}):
            assert asyncio.run(plugin_order("tea")) == 7

    def test_settings_are_left(pyworkflow_settings):
        pyworkflow_settings(default_retries=17)
        assert pr.get_config().default_retries == 17

    def test_settings_are_not_found(workflow_environment, mock_context):
        assert pr.get_config().default_retries == 3
"""


RECORD = """
import asyncio
from pyworkflow_ray.testing import WorkflowEnvironment, save_history
from shop import plugin_order

async def record():
    async with WorkflowEnvironment() as env:
        run = await env.start(plugin_order, "tea")
        await run
        save_history(run, "order.json")

asyncio.run(record())
"""


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a run's history."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop.py").write_text(SHOP)
    subprocess.run([sys.executable, "-c", RECORD], cwd=folder, check=True, timeout=60)
    return folder / "order.json"


@pytest.fixture
def project(pytester: pytest.Pytester, history: Path) -> pytest.Pytester:
    """A user's project, with a workflow, and a history of it in the folder `histories`."""
    (pytester.path / "shop.py").write_text(SHOP)
    (pytester.path / "histories").mkdir()
    shutil.copy(history, pytester.path / "histories")
    (pytester.path / "histories" / "data.txt").write_text("of no concern")
    (pytester.path / "other.json").write_text("{}")
    return pytester


def change_the_code(project: pytest.Pytester) -> None:
    code = (project.path / "shop.py").read_text()
    (project.path / "shop.py").write_text(code.replace('await pr.sleep("1d")', "pass"))


def outcomes(project: pytest.Pytester, *arguments: str) -> tuple[dict[str, int], str]:
    done = project.runpytest_inprocess("-p", "no:xdist", "-o", f"{SCOPE}=function", *arguments)
    return done.parseoutcomes(), done.stdout.str()


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_fixtures_work_in_both_modes_of_pytest_asyncio(pytester: pytest.Pytester, mode: str) -> None:
    (pytester.path / "shop.py").write_text(SHOP)
    mark = "@pytest.mark.asyncio" if mode == "strict" else ""
    pytester.makepyfile(test_shop=USERS_TESTS.format(mark=mark))
    counts, text = outcomes(pytester, f"--asyncio-mode={mode}", "--import-mode=append", "--rootdir=.")
    assert counts == {"passed": 5}, text


def test_each_history_of_a_folder_is_a_test(project: pytest.Pytester) -> None:
    project.makepyfile(test_mine="def test_mine(): pass")
    project.makeconftest("import shop")
    counts, text = outcomes(project, "-v", "--workflow-histories=histories", "test_mine.py")
    assert counts == {"passed": 2}, text
    assert "histories/order.json::replay PASSED" in text

    change_the_code(project)
    counts, text = outcomes(project, "--workflow-histories=histories", "test_mine.py")
    assert counts == {"passed": 1, "failed": 1}, text
    assert "NonDeterminismError: Run 'run_" in text
    assert "recorded TimerStarted('sleep#1')" in text


def test_histories_of_the_settings_are_replayed_when_all_tests_are(project: pytest.Pytester) -> None:
    project.makepyfile(test_mine="def test_mine(): pass")
    project.makepyprojecttoml("""
        [tool.pytest.ini_options]
        workflow_histories = ["histories"]
        testpaths = ["test_mine.py"]

        [tool.pyworkflow]
        modules = ["shop"]
    """)
    assert outcomes(project)[0] == {"passed": 2}
    assert outcomes(project, "test_mine.py")[0] == {"passed": 1}
    assert outcomes(project, "histories")[0] == {"passed": 1}
    assert outcomes(project, "--workflow-histories=histories")[0] == {"passed": 2}


def test_histories_below_the_tests_are_replayed_once(project: pytest.Pytester) -> None:
    project.makepyfile(test_mine="def test_mine(): pass")
    project.makeini("[pytest]\nworkflow_histories = histories\n")
    project.makeconftest("import shop")
    assert outcomes(project)[0] == {"passed": 2}
    assert outcomes(project, "--workflow-histories=histories", ".")[0] == {"passed": 2}


def test_a_history_that_cannot_be_read_fails(project: pytest.Pytester) -> None:
    (project.path / "histories" / "order.json").write_text(json.dumps({"format": "?"}))
    counts, text = outcomes(project, "--workflow-histories=histories")
    assert counts == {"failed": 1}, text
    assert "SerializationError: " in text


def test_a_folder_that_is_not_there_is_an_error(pytester: pytest.Pytester) -> None:
    done = pytester.runpytest_inprocess("--workflow-histories=nowhere")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*--workflow-histories: there is no folder */nowhere*"])


def test_the_plugin_imports_the_package_only_when_it_is_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys

        def test_of_somebody_else(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("pyworkflow_ray")
            heavy = {"pyworkflow_ray", "ray", "sqlalchemy", "pydantic"}
            assert not heavy.intersection(sys.modules)
    """)
    done = pytester.runpytest_subprocess(timeout=60)  # here, they are imported
    assert done.parseoutcomes() == {"passed": 1}


def test_the_command_replays_the_same_histories(
    project: pytest.Pytester, pyworkflow_settings: Callable[..., Any]
) -> None:
    project.syspathinsert()
    done = CliRunner().invoke(app, ["replay", "histories", "--module", "shop", "--output", "plain"])
    assert done.exit_code == 0
    assert done.stdout.startswith("ok\tplugin_order\trun_")
    assert "1 of 1 replay" in done.stderr
