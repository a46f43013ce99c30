"""Runs one attempt of a step: in a Ray worker, or in the process of a local coordinator.

What the step raises is handed back as data. An exception of a user's class might not survive pickling, and
would then hang or mislead its caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from pyworkflow_ray.actors.codes import CodeLoader
from pyworkflow_ray.actors.connections import require_joined
from pyworkflow_ray.actors.logs import attempting, follow
from pyworkflow_ray.actors.payloads import configured_values
from pyworkflow_ray.callables import is_async, is_unfinished
from pyworkflow_ray.config import LogSettings
from pyworkflow_ray.durations import format_duration
from pyworkflow_ray.engine.attempts import AttemptCompleted, AttemptFailed, AttemptOutcome, encode_outcome
from pyworkflow_ray.engine.running_steps import RunningStep
from pyworkflow_ray.exceptions import StepTimeoutError
from pyworkflow_ray.storage.codes import Code
from pyworkflow_ray.values.bundles import enter_engine
from pyworkflow_ray.values.codec import Values
from pyworkflow_ray.values.failures import capture

_Work = TypeVar("_Work", bound=msgspec.Struct)

LOCAL_THREADS = 64
"""Local `def` steps that run at once in one process."""
KILL_GRACE = 5.0
"""Seconds between a timeout that the step ignores and the end of its process."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a step, as it travels to its worker."""

    run_id: str
    workflow_name: str
    step_id: str
    step_name: str
    attempt: int
    is_retry: bool = False
    """Whether an earlier attempt has failed, or has lost its worker. Such an attempt has a task to itself."""
    args: bytes
    kwargs: bytes
    timeout: float | None = None
    payload_limit: int | None = None
    payload_codec: str | None = None
    worker_ttl: float = 0.0
    namespace: str = ""
    coordinator: str = ""
    logging: LogSettings | None = None


class _TimedOut(BaseException):
    """Unwinds a `def` step whose time is up. It is no `Exception`, which the step might catch by chance."""


def context_of(attempt: Attempt, is_cancelled: Callable[[str], bool] | None = None) -> RunningStep:
    """What the step's code can ask of its attempt."""
    deadline = None
    if attempt.timeout is not None:
        deadline = datetime.now(UTC) + timedelta(seconds=attempt.timeout)
    return RunningStep(
        run_id=attempt.run_id,
        workflow_name=attempt.workflow_name,
        step_id=attempt.step_id,
        step_name=attempt.step_name,
        attempt=attempt.attempt,
        deadline=deadline,
        is_cancelled=is_cancelled or _asking(attempt.namespace, attempt.coordinator),
        namespace=attempt.namespace,
    )


ASK_AGAIN_AFTER = 1.0
"""Seconds for which a remote step keeps the answer that its run was not cancelled."""


@lru_cache(maxsize=64)
def _asking(namespace: str, coordinator: str) -> Callable[[str], bool]:
    """Asks a run's coordinator whether the run was asked to cancel. A step may call it in its inner loop."""
    answers: dict[str, tuple[float, bool]] = {}

    def is_cancelled(run_id: str) -> bool:
        import ray

        asked_at, answer = answers.get(run_id, (float("-inf"), False))
        if answer or time.monotonic() - asked_at < ASK_AGAIN_AFTER:
            return answer
        try:
            require_joined()
            handle = ray.get_actor(coordinator, namespace=namespace)
            answer = bool(handle.is_cancelled.remote(run_id).future().result(timeout=10))
        except Exception:
            answer = False  # the coordinator is dead or busy: ask again later
        answers.clear()
        answers[run_id] = (time.monotonic(), answer)
        return answer

    return is_cancelled


def values_of(attempt: Attempt) -> Values:
    """The codec for the values of the attempt's run."""
    return configured_values(attempt.payload_codec, attempt.payload_limit)


def completed(
    value: Any, attempt: Attempt, values: Values, started_at: datetime, node: str
) -> AttemptOutcome:
    """The outcome of an attempt that returned. It has failed if its value cannot be stored."""
    try:
        encoded = values.encode(value, f"the result of step {attempt.step_id!r}")
    except Exception as error:
        return failed(error, started_at, node)
    return AttemptCompleted(result=encoded, started_at=started_at, node=node, worker_pid=os.getpid())


def failed(error: BaseException, started_at: datetime, node: str) -> AttemptOutcome:
    """The outcome of an attempt that raised."""
    cause = "timeout" if isinstance(error, StepTimeoutError) else "error"
    _forget_frames_of_ours(error)
    return AttemptFailed(
        failure=capture(error), cause=cause, started_at=started_at, node=node, worker_pid=os.getpid()
    )


def _forget_frames_of_ours(error: BaseException) -> None:
    """Have the traceback begin with the step's own code."""
    frame = error.__traceback__
    begin = None
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == __file__:
            begin = frame.tb_next
        frame = frame.tb_next
    if begin is not None:
        error.__traceback__ = begin


