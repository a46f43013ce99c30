"""Whether a payload fits a hook's schema, asked where the schema's class can be imported.

The hook registry serves the runs of all code, and a process runs one bundle at most. So a coordinator that
runs the bundle is asked about a schema of local code. The run that gets the payload needs one anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from pyworkflow_ray.actors.cluster import Cluster
from pyworkflow_ray.actors.codes import CodeLoader
from pyworkflow_ray.exceptions import HookValidationError, WorkflowError
from pyworkflow_ray.storage.codes import load_code
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.values.codec import Values
from pyworkflow_ray.values.failures import Failure, capture
from pyworkflow_ray.values.schemas import validated


class Question(msgspec.Struct, frozen=True):
    """Whether a payload fits; its representation does not show the payload."""

    run_id: str
    schema_hash: str
    name: str
    payload: bytes

    def __repr__(self) -> str:
        return f"Question(run_id={self.run_id!r}, name={self.name!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("run_id", self.run_id), ("name", self.name)]


AskElsewhere = Callable[[Question], Awaitable[Failure | BaseException | None]]
"""Asks a process that has the schema's class; None if the payload fits, or else the error."""

_questions = msgspec.msgpack.Decoder(Question)
_verdicts = msgspec.msgpack.Decoder(Failure | None)
_encoder = msgspec.msgpack.Encoder()


def verdict(question: Question, storage: Storage, loader: CodeLoader, values: Values) -> BaseException | None:
    """None if the payload fits, or if the storage lacks the schema's code: then only the workflow checks it.
    Or else the error. This blocks, and runs code of the user."""
    try:
        schema = loader.get(question.schema_hash)
        if schema is None:
            code = storage.read(load_code(question.schema_hash))
            if code is None:
                return None
            schema = loader.load(code)
        validated(schema, values.decode(question.payload), question.name)
    except Exception as error:
        return error
    except BaseException as error:
        # A SystemExit, say. It must end neither this process nor the sender's.
        return HookValidationError(
            f"The payload of hook {question.name!r} could not be checked: its schema raised "
            f"{type(error).__name__}: {error}."
        )
    return None


def answer(data: bytes, storage: Storage, loader: CodeLoader, values: Values) -> bytes:
    """The verdict for a question of another process, as data."""
    error = verdict(_questions.decode(data), storage, loader, values)
    return _encoder.encode(None if error is None else capture(error))


def asking(cluster: Cluster, storage: Callable[[], Storage]) -> AskElsewhere:
    """Asks the first coordinator of the run's environment."""

    async def ask(question: Question) -> Failure | BaseException | None:
        run = await asyncio.to_thread(storage().read, get_run(question.run_id))
        if run is None:
            return WorkflowError(f"Run {question.run_id!r} is gone.")
        settings = cluster.settings
        callee = cluster.coordinator_callee(settings.first_coordinator(run.environment), run.environment)
        try:
            data = await cluster.handles.call(callee, "check_payload", _encoder.encode(question))
        except Exception as error:
            return error
        failure: Failure | None = _verdicts.decode(data)
        return failure

    return ask
