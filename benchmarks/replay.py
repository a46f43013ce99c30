"""How fast a history is read, decoded and replayed."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measurements import Line, Setting, progress
from workloads import all_at_once, one_after_another

AT_LEAST = 50_000
SIZES = (1_000, 10_000, 50_000)


async def measure(setting: Setting) -> list[Line]:
    """Events a second, of the best round, for histories of different lengths and shapes."""
    return await asyncio.to_thread(_measure, setting)


def _measure(setting: Setting) -> list[Line]:
    lines = []
    for definition in (one_after_another, all_at_once):
        rates = {}
        for size in SIZES[:2] if setting.quick else SIZES:
            rates[size] = _rate(setting, definition, size)
            progress(f"{definition.name} {size:,} events: {rates[size]:,.0f} events/s")
        shape = "one after another" if definition is one_after_another else "all at once"
        for size, rate in rates.items():
            first = next(iter(rates.values()))
            lines.append(
                Line(
                    f"replay of {size:,} events, steps {shape}",
                    rate,
                    "events/s",
                    against=f"shortest: {first:,.0f}",
                    ratio=rate / first,
                    bar=f"≥ {AT_LEAST:,}/s",
                    is_met=rate >= AT_LEAST,
                )
            )
    return lines


def _rate(setting: Setting, definition: Any, size: int) -> float:
    from pyworkflow_ray.actors.payloads import Payloads
    from pyworkflow_ray.engine.events import decode_history
    from pyworkflow_ray.engine.executions import Execution
    from pyworkflow_ray.storage.histories import read_events
    from pyworkflow_ray.storage.storages import Storage
    from pyworkflow_ray.values.codec import Values

    payloads = Payloads(Values(), lambda digest: b"", 128 * 1024)
    path = setting.folder / f"{definition.name}_{size}.db"
    with Storage(path) as storage:
        written = _write_history(storage, definition, size, lambda: _execution(definition, payloads))

        def once() -> float:
            gc.collect()
            started = time.perf_counter()
            execution = Execution("run", definition.fn, payloads)
            execution.replay(decode_history(storage.read(read_events("run"))))
            elapsed = time.perf_counter() - started
            assert execution.is_finished
            return elapsed

        once()
        best = min(once() for _ in range(max(3, setting.rounds)))
    _remove(path)
    return written / best


def _execution(definition: Any, payloads: Any) -> Any:
    from pyworkflow_ray.engine.executions import Execution

    return Execution("run", definition.fn, payloads)


def _write_history(storage: Any, definition: Any, size: int, make: Callable[[], Any]) -> int:
    """Record the history of a run with `size` events or so; how many there are."""
    from msgspec import Raw

    from pyworkflow_ray.engine.attempts import AttemptCompleted
    from pyworkflow_ray.engine.events import WorkflowStarted, encode_data, type_of
    from pyworkflow_ray.storage.acceptances import NewRun, accept
    from pyworkflow_ray.storage.histories import Append, append

    now = datetime.now(UTC)
    steps = (size - 2) // 2
    args = f"[{steps}]".encode()
    execution, rows = make(), []

    def feed(event: Any) -> None:
        commands = execution.feed(event, now)
        for each in (event, *(command.to_event() for command in commands)):
            rows.append((now, type_of(each), encode_data(each)))

    outcome = AttemptCompleted(result=b"200", started_at=now, node="0" * 56, worker_pid=10_000)
    feed(WorkflowStarted(workflow_name=definition.name, args=Raw(args), kwargs=Raw(b"{}")))
    while not execution.is_finished:
        pending = next(iter(execution.steps.values()))
        feed(execution.conclude(pending.command.step_id, pending.attempt, outcome, now))
    new = NewRun(run_id="run", workflow_name=definition.name, input_args=args.decode(), input_kwargs="{}")
    storage.submit(accept(new)).result()
    history = Append(run_id="run", epoch=0, position=0, events=rows)
    storage.submit(append(history)).result()
    return len(rows)


def _remove(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
