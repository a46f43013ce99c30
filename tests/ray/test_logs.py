"""Log lines of other processes: workers and coordinators log as the driver has set it up."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

import pyworkflow_ray as pr
from pyworkflow_ray.actors import sinks
from tests.ray.conftest import eventually

pytestmark = pytest.mark.usefixtures("shared_engine")

log = pr.get_logger()


@pytest.fixture
def log_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that the lines go to; sinks that were added go with the test."""
    monkeypatch.setattr(sinks, "_has_default", False)
    yield tmp_path / "far.log"
    for number in sinks._added:
        logger.remove(number)
    sinks._added.clear()


@pr.step
async def logged_far() -> int:
    log.debug("in the step")
    return os.getpid()


@pr.workflow
async def logged_from_afar() -> int:
    log.bind(answer=42).info("in the workflow")
    return await logged_far()


def test_lines_of_workers_and_coordinators_carry_run_and_step(log_file: Path) -> None:
    pr.configure_logging("DEBUG", log_file=log_file, json_logs=True)
    run = pr.start_sync(logged_from_afar)
    assert run.wait(timeout=120) != os.getpid()
    in_workflow, in_step = eventually(
        lambda: [
            line
            for line in map(json.loads, log_file.read_text().splitlines())
            if line["message"].startswith("in the ")
        ]
    )
    assert in_workflow["run_id"] == in_step["run_id"] == str(run)
    assert in_workflow["workflow"] == in_step["workflow"] == "logged_from_afar"
    assert (in_workflow["level"], in_workflow["extra"]) == ("INFO", {"answer": 42})
    assert (in_step["level"], in_step["step_id"], in_step["attempt"]) == ("DEBUG", "logged_far#1", 1)
