"""How this process, and the engine's own processes, write log lines."""

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
    use_sinks(chosen, admit)
    # From there they travel to actors, and from these to workers.
    configure(log_level=chosen.level, log_json=json_logs, log_context=show_context, log_file=chosen.file)
