"""Setting up where log lines go, and what they look like there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

import pyworkflow_ray as pr
from pyworkflow_ray.actors import sinks
from pyworkflow_ray.actors.logs import follow
from pyworkflow_ray.actors.settings import EngineSettings


@pytest.fixture(autouse=True)
def own_sinks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sinks that `configure_logging` adds go with the test, and loguru's own stays."""
    monkeypatch.setattr(sinks, "_has_default", False)
    monkeypatch.setattr("pyworkflow_ray.actors.logs._followed", None)
    yield
    for number in sinks._added:
        logger.remove(number)
    sinks._added.clear()


def run_script(script: str) -> str:
    """What a process of its own writes to standard error."""
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    ).stderr


def test_importing_the_package_leaves_logging_alone() -> None:
    script = """
import sys
from loguru import logger
logger.remove()
logger.add(sys.stderr, format="APP {message}")
import pyworkflow_ray
pyworkflow_ray.get_logger().info("seen")
logger.debug("seen too")
"""
    assert run_script(script) == "APP seen\nAPP seen too\n"


def test_what_loguru_adds_by_itself_is_replaced_and_what_the_application_added_stays() -> None:
    script = """
import sys
from loguru import logger
logger.add(sys.stderr, format="APP {message}")
import pyworkflow_ray as pr
for _ in range(3):
    pr.configure_logging(level="WARNING")
logger.info("one")
logger.warning("two")
"""
    lines = run_script(script).splitlines()
    assert [line for line in lines if line.startswith("APP")] == ["APP one", "APP two"]
    (ours,) = [line for line in lines if not line.startswith("APP")]
    assert ours.endswith("| WARNING  | __main__ | two")


def test_where_loguru_adds_nothing_the_applications_first_sink_stays() -> None:
    script = """
import os, sys
os.environ["LOGURU_AUTOINIT"] = "False"
from loguru import logger
assert logger.add(sys.stderr, format="APP {message}") == 0
import pyworkflow_ray as pr
pr.configure_logging()
logger.debug("x")
"""
    assert run_script(script) == "APP x\n"


def test_text_shows_the_run_unless_told_not_to(capsys: pytest.CaptureFixture[str]) -> None:
    pr.configure_logging()
    told = pr.bind_step_context("run_1", "pay#1", "pay").bind(order="<red>{7}")
    told.info("paid")
    assert capsys.readouterr().err.endswith("| paid run_id=run_1 step_id=pay#1 step=pay order=<red>{7}\n")
    pr.configure_logging(show_context=False)
    told.info("paid")
    assert capsys.readouterr().err.endswith("| paid order=<red>{7}\n")


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_json_is_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    pr.configure_logging(json_logs=True)
    told = pr.bind_workflow_context("run_1", "order")
    told.bind(order=7).info("two\nlines, ünd {braces}")
    try:
        raise ValueError("no")
    except ValueError:
        told.exception("failed")
    first, second = json_lines(capsys)
    at = datetime.fromisoformat(first.pop("time"))
    assert at.utcoffset() == timedelta(0)
    assert first == {
        "level": "INFO",
        "message": "two\nlines, ünd {braces}",
        "logger": __name__,
        "run_id": "run_1",
        "workflow": "order",
        "extra": {"order": 7},
    }
    assert second["level"] == "ERROR"
    assert second["exception"].endswith("ValueError: no")
    pr.configure_logging(json_logs=True, show_context=False)
    told.info("x")
    (line,) = json_lines(capsys)
    assert "run_id" not in line


def test_json_tells_of_values_that_have_no_json_form(capsys: pytest.CaptureFixture[str]) -> None:
    pr.configure_logging(json_logs=True)
    loop: list[Any] = []
    loop.append(loop)
    for value in (float("nan"), {(1, 2): 3}, loop, object, "\ud800"):
        logger.bind(value=value).info("x")
    assert len(json_lines(capsys)) == 5


def test_values_in_a_tracebacks_frames_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    password = "hunter" + str(2)
    for is_json in (False, True):
        pr.configure_logging(json_logs=is_json)
        try:
            int(password)
        except ValueError:
            logger.exception("failed")
        told = capsys.readouterr().err
        assert "int(password)" in told
        assert told.count(password) == 1, "in the error's own text alone"


def test_a_file_gets_the_lines_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "x.log"
    pr.configure_logging("debug", log_file=file)
    logger.debug("x")
    assert file.read_text() == capsys.readouterr().err
    pr.configure_logging(30)
    logger.warning("y")
    assert "y" not in file.read_text()


def test_a_file_that_cannot_be_opened_is_an_error_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pr.configure_logging()
    (tmp_path / "file").touch()
    with pytest.raises(pr.ConfigurationError, match=r"file/x\.log cannot be opened"):
        pr.configure_logging(log_file=tmp_path / "file" / "x.log")
    logger.info("still there")
    assert capsys.readouterr().err.count("still there") == 1
    assert pr.get_config().log_file is None


def test_an_unknown_level_is_an_error_that_tells_the_known_ones() -> None:
    for level in ("LOUD", -1):
        with pytest.raises(pr.ConfigurationError, match=r"configure_logging: .*give"):
            pr.configure_logging(level=level)
    with pytest.raises(pr.ConfigurationError, match=r"'log_level'.*TRACE"):
        pr.configure(log_level="LOUD")


def test_actors_learn_what_was_set_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert EngineSettings.configured(pr.get_config()).logging is None
    follow(None)
    assert not sinks._added, "nothing was set up, and nothing is touched"
    pr.configure_logging("DEBUG", json_logs=True)
    engine = EngineSettings.configured(pr.get_config())
    assert engine.logging == sinks.LogSettings(level=10, json=True)
    follow(engine.logging)
    logger.debug("x")
    assert [line["message"] for line in json_lines(capsys)] == ["x"]


def test_an_actor_that_cannot_write_to_the_file_says_so_and_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    follow(sinks.LogSettings(level=20, file=str(tmp_path / "file" / "x.log")))
    assert "standard error alone" in capsys.readouterr().err


def test_settings_of_the_environment_reach_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYWORKFLOW_LOG_LEVEL", "debug")
    monkeypatch.setenv("PYWORKFLOW_LOG_FILE", "x.log")
    pr.reset_config()
    assert pr.get_config().log_settings == sinks.LogSettings(level=10, file=str(Path.cwd() / "x.log"))
