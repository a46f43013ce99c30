"""What keeps client functions out of workflow code."""

from __future__ import annotations

from pyworkflow_ray.engine.executions import current
from pyworkflow_ray.exceptions import WorkflowError


def refuse_in_workflow(name: str) -> None:
    """Raise an error if this is called in workflow code, where the call would not be replayed.

    Args:
        name: The client function, for the message.

    Raises:
        WorkflowError: It is called in workflow code.
    """
    if current.get() is not None:
        raise WorkflowError(
            f"{name}() cannot be called in the code of a workflow: it is neither recorded nor replayed. "
            "Call it in a step, or start a child workflow."
        )
