"""The error of a run whose code no longer agrees with its history."""

from __future__ import annotations

from pyworkflow_ray.engine.commands import command_of
from pyworkflow_ray.engine.events import EventBase, Recorded
from pyworkflow_ray.exceptions import NonDeterminismError

_NAMES = ("step_id", "sleep_id", "hook_id", "child_id", "patch_id", "name")


def divergence(
    run_id: str, recorded: Recorded, kind: type[EventBase] | None, key: str
) -> NonDeterminismError:
    """The error that says what is recorded, what the code asks for now, at which position, and the cure.

    Args:
        kind: The event that would record what the code asks for; None when it asks for nothing.
        key: The event's key.
    """
    if kind is None:
        now = "nothing: at this place it waits, or has ended"
    else:
        command = (command_of(kind) or kind).__name__
        now = f"{command}({key!r})" if key else f"{command}()"
    return NonDeterminismError(
        f"Run {run_id!r} replayed differently from its history at position {recorded.position}:\n"
        f"recorded {_describe(recorded.event)}, now {now}.\n"
        "Either the workflow's code changed under a running run: restore the order of its steps, or guard "
        "the change with patched('...'). Or the code decides by something that differs from one execution "
        "to the next (time, random numbers, the environment, the order of a set): take it from the context "
        "(now(), random(), uuid4()), from side_effect(), or from a step."
    )


def _describe(event: EventBase) -> str:
    for field in _NAMES:
        name = getattr(event, field, None)
        if name:
            return f"{type(event).__name__}({name!r})"
    return f"{type(event).__name__}() [{event.type}]"
