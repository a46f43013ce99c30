"""The one workflow that carries out programs, and its steps.

Its code travels with each run, and replays of a run use the code as it was. It imports nothing but the public
API and what writes the ledger.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from typing import Any

import pyworkflow_ray as pr
from storm import ledger
from storm.programs import Node, token_of

LARGE = 140_000
"""Characters that make a value large enough for a table of its own."""
SPARE = "STORM_SPARES"
"""Where this variable is set, `die` waits for ever instead: replays are to be survived."""


def _begin(task: Node) -> int:
    context = pr.get_context()
    where = {"run": context.run_id, "step": context.step_id, "attempt": context.attempt}
    ledger.write("begin", node=task["id"], once=not task["idempotent"], **where)
    return int(context.attempt)


def _end(task: Node, outcome: str) -> None:
    context = pr.get_context()
    where = {"run": context.run_id, "step": context.step_id, "attempt": context.attempt}
    ledger.write("end", node=task["id"], outcome=outcome, **where)


def _outcome(task: Node, attempt: int) -> str:
    """What an attempt gives when it has done its work; or it raises."""
    act, name = task["act"], task["id"]
    if act == "gives up" or (act == "recovers" and attempt <= task["until"]):
        _end(task, "raised")
        raise ValueError(name)
    if act == "fatal":
        _end(task, "raised")
        raise pr.FatalError(name)
    if act == "dies for good" or (act == "dies" and attempt <= task["until"]):
        os._exit(7)
    _end(task, "returned")
    return f"{name}:{'x' * LARGE}" if act == "large" else str(name)


def _work_seconds(task: Node, attempt: int) -> float:
    is_hanging = task["act"] == "hangs for good" or (task["act"] == "hangs" and attempt <= task["until"])
    return 30.0 if is_hanging else float(task["seconds"])


@pr.step(name="storm.work")
def work(task: Node) -> str:
    """The work of a node, in a worker."""
    attempt = _begin(task)
    until = time.monotonic() + _work_seconds(task, attempt)
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))  # so that an interruption is seen
    return _outcome(task, attempt)


@pr.step(name="storm.work_here", local=True)
async def work_here(task: Node) -> str:
    """The work of a node, in the coordinator's process."""
    attempt = _begin(task)
    await asyncio.sleep(_work_seconds(task, attempt))
    return _outcome(task, attempt)


@pr.step(name="storm.undo")
def undo(task: Node) -> str:
    """Undoes the work of a node."""
    _begin({**task, "idempotent": True})
    _end(task, "undone")
    return f"undone {task['id']}"


def options_of(node: Node) -> Node:
    """The options with which a step's node is called."""
    chosen: Node = {"idempotent": node["idempotent"], "on_cancel": node["on_cancel"], "retry_delay": 0.2}
    match node["act"]:
        case "recovers":
            chosen["max_retries"] = node["until"]
        case "hangs":
            chosen |= {"max_retries": node["until"] + 1, "timeout": 1.0}
        case "hangs for good":
            chosen |= {"max_retries": 0, "timeout": 0.7}
        case _:
            # An attempt that raised may be followed by another, also of a step that is not idempotent.
            chosen["max_retries"] = 1 if node["idempotent"] else 0
    if node.get("compensated"):
        chosen["compensate"] = undo
    return chosen


def name_of(error: BaseException) -> str:
    """An error as a program's result shows it."""
    text = f": {error}" if isinstance(error, ValueError | pr.FatalError) else ""
    return f"{type(error).__name__}{text}"


