"""What a coordinator lends the runs that it drives."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from loguru import logger

from pyworkflow_ray.actors.codes import CodeLoader, source_changed
from pyworkflow_ray.actors.dispatchers import Dispatcher
from pyworkflow_ray.actors.observers import Observers
from pyworkflow_ray.actors.payloads import Payloads
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.clock import Clock
from pyworkflow_ray.engine.executions import Execution
from pyworkflow_ray.engine.limits import Limits
from pyworkflow_ray.exceptions import WorkflowError
from pyworkflow_ray.storage.codes import Code, load_code
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.storages import Storage


@dataclass(frozen=True, slots=True)
class Services:
    """What a coordinator lends its drives."""

    settings: EngineSettings
    owner: str
    storage: Storage
    dispatcher: Dispatcher
    clock: Clock
    payloads: Payloads
    loader: CodeLoader
    threads: Executor
    on_due: Callable[[datetime], None]
    """Has the timer look at this time."""
    pack: Callable[[Any, str], Code]
    """Makes the code of a definition ready to travel; the text names it in errors."""
    begin: Callable[[RunRecord], object]
    """Drives a run that was accepted with this coordinator's lease."""
    deliver: Callable[[str], None]
    """Has a run look into its inbox, wherever it is driven."""
    is_here: Callable[[str], bool]
    """Whether this coordinator drives the run."""
    observers: Observers


def limits_of(run: RunRecord, settings: EngineSettings) -> Limits:
    """The bounds of a run."""
    return Limits(
        default_retries=settings.default_retries,
        max_losses=run.max_recovery_attempts if run.recover_on_worker_loss else 0,
        max_duration=None if run.max_duration is None else timedelta(seconds=run.max_duration),
        max_nesting_depth=settings.max_nesting_depth,
    )


def load_definition(services: Services, run: RunRecord) -> Any:
    """The run's workflow, loaded from the code that the run carries."""
    code_hash = run.code_hash or ""
    definition = services.loader.get(code_hash)
    if definition is None:
        code = services.storage.read(load_code(code_hash))
        if code is None:
            raise WorkflowError(f"The code of run {run.run_id!r} is not in the storage (hash {code_hash!r}).")
        definition = services.loader.load(code)
        if source_changed(code, definition):
            logger.warning(
                "Run {} goes on with other code of {} than it was started with",
                run.run_id,
                code.reference,
            )
    return definition


def execution_of(services: Services, run: RunRecord, definition: Any) -> Execution:
    """A fresh execution of a run's workflow."""
    function = getattr(definition, "fn", definition)
    execution = Execution(run.run_id, function, services.payloads, limits_of(run, services.settings))
    execution.is_durable = run.durable
    execution.nesting_depth = run.nesting_depth
    execution.check_arguments = getattr(definition, "check_arguments", None)
    return execution
