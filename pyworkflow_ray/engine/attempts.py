"""The outcome of one attempt of a step, as data from its worker or from the process that watched it."""

from __future__ import annotations

from datetime import datetime

import msgspec

from pyworkflow_ray.values.failures import Failure


class AttemptCompleted(msgspec.Struct, frozen=True, tag="completed", kw_only=True):
    """The step returned; `result` is its value, encoded."""

    result: bytes
    started_at: datetime | None = None
    node: str = ""
    worker_pid: int = 0


class AttemptFailed(msgspec.Struct, frozen=True, tag="failed", kw_only=True):
    """The attempt failed: `cause` is "error", "timeout", "worker_died" or "out_of_memory"."""

    failure: Failure
    cause: str = "error"
    started_at: datetime | None = None
    node: str = ""
    worker_pid: int = 0


AttemptOutcome = AttemptCompleted | AttemptFailed

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AttemptOutcome] = msgspec.msgpack.Decoder(AttemptOutcome)


def encode_outcome(outcome: AttemptOutcome) -> bytes:
    """The outcome as it travels from a worker."""
    return _encoder.encode(outcome)


def decode_outcome(data: bytes) -> AttemptOutcome:
    """The outcome that a worker sent."""
    return _decoder.decode(data)
