"""The child runs that a run has started."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec import Raw

from pyworkflow_ray.engine.commands import CancelChild, StartChild
from pyworkflow_ray.engine.events import ChildCancelled, ChildCompleted, ChildFailed, ChildStarted
from pyworkflow_ray.exceptions import (
    CancellationError,
    ChildWorkflowFailedError,
    MaxNestingDepthError,
    NonDeterminismError,
    WorkflowFailedError,
)
from pyworkflow_ray.ids import Ordinals
from pyworkflow_ray.values.failures import restore

if TYPE_CHECKING:
    from pyworkflow_ray.engine.executions import Execution

ChildOutcome = ChildCompleted | ChildFailed | ChildCancelled
PARENT_CLOSE = ("cancel", "abandon", "wait")


@dataclass(slots=True)
class Child:
    """A child run; `outcome` is None while it goes on."""

    command: StartChild
    future: asyncio.Future[ChildOutcome]
    outcome: ChildOutcome | None = None
    is_cancel_asked: bool = False

    @property
    def name(self) -> str:
        """The child's workflow."""
        return str(self.command.definition.name)


class Children:
    """A run's children.

    Args:
        execution: The run.
    """

    def __init__(self, execution: Execution) -> None:
        self.open: dict[str, Child] = {}
        """Those without an outcome, by their ids."""
        self._execution = execution
        self._ordinals = Ordinals()

    def start(
        self, definition: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], parent_close: str
    ) -> Child:
        """Start a child run of a workflow."""
        execution = self._execution
        if execution.nesting_depth >= execution.limits.max_nesting_depth:
            raise MaxNestingDepthError(execution.nesting_depth)
        child_id = self._ordinals.next(definition.name)
        recorded = execution.peek(ChildStarted, child_id)
        if recorded is None:
            what = f"child {child_id!r}"
            raw_args = Raw(execution.codec.encode(list(args), f"the arguments of {what}"))
            raw_kwargs = Raw(execution.codec.encode(dict(kwargs), f"the keyword arguments of {what}"))
            execution.recorded(ChildStarted, child_id)  # a divergence, if anything else is recorded here
            run_id = derived_run_id(execution.run_id, child_id)
            command = StartChild(child_id, run_id, definition, raw_args, raw_kwargs, parent_close)
            execution.emit(command)
        else:
            execution.recorded(ChildStarted, child_id)
            command = StartChild(
                child_id,
                recorded.child_run_id,
                definition,
                recorded.args,
                recorded.kwargs,
                recorded.parent_close,
            )
        child = Child(command, execution.future())
        self.open[child_id] = child
        return child

    async def outcome(self, child: Child) -> Any:
        """The child's result, or the error that it failed with. Whoever waits no more leaves it going on."""
        # Several may wait for one child, and a wait that is cancelled would cancel a future they share.
        return self._value(await asyncio.shield(child.future))

    async def result(self, child: Child) -> Any:
        """As `outcome`, for the one who started the child to wait for it: if he is cancelled, so is it."""
        try:
            return await self.outcome(child)
        except asyncio.CancelledError as error:
            if child.outcome is not None or child.command.parent_close == "abandon":
                raise
            cancellation = self._execution.cancellation
            told = cancellation.told(error)
            is_of_run = cancellation.is_of_run(told)
            if child.command.parent_close == "cancel" or not is_of_run:
                self.cancel(child, "its parent waits for it no more")
            if is_of_run:
                await asyncio.shield(child.future)
            raise told from None

    def _value(self, outcome: ChildOutcome) -> Any:
        match outcome:
            case ChildCompleted():
                return self._execution.codec.decode(outcome.result)
            case ChildFailed():
                raise ChildWorkflowFailedError(
                    outcome.child_run_id, outcome.child_workflow_name, outcome.error, outcome.error_type
                ) from restore(outcome.failure, fallback=WorkflowFailedError)
            case ChildCancelled():
                cause = CancellationError(reason=outcome.reason or None)
                raise ChildWorkflowFailedError(
                    outcome.child_run_id, outcome.child_workflow_name, str(cause), "CancellationError"
                ) from cause

    def cancel(self, child: Child, reason: str) -> None:
        """Ask a child to cancel; it says by its outcome what it made of that."""
        if child.outcome is None and not child.is_cancel_asked:
            child.is_cancel_asked = True
            self._execution.emit(CancelChild(child.command.child_run_id, reason))

    def close(self) -> None:
        """The run ends: ask those children to cancel that are to end with it."""
        for child in list(self.open.values()):
            if child.command.parent_close == "cancel":
                self.cancel(child, "its parent has ended")

    @property
    def are_waited_for(self) -> bool:
        """Whether the run may not end before one of its children has."""
        return any(child.command.parent_close == "wait" for child in self.open.values())

    def answer(self, event: ChildOutcome) -> None:
        """Apply a child's outcome."""
        child = self.open.pop(event.child_id, None)
        if child is None:
            raise NonDeterminismError(
                f"Run {self._execution.run_id!r}: its history tells an outcome of child {event.child_id!r}, "
                "which the code has not started."
            )
        child.outcome = event
        if not child.future.done():
            child.future.set_result(event)


def derived_run_id(run_id: str, what: str) -> str:
    """The id of a run that another one makes: the same whenever it is asked for."""
    return f"run_{hashlib.sha256(f'{run_id}/{what}'.encode()).hexdigest()[:16]}"
