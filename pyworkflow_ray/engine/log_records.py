"""Which run and step a log record belongs to, and whether it is silent because a replay repeats it."""

from __future__ import annotations

from typing import Any

from pyworkflow_ray.engine.executions import current
from pyworkflow_ray.engine.running_steps import current_step


def fields_here() -> dict[str, Any] | None:
    """The run and step whose code is running, as fields of a log record.

    They are empty outside of runs. None says that the record is silent: workflow code repeats itself in a
    replay.
    """
    execution, step = current.get(), current_step.get()
    if execution is not None:
        if execution.is_replaying:
            return None
        return {"run_id": execution.run_id, "workflow": execution.workflow_name}
    return {} if step is None else step.log_fields


def admit(record: Any) -> bool:
    """Whether a log record is written. One that is gets the fields of its run and step.

    A field of the same name that the caller has bound stays as it is.

    Args:
        record: A record of loguru's: a mapping with the mapping `extra` in it.
    """
    fields = fields_here()
    if fields is None:
        return False
    if fields:
        record["extra"] = {**fields, **record["extra"]}
    return True
