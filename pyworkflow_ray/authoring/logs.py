"""Loggers that know the run they are used in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyworkflow_ray.engine import logs

if TYPE_CHECKING:
    from loguru import Logger


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
