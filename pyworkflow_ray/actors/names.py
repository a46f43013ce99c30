"""The names of an engine's actors on a cluster."""

from __future__ import annotations

from pyworkflow_ray.storage.placements import APART

COORDINATOR = "coordinator"
TIMER = "timer"
HOOK_REGISTRY = "hook-registry"

COORDINATOR_PREFIX = f"{COORDINATOR}-"
"""What the names of coordinators begin with. The number of a slot follows, or the id of a run."""


def coordinator_of(run_id: str) -> str:
    """The name of the coordinator that drives this run and no other."""
    return f"{COORDINATOR_PREFIX}{run_id}"


def alone_with(run_id: str) -> str:
    """The name of the coordinator that drives this run after it was set apart from all others."""
    return f"{COORDINATOR_PREFIX}{APART}{run_id}"


def timer_of(environment: str) -> str:
    """The name of an environment's timer."""
    return f"{TIMER}-{environment}" if environment else TIMER


def is_coordinator(name: str) -> bool:
    """Whether an actor of this name is a coordinator."""
    return _is_of(COORDINATOR, name)


def is_slot(name: str) -> bool:
    """Whether an actor of this name is a coordinator in a slot, and not one of a single run."""
    return is_coordinator(name) and name.rpartition("-")[2].isdigit()


def is_timer(name: str) -> bool:
    """Whether an actor of this name is a timer."""
    return _is_of(TIMER, name)


def is_of_engine(name: str) -> bool:
    """Whether an actor of this name is an engine's."""
    return any(_is_of(kind, name) for kind in (COORDINATOR, TIMER, HOOK_REGISTRY))


def _is_of(kind: str, name: str) -> bool:
    return name == kind or name.startswith(f"{kind}-")
