"""Logging with loguru: setting it up, and loggers that know the run they are used in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyworkflow_ray.config import configure
from pyworkflow_ray.engine import logs
from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.sinks import log_settings, use_sinks

if TYPE_CHECKING:
    from loguru import Logger


def configure_logging(
    level: str | int = "INFO",
    log_file: str | os.PathLike[str] | None = None,
    json_logs: bool = False,
    show_context: bool = True,
) -> None:
    """Have this process, and the engine's actors and step workers, log in this way.

    Lines go to standard error, which Ray carries from its workers into its log files and to the driver. A
    second call replaces what the first has set up, and the first replaces the sink that loguru makes by
    itself; sinks that the application has added stay. Call it before the first run is started: actors that
    are up already keep what they have.

    Args:
        level: The lowest level to write, a name of loguru's or a number.
        log_file: A file to append to as well, in each process. On another node it is a file of that node.
        json_logs: Whether each line is a JSON object.
        show_context: Whether lines show the run and step that they come from.

    Raises:
        ConfigurationError: The level is unknown, or the file cannot be opened.
    """
    try:
        chosen = log_settings(level, json=json_logs, context=show_context, file=log_file)
    except ValueError as error:
        raise ConfigurationError(f"configure_logging: {error}.") from None
    use_sinks(chosen, logs.admit)
    # From there they travel to actors, and from these to workers.
    configure(log_level=chosen.level, log_json=json_logs, log_context=show_context, log_file=chosen.file)


def get_logger(name: str | None = None) -> Logger:
    """A loguru logger whose lines carry, in `extra`, the run and step whose code logs them.

    These are `run_id` and `workflow`, and in a step `step_id`, `step` and `attempt` as well. In workflow
    code it is silent in a replay, so that each line is written once. It may be made once for a module: it
    looks at each line where that comes from.

    Args:
        name: What lines show as their logger, instead of the module.
    """
    if name is None:
        return logs.run_logger

    def rename(record: Any) -> None:
        record["name"] = name

    return logs.run_logger.patch(rename)


def bind_workflow_context(run_id: str, workflow_name: str) -> Logger:
    """A logger whose lines carry a run, for code outside of it: a web handler, a callback."""
    return logs.run_logger.bind(run_id=run_id, workflow=workflow_name)


def bind_step_context(run_id: str, step_id: str, step_name: str) -> Logger:
    """A logger whose lines carry a step, for code outside of it."""
    return logs.run_logger.bind(run_id=run_id, step_id=step_id, step=step_name)
