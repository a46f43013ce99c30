"""Replays: today's code, run over recorded histories."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyworkflow_ray.actors.logs import log_notes
from pyworkflow_ray.actors.payloads import Payloads, configured_values
from pyworkflow_ray.authoring.workflows import as_workflow
from pyworkflow_ray.client.records import Event
from pyworkflow_ray.client.sessions import session
from pyworkflow_ray.config import get_config
from pyworkflow_ray.engine.executions import Execution
from pyworkflow_ray.engine.limits import Limits
from pyworkflow_ray.exceptions import NonDeterminismError
from pyworkflow_ray.testing.histories import SUFFIX, History, history_of, load_history


def replay(history_or_run: str | os.PathLike[str] | Sequence[Event] | History, workflow: Any = None) -> None:
    """Check that a workflow's code still asks for what the recorded run asked for.

    Args:
        history_or_run: A run's id or handle (the history is read from the storage), a run's events, or a
            file of `save_history` (a path, or a text that ends in ".json").
        workflow: The workflow or its name; by default the workflow of the recorded name.

    Raises:
        NonDeterminismError: The code differs from the history; the message says where.
        WorkflowNotFoundError: There is no such run, or no such workflow.
        SerializationError: The file holds no history, or the run's arguments cannot be read here.
    """
    match history_or_run:
        case History():
            history = history_or_run
        case os.PathLike():
            history = load_history(history_or_run)
        case str() if history_or_run.endswith(SUFFIX):
            history = load_history(history_or_run)
        case _:
            history = history_of(history_or_run)
    definition = as_workflow(workflow if workflow is not None else history.workflow)
    # The history of a file needs no storage, so no storage is opened.
    settings = session().settings if history.blobs is None else get_config()
    values = configured_values(settings.payload_codec, settings.payload_limit)
    payloads = Payloads(values, history.blob, settings.blob_threshold)
    limits = Limits(max_nesting_depth=settings.max_nesting_depth)
    execution = Execution(history.run_id, definition.fn, payloads, limits)
    execution.nesting_depth = history.nesting_depth
    execution.check_arguments = definition.check_arguments
    recorded = history.recorded()
    try:
        execution.replay(recorded)
    except NonDeterminismError:
        _require_arguments(recorded[0].event, payloads)
        raise
    finally:
        log_notes(execution)
        execution.drop()


def _require_arguments(event: Any, payloads: Payloads) -> None:
    """Raise the true error if the run's arguments cannot be decoded here and the code does not differ."""
    payloads.decode(event.args)
    payloads.decode(event.kwargs)


@dataclass(frozen=True)
class ReplayResult:
    """The result of replaying a file. `error` is None if the code still fits the history."""

    path: Path
    run_id: str = ""
    workflow: str = ""
    events: int = 0
    error: Exception | None = None

    @property
    def is_ok(self) -> bool:
        """Whether the code still fits the history."""
        return self.error is None

    @property
    def status(self) -> str:
        """The result in a word: "ok", "diverged", or "failed" if the replay was not possible."""
        if self.error is None:
            return "ok"
        return "diverged" if isinstance(self.error, NonDeterminismError) else "failed"


def history_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that should hold histories, in a folder and its subfolders, sorted."""
    folder = Path(path)
    return [folder] if folder.is_file() else sorted(folder.rglob(f"*{SUFFIX}"))


def replay_directory(path: str | os.PathLike[str]) -> list[ReplayResult]:
    """Replay every history in a folder and its subfolders; the results.

    Import the modules of the workflows first.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"There is no folder {path}.")
    return [_replayed(file) for file in history_files(path)]


def _replayed(file: Path) -> ReplayResult:
    try:
        history = load_history(file)
    except Exception as error:
        return ReplayResult(file, error=error)
    found: Exception | None = None
    try:
        replay(history)
    except Exception as error:
        found = error
    return ReplayResult(file, history.run_id, history.workflow, len(history.events), found)
