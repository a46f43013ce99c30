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

from pyworkflow_ray.actors.codes import pack
from pyworkflow_ray.actors.runner import KILL_GRACE, Attempt, joined, remote_runners, run_async
from pyworkflow_ray.engine.attempts import AttemptFailed, AttemptOutcome, decode_outcome
from pyworkflow_ray.engine.options import StepOptions
from pyworkflow_ray.exceptions import StepTimeoutError, WorkerDiedError
from pyworkflow_ray.values.failures import Failure, capture

OnOutcome = Callable[[AttemptOutcome], None]
INLINE_CODE = 64 * 1024
"""Code up to this many bytes travels with each task; larger code goes through Ray's object store once."""


class Ticket(Protocol):
    """An attempt that is under way."""

    def cancel(self, force: bool = False) -> None:
        """Stop it: interrupt the step, or with `force` end its process."""
        ...


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
        self._runner, self._gpu_runner = remote_runners()
        self._local = local or LocalDispatcher()
        self._codes: dict[int, tuple[Any, Any]] = {}
        self._options: dict[int, tuple[StepOptions, dict[str, Any]]] = {}
        self._landing = _Landing()

    def dispatch(
        self, attempt: Attempt, function: Any, options: StepOptions, on_outcome: OnOutcome
    ) -> Ticket:
        if options.local:
            return self._local.dispatch(attempt, function, options, on_outcome)
        try:
            reference = self._submit(attempt, function, options)
        except Exception as error:
            asyncio.get_running_loop().call_soon(on_outcome, AttemptFailed(failure=capture(error)))
            return _Refused()
        return self._landing.expect(reference, attempt, options, on_outcome)

    def _submit(self, attempt: Attempt, function: Any, options: StepOptions) -> Any:
        runner = self._gpu_runner if options.ray_options.get("num_gpus") else self._runner
        task_options = dict(self._task_options(runner, options))
        name = f"{attempt.workflow_name}/{attempt.step_id}"
        task_options["name"] = name if attempt.attempt == 1 else f"{name} (attempt {attempt.attempt})"
        data, code = msgspec.msgpack.encode(attempt), self._code(function)
        arguments = (joined(data, code),) if isinstance(code, bytes) else (data, code)
        # `.options(...).remote(...)` calls `_remote` in the end. Building options for each call would cost
        # a fifth of a small task's time.
        return runner._remote(arguments, {}, **task_options)

    def _task_options(self, runner: Any, options: StepOptions) -> dict[str, Any]:
        known = self._options.get(id(options))
        if known is not None and known[0] is options:
            return known[1]
        built = {**runner._default_options, "num_returns": 1, **options.ray_options}
        runner.options(**options.ray_options)  # raises what Ray has against an option
        if len(self._options) > 1000:
            self._options.clear()
        self._options[id(options)] = (options, built)
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
        self._arrived: deque[tuple[RayTicket, Any]] = deque()
        self._lock = threading.Lock()
        self._scheduled = False

    def expect(
        self, reference: Any, attempt: Attempt, options: StepOptions, on_outcome: OnOutcome
    ) -> RayTicket:
        loop = asyncio.get_running_loop()
        ticket = RayTicket(reference, attempt, options, on_outcome)
        # The callback holds the ticket, and the ticket the reference: Ray drops a task without references.
        reference._on_completed(lambda result: self._land(loop, ticket, result))
        return ticket

    def _land(self, loop: asyncio.AbstractEventLoop, ticket: RayTicket, result: Any) -> None:
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


def ray_failure(error: Any, attempt: Attempt, options: StepOptions, elapsed: timedelta) -> AttemptFailed:
    """The failure of an attempt whose worker could not answer."""
    from ray import exceptions as ray_errors

    what = f"Attempt {attempt.attempt} of step {attempt.step_id!r}"
    if isinstance(error, ray_errors.OutOfMemoryError):
        died = WorkerDiedError(f"{what} was ended by Ray because its node ran out of memory: {error}")
        return AttemptFailed(failure=capture(died), cause="out_of_memory")
    crashed = isinstance(error, ray_errors.WorkerCrashedError)
    if crashed and options.timeout is not None and elapsed >= options.timeout + timedelta(seconds=KILL_GRACE):
        late = StepTimeoutError(f"{what} ignored its timeout of {options.timeout}; its process was ended.")
        return AttemptFailed(failure=capture(late), cause="timeout")
    lost = (
        ray_errors.WorkerCrashedError,
        ray_errors.NodeDiedError,
        ray_errors.LocalRayletDiedError,
        ray_errors.ObjectLostError,
        ray_errors.TaskCancelledError,
    )
    if isinstance(error, lost):
        died = WorkerDiedError(f"The worker of {what[0].lower()}{what[1:]} died before it answered: {error}")
        return AttemptFailed(failure=capture(died), cause="worker_died")
    if isinstance(error, BaseException):
        return AttemptFailed(failure=capture(error))
    return AttemptFailed(
        failure=Failure(error=f"{what} answered with {type(error).__name__}", error_type="ProtocolError")
    )
