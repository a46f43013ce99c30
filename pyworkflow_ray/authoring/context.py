"""What workflow code may ask about its run, and what it may ask of it."""

from __future__ import annotations

import asyncio
import inspect
import random as random_module
import uuid
from collections.abc import Awaitable, Callable, Generator
from datetime import datetime
from typing import Any, NoReturn, TypeVar

from pyworkflow_ray.authoring.awaited_calls import must_be_awaited
from pyworkflow_ray.authoring.hooks import hook
from pyworkflow_ray.authoring.logs import run_logger
from pyworkflow_ray.authoring.step_contexts import Settled, StepContext
from pyworkflow_ray.authoring.steps import StepFunction, as_step, run_step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.durations import When
from pyworkflow_ray.engine.cancellations import Shield
from pyworkflow_ray.engine.continuations import ContinueAsNew
from pyworkflow_ray.engine.executions import Execution, current, require_execution
from pyworkflow_ray.engine.running_steps import current_step
from pyworkflow_ray.exceptions import WorkflowError
from pyworkflow_ray.ids import checked_text
from pyworkflow_ray.values import codec

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
    def metadata(self) -> dict[str, Any]:
        """The metadata that the run was started with."""
        return codec.decode(bytes(self._execution.metadata)) or {}

    @property
    def schedule_id(self) -> str | None:
        """The schedule that started the run; None if no schedule did."""
        return self.metadata.get("schedule_id")

    @property
    def scheduled_at(self) -> datetime | None:
        """The time for which a schedule started the run, without jitter; None if no schedule did."""
        at = self.metadata.get("scheduled_at")
        return datetime.fromisoformat(at) if isinstance(at, str) else None

    @property
    def is_durable(self) -> bool:
        """Whether the run is recorded."""
        return self._execution.is_durable

    @property
    def is_replaying(self) -> bool:
        """Whether the code runs over recorded events."""
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
        return self._execution.effects.uuid4()

    def log(self, message: str, level: str = "INFO", **fields: Any) -> None:
        """Log a message once: a replay is silent."""
        run_logger.bind(**fields).opt(depth=1).log(level, message)

    @must_be_awaited("run()")
    async def run(self, fn: Callable[..., Any], /, *args: Any, **options_and_kwargs: Any) -> Any:
        """Call a function as a step of this run; see `run_step`."""
        return await run_step(fn, *args, **options_and_kwargs)

    @must_be_awaited("sleep()")
    async def sleep(self, duration: When, name: str | None = None) -> None:
        """Wait, durably; see `sleep`."""
        await sleep(duration, name)

    @must_be_awaited("hook()")
    async def hook(self, name: str, **options: Any) -> Any:
        """Wait for somebody's answer; see `hook`."""
        return await hook(name, **options)

    def is_cancellation_requested(self) -> bool:
        """Whether the run was asked to cancel."""
        return self._execution.cancellation.is_requested

    def check_cancellation(self) -> Settled:
        """Raise a `CancellationError` if the run was asked to cancel, except within `shield()`.

        It raises at the call; it may be awaited, too.
        """
        if self._execution.cancellation.is_requested and not getattr(asyncio.current_task(), "shields", 0):
            raise self._execution.cancellation.error()
        return Settled()

    def continue_as_new(self, /, *args: Any, **kwargs: Any) -> NoReturn:
        """End this run and go on in a new one; see `continue_as_new`."""
        continue_as_new(*args, **kwargs)

    def compensations(self) -> Compensations:
        """What to undo if the run fails or is cancelled; see `compensations`."""
        return compensations()

    @must_be_awaited("parallel()")
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
    return StepContext(step)


def has_context() -> bool:
    """Whether a workflow or a step is calling."""
    return current.get() is not None or current_step.get() is not None


def side_effect(fn: Callable[[], T], name: str = "side_effect") -> T:
    """What `fn` returned or raised when the run first came here: for a small value that code cannot repeat.

    `fn` runs in the coordinator and must be quick. Anything that can fail for a while belongs in a step.
    """
    if inspect.iscoroutinefunction(fn) or isinstance(fn, StepFunction):
        raise WorkflowError("side_effect() takes a plain function; call a step for async or slow work.")
    return require_execution("side_effect").side_effect(fn, name)


