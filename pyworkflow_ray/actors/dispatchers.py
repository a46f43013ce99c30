"""Hands step attempts to Ray or to this process, and brings their outcomes back."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

import msgspec

from pyworkflow_ray.actors.batch_tickets import Batches
from pyworkflow_ray.actors.batches import Batch, run_batch
from pyworkflow_ray.actors.codes import pack
from pyworkflow_ray.actors.runner import Attempt, joined, remote_runners, run_async
from pyworkflow_ray.actors.tickets import Landed, OnOutcome, Ticket, ray_failure
from pyworkflow_ray.engine.attempts import AttemptFailed, decode_outcome
from pyworkflow_ray.engine.options import StepOptions
from pyworkflow_ray.values.failures import capture

INLINE_CODE = 64 * 1024
"""Code up to this many bytes travels with each task; larger code goes through Ray's object store once."""


class Dispatcher(Protocol):
    """Runs attempts. It calls `on_outcome` on the event loop, once for each attempt, however it ends."""

    def dispatch(
        self, attempt: Attempt, function: Any, options: StepOptions, on_outcome: OnOutcome
    ) -> Ticket: ...


class LocalDispatcher:
    """Runs attempts in this process: `async def` on the running loop, `def` in threads."""

    def __init__(self, node: str = "local", is_cancelled: Callable[[str], bool] | None = None) -> None:
        self._node = node
        self._is_cancelled = is_cancelled
        self._tasks: set[asyncio.Task[None]] = set()

    def dispatch(
        self, attempt: Attempt, function: Any, options: StepOptions, on_outcome: OnOutcome
    ) -> LocalTicket:
        task = asyncio.get_running_loop().create_task(
            self._run(attempt, getattr(function, "fn", function), on_outcome)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return LocalTicket(task)

    async def _run(self, attempt: Attempt, function: Any, on_outcome: OnOutcome) -> None:
        try:
            outcome = await run_async(function, attempt, self._node, self._is_cancelled)
        except asyncio.CancelledError:
            outcome = AttemptFailed(failure=capture(RuntimeError("The step was cancelled.")))
        on_outcome(outcome)  # without effect if the run no longer waits for it


class LocalTicket:
    """An attempt in this process."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def cancel(self, force: bool = False) -> None:
        self._task.cancel()


class RayDispatcher:
    """Runs attempts as Ray tasks, each under the name ``workflow/step#n``."""

    def __init__(self, local: Dispatcher | None = None) -> None:
        self._runners, self._batch_runners = remote_runners(), remote_runners(run_batch)
        self._local = local or LocalDispatcher()
        self._codes: dict[int, tuple[Any, Any]] = {}
        self._options: dict[tuple[int, int], tuple[StepOptions, dict[str, Any]]] = {}
        self._landing = _Landing()
        self.batches = Batches(self._dispatch_alone, self._send_batch)

    def dispatch(
        self, attempt: Attempt, function: Any, options: StepOptions, on_outcome: OnOutcome
    ) -> Ticket:
        if options.local:
            return self._local.dispatch(attempt, function, options, on_outcome)
        if options.batch_size is not None and not attempt.is_retry:
            return self.batches.gather(attempt, function, options, on_outcome)
        return self._dispatch_alone(attempt, function, options, on_outcome)

    def _dispatch_alone(
        self, attempt: Attempt, function: Any, options: StepOptions, on_outcome: OnOutcome
    ) -> Ticket:
        name = f"{attempt.workflow_name}/{attempt.step_id}"
        name = name if attempt.attempt == 1 else f"{name} (attempt {attempt.attempt})"
        try:
            reference = self._submit(self._runners, name, attempt, function, options)
        except Exception as error:
            asyncio.get_running_loop().call_soon(on_outcome, AttemptFailed(failure=capture(error)))
            return _Refused()
        ticket = RayTicket(reference, attempt, options, on_outcome)
        self._landing.expect(reference, ticket)
        return ticket

    def _send_batch(self, batch: Batch, function: Any, options: StepOptions, landed: Landed) -> Any:
        first, others = batch.attempts[0], len(batch.attempts) - 1
        name = f"{first.workflow_name}/{first.step_id} and {others} more"
        reference = self._submit(self._batch_runners, name, batch, function, options)
        self._landing.expect(reference, landed)
        return reference

    def _submit(self, runners: Any, name: str, work: Any, function: Any, options: StepOptions) -> Any:
        """Have a Ray task do this work, an attempt or a batch; its reference."""
        runner = runners[1] if options.ray_options.get("num_gpus") else runners[0]
        task_options = {**self._task_options(runner, options), "name": name}
        data, code = msgspec.msgpack.encode(work), self._code(function)
        arguments = (joined(data, code),) if isinstance(code, bytes) else (data, code)
        # `.options(...).remote(...)` calls `_remote` in the end. Building options for each call would cost
        # a fifth of a small task's time.
        return runner._remote(arguments, {}, **task_options)

    def _task_options(self, runner: Any, options: StepOptions) -> dict[str, Any]:
        known = self._options.get((id(runner), id(options)))
        if known is not None and known[0] is options:
            return known[1]
        built = {**runner._default_options, "num_returns": 1, **options.ray_options}
        runner.options(**options.ray_options)  # raises what Ray has against an option
        if len(self._options) > 1000:
            self._options.clear()
        self._options[id(runner), id(options)] = (options, built)
        return built

    def _code(self, function: Any) -> Any:
        known = self._codes.get(id(function))
        if known is not None and known[0] is function:
            return known[1]
        code = pack(function, f"step {getattr(function, 'name', function)!r}")
        data: Any = msgspec.msgpack.encode(code)
        if len(data) > INLINE_CODE:
            import ray

            data = ray.put(data)
        if len(self._codes) > 1000:
            self._codes.clear()
        self._codes[id(function)] = (function, data)
        return data


class _Refused:
    def cancel(self, force: bool = False) -> None:
        pass


class _Landing:
    """Brings results from Ray's callback thread to the event loop, many in one wake-up."""

    def __init__(self) -> None:
        self._arrived: deque[tuple[Landed, Any]] = deque()
        self._lock = threading.Lock()
        self._scheduled = False

    def expect(self, reference: Any, ticket: Landed) -> None:
        loop = asyncio.get_running_loop()
        # The callback holds the ticket, and the ticket the reference: Ray drops a task without references.
        reference._on_completed(lambda result: self._land(loop, ticket, result))

    def _land(self, loop: asyncio.AbstractEventLoop, ticket: Landed, result: Any) -> None:
        with self._lock:
            self._arrived.append((ticket, result))
            if self._scheduled:
                return
            self._scheduled = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            arrived, self._arrived = self._arrived, deque()
            self._scheduled = False
        for ticket, result in arrived:
            try:
                ticket.land(result)
            except Exception as error:  # an outcome that cannot be handed on must not stop the others
                ticket.fail(error)


class RayTicket:
    """An attempt that runs as a Ray task."""

    def __init__(self, reference: Any, attempt: Attempt, options: StepOptions, on_outcome: OnOutcome) -> None:
        self._reference = reference
        self._attempt = attempt
        self._options = options
        self._on_outcome = on_outcome
        self._dispatched_at = asyncio.get_running_loop().time()

    def cancel(self, force: bool = False) -> None:
        import ray

        ray.cancel(self._reference, force=force, recursive=True)

    def fail(self, error: Exception) -> None:
        """Hand on that the outcome could not be handed on."""
        self._on_outcome(AttemptFailed(failure=capture(error)))

    def land(self, result: Any) -> None:
        """Hand on the outcome that Ray's result, or Ray's error, means."""
        if isinstance(result, bytes):
            try:
                self._on_outcome(decode_outcome(result))
            except msgspec.DecodeError as error:
                self._on_outcome(AttemptFailed(failure=capture(error)))
            return
        elapsed = timedelta(seconds=asyncio.get_running_loop().time() - self._dispatched_at)
        self._on_outcome(ray_failure(result, self._attempt, self._options, elapsed))