def timeout_error(attempt: Attempt) -> StepTimeoutError:
    """The error of an attempt that took too long."""
    allowed = format_duration(timedelta(seconds=attempt.timeout or 0))
    return StepTimeoutError(
        f"Attempt {attempt.attempt} of step {attempt.step_id!r} took longer than its timeout of {allowed}."
    )


async def run_async(
    function: Any, attempt: Attempt, node: str, is_cancelled: Callable[[str], bool] | None = None
) -> AttemptOutcome:
    """Run an attempt of an `async def` step on the running loop, or of a `def` step in a thread."""
    started_at = datetime.now(UTC)
    values = values_of(attempt)
    try:
        args, kwargs = values.decode(attempt.args), values.decode(attempt.kwargs)
        with attempting(context_of(attempt, is_cancelled)):
            call = (
                function(*args, **kwargs) if is_async(function) else _call_in_thread(function, args, kwargs)
            )
            value = await (call if attempt.timeout is None else _in_time(call, attempt))
        return completed(value, attempt, values, started_at, node)
    except _EscapingError as error:
        return failed(error.raised, started_at, node)
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise
        return failed(RuntimeError("The step was cancelled from within."), started_at, node)
    except BaseException as error:
        return failed(error, started_at, node)


@lru_cache(maxsize=1)
def _local_threads() -> ThreadPoolExecutor:
    # Not the loop's own threads: the storage is read on those, and must not wait for slow steps.
    return ThreadPoolExecutor(LOCAL_THREADS, thread_name_prefix="pyworkflow-step")


async def _call_in_thread(function: Any, args: Any, kwargs: Any) -> Any:
    value = await asyncio.get_running_loop().run_in_executor(
        _local_threads(), copy_context().run, _call_plain, function, args, kwargs
    )
    # A decorator's plain function returns what the `async def` function inside of it returns.
    return await value if is_unfinished(value) else value


class _EscapingError(Exception):
    """Carries what no future can hold."""

    def __init__(self, raised: BaseException) -> None:
        self.raised = raised


