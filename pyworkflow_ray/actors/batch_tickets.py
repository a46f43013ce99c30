"""Attempts that share Ray tasks, on their coordinator's side.

First attempts of one step that are dispatched together are gathered, and sent as batches of the step's
`batch_size`. Each has a ticket of its own. How they run, and how their outcomes come back, is in `batches`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import msgspec

from pyworkflow_ray.actors.batches import ALL, Batch, decode_answers
from pyworkflow_ray.actors.runner import Attempt
from pyworkflow_ray.actors.salvages import salvage
from pyworkflow_ray.actors.spools import Answer
from pyworkflow_ray.actors.tickets import Landed, OnOutcome, Ticket, ray_failure
from pyworkflow_ray.engine.attempts import AttemptFailed, decode_outcome
from pyworkflow_ray.engine.options import StepOptions
from pyworkflow_ray.exceptions import WorkerDiedError
from pyworkflow_ray.values.failures import capture

Alone = Callable[[Attempt, Any, StepOptions, OnOutcome], Ticket]
"""Dispatches an attempt in a Ray task of its own."""
Send = Callable[[Batch, Any, StepOptions, Landed], Any]
"""Sends a batch as a Ray task; its reference."""


@dataclass(eq=False)
class BatchTicket:
    """An attempt that shares a Ray task with others, or will."""

    attempt: Attempt
    on_outcome: OnOutcome
    carrier: Ticket | None = None
    """What the attempt was sent with; None while it is gathered."""
    is_given_up: bool = False
    is_forced: bool = False
    """Whether its process is to be ended."""

    def cancel(self, force: bool = False) -> None:
        self.is_given_up = True
        self.is_forced = self.is_forced or force
        if self.carrier is not None:
            self.carrier.cancel(force)


@dataclass(eq=False)
class _Group:
    """Attempts that will share tasks."""

    function: Any
    options: StepOptions
    tickets: list[BatchTicket] = field(default_factory=list)


class Batches:
    """The batches that a coordinator gathers, and those that are under way.

    Args:
        alone: Dispatches an attempt by itself.
        send: Sends a batch.
    """

    def __init__(self, alone: Alone, send: Send) -> None:
        self._alone, self._send = alone, send
        self._groups: dict[tuple[str, int, int], _Group] = {}
        self._under_way: dict[str, _BatchUnderWay] = {}

    def gather(
        self, attempt: Attempt, function: Any, options: StepOptions, on_outcome: OnOutcome
    ) -> BatchTicket:
        """Send the attempt with others of its step: once they are enough, or when the loop's turn ends."""
        if not self._groups:
            asyncio.get_running_loop().call_soon(self._send_all)
        group = self._groups.setdefault(
            (attempt.run_id, id(function), id(options)), _Group(function, options)
        )
        ticket = BatchTicket(attempt, on_outcome)
        group.tickets.append(ticket)
        if len(group.tickets) >= (options.batch_size or 1):
            self._send_group(group)
        return ticket

    def take_answers(self, batch_id: str, node: str, answers: Iterable[Answer]) -> bool:
        """Take outcomes that a worker hands over; whether anybody waits for the batch."""
        batch = self._under_way.get(batch_id)
        if batch is None:
            return False
        batch.node = node
        batch.take(answers)
        return True

    def _send_all(self) -> None:
        groups, self._groups = self._groups, {}
        for group in groups.values():
            self._send_group(group)

    def _send_group(self, group: _Group) -> None:
        tickets = [ticket for ticket in group.tickets if not ticket.is_given_up]
        group.tickets = []
        if len(tickets) == 1:
            (ticket,) = tickets
            ticket.carrier = self._alone(ticket.attempt, group.function, group.options, ticket.on_outcome)
        elif tickets:
            self._send_batch(tickets, group)

    def _send_batch(self, tickets: list[BatchTicket], group: _Group) -> None:
        batch = Batch(batch_id=secrets.token_hex(16), attempts=[ticket.attempt for ticket in tickets])
        under_way = _BatchUnderWay(batch.batch_id, tickets, group.options, self._under_way)
        try:
            under_way.reference = self._send(batch, group.function, group.options, under_way)
        except Exception as error:
            # Not at once: whoever dispatches the last of them does not have its ticket yet.
            asyncio.get_running_loop().call_soon(under_way.fail, error)
        for ticket in tickets:
            ticket.carrier = under_way


