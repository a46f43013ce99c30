"""All uses of the package's internals in the benchmarks. When the internals change, only this module changes.

Each function does the work of one part of the engine in the same way as that part, and nothing else.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
from floors import event_texts

from pyworkflow_ray.actors.hook_registry import HookAnswer, HookRegistry
from pyworkflow_ray.actors.nudges import Nudger
from pyworkflow_ray.actors.payloads import Payloads
from pyworkflow_ray.actors.schedulers import fire_due
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.actors.timer import Timer
from pyworkflow_ray.client.hook_answers import hook_answers
from pyworkflow_ray.client.inboxes import send
from pyworkflow_ray.engine.attempts import AttemptCompleted
from pyworkflow_ray.engine.events import (
    SignalReceived,
    WorkflowStarted,
    decode_history,
    encode_data,
    type_of,
)
from pyworkflow_ray.engine.executions import Execution
from pyworkflow_ray.storage.acceptances import NewRun, accept
from pyworkflow_ray.storage.histories import Append, append, count_events, read_events
from pyworkflow_ray.storage.hooks import NewHook, create_hook
from pyworkflow_ray.storage.inboxes import unread
from pyworkflow_ray.storage.leases import claim, renew_leases
from pyworkflow_ray.storage.placements import Placement
from pyworkflow_ray.storage.runs import get_runs
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.values.codec import Values

LEASE = 3600.0
COORDINATOR = "coordinator-0"


# --- a storage, and histories in it -----------------------------------------------------------------


def open_storage(url: str | Path) -> Storage:
    """The storage at this URL. The caller closes it."""
    return Storage(url)


def our_pragmas(path: Path) -> str:
    """The durability settings in force on our own writing connection to an SQLite file."""
    with Storage(path) as storage:
        read = storage.submit(
            lambda connection: tuple(
                connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous")
            )
        )
        mode, synchronous = read.result()
    return f"journal_mode={mode} synchronous={synchronous}"


def _new_run(run_id: str) -> NewRun:
    return NewRun(
        run_id=run_id,
        workflow_name="benchmark",
        input_args="[1]",
        input_kwargs="{}",
        input_hash="0" * 64,
        created_at=datetime.now(UTC),
        placement=Placement(),
        owner_lease=LEASE,
    )


async def accept_run(storage: Storage, run_id: str) -> str:
    """Accept a run as `start` does; the coordinator with which it is placed."""
    new = _new_run(run_id)
    accepted = await storage.write(accept(new, storage.loads))
    assert accepted.is_new
    return str(accepted.run.coordinator)


class History:
    """The history of a run that was accepted. It is extended as a coordinator does after each local step."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        self.run_id = run_id
        self.position = 0
        self._storage = storage
        self._texts = event_texts()

    async def append(self) -> None:
        """Append a step's outcome and the schedule of the next one."""
        now = datetime.now(UTC)
        completed, started = self._texts
        events = ((now, "step.completed", completed), (now, "step.started", started))
        await self._write(events=events)
        self.position += 2

    async def suspend(self, wake_at: datetime | None) -> None:
        """Suspend the run and release its lease."""
        await self._write(changes={"status": "suspended", "wake_at": wake_at}, release=True)

    async def _write(self, **what: Any) -> None:
        new = Append(run_id=self.run_id, epoch=1, position=self.position, **what)
        await self._storage.write(append(new))


async def histories(storage: Storage, count: int) -> list[History]:
    """`count` runs, accepted and held."""
    made = [History(storage, f"run-{uuid.uuid4().hex}") for _ in range(count)]
    await asyncio.gather(*(accept_run(storage, each.run_id) for each in made))
    return made


async def sleepers(storage: Storage, count: int, *, due: bool) -> list[str]:
    """`count` suspended runs, whose time has come or comes in a day."""
    made = await histories(storage, count)
    wake_at = datetime.now(UTC) + (timedelta(seconds=-1) if due else timedelta(days=1))
    await asyncio.gather(*(each.suspend(wake_at) for each in made))
    return [each.run_id for each in made]


def events_of(storage: Storage, run_id: str) -> int:
    """How many events a run's history has."""
    return storage.read(count_events(run_id))


def statuses_of(storage: Storage, run_ids: Sequence[str]) -> list[str]:
    """The runs' statuses, in no order."""
    found = storage.read(get_runs(run_ids))
    return [run.status.value for run in found.values()]


# --- what coordinators, the timer and clients ask of a storage --------------------------------------


async def claim_run(storage: Storage, run_id: str) -> None:
    """Claim a run as a coordinator does after a nudge to wake it."""
    claimed = claim(run_id, f"{COORDINATOR}:benchmark", LEASE, force_from=COORDINATOR)
    assert await storage.write(claimed) is not None


