"""Logging: how this process and the engine's processes write log lines."""

from __future__ import annotations

import os

from pyworkflow_ray.actors.sinks import use_sinks
from pyworkflow_ray.config import configure, log_settings
from pyworkflow_ray.engine.log_records import admit
from pyworkflow_ray.exceptions import ConfigurationError


def configure_logging(
    level: str | int = "INFO",
    log_file: str | os.PathLike[str] | None = None,
    json_logs: bool = False,
    show_context: bool = True,
) -> None:
    """Set how this process, the engine's actors and its step workers log.

    Lines go to standard error. Ray carries the lines of its workers to its log files and to the driver. The
    first call replaces loguru's default sink, and a second call replaces what the first has set. Sinks that
    the application has added stay. Call this before the first run is started: running actors keep the
    settings that they have.

    Args:
        level: The lowest level to write: a name that loguru knows, or a number.
        log_file: A file to which each process appends its lines as well. Each node has a file of its own.
        json_logs: Whether each line is a JSON object.
        show_context: Whether lines show the run and step that they come from.

    Raises:
        ConfigurationError: The level is unknown, or the file cannot be opened.
    """
    try:
        chosen = log_settings(level, json=json_logs, context=show_context, file=log_file)
    except ValueError as error:
        raise ConfigurationError(f"configure_logging: {error}.") from None
    use_sinks(chosen, admit)
    # The settings travel to the actors, and from them to the step workers.
    configure(log_level=chosen.level, log_json=json_logs, log_context=show_context, log_file=chosen.file)