class Interpreter:
    """Carries out a program.

    Args:
        iteration: Which run of its chain this one is.
    """

    def __init__(self, iteration: int) -> None:
        self._iteration = iteration
        self.done = 0
        """How many nodes have been carried out."""

    async def carry_out(self, node: Node) -> Any:
        """What a node gives."""
        value = await self._carried_out(node)
        self.done += 1
        return value

    async def _carried_out(self, node: Node) -> Any:
        match node["do"]:
            case "step":
                return await self._step(node)
            case "effects":
                return self._effects(node)
            case "sleep":
                await pr.sleep(node["seconds"])
                return "slept"
            case "hook":
                token = token_of(node, self._iteration)
                return await pr.hook(node["id"], token=token, timeout=node["timeout"])
            case "receive":
                return [await pr.receive(node["id"]) for _ in range(node["count"])]
            case "sequence":
                return [await self.carry_out(part) for part in node["parts"]]
            case "saga":
                return [await self._step(part) for part in node["parts"]]
            case "gather":
                return await self._gather(node)
            case "group":
                return await self._group(node)
            case "map":
                return await self._map(node)
            case "try":
                return await self._try(node)
            case "guard":
                return await self._guard(node)
            case "shield":
                async with pr.shield():
                    return await self.carry_out(node["part"])
            case "limit":
                return await self._limit(node)
            case "race":
                return await self._race(node)
            case "child":
                return await self._child(node)
            case "die":
                return await self._die()
            case _:
                raise AssertionError(f"no node is of the kind {node['do']!r}")

    async def _step(self, node: Node) -> str:
        step = work_here if node["local"] else work
        value: str = await step.options(**options_of(node))(node)
        if node["act"] == "large":
            name, _, rest = value.partition(":")
            return f"{name}:{len(rest)}"
        return value

    def _effects(self, node: Node) -> str:
        context = pr.get_context()
        numbers = [context.random(), pr.side_effect(time.time), str(context.uuid4())]
        pr.set_attributes(**{"node": node["id"], "numbers": len(numbers)})
        return "patched" if pr.patched(node["id"]) else "unpatched"

    async def _gather(self, node: Node) -> list[Any]:
        calls: list[Coroutine[Any, Any, Any]] = [self.carry_out(part) for part in node["parts"]]
        values = await asyncio.gather(*calls, return_exceptions=node["keeps_errors"])
        return [{"caught": name_of(each)} if isinstance(each, BaseException) else each for each in values]

    async def _group(self, node: Node) -> list[Any]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.carry_out(part)) for part in node["parts"]]
        except BaseExceptionGroup as raised:
            raise _first_of(raised) from None
        return [task.result() for task in tasks]

    async def _map(self, node: Node) -> list[str]:
        steps = node["parts"]
        return await work.options(**options_of(steps[0])).map(steps, batch_size=node["batch"])

    async def _try(self, node: Node) -> Any:
        try:
            return await self.carry_out(node["part"])
        except pr.CancellationError:
            raise
        except Exception as error:
            return {"caught": name_of(error)}

    async def _guard(self, node: Node) -> Any:
        try:
            return await self.carry_out(node["part"])
        except pr.CancellationError:
            await self._step(node["cleanup"])
            if node["stops"]:
                return {"stopped": node["id"]}
            raise

    async def _limit(self, node: Node) -> Any:
        try:
            async with asyncio.timeout(node["seconds"]):
                return await self.carry_out(node["part"])
        except TimeoutError as error:
            if isinstance(error, pr.WorkflowError):
                raise
            return {"late": True}

    async def _race(self, node: Node) -> Any:
        tasks: list[asyncio.Future[Any]] = [
            asyncio.create_task(self.carry_out(part)) for part in node["parts"]
        ]
        try:
            done, _ = await pr.wait(tasks, return_when="FIRST_COMPLETED")
            return {"winner": tasks.index(done[0]), "value": done[0].result()}
        finally:
            for task in tasks:
                task.cancel()

    async def _child(self, node: Node) -> Any:
        program = {"id": node["id"], "tree": node["part"], "iteration": self._iteration}
        if node["how"] == "wait":
            return {"child": await pr.start_child_workflow(storm, program)}
        if node["how"] == "abandon":
            await pr.start_child_workflow(storm, program, wait_for_completion=False, parent_close="abandon")
            return {"left": node["id"]}
        child = await pr.start_child_workflow(storm, program, wait_for_completion=False)
        await pr.sleep(node["after"])
        await child.cancel("its parent has seen enough")
        try:
            return {"child": await child.result()}
        except pr.ChildWorkflowFailedError:
            return {"gone": node["id"]}

    async def _die(self) -> None:
        if os.environ.get(SPARE):
            await asyncio.Event().wait()
        os._exit(9)


def _first_of(raised: BaseExceptionGroup[BaseException]) -> BaseException:
    first = raised.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first


@pr.workflow
async def storm(program: Node, iteration: int = 0, carried: list[Any] | None = None) -> Any:
    """Carries out a program; what its tree gives."""
    interpreter = Interpreter(program.get("iteration", iteration))
    pr.set_query_handler("done", lambda: interpreter.done)
    tree = program["tree"]
    if tree["do"] != "again":
        return await interpreter.carry_out(tree)
    values = [*(carried or []), await interpreter.carry_out(tree["part"])]
    if iteration + 1 < tree["times"]:
        pr.continue_as_new(program, iteration + 1, values)
    return values