async def renew(storage: Storage, runs: Sequence[History]) -> None:
    """Renew the leases of runs, as a coordinator does for all of its runs."""
    held = [(each.run_id, 1) for each in runs]
    await storage.write(renew_leases(held, LEASE))


async def place_woken(storage: Storage, run_id: str) -> None:
    """Find a coordinator for a suspended run, as the process that wakes it does."""
    told: list[str] = []
    nudger = Nudger(_engine(storage), lambda group: told.extend(group.run_ids))
    await nudger.nudge(storage, [SimpleNamespace(run_id=run_id, coordinator=None, environment="")])
    assert told == [run_id]


async def send_signal(storage: Storage, run_id: str) -> None:
    """Send a run a signal as the client does; no coordinator is nudged."""

    async def nothing(*_: Any) -> None: ...

    client = SimpleNamespace(storage=storage, runtime=SimpleNamespace(open=nothing, wake=nothing))
    signal = SignalReceived(name="tick", payload=msgspec.Raw(b"null"))
    assert await send(client, run_id, f"signal:{uuid.uuid4().hex}", signal) is not None  # type: ignore[arg-type]


def read_inbox(storage: Storage, run_id: str, expected: int) -> None:
    """Read a run's inbox."""
    assert len(storage.read(unread(run_id))) == expected


def read_page(storage: Storage, run_id: str, count: int) -> None:
    """Read a page of a run's history."""
    rows = storage.read(read_events(run_id, limit=count))
    assert len(rows) == count


async def make_hooks(storage: Storage, run_id: str, count: int) -> list[str]:
    """Create `count` pending hooks of a run; their tokens."""
    hooks = [
        NewHook(hook_id=f"hook#{number}", token=f"{run_id}/{number}", name="hook") for number in range(count)
    ]

    def write(connection: Any) -> None:
        for hook in hooks:
            assert create_hook(run_id, hook).on(connection) is None

    await storage.write(write)
    return [hook.token for hook in hooks]


async def fire_schedules(storage: Storage) -> int:
    """Fire the schedules that are due, as the timer does; the number of runs that this makes."""
    return len((await fire_due(storage, "", 1.0)).runs)


# --- the actors' classes, without Ray -----------------------------------------------------------------


def _engine(storage: Storage) -> EngineSettings:
    return EngineSettings(storage_url=storage.database.secret_url)


def hook_registry(storage: Storage) -> HookRegistry:
    """A hook registry in this process, which nudges no coordinator."""
    return HookRegistry(_engine(storage), lambda run_ids: None, storage)


async def answer_hooks(registry: HookRegistry, tokens: Sequence[str], payload: bytes) -> None:
    """Deliver a payload to each hook, as one client does that has all of them at once."""
    answers = hook_answers(registry.deliver_all)
    await asyncio.gather(*(answers.send(HookAnswer(each, f"delivery:{each}", payload)) for each in tokens))


def timer(storage: Storage, told: Callable[[list[str]], None]) -> Timer:
    """A timer in this process, which calls `told` with the runs to wake."""
    return Timer(_engine(storage), lambda group: told(group.run_ids), lambda environment: None)


# --- replay -------------------------------------------------------------------------------------------


def replay(storage: Storage, definition: Any) -> None:
    """Read the history of the run `run`, and replay it to its end."""
    execution = _execution(definition)
    execution.replay(decode_history(storage.read(read_events("run"))))
    assert execution.is_finished


def write_history(storage: Storage, definition: Any, size: int) -> int:
    """Record the run `run` to its end, with about `size` events; the number of events."""
    now = datetime.now(UTC)
    args = f"[{(size - 2) // 2}]".encode()
    execution = _execution(definition)
    rows: list[tuple[datetime, str, bytes | str]] = []

    def feed(event: Any) -> None:
        commands = execution.feed(event, now)
        for each in (event, *(command.to_event() for command in commands)):
            if each is not None:
                rows.append((now, type_of(each), encode_data(each)))

    outcome = AttemptCompleted(result=msgspec.Raw(b"200"), started_at=now, node="0" * 56, worker_pid=10_000)
    started = WorkflowStarted(
        workflow_name=definition.name, args=msgspec.Raw(args), kwargs=msgspec.Raw(b"{}")
    )
    feed(started)
    while not execution.is_finished:
        pending = next(iter(execution.steps.values()))
        feed(execution.conclude(pending.command.step_id, pending.attempt, outcome, now))
    new = NewRun(run_id="run", workflow_name=definition.name, input_args=args.decode(), input_kwargs="{}")
    storage.submit(accept(new)).result()
    history = Append(run_id="run", epoch=0, position=0, events=rows)
    storage.submit(append(history)).result()
    return len(rows)


def _execution(definition: Any) -> Execution:
    return Execution("run", definition.fn, Payloads(Values(), lambda digest: b"", 128 * 1024))
