"""The rows of a run's hooks, apart from those that an append writes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pyworkflow_ray.actors.activations import new_hook, write_hooks
from pyworkflow_ray.actors.services import Services
from pyworkflow_ray.engine.commands import CreateHook
from pyworkflow_ray.engine.events import HookReceived
from pyworkflow_ray.engine.executions import Execution
from pyworkflow_ray.exceptions import HookConflictError
from pyworkflow_ray.storage import hooks
from pyworkflow_ray.values.failures import capture


async def make_hooks(services: Services, run_id: str, commands: Sequence[CreateHook]) -> dict[str, str]:
    """Make those rows that are not there; the hooks whose token another run has, with that run."""
    made = [new_hook(command, services.pack) for command in commands]
    return await services.storage.write(write_hooks(run_id, made))


def due_hooks(execution: Execution, now: datetime) -> list[str]:
    """The ids of the run's hooks whose time is over."""
    return [
        pending.command.hook_id
        for pending in execution.hooks.pending.values()
        if pending.command.expires_at is not None and pending.command.expires_at <= now
    ]


async def expire_hooks(services: Services, run_id: str, hook_ids: Sequence[str]) -> bool:
    """Let hooks take nothing any more; False when one of them has taken something in time."""
    return await services.storage.write(hooks.expire_hooks(run_id, hook_ids))


def refusal(hook_id: str, holder: str) -> HookReceived:
    """What the code learns of a hook whose token is another run's."""
    error = HookConflictError(
        f"The token of hook {hook_id!r} is in use: run {holder!r} waits for it. Give each hook that waits a "
        "token of its own, or leave the token out."
    )
    return HookReceived(hook_id=hook_id, failure=capture(error))