def patched(patch_id: str) -> bool:
    """Whether this run has a change of its code: False if its history shows that it came here without it.

    Write ``if patched("new-tax"): ... else: ...`` around a change. Runs that began before the change then go
    on in the old way.
    """
    return require_execution("patched").effects.patched(patch_id)


def continue_as_new(*args: Any, **kwargs: Any) -> NoReturn:
    """End this run and go on in a new one of the same workflow, with these arguments and an empty history.

    It never returns. Steps in flight are cancelled; what happens to a child follows from its `parent_close`.
    The new run gets the signals that this one has not read. `result()` of a handle waits for the new run.

    Raises:
        StepValidationError: The arguments do not fit the workflow's signature.
        WorkflowError: There is no argument, the run keeps no history, or the caller is a task that runs
            beside the workflow function.
    """
    execution = require_execution("continue_as_new")
    execution.require_durable("continue_as_new()")
    execution.require_main("continue_as_new()")
    if not args and not kwargs:
        raise WorkflowError(
            "continue_as_new() takes the arguments of the new run, and there are none: a run that continues "
            "without any difference would go on for ever."
        )
    if execution.check_arguments is not None:
        args, kwargs = execution.check_arguments(args, kwargs)
    raise ContinueAsNew(args, kwargs)


def shield() -> Shield:
    """``async with shield(): ...``: a request to cancel the run waits until the block ends.

    It belongs to the asyncio task that enters it, and nests.
    """
    return Shield()


class Compensations:
    """What a run undoes if it fails or is cancelled; see `compensations`."""

    def __init__(self, execution: Execution) -> None:
        self._stack = execution.compensations

    def __len__(self) -> int:
        return len(self._stack)

    def add(self, undo: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Have a step called with these arguments if the run fails or is cancelled.

        An `async def` function is workflow code, which may call steps. A `def` function is called as a step.
        """
        self._stack.add(undo if inspect.iscoroutinefunction(undo) else as_step(undo), *args, **kwargs)

    def clear(self) -> None:
        """Forget all compensations: what was done stays."""
        self._stack.clear()


def compensations() -> Compensations:
    """What the run undoes if it fails or is cancelled, the last first.

    Call ``compensations().add(refund, payment)`` after the work that ``refund`` undoes, and ``clear()`` when
    all is well. Steps with `@step(compensate=...)` add theirs by themselves.
    """
    return Compensations(require_execution("compensations"))


class Receiver:
    """The signals of one name, in the order in which they came; see `receive`."""

    def __init__(self, execution: Execution, name: str) -> None:
        self._execution, self._name = execution, name

    def __await__(self) -> Generator[Any, None, Any]:
        return self._execution.receive(self._name).__await__()

    def __aiter__(self) -> Receiver:
        return self

    async def __anext__(self) -> Any:
        return await self._execution.receive(self._name)


def receive(name: str) -> Receiver:
    """``await receive("price")`` gives the payload of the next signal of this name; ``async for`` gives all.

    Signals that came earlier are kept in their order.
    """
    execution = require_execution("receive")
    execution.require_durable("receive()")
    return Receiver(execution, name)


def set_query_handler(name: str, function: Callable[..., Any]) -> None:
    """Have a function answer `run.query(name, ...)`. It must only read, and not wait.

    Register it before the first `await`, so that the run answers from its beginning.
    """
    if inspect.iscoroutinefunction(function) or isinstance(function, StepFunction):
        raise WorkflowError(f"The handler of query {name!r} must be a plain function: it only reads.")
    require_execution("set_query_handler").queries[name] = function


def set_attributes(**attributes: Any) -> None:
    """Merge attributes into the run's. They are shown with the run, and `list_runs` finds runs by them."""
    for name in attributes:
        checked_text(name, "The name of an attribute")
    require_execution("set_attributes").effects.set_attributes(attributes)
