"""What workflow and step code may ask about the run it belongs to."""

from __future__ import annotations

import asyncio
import inspect
import random as random_module
import uuid
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

from loguru import logger

from pyworkflow_ray.durations import When
from pyworkflow_ray.engine.executions import Execution, current
from pyworkflow_ray.engine.step_contexts import current_step
from pyworkflow_ray.exceptions import WorkflowError
from pyworkflow_ray.steps import StepFunction, run_step
from pyworkflow_ray.timers import sleep

T = TypeVar("T")


class WorkflowContext:
    """The run whose code is running.

    `now()`, `random()`, `rng` and `uuid4()` give the same values in every replay.
    """

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    @property
    def run_id(self) -> str:
        return self._execution.run_id

    @property
    def workflow_name(self) -> str:
        return self._execution.workflow_name

    @property
    def is_durable(self) -> bool:
        """Whether the run is recorded."""
        return self._execution.is_durable

    @property
    def is_replaying(self) -> bool:
        """Whether the code runs over what is recorded already."""
        return self._execution.is_replaying

    def now(self) -> datetime:
        """The time of the last event applied, in UTC."""
        return self._execution.now

    def random(self) -> float:
        """A random number from 0 up to, and not including, 1."""
        return self._execution.random.random()

    @property
    def rng(self) -> random_module.Random:
        """The run's random source, seeded by its id."""
        return self._execution.random

    def uuid4(self) -> uuid.UUID:
        """A random UUID."""
        return self._execution.uuid4()

    def log(self, message: str, level: str = "INFO", **fields: Any) -> None:
        """Log a message once: a replay is silent."""
        if not self.is_replaying:
            logger.bind(run_id=self.run_id, workflow=self.workflow_name, **fields).log(level, message)

    async def run(self, fn: Callable[..., Any], *args: Any, name: str | None = None, **kwargs: Any) -> Any:
        """Call a function as a step of this run."""
        if name is not None:
            kwargs["name"] = name
        return await run_step(fn, *args, **kwargs)

    async def sleep(self, duration: When, name: str | None = None) -> None:
        """Wait, durably; see `sleep`."""
        await sleep(duration, name)

    async def parallel(self, *awaitables: Awaitable[T]) -> list[T]:
        """The results of all, in order."""
        return list(await asyncio.gather(*awaitables))


def get_context() -> Any:
    """The context of the workflow or step that calls this.

    Raises:
        WorkflowError: Neither a workflow nor a step is calling.
    """
    execution = current.get()
    if execution is not None:
        return WorkflowContext(execution)
    step = current_step.get()
    if step is None:
        raise WorkflowError(
            "There is no context here: get_context() works in the code of a run or of a step. "
            "Use has_context() to ask first."
        )
    return step


def has_context() -> bool:
    """Whether a workflow or a step is calling."""
    return current.get() is not None or current_step.get() is not None


def _require_execution(name: str) -> Execution:
    execution = current.get()
    if execution is None:
        raise WorkflowError(f"{name}() belongs in the code of a workflow, and no run is executing here.")
    return execution


def side_effect(fn: Callable[[], T], name: str = "side_effect") -> T:
    """What `fn` returned, or raised, when the run first came here: for a small value that code cannot repeat.

    It runs in the coordinator and must be quick; anything that can fail for a while belongs in a step.
    """
    if inspect.iscoroutinefunction(fn) or isinstance(fn, StepFunction):
        raise WorkflowError("side_effect() takes a plain function; call a step for async or slow work.")
    return _require_execution("side_effect").side_effect(fn, name)


def patched(patch_id: str) -> bool:
    """Whether this run has a change of the code: True where it is new, False where history shows it is not.

    Write ``if patched("new-tax"): ... else: ...`` around a change, so that runs which began before it go on
    in the old way.
    """
    return _require_execution("patched").patched(patch_id)


def set_attributes(**attributes: Any) -> None:
    """Merge attributes into the run's; they are shown with it, and `list_runs` finds by them."""
    _require_execution("set_attributes").set_attributes(attributes)
