"""The steps that a run has called, from the call to the outcome."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from typing import Any

from msgspec import Raw

from pyworkflow_ray.engine.attempts import AttemptOutcome
from pyworkflow_ray.engine.commands import CancelStep, ScheduleStep
from pyworkflow_ray.engine.events import StepCancelled, StepCompleted, StepFailed, StepRetrying, StepScheduled
from pyworkflow_ray.engine.options import StepOptions
from pyworkflow_ray.engine.pending_steps import PendingStep, conclude, step_error
from pyworkflow_ray.engine.recordings import Halt
from pyworkflow_ray.engine.scopes import Scope
from pyworkflow_ray.engine.unawaited_calls import caller
from pyworkflow_ray.exceptions import NonDeterminismError
from pyworkflow_ray.ids import Ordinals, require_storable


class Steps:
    """A run's steps.

    Args:
        scope: The run.
    """

    def __init__(self, scope: Scope) -> None:
        self.pending: dict[str, PendingStep] = {}
        """Those without an outcome, by their ids."""
        self._scope = scope
        self._recording = scope.recording
        self._ordinals = Ordinals()
        self._ids: set[str] = set()
        self._calls = 0
        self._unawaited = scope.unawaited.steps

    def call(
        self,
        function: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: StepOptions,
        on_completed: Callable[[Any], None] | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Schedule a step and wait for its result, once this is awaited.

        Raises the error that the step failed with.

        Args:
            on_completed: Called with the result, also when the code is cancelled and does not get the result.
        """
        number = self._calls = self._calls + 1
        code = self._call(number, function, name, args, kwargs, options, on_completed)
        self._unawaited[number] = (code, name, *caller(sys._getframe(2)))
        return code

    async def _call(
        self,
        number: int,
        function: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: StepOptions,
        on_completed: Callable[[Any], None] | None,
    ) -> Any:
        self._unawaited.pop(number, None)
        step_id = self._step_id(name, options.step_id)
        try:
            pending = self._schedule(function, step_id, name, args, kwargs, options)
            try:
                event = await pending.future
            except asyncio.CancelledError as error:
                raise await self._cancelled(pending, error, on_completed) from None
        except Halt:
            await self._scope.stall()
        if isinstance(event, StepCompleted):
            result = self._scope.codec.decode(event.result)
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
        """Let go of the step according to its `on_cancel`, and return the error that the code sees."""
        cancellation = self._scope.cancellation
        if pending.command.step_id in self.pending:
            if cancellation.is_of_run(error) and pending.is_awaited(self._scope.now):
                try:
                    event = await self._last_attempt(pending)
                except asyncio.CancelledError as second:
                    return cancellation.that_counts(error, second)
                if on_completed is not None and isinstance(event, StepCompleted):
                    on_completed(self._scope.codec.decode(event.result))
            else:
                self.cancel(pending, "the workflow no longer waits for it")
        return error

    async def _last_attempt(self, pending: PendingStep) -> StepCompleted | StepFailed:
        """Wait for the end of the attempt in flight. No other attempt follows it."""
        pending.is_last = True
        pending.future = self._scope.future()
        try:
            return await pending.future
        except asyncio.CancelledError:
            if pending.command.step_id in self.pending:
                self.cancel(pending, "the workflow no longer waits for it")
            raise

    def _step_id(self, name: str, given: str | None) -> str:
        if given:
            require_storable(given)
            require_storable(name)
        step_id = given or self._ordinals.next(name)
        while step_id in self._ids:
            if given:
                raise ValueError(
                    f"Step id {given!r} is used twice in run {self._scope.run_id!r}: ids are unique in a run."
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
        recorded = self._recording.peek(StepScheduled, step_id)
        if recorded is None:
            what = f"step {step_id!r}"
            raw_args = Raw(self._scope.codec.encode(list(args), f"the arguments of {what}"))
            raw_kwargs = Raw(self._scope.codec.encode(dict(kwargs), f"the keyword arguments of {what}"))
            self._recording.recorded(StepScheduled, step_id)  # diverges if anything else is recorded
            command = ScheduleStep(step_id, name, function, raw_args, raw_kwargs, options)
            self._recording.emit(command)
        else:
            self._recording.skip()
            command = ScheduleStep(step_id, name, function, recorded.args, recorded.kwargs, options)
        pending = PendingStep(command, self._scope.future(), self._scope.now)
        self.pending[step_id] = pending
        return pending

    def cancel(self, pending: PendingStep, reason: str) -> None:
        """Let go of a step that the code no longer waits for."""
        command = pending.command
        del self.pending[command.step_id]
        if self._recording.recorded(StepCancelled, command.step_id) is None:
            on_cancel = command.options.on_cancel
            self._recording.emit(CancelStep(command.step_id, command.step_name, reason, on_cancel))

    def conclude(
        self, step_id: str, attempt: int, outcome: AttemptOutcome, now: datetime
    ) -> StepCompleted | StepRetrying | StepFailed | None:
        """The event that this outcome of an attempt leads to: completed, retrying or failed.

        Returns:
            None when the run no longer waits for this attempt. Its outcome is not recorded.
        """
        pending = self.pending.get(step_id)
        if pending is None or pending.attempt != attempt:
            return None
        return conclude(pending, outcome, self._scope, now=now)

    def apply(self, event: StepCompleted | StepFailed) -> None:
        """Apply a step's outcome."""
        self._pending(event).future.set_result(event)
        del self.pending[event.step_id]

    def retry(self, event: StepRetrying) -> None:
        """Apply that an attempt has failed and another follows."""
        self._pending(event).retry(event)

    def _pending(self, event: StepCompleted | StepFailed | StepRetrying) -> PendingStep:
        pending = self.pending.get(event.step_id)
        if pending is None:
            raise NonDeterminismError(
                f"Run {self._scope.run_id!r}: its history has an outcome of step {event.step_id!r}, "
                "which the code has not called, or no longer waits for."
            )
        return pending