class _BatchUnderWay:
    """A batch that was sent. It knows the outcomes that have come."""

    def __init__(
        self,
        batch_id: str,
        tickets: list[BatchTicket],
        options: StepOptions,
        under_way: dict[str, _BatchUnderWay],
    ) -> None:
        self.tickets = tickets
        self.node: str | None = None
        """Where it runs, once its worker has said so."""
        self.reference: Any = None
        self._batch_id, self._options, self._under_way = batch_id, options, under_way
        self._unanswered = dict(enumerate(tickets))
        self._cancelled: set[bool] = set()
        """With which forces Ray was asked to cancel the task."""
        self._salvaging: asyncio.Task[None] | None = None
        self._sent_at = asyncio.get_running_loop().time()
        under_way[batch_id] = self

    def cancel(self, force: bool = False) -> None:
        """Cancel the task once nobody waits for any of its attempts."""
        left = self._unanswered.values()
        is_over = self.reference is None or self._batch_id not in self._under_way
        if is_over or force in self._cancelled or not all(_is_given_up(ticket, force) for ticket in left):
            return
        import ray

        self._cancelled.add(force)
        ray.cancel(self.reference, force=force, recursive=True)

    def take(self, answers: Iterable[Answer]) -> None:
        """Hand on outcomes; one that has come before is left out."""
        for index, data in answers:
            for each in list(self._unanswered) if index == ALL else [index]:
                ticket = self._unanswered.pop(each, None)
                if ticket is not None:
                    _hand_on(ticket, data)

    def land(self, result: Any) -> None:
        """Hand on what the task has answered, or what it has left behind if its worker has died."""
        if isinstance(result, bytes):
            self.take(decode_answers(result))
            self._end(_not_begun)
        else:
            self._salvaging = asyncio.get_running_loop().create_task(self._salvage(result))

    async def _salvage(self, error: Any) -> None:
        """Find the outcomes that the worker has left behind. The others are lost."""
        # A batch has no timeout of its own. Whichever of its attempts ran out of time has left that behind.
        options = replace(self._options, timeout=None)
        elapsed = timedelta(seconds=asyncio.get_running_loop().time() - self._sent_at)
        try:
            if not all(ticket.is_given_up for ticket in self._unanswered.values()):
                self.take(await salvage(self._batch_id, self.node))
        finally:
            self._end(lambda attempt: ray_failure(error, attempt, options, elapsed))

    def fail(self, error: Exception) -> None:
        """Hand on for all that an outcome could not be handed on."""
        self._end(lambda attempt: AttemptFailed(failure=capture(error)))

    def _end(self, outcome_of: Callable[[Attempt], AttemptFailed]) -> None:
        """End the batch, with these outcomes for attempts that have none."""
        self._under_way.pop(self._batch_id, None)
        left, self._unanswered = self._unanswered, {}
        for ticket in left.values():
            ticket.on_outcome(outcome_of(ticket.attempt))


def _is_given_up(ticket: BatchTicket, force: bool) -> bool:
    return ticket.is_forced if force else ticket.is_given_up


def _hand_on(ticket: BatchTicket, data: bytes) -> None:
    try:
        outcome = decode_outcome(data)
    except msgspec.DecodeError as error:
        outcome = AttemptFailed(failure=capture(error))
    ticket.on_outcome(outcome)


def _not_begun(attempt: Attempt) -> AttemptFailed:
    stopped = WorkerDiedError(
        f"Attempt {attempt.attempt} of step {attempt.step_id!r} was not begun: the batch that it belonged to "
        "was stopped before."
    )
    return AttemptFailed(failure=capture(stopped), cause="worker_died")
