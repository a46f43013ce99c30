"""Child workflows: runs that a run starts and that belong to it."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, Literal, TypeVar, assert_never, overload

from pyworkflow_ray.authoring.awaited_calls import must_be_awaited
from pyworkflow_ray.authoring.workflows import WorkflowFunction, as_workflow
from pyworkflow_ray.engine.children import PARENT_CLOSE, Child
from pyworkflow_ray.engine.events import ChildCancelled, ChildCompleted, ChildFailed
from pyworkflow_ray.engine.executions import Execution, require_execution
from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.statuses import RunStatus

T = TypeVar("T")


class ChildWorkflowHandle(Generic[T]):
    """A child run that goes on beside its parent. Only the parent's code may use it.

    Everything it shows is in the parent's history. So it is the same in every replay.
    """

    def __init__(self, execution: Execution, child: Child) -> None:
        self._execution, self._child = execution, child
        self.child_id = child.command.child_id
        self.child_run_id = child.command.child_run_id
        self.child_workflow_name = child.name
        self.parent_run_id = execution.run_id

    @must_be_awaited("result()")
    async def result(self, timeout: float | None = None) -> T:
        """What the child returned. The child goes on if `timeout` (in seconds) passes first.

        Raises:
            ChildWorkflowFailedError: The child failed, or was cancelled; its own error is the cause.
            TimeoutError: The child has not ended in time.
        """
        async with asyncio.timeout(timeout):
            value: T = await self._execution.children.outcome(self._child)
        return value

    async def get_status(self) -> RunStatus:
        """Whether the child goes on (`RUNNING`), or how it has ended."""
        outcome = self._child.outcome
        match outcome:
            case None:
                return RunStatus.RUNNING
            case ChildCompleted():
                return RunStatus.COMPLETED
            case ChildCancelled():
                return RunStatus.CANCELLED
            case ChildFailed():
                return RunStatus.FAILED
            case _:
                assert_never(outcome)

    async def is_running(self) -> bool:
        """Whether the child has not ended."""
        return self._child.outcome is None

    async def is_terminal(self) -> bool:
        """Whether the child has ended."""
        return self._child.outcome is not None

    @must_be_awaited("cancel()")
    async def cancel(self, reason: str | None = None) -> bool:
        """Ask the child to cancel; False when it has ended. `result` shows whether it did."""
        if self._child.outcome is not None:
            return False
        self._execution.children.cancel(self._child, reason or "its parent asked for it")
        return True

    def __repr__(self) -> str:
        return f"<child {self.child_id!r} ({self.child_run_id})>"


class ChildStarter:
    """`start_child_workflow` with its options given: a call takes the workflow and its arguments."""

    def __init__(self, wait_for_completion: bool, parent_close: str) -> None:
        self._waits, self._parent_close = wait_for_completion, parent_close

    @must_be_awaited("start_child_workflow()")
    async def __call__(self, fn: WorkflowFunction[..., Any] | Any, /, *args: Any, **kwargs: Any) -> Any:
        execution = require_execution("start_child_workflow")
        execution.require_durable("start_child_workflow()")
        definition = as_workflow(fn)
        if self._parent_close not in PARENT_CLOSE:
            raise ConfigurationError(
                f"parent_close is {self._parent_close!r}: give one of {', '.join(map(repr, PARENT_CLOSE))}."
            )
        checked_args, checked_kwargs = definition.check_arguments(args, kwargs, _hint)
        child = await execution.scope.decided(
            lambda: execution.children.start(definition, checked_args, checked_kwargs, self._parent_close)
        )
        if not self._waits:
            return ChildWorkflowHandle(execution, child)
        return await execution.call_child(child)


class StartChildWorkflow:
    """Starts children. `start_child_workflow.options(...)` separates its options from the arguments."""

    @overload
    async def __call__(
        self,
        fn: WorkflowFunction[..., T],
        /,
        *args: Any,
        wait_for_completion: Literal[True] = True,
        parent_close: str = "cancel",
        **kwargs: Any,
    ) -> T: ...
    @overload
    async def __call__(
        self,
        fn: WorkflowFunction[..., T],
        /,
        *args: Any,
        wait_for_completion: Literal[False],
        parent_close: str = "cancel",
        **kwargs: Any,
    ) -> ChildWorkflowHandle[T]: ...
    @overload
    async def __call__(
        self,
        fn: Any,
        /,
        *args: Any,
        wait_for_completion: bool = True,
        parent_close: str = "cancel",
        **kwargs: Any,
    ) -> Any: ...
    @must_be_awaited("start_child_workflow()")
    async def __call__(
        self,
        fn: Any,
        /,
        *args: Any,
        wait_for_completion: bool = True,
        parent_close: str = "cancel",
        **kwargs: Any,
    ) -> Any:
        """Start a run of another workflow (or of this one) as a child of this run.

        Args:
            fn: A `@workflow` function or a `Workflow` class (or the name of one that an installed package
                defines and the workflow's module imports).
            args, kwargs: Its arguments.
            wait_for_completion: True gives the child's result; False a `ChildWorkflowHandle` at once.
            parent_close: What happens to the child when this run ends or is cancelled first. "cancel" asks it
                to cancel, "abandon" lets it go on, and "wait" keeps this run from ending before the child.

        Raises:
            ChildWorkflowFailedError: The child failed, or was cancelled; its own error is the cause.
            MaxNestingDepthError: Children are nested deeper than `max_nesting_depth`.
            StepValidationError: The arguments do not fit the child's signature.
        """
        return await ChildStarter(wait_for_completion, parent_close)(fn, *args, **kwargs)

    def options(self, *, wait_for_completion: bool = True, parent_close: str = "cancel") -> ChildStarter:
        """``await start_child_workflow.options(parent_close="wait")(ship, order, parent_close="no")``.

        Args:
            wait_for_completion, parent_close: As of `start_child_workflow`.
        """
        return ChildStarter(wait_for_completion, parent_close)


start_child_workflow = StartChildWorkflow()


def _hint(name: str) -> str:
    """Says of a keyword that the child does not take whether it is an option of a start."""
    if name not in _OPTIONS_OF_START:
        return ""
    return f"{name!r} is an option of start(); a child has the options wait_for_completion and parent_close."


_OPTIONS_OF_START = (
    "idempotency_key",
    "run_id",
    "attributes",
    "metadata",
    "start_at",
    "delay",
    "conflict",
    "runtime",
    "durable",
    "storage",
)
