"""The steps that a run has called, from the call to the outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from msgspec import Raw

from pyworkflow_ray.engine.attempts import AttemptOutcome
from pyworkflow_ray.engine.commands import CancelStep, ScheduleStep
from pyworkflow_ray.engine.events import StepCancelled, StepCompleted, StepFailed, StepRetrying, StepScheduled
from pyworkflow_ray.engine.options import StepOptions
from pyworkflow_ray.engine.pending_steps import PendingStep, conclude, step_error
from pyworkflow_ray.engine.recordings import Halt
from pyworkflow_ray.exceptions import NonDeterminismError
from pyworkflow_ray.ids import Ordinals

if TYPE_CHECKING:
    from pyworkflow_ray.engine.executions import Execution


class Steps:
    """A run's steps.

    Args:
        execution: The run.
    """

    def __init__(self, execution: Execution) -> None:
        self.pending: dict[str, PendingStep] = {}
        """Those without an outcome, by their ids."""
        self._execution = execution
        self._ordinals = Ordinals()
        self._ids: set[str] = set()

    async def call(
        self,
        function: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: StepOptions,
        on_completed: Callable[[Any], None] | None = None,
    ) -> Any:
        """Schedule a step and wait for its result; raises what the step gave up with.

        Args:
            on_completed: Called with the result, also where the code, being cancelled, does not get it.
        """
        step_id = self._step_id(name, options.step_id)
        try:
            pending = self._schedule(function, step_id, name, args, kwargs, options)
            try:
                event = await pending.future
            except asyncio.CancelledError as error:
                raise await self._cancelled(pending, error, on_completed) from None
        except Halt:
            await self._execution.stall()
        if isinstance(event, StepCompleted):
            result = self._execution.codec.decode(event.result)
            if on_completed is not None:
                on_completed(result)
            return result
        raise step_error(event)

    async def _cancelled(
        self,
        pending: PendingStep,
        error: asyncio.CancelledError,
        on_completed: Callable[[Any], None] | None,
    ) -> BaseException:
        """What the code gets to see, once the step has been dealt with as its `on_cancel` says."""
        cancellation = self._execution.cancellation
        told = cancellation.told(error)
        if pending.command.step_id in self.pending:
            if cancellation.is_of_run(told) and pending.is_awaited(self._execution.now):
                event = await self._last_attempt(pending)
                if on_completed is not None and isinstance(event, StepCompleted):
                    on_completed(self._execution.codec.decode(event.result))
            else:
                self.cancel(pending, "the workflow waits for it no more")
        return told

    async def _last_attempt(self, pending: PendingStep) -> StepCompleted | StepFailed:
        """Let an attempt that is under way come to its end; another one does not follow."""
        pending.is_last = True
        pending.future = self._execution.future()
        try:
            return await pending.future
        except asyncio.CancelledError:
            if pending.command.step_id in self.pending:
                self.cancel(pending, "the workflow waits for it no more")
            raise

    def _step_id(self, name: str, given: str | None) -> str:
        step_id = given or self._ordinals.next(name)
        while step_id in self._ids:
            if given:
                raise ValueError(
                    f"Step id {given!r} is used twice in run {self._execution.run_id!r}: "
                    "ids are unique in a run."
                )
            step_id = self._ordinals.next(name)
        self._ids.add(step_id)
        return step_id

    def _schedule(
        self,
        function: Any,
        step_id: str,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: StepOptions,
    ) -> PendingStep:
        recorded = self._execution.peek(StepScheduled, step_id)
        if recorded is None:
            what = f"step {step_id!r}"
            raw_args = Raw(self._execution.codec.encode(list(args), f"the arguments of {what}"))
            raw_kwargs = Raw(self._execution.codec.encode(dict(kwargs), f"the keyword arguments of {what}"))
            self._execution.recorded(StepScheduled, step_id)  # a divergence, if anything else is recorded
            command = ScheduleStep(step_id, name, function, raw_args, raw_kwargs, options)
            self._execution.emit(command)
        else:
            self._execution.recorded(StepScheduled, step_id)
            command = ScheduleStep(step_id, name, function, recorded.args, recorded.kwargs, options)
        pending = PendingStep(command, self._execution.future(), self._execution.now)
        self.pending[step_id] = pending
        return pending

    def cancel(self, pending: PendingStep, reason: str) -> None:
        """Let a step go that the code no longer waits for."""
        command = pending.command
        del self.pending[command.step_id]
        if self._execution.recorded(StepCancelled, command.step_id) is None:
            on_cancel = command.options.on_cancel
            self._execution.emit(CancelStep(command.step_id, command.step_name, reason, on_cancel))

    def conclude(
        self, step_id: str, attempt: int, outcome: AttemptOutcome, now: datetime
    ) -> StepCompleted | StepRetrying | StepFailed | None:
        """The event that an attempt's outcome makes: completed, retrying or failed.

        Returns:
            None when the run no longer waits for this attempt: the outcome is not recorded.
        """
        pending = self.pending.get(step_id)
        if pending is None or pending.attempt != attempt:
            return None
        return conclude(pending, outcome, now=now, limits=self._execution.limits, seed=self._execution.run_id)

    def answer(self, event: StepCompleted | StepFailed) -> None:
        """Apply a step's outcome."""
        self._answered(event).future.set_result(event)
        del self.pending[event.step_id]

    def retry(self, event: StepRetrying) -> None:
        """Apply that an attempt failed and another follows."""
        self._answered(event).retry(event)

    def _answered(self, event: StepCompleted | StepFailed | StepRetrying) -> PendingStep:
        pending = self.pending.get(event.step_id)
        if pending is None:
            raise NonDeterminismError(
                f"Run {self._execution.run_id!r}: its history tells an outcome of step {event.step_id!r}, "
                "which the code has not called, or waits for no more."
            )
        return pending
