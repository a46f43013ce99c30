"""Completions: what the shell offers at the tab key. On an error they offer nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import TypeVar

import typer

from pyworkflow_ray.authoring.discovery import discover_workflows
from pyworkflow_ray.cli.invocations import Invocation
from pyworkflow_ray.config import get_config
from pyworkflow_ray.statuses import HookStatus, RunStatus
from pyworkflow_ray.storage.inspections import workflow_names
from pyworkflow_ray.storage.runs import list_runs
from pyworkflow_ray.storage.schedules import list_schedules
from pyworkflow_ray.storage.storages import Storage

T = TypeVar("T")

MOST = 30


def run_statuses(incomplete: str) -> list[str]:
    """States of runs."""
    return [status.value for status in RunStatus if status.value.startswith(incomplete)]


def hook_statuses(incomplete: str) -> list[str]:
    """States of hooks."""
    return [status.value for status in HookStatus if status.value.startswith(incomplete)]


def workflows(ctx: typer.Context, incomplete: str) -> list[str]:
    """Workflows that the modules define."""
    found = _offered(ctx, lambda call: discover_workflows(call.modules or None))
    return [name for name in found if name.startswith(incomplete)]


def workflows_with_runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Workflows that the storage has runs of."""
    found = _offered(ctx, lambda _: _storage().read(workflow_names()))
    return [name for name in found if name.startswith(incomplete)]


def runs(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The newest runs, with their workflows and states."""
    found = _offered(ctx, lambda _: _storage().read(list_runs(query=incomplete or None, limit=MOST))[0])
    return [
        (run.run_id, f"{run.workflow_name}, {run.status.value}")
        for run in found
        if run.run_id.startswith(incomplete)
    ]


def schedules(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Schedules, with their workflows and times."""
    found = _offered(ctx, lambda _: _storage().read(list_schedules(limit=MOST)))
    return [
        (each.schedule_id, f"{each.workflow_name}, {each.spec.describe()}")
        for each in found
        if each.schedule_id.startswith(incomplete)
    ]


def _storage() -> Storage:
    return Storage(get_config().storage_url, create=False)


def _offered(ctx: typer.Context, look: Callable[[Invocation], list[T]]) -> list[T]:
    given = ctx.find_root().params
    call = Invocation(
        storage=given.get("storage"),
        address=given.get("address"),
        namespace=given.get("namespace"),
        modules=tuple(given.get("module") or ()),
    )
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            call.apply()
            return look(call)
    except Exception:
        return []
