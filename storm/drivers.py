"""A driver: a client process that starts programs, sends to those of others, and waits for results.

As a program (``python -m storm.drivers FOLDER NUMBER``). A driver may be killed at any moment. The next one
of its number reads the ledger, and goes on: all that it sends has a key of its own, so it may be sent again.

Driver n starts the programs whose number is n modulo the drivers' count. What these programs wait for, and
the requests to cancel them, is sent by another driver: so it comes from another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pyworkflow_ray as pr
from storm import ledger
from storm.interpreter import name_of, storm
from storm.plans import NAMESPACE, Plan
from storm.programs import Node, Program, answer_to, make_program, own_nodes, signal_payload

PATIENCE = 60.0
"""Seconds after which a call counts as unanswered, and is made again."""


class Driver:
    """One driver.

    Args:
        number: Which of the drivers it is.
    """

    def __init__(self, plan: Plan, number: int) -> None:
        self._plan, self._number = plan, number
        self._reader = ledger.Reader(plan.ledger)
        self._tasks: set[asyncio.Task[None]] = set()
        self._done: set[tuple[str, str]] = set()
        """What was acknowledged, or refused for good: the kind, and what tells it from others."""
        self._seen: set[str] = set()
        """Programs whose end was seen."""
        self._served: set[str] = set()
        """Programs, hooks and nodes for which a task sends or has sent what they wait for."""
        self._tried: set[int] = set()
        self._waiting: dict[str, str] = {}
        """The runs that this driver waits for, by the program."""

    async def run(self) -> None:
        self._catch_up()
        for number in sorted(self._tried):
            unseen = self._program(number)
            if unseen.id not in self._seen:
                self._spawn(self._follow(unseen))
        threading.Thread(target=note_actors, daemon=True).start()
        courier = asyncio.create_task(self._carry())
        starter = asyncio.create_task(self._start_programs())
        while not self._plan.is_over:
            await asyncio.sleep(0.3)
        for task in (courier, starter, *self._tasks):
            task.cancel()
        for program, run_id in self._waiting.items():
            ledger.write("still waiting", program=program, run=run_id)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            ledger.write("note", kind="driver", text=repr(task.exception()))

    def _program(self, number: int) -> Program:
        return make_program(self._plan.seed, number, with_deadly=self._plan.with_deadly)

    def _is_mine(self, number: int) -> bool:
        return number % self._plan.drivers == self._number

    def _catch_up(self) -> None:
        """Read what the ledger has of this driver's doings, and of the other's starts."""
        started: list[ledger.Line] = []
        for line in self._reader.read():
            match line["what"]:
                case "try" if line["kind"] == "start" and self._is_mine(line["number"]):
                    self._tried.add(line["number"])
                case "done" | "refused":
                    self._done.add((line["kind"], line["key"]))
                    if (
                        line["kind"] == "start"
                        and line["what"] == "done"
                        and not self._is_mine(line["number"])
                    ):
                        started.append(line)
                case "saw":
                    self._seen.add(line["program"])
        for line in started:
            self._serve(self._program(line["number"]), line["run"])

    # --- programs of its own ------------------------------------------------------------------------

    async def _start_programs(self) -> None:
        number = max(self._tried, default=self._number - self._plan.drivers) + self._plan.drivers
        while not self._plan.is_calm:
            if len(self._waiting) >= self._plan.at_once:
                await asyncio.sleep(0.1)
                continue
            program = self._program(number)
            self._waiting[program.id] = ""
            self._spawn(self._follow(program))
            number += self._plan.drivers

    async def _follow(self, program: Program) -> None:
        """Start a program, look after its run, and see its end."""
        self._waiting[program.id] = ""
        handle = await self._started(program)
        self._waiting[program.id] = str(handle)
        if program.is_queried:
            self._spawn(self._query(program, handle))
        if program.is_awaited:
            await self._wait(program, handle)
        else:
            await self._watch(handle)
            ledger.write("saw", program=program.id, run=str(handle), status="", outcome=None)
        del self._waiting[program.id]

    async def _started(self, program: Program) -> pr.RunHandle[Any]:
        if program.has_key:
            start = pr.start.options(idempotency_key=program.id)
        else:
            start = pr.start.options(run_id=f"run-{program.id}")
        about = {"program": program.id, "number": program.number}

        async def begin() -> dict[str, str]:
            starts: list[Awaitable[pr.RunHandle[Any]]] = [
                start(storm, program.argument) for _ in range(1 if program.number % 5 else 2)
            ]
            first, *others = await asyncio.gather(*starts)
            if any(other != first for other in others):
                ledger.write("note", kind="two runs", text=f"{first} {others}", program=program.id)
            return {"run": str(first)}

        told = await self._until_answered("start", program.id, begin, **about)
        return pr.RunHandle(told["run"])

    async def _wait(self, program: Program, handle: pr.RunHandle[Any]) -> None:
        while True:
            seen: dict[str, Any]
            try:
                seen = {"status": "completed", "outcome": await handle.result()}
            except pr.CancellationError as error:
                seen = {"status": "cancelled", "outcome": name_of(error)}
            except Exception as error:
                if getattr(error, "run_id", None) is None:  # not the run's own
                    ledger.write("note", kind="wait", text=_told(error), program=program.id)
                    await asyncio.sleep(1.0)
                    continue
                seen = {"status": "failed", "outcome": name_of(error)}
            ledger.write("saw", program=program.id, run=str(handle), **seen)
            return

    async def _watch(self, handle: pr.RunHandle[Any]) -> None:
        """Look at a run now and then, until it has ended."""
        while True:
            with contextlib.suppress(Exception):
                chain = await pr.get_workflow_chain(handle)
                if chain[-1].status.is_terminal:
                    return
            await asyncio.sleep(1.0)

    async def _query(self, program: Program, handle: pr.RunHandle[Any]) -> None:
        for pause in (0.5, 2.0, 5.0):
            await asyncio.sleep(pause)
            try:
                async with asyncio.timeout(PATIENCE):
                    answer = await handle.query("done")
            except (Exception, pr.CancellationError) as error:
                ledger.write("note", kind="query", text=_told(error), program=program.id)
            else:
                kind = "answer" if isinstance(answer, int) else "wrong answer"
                ledger.write("note", kind=kind, text=repr(answer), program=program.id)

    # --- what programs of others wait for -----------------------------------------------------------

    async def _carry(self) -> None:
        while True:
            self._catch_up()
            with contextlib.suppress(Exception):
                async with asyncio.timeout(PATIENCE):
                    for hook in await _pending_hooks():
                        self._answer_once(hook)
            await asyncio.sleep(0.4)

    def _serve(self, program: Program, run_id: str) -> None:
        """Send to a program of another driver what it waits for, once."""
        if program.id in self._served:
            return
        self._served.add(program.id)
        if program.cancel_after is not None and ("cancel", program.id) not in self._done:
            self._spawn(self._cancel(program, run_id))
        times = program.tree.get("times", 1)
        for node in own_nodes(program.tree):
            if node["do"] == "receive":
                self._spawn(self._signal(program, run_id, node, node["count"] * times))

    async def _cancel(self, program: Program, run_id: str) -> None:
        assert program.cancel_after is not None
        await asyncio.sleep(program.cancel_after)

        async def ask() -> dict[str, str] | None:
            return {} if await pr.cancel_workflow(run_id, reason="the storm") else None

        await self._until_answered("cancel", program.id, ask, program=program.id, run=run_id)

    async def _signal(self, program: Program, run_id: str, node: Node, count: int) -> None:
        random = Random(f"signals:{node['id']}")
        for payload in (signal_payload(node, number) for number in range(count)):
            await asyncio.sleep(random.uniform(0.0, 1.0))
            if ("signal", payload) in self._done:
                continue

            async def send(payload: str = payload) -> dict[str, str] | None:
                try:
                    await pr.signal(run_id, node["id"], payload, dedup_key=payload)
                except pr.WorkflowError as error:
                    if "has ended" in str(error):
                        return None
                    raise
                return {}

            about = {"program": program.id, "run": run_id, "payload": payload}
            if await self._until_answered("signal", payload, send, **about) is None:
                return  # the run has ended

    def _answer_once(self, hook: pr.Hook) -> None:
        name, _, rest = hook.token.partition(".")
        if not name.startswith(f"p{self._plan.seed}x") or not rest or hook.token in self._served:
            return
        if not self._is_mine(int(name.rpartition("x")[2])):
            self._served.add(hook.token)
            self._spawn(self._answer(name, hook.token))

    async def _answer(self, program: str, token: str) -> None:
        how = answer_to(self._plan.seed, token)
        await asyncio.sleep(how.after)
        kind = "rejection" if how.rejects else "payload"
        payload = f"for {token}"

        async def answer() -> dict[str, str] | None:
            try:
                if how.rejects:
                    result = await pr.reject_hook(token, "no", dedup_key=token)
                else:
                    result = await pr.resume_hook(token, payload, dedup_key=token)
            except (pr.HookExpiredError, pr.HookNotFoundError, pr.HookAlreadyReceivedError):
                return None
            return {"run": result.run_id}

        told = await self._until_answered(kind, token, answer, program=program, token=token, payload=payload)
        if told is not None and how.twice:
            with contextlib.suppress(Exception):
                await pr.resume_hook(token, "once more", dedup_key=f"{token} once more")
                ledger.write("note", kind="accepted twice", text=token, program=program)

    async def _until_answered(
        self, kind: str, key: str, call: Callable[[], Awaitable[dict[str, str] | None]], **about: Any
    ) -> Any:
        """Make a call until it is answered; what it gave. None is a refusal."""
        while True:
            ledger.write("try", kind=kind, key=key, **about)
            try:
                async with asyncio.timeout(PATIENCE):
                    told = await call()
            except (Exception, pr.CancellationError) as error:
                ledger.write("note", kind=kind, text=_told(error), key=key)
                await asyncio.sleep(0.5)
                continue
            ledger.write(
                "refused" if told is None else "done", kind=kind, key=key, **{**about, **(told or {})}
            )
            self._done.add((kind, key))
            return told


def note_actors() -> None:
    """Write the pids of coordinators into the ledger as they change, as long as this process goes on."""
    import ray

    known: dict[str, int] = {}
    while True:
        time.sleep(1.5)
        with contextlib.suppress(Exception):
            if not ray.is_initialized():
                continue
            names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
            asked: dict[Any, str] = {
                ray.get_actor(name, namespace=NAMESPACE).pid.remote(): name
                for name in names
                if name.startswith("coordinator-")
            }
            answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=1.0)
            for answer in answered:
                name, pid = asked[answer], ray.get(answer)
                if known.get(name) != pid:
                    ledger.write("actor", name=name, process=pid)
                    known[name] = pid


async def _pending_hooks() -> list[pr.Hook]:
    found: list[pr.Hook] = []
    cursor: str | None = None
    while True:
        page, cursor = await pr.list_hooks(status="pending", limit=100, cursor=cursor)
        found += page
        if cursor is None:
            return found


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def main() -> None:
    plan = Plan.read(Path(sys.argv[1]))
    ledger.write("note", kind="driver", text=f"driver {sys.argv[2]} begins")
    asyncio.run(Driver(plan, int(sys.argv[2])).run())


if __name__ == "__main__":
    main()
