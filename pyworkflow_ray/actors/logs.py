"""Logging in the engine's own processes, as the process that uses the engine has set it up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loguru import logger

from pyworkflow_ray.actors.sinks import use_sinks
from pyworkflow_ray.config import LogSettings
from pyworkflow_ray.engine.executions import Execution
from pyworkflow_ray.engine.log_records import admit
from pyworkflow_ray.engine.running_steps import RunningStep, running
from pyworkflow_ray.exceptions import ConfigurationError

_followed: LogSettings | None = None


def follow(settings: LogSettings | None) -> None:
    """Log in this process as these settings say; None leaves everything as it is.

    It never raises: a process that cannot write to the log file works without it.
    """
    global _followed
    if settings is None or settings == _followed:
        return
    _followed = settings
    try:
        use_sinks(settings, admit)
    except ConfigurationError as error:
        use_sinks(LogSettings(settings.level, settings.json, settings.context), admit)
        logger.warning("Lines of this process go to standard error alone. {}", error)


def log_notes(execution: Execution) -> None:
    """Log what the engine notes about a run's code."""
    for note in execution.take_notes():
        logger.warning("{}", note)


@contextmanager
def attempting(step: RunningStep) -> Iterator[None]:
    """Make this the step attempt whose code is running. Whatever it logs with loguru carries its ids."""
    with running(step), logger.contextualize(**step.log_fields):
        yield
