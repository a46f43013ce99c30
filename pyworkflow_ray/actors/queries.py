"""Queries of a run, which leave no trace in its history: answered by the run itself, or by a replay of it."""

from __future__ import annotations

from msgspec import Raw

from pyworkflow_ray.actors.logs import log_notes
from pyworkflow_ray.actors.services import Services, execution_of, load_definition
from pyworkflow_ray.engine.attempts import AttemptCompleted, AttemptFailed, AttemptOutcome
from pyworkflow_ray.engine.events import decode_history
from pyworkflow_ray.engine.executions import Execution
from pyworkflow_ray.exceptions import WorkflowError, WorkflowNotFoundError
from pyworkflow_ray.storage.histories import read_events
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.values.failures import capture


def answer(services: Services, execution: Execution, name: str, args: bytes, kwargs: bytes) -> AttemptOutcome:
    """What the run's query function returns or raises."""
    try:
        given = services.payloads.decode(Raw(args)), services.payloads.decode(Raw(kwargs))
        value = execution.query(name, *given)
        return AttemptCompleted(result=services.payloads.encode(value, f"the answer to query {name!r}"))
    except KeyboardInterrupt:
        raise  # the query takes too long
    except BaseException as error:
        return AttemptFailed(failure=capture(error))


def answer_by_replay(
    services: Services, run_id: str, name: str, args: bytes, kwargs: bytes
) -> AttemptOutcome:
    """As `answer`, for a run that is not here: its history is replayed for it, and nothing is written."""
    run = services.storage.read(get_run(run_id))
    if run is None:
        return AttemptFailed(failure=capture(WorkflowNotFoundError(run_id)))
    rows = services.storage.read(read_events(run_id))
    if not rows:
        return AttemptFailed(failure=capture(WorkflowError(f"Run {run_id!r} has not begun: ask it later.")))
    execution = execution_of(services, run, load_definition(services, run))
    try:
        execution.replay(decode_history(rows))
        return answer(services, execution, name, args, kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return AttemptFailed(failure=capture(error))
    finally:
        log_notes(execution)
        execution.drop()
