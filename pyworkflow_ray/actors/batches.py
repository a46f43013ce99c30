"""Runs several attempts of one step in one Ray task.

Theory of operation. The attempts run one after another, `async def` steps too: they share one worker and its
CPU, and so at most one of them is under way when the worker dies. Each is still an attempt of its own, with
its context, its timeout and its outcome.

Outcomes come to the coordinator in three ways. In a batch that takes longer than `HAND_OVER_AFTER`, a courier
thread hands over now and then what there is. The rest is in the task's result. And each outcome is in a file
of the node before the next attempt begins (`spools`). It is taken from there if the worker dies.

The attempts of a batch come from one `map`, so the run gives up all that are left of them, or none. Ray's
cancelling does that: it interrupts the attempt that is under way, and no other begins.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

from pyworkflow_ray.actors.connections import require_joined
from pyworkflow_ray.actors.runner import Attempt, failed, load_step, node_id, run_blocking, timeout_error
from pyworkflow_ray.actors.spools import Answer, next_spool
from pyworkflow_ray.engine.attempts import AttemptOutcome, encode_outcome

HAND_OVER_AFTER = 0.2
"""Seconds between two visits of the courier at the coordinator."""
VISIT_TIME = 10.0
"""Seconds that the courier waits for the coordinator's answer."""
ALL = -1
"""The index of an outcome that all attempts of the batch share: none of them could begin."""

_encoder = msgspec.msgpack.Encoder()
_answers = msgspec.msgpack.Decoder(list[Answer])


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Attempts of one step, as they travel to their worker. There is at least one."""

    batch_id: str
    attempts: list[Attempt]


def decode_answers(data: bytes) -> list[Answer]:
    """What a worker has answered."""
    return _answers.decode(data)


def run_batch(batch_data: bytes, code_data: bytes | None = None) -> bytes:
    """Run a batch in this worker; the outcomes that were not handed over. This is the body of the Ray task.

    Small code comes in one argument with the batch, large code in one of its own, as for a single attempt.
    """
    started_at = datetime.now(UTC)
    node = node_id()
    try:
        batch, function = load_step(batch_data, code_data, Batch, lambda batch: batch.attempts[0])
    except BaseException as error:
        return _encoder.encode([(ALL, encode_outcome(failed(error, started_at, node)))])
    return _encoder.encode(BatchRun(batch, function, node).run())


class BatchRun:
    """One batch in its worker."""

    def __init__(self, batch: Batch, function: Any, node: str) -> None:
        self._batch, self._function, self._node = batch, function, node
        self._spool = next_spool(batch.batch_id)
        self._answers: list[Answer] = []
        """The outcomes that the coordinator has not confirmed."""
        self._lock = threading.Lock()
        self._is_running = False
        """Whether an attempt is under way, which a signal interrupts."""
        self._is_interrupted = False
        self._is_stopped = False
        """Whether no other attempt is to begin."""
        self._has_ended = threading.Event()

    def run(self) -> list[Answer]:
        """Run the attempts one after another; the outcomes that the coordinator has not confirmed."""
        courier = threading.Thread(target=self._carry, name="pyworkflow-courier", daemon=True)
        courier.start()
        try:
            with self._interrupts():
                for index, attempt in enumerate(self._batch.attempts):
                    if self._is_stopped:
                        break
                    self._keep(index, self._attempt(index, attempt))
        finally:
            self._has_ended.set()
        with self._lock:
            return list(self._answers)

    def _attempt(self, index: int, attempt: Attempt) -> AttemptOutcome:
        started_at = datetime.now(UTC)

        def before_kill() -> None:
            """Keep why the process ends, since nobody else will know."""
            late = failed(timeout_error(attempt), started_at, self._node)
            self._spool.add(index, encode_outcome(late))

        try:
            self._is_running = True
            outcome = run_blocking(self._function, attempt, self._node, before_kill)
            self._is_running = False
        except BaseException as error:  # interrupted between the step's code and its outcome
            self._is_running = False
            outcome = failed(error, started_at, self._node)
        return outcome

    def _keep(self, index: int, outcome: AttemptOutcome) -> None:
        encoded = encode_outcome(outcome)
        self._spool.add(index, encoded)
        with self._lock:
            self._answers.append((index, encoded))

    # --- being interrupted --------------------------------------------------------------------------

    @contextmanager
    def _interrupts(self) -> Iterator[None]:
        """Have an interruption meet the attempt under way, and nothing around it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _on_signal(self, _signal: int, _frame: Any) -> None:
        is_first, self._is_interrupted = not self._is_interrupted, True
        self._is_stopped = True
        if is_first and self._is_running:
            raise KeyboardInterrupt

    # --- the courier --------------------------------------------------------------------------------

    def _carry(self) -> None:
        while not self._has_ended.wait(HAND_OVER_AFTER):
            with self._lock:
                answers = list(self._answers)
            try:
                is_awaited = self._visit(answers)
            except Exception:
                continue  # the coordinator is dead or busy; they go with the next visit, or at the end
            if not is_awaited:
                self._is_stopped = True
                return
            with self._lock:
                del self._answers[: len(answers)]

    def _visit(self, answers: list[Answer]) -> bool:
        """Hand outcomes over; whether somebody waits for the batch."""
        import ray

        require_joined()
        attempt = self._batch.attempts[0]
        coordinator: Any = ray.get_actor(attempt.coordinator, namespace=attempt.namespace)
        call: Any = coordinator.take_answers.remote(self._batch.batch_id, self._node, answers)
        return bool(call.future().result(timeout=VISIT_TIME))
