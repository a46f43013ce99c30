"""Loggers that know the run they are used in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loguru import logger

from pyworkflow_ray.engine.log_records import admit

if TYPE_CHECKING:
    from loguru import Logger


def _admit(record: Any) -> None:
    if not admit(record):
        # A patch cannot drop a record. But the levels of sinks are 0 or more, those of the application's own
        # sinks too. So no sink takes a record of this level.
        record["level"] = type(record["level"])("SILENT", -1, "")


_tell = _admit
"""Its name in code that earlier versions stored: a pickled logger refers to its patcher by name."""

run_logger = logger.patch(_admit)
"""A logger whose lines carry the run and step that they come from. It is silent in replays."""


def get_logger(name: str | None = None) -> Logger:
    """A loguru logger whose lines carry, in `extra`, the run and step whose code logs them.

    These are `run_id` and `workflow`, and in a step `step_id`, `step` and `attempt` as well. In workflow
    code it is silent in a replay, so that each line is written once. One logger may serve a whole module:
    it finds out anew for each line where the line comes from.

    Args:
        name: What lines show as their logger, instead of the module.
    """
    if name is None:
        return run_logger

    def rename(record: Any) -> None:
        record["name"] = name

    return run_logger.patch(rename)


def bind_workflow_context(run_id: str, workflow_name: str) -> Logger:
    """A logger whose lines carry a run, for code outside of it: a web handler, a callback."""
    return run_logger.bind(run_id=run_id, workflow=workflow_name)


def bind_step_context(run_id: str, step_id: str, step_name: str) -> Logger:
    """A logger whose lines carry a step, for code outside of it."""
    return run_logger.bind(run_id=run_id, step_id=step_id, step=step_name)