def _call_plain(function: Any, args: Any, kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise
        # An executor's thread would pass these on to the loop, which would stop, or never hear of them.
        raise _EscapingError(error) from None


async def _in_time(call: Awaitable[Any], attempt: Attempt) -> Any:
    try:
        async with asyncio.timeout(attempt.timeout) as limit:
            return await call
    except TimeoutError:
        if limit.expired():
            raise timeout_error(attempt) from None
        raise


def run_blocking(
    function: Any, attempt: Attempt, node: str, before_kill: Callable[[], None] | None = None
) -> AttemptOutcome:
    """Run an attempt in the main thread of a worker. The process ends if the step ignores its timeout.

    Args:
        before_kill: Called before the process is ended.
    """
    with _ended_after(attempt.timeout, before_kill):
        if is_async(function):
            return _run_loop(function, attempt, node)
        return _run_plain(function, attempt, node)


def _run_loop(function: Any, attempt: Attempt, node: str) -> AttemptOutcome:
    loop = _kept_loop()
    try:
        outcome = loop.run_until_complete(run_async(function, attempt, node))
    except BaseException as error:
        _drop_loop()
        if isinstance(error, SystemExit | KeyboardInterrupt):
            return failed(error, datetime.now(UTC), node)
        raise
    if asyncio.all_tasks(loop):
        _drop_loop()  # it ends what the step has left running
    return outcome


_kept: list[asyncio.Runner] = []


def _kept_loop() -> asyncio.AbstractEventLoop:
    """This worker's event loop for `async def` steps. A new one for each would cost ten small steps."""
    if _kept and _kept[0].get_loop().is_closed():
        _kept.clear()  # a step has closed it
    if not _kept:
        _kept.append(asyncio.Runner())
    return _kept[0].get_loop()


def _drop_loop() -> None:
    # On a thread: what the step has left running may ignore its cancellation, and the outcome must not wait.
    threading.Thread(target=_close, args=(_kept.pop(),), name="pyworkflow-close", daemon=True).start()


def _close(runner: asyncio.Runner) -> None:
    with contextlib.suppress(RuntimeError):
        runner.close()


def _run_plain(function: Any, attempt: Attempt, node: str) -> AttemptOutcome:
    started_at = datetime.now(UTC)
    values = values_of(attempt)
    try:
        args, kwargs = values.decode(attempt.args), values.decode(attempt.kwargs)
        with attempting(context_of(attempt)), _alarm(attempt.timeout):
            value = function(*args, **kwargs)
            if is_unfinished(value):
                value = asyncio.run(_await(value))
        return completed(value, attempt, values, started_at, node)
    except _TimedOut:
        return failed(timeout_error(attempt), started_at, node)
    except BaseException as error:
        return failed(error, started_at, node)


async def _await(value: Any) -> Any:
    return await value


@contextlib.contextmanager
def _alarm(timeout: float | None) -> Iterator[None]:
    """Interrupt the main thread when the time is up."""
    if timeout is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_alarm(_signal: int, _frame: Any) -> None:
        raise _TimedOut

    previous = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def _ended_after(timeout: float | None, before_kill: Callable[[], None] | None) -> Iterator[None]:
    """End the process if a step goes on long after its timeout: stuck in C code, or catching everything."""
    if timeout is None:
        yield
        return

    def kill() -> None:
        if before_kill is not None:
            before_kill()
        os._exit(1)

    watchdog = threading.Timer(timeout + KILL_GRACE, kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


# --- in a Ray worker ------------------------------------------------------------------------------

_engine: list[tuple[str, str]] = []
"""The namespace and the name of the coordinator that sent the present work."""


def _bundle(hash_: str) -> bytes:
    """A bundle that this node does not have, from whoever sent the work. Workers never see the database."""
    import ray

    require_joined()
    namespace, coordinator = _engine[0]
    handle = ray.get_actor(coordinator, namespace=namespace)
    return bytes(handle.bundle.remote(hash_).future().result(timeout=BUNDLE_TIME))


BUNDLE_TIME = 60.0
"""Seconds that a worker waits for a bundle from its coordinator."""
_loader = CodeLoader(_bundle)


def run_attempt(attempt_data: bytes, code_data: bytes | None = None) -> bytes:
    """Run one attempt in this worker; its outcome. This is the body of the Ray task.

    Small code comes in one argument with the attempt (see `joined`). Large code is an argument of its own.
    """
    started_at = datetime.now(UTC)
    node = node_id()
    try:
        attempt, function = load_step(attempt_data, code_data, Attempt, lambda attempt: attempt)
    except BaseException as error:
        return encode_outcome(failed(error, started_at, node))
    return encode_outcome(run_blocking(function, attempt, node))


def load_step(
    data: bytes, code_data: bytes | None, kind: type[_Work], first: Callable[[_Work], Attempt]
) -> tuple[_Work, Any]:
    """The work that was sent to this worker, and the step's function. The worker is made ready for both.

    Args:
        kind: What `data` is: an attempt, or several.
        first: One attempt of it.
    """
    if code_data is None:
        data, code_data = _parted(data)
    work = msgspec.msgpack.decode(data, type=kind)
    attempt = first(work)
    keep_warm(attempt.worker_ttl)
    follow(attempt.logging)
    enter_engine()
    _engine[:] = [(attempt.namespace, attempt.coordinator)]
    definition = _loader.load(msgspec.msgpack.decode(code_data, type=Code))
    return work, getattr(definition, "fn", definition)


def joined(attempt_data: bytes, code_data: bytes) -> bytes:
    """An attempt and its code as one argument: each argument of a Ray task costs time."""
    return len(attempt_data).to_bytes(4, "big") + attempt_data + code_data


def _parted(data: bytes) -> tuple[bytes, bytes]:
    end = 4 + int.from_bytes(data[:4], "big")
    return data[4:end], data[end:]


@lru_cache(maxsize=1)
def node_id() -> str:
    """The Ray node of this worker."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


_warmth: dict[str, Any] = {"until": 0.0, "thread": None, "reference": None}
_warmth_lock = threading.Lock()


def keep_warm(seconds: float) -> None:
    """Keep this worker process alive for a while.

    When the job that made a detached actor has ended, Ray kills that job's idle workers five times a second.
    Each further step would then pay for a new process. A worker that owns an object is not idle. It gives the
    object up after a while by itself, since it may outlive its coordinator.
    """
    if seconds <= 0:
        return
    with _warmth_lock:
        _warmth["until"] = time.monotonic() + seconds
        if _warmth["thread"] is None:
            import ray

            _warmth["reference"] = ray.put(b"")
            thread = threading.Thread(target=_cool_down, name="pyworkflow-warmth", daemon=True)
            _warmth["thread"] = thread
            thread.start()


def _cool_down() -> None:
    while True:
        with _warmth_lock:
            left = _warmth["until"] - time.monotonic()
            if left <= 0:
                _warmth["reference"] = _warmth["thread"] = None
                return
        time.sleep(left)


def remote_runners(body: Callable[..., bytes] = run_attempt) -> tuple[Any, Any]:
    """The body of a task as two Ray remote functions: for steps without and with GPUs.

    `max_calls=1` frees a GPU's memory with the process, and Ray takes it from the declaration alone.
    """
    import ray

    plain = ray.remote(max_retries=0, num_cpus=1)(body)
    gpu = ray.remote(max_retries=0, num_cpus=1, num_gpus=1, max_calls=1)(body)
    return plain, gpu
