"""Which run and step a log line belongs to, and the rule that a replay is silent."""

from __future__ import annotations

from typing import Any

from loguru import logger

from pyworkflow_ray.engine.executions import current
from pyworkflow_ray.engine.step_contexts import current_step


def admit(record: Any) -> bool:
    """Add to a record what run and step it comes from; whether it is to be written at all.

    Not when workflow code repeats itself in a replay. What the caller has bound by these names stays.
    """
    execution, step = current.get(), current_step.get()
    if execution is not None:
        if execution.is_replaying:
            return False
        fields: dict[str, Any] = {"run_id": execution.run_id, "workflow": execution.workflow_name}
    elif step is not None:
        fields = step.log_fields
    else:
        return True
    record["extra"] = {**fields, **record["extra"]}
    return True


def _tell(record: Any) -> None:
    if not admit(record):
        # A patch cannot drop a record. But the levels of sinks are 0 and more, the application's own sinks
        # too, so that none of them takes it now.
        record["level"] = type(record["level"])("SILENT", -1, "")


run_logger = logger.patch(_tell)
"""A logger whose lines carry the run and step that they come from, and are not repeated in replays."""
