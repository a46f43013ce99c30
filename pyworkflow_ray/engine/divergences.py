"""What to say when code and history no longer agree."""

from __future__ import annotations

from pyworkflow_ray.engine.events import TYPES, Event, Recorded, type_of
from pyworkflow_ray.exceptions import NonDeterminismError

_COMMAND_OF = {
    "step.started": "ScheduleStep",
    "step.cancelled": "CancelStep",
    "sleep.started": "StartTimer",
    "hook.created": "CreateHook",
    "hook.disposed": "DisposeHook",
    "child_workflow.started": "StartChild",
    "side_effect.recorded": "RecordSideEffect",
    "patch.applied": "ApplyPatch",
    "attributes.set": "SetAttributes",
    "workflow.completed": "CompleteRun",
    "workflow.failed": "FailRun",
    "workflow.cancelled": "CancelRun",
    "workflow.continued_as_new": "ContinueRun",
}
_NAMES = ("step_id", "sleep_id", "hook_id", "child_id", "patch_id", "name")


def divergence(run_id: str, recorded: Recorded, asked: tuple[type[Event], str] | None) -> NonDeterminismError:
    """The error that names what was recorded, what the code asks now, where, and the cure."""
    if asked is None:
        now = "nothing: at this place it waits, or has ended"
    else:
        kind, key = asked
        command = _COMMAND_OF.get(TYPES[kind], kind.__name__)
        now = f"{command}({key!r})" if key else f"{command}()"
    return NonDeterminismError(
        f"Run {run_id!r} replayed differently from its history at position {recorded.position}:\n"
        f"recorded {_describe(recorded.event)}, now {now}.\n"
        "Either the workflow's code changed under a running run: restore the order of its steps, or guard "
        "the change with patched('...'). Or the code decides by something that differs from one execution "
        "to the next (time, random numbers, the environment, the order of a set): take it from the context "
        "(now(), random(), uuid4()), from side_effect(), or from a step."
    )


def _describe(event: Event) -> str:
    for field in _NAMES:
        name = getattr(event, field, None)
        if name:
            return f"{type(event).__name__}({name!r})"
    return f"{type(event).__name__}() [{type_of(event)}]"
