"""The child runs that a run has started."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from msgspec import Raw

from pyworkflow_ray.engine.commands import CancelChild, StartChild
from pyworkflow_ray.engine.events import ChildCancelled, ChildCompleted, ChildFailed, ChildStarted
from pyworkflow_ray.engine.recordings import Halt
from pyworkflow_ray.engine.scopes import Scope
from pyworkflow_ray.exceptions import (
    CancellationError,
    ChildWorkflowFailedError,
    MaxNestingDepthError,
    NonDeterminismError,
    WorkflowFailedError,
)
from pyworkflow_ray.ids import Ordinals
from pyworkflow_ray.values.failures import restore

ChildOutcome = ChildCompleted | ChildFailed | ChildCancelled
PARENT_CLOSE = ("cancel", "abandon", "wait")


@dataclass(slots=True)
class Child:
    """A child run. `outcome` is None until the child has ended."""

    command: StartChild
    future: asyncio.Future[ChildOutcome]
    outcome: ChildOutcome | None = None
    is_cancel_requested: bool = False

    @property
    def name(self) -> str:
        """The child's workflow."""
        return str(self.command.definition.name)


class Children:
    """A run's children.

    Args:
        scope: The run.
    """

    def __init__(self, scope: Scope) -> None:
        self.open: dict[str, Child] = {}
        """Those without an outcome, by their ids."""
        self._scope = scope
        self._ordinals = Ordinals()

    def start(
        self, definition: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], parent_close: str
    ) -> Child:
        """Start a child run of a workflow."""
        scope, recording = self._scope, self._scope.recording
        if scope.nesting_depth >= scope.limits.max_nesting_depth:
            raise MaxNestingDepthError(scope.nesting_depth)
        child_id = self._ordinals.next(definition.name)
        recorded = recording.peek(ChildStarted, child_id)
        if recorded is None:
            what = f"child {child_id!r}"
            raw_args = Raw(scope.codec.encode(list(args), f"the arguments of {what}"))
            raw_kwargs = Raw(scope.codec.encode(dict(kwargs), f"the keyword arguments of {what}"))
            recording.recorded(ChildStarted, child_id)  # diverges if anything else is recorded here
            run_id = derived_run_id(scope.run_id, child_id)
            command = StartChild(child_id, run_id, definition, raw_args, raw_kwargs, parent_close)
            recording.emit(command)
        else:
            recording.skip()
            command = StartChild(
                child_id,
                recorded.child_run_id,
                definition,
                recorded.args,
                recorded.kwargs,
                recorded.parent_close,
            )
        child = Child(command, scope.future())
        self.open[child_id] = child
        return child

    async def outcome(self, child: Child) -> Any:
        """The child's result. Raises the error that the child failed with.

        The child goes on if the wait is cancelled.
        """
        # Several tasks may wait for one child. A cancelled wait must not cancel the future that they share.
        return self._value(await asyncio.shield(child.future))

    async def call(self, child: Child) -> Any:
        """As `outcome`, for the code that started the child in order to wait for it.

        If that code is cancelled, what happens to the child follows from its `parent_close`.
        """
        try:
            return await self._called(child)
        except Halt:
            await self._scope.stall()

    async def _called(self, child: Child) -> Any:
        try:
            return await self.outcome(child)
        except asyncio.CancelledError as error:
            if child.outcome is not None or child.command.parent_close == "abandon":
                raise
            cancellation = self._scope.cancellation
            is_of_run = cancellation.is_of_run(error)
            if child.command.parent_close == "cancel" or not is_of_run:
                self.cancel(child, "its parent no longer waits for it")
            if is_of_run:
                try:
                    await asyncio.shield(child.future)
                except asyncio.CancelledError as second:
                    raise cancellation.that_counts(error, second) from None
            raise

    def _value(self, outcome: ChildOutcome) -> Any:
        match outcome:
            case ChildCompleted():
                return self._scope.codec.decode(outcome.result)
            case ChildFailed():
                raise ChildWorkflowFailedError(
                    outcome.child_run_id, outcome.child_workflow_name, outcome.error, outcome.error_type
                ) from restore(outcome.failure, fallback=WorkflowFailedError)
            case ChildCancelled():
                cause = CancellationError(reason=outcome.reason or None)
                raise ChildWorkflowFailedError(
                    outcome.child_run_id, outcome.child_workflow_name, str(cause), "CancellationError"
                ) from cause
            case _:
                assert_never(outcome)

    def cancel(self, child: Child, reason: str) -> None:
        """Ask a child to cancel. Its outcome shows whether it did."""
        if child.outcome is None and not child.is_cancel_requested:
            child.is_cancel_requested = True
            self._scope.recording.emit(CancelChild(child.command.child_run_id, reason))

    def close(self) -> None:
        """The run ends: ask those children to cancel whose `parent_close` is "cancel"."""
        for child in list(self.open.values()):
            if child.command.parent_close == "cancel":
                self.cancel(child, "its parent has ended")

    @property
    def are_waited_for(self) -> bool:
        """Whether the run may not end before one of its children has."""
        return any(child.command.parent_close == "wait" for child in self.open.values())

    def apply(self, event: ChildOutcome) -> None:
        """Apply a child's outcome."""
        child = self.open.pop(event.child_id, None)
        if child is None:
            raise NonDeterminismError(
                f"Run {self._scope.run_id!r}: its history has an outcome of child {event.child_id!r}, "
                "which the code has not started."
            )
        child.outcome = event
        if not child.future.done():
            child.future.set_result(event)


def derived_run_id(run_id: str, what: str) -> str:
    """The id of a run that another run starts. It is the same whenever it is computed."""
    return f"run_{hashlib.sha256(f'{run_id}/{what}'.encode()).hexdigest()[:16]}"
