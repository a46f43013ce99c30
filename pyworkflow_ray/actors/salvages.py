"""Finds what the worker of a batch has left behind on its node."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from pyworkflow_ray.actors.connections import has_joined
from pyworkflow_ray.actors.spools import Answer, take_spooled

PATIENCE = 10.0
"""Seconds for all nodes to answer. What is not found by then runs again."""


async def salvage(batch_id: str, node: str | None) -> list[Answer]:
    """The outcomes that a dead worker's batch has left on its node.

    Args:
        node: Where it ran; None if nobody knows: a worker may die before it has said so.
    """
    try:
        return await asyncio.to_thread(_salvage, batch_id, node)
    except Exception:
        return []  # the cluster is in trouble; steps run again, as they may


def _salvage(batch_id: str, node: str | None) -> list[Answer]:
    import ray

    if not has_joined():  # to ask Ray for the node would start a cluster
        return take_spooled(batch_id)
    here = str(ray.get_runtime_context().get_node_id())
    found: list[Answer] = []
    if node in (None, here):
        found = take_spooled(batch_id)
        if found or node == here:
            return found
    nodes: list[Any] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [str(each["NodeID"]) for each in nodes if each["Alive"]]
    asked = [_ask(batch_id, each) for each in alive if each != here and node in (None, each)]
    deadline = time.monotonic() + PATIENCE
    for answer in asked:
        with contextlib.suppress(Exception):
            found = answer.result(timeout=max(0.0, deadline - time.monotonic()))
            if found:
                return found
    return []


def _ask(batch_id: str, node: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=0)(take_spooled)
    return task.options(name="salvage", scheduling_strategy=there).remote(batch_id).future()
