"""How fast a history is read, decoded and replayed."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path
from typing import Any

from internals import open_storage, replay, write_history
from measurements import Line, Setting, progress
from workloads import all_at_once, one_after_another

AT_LEAST = 100_000
SIZES = (1_000, 10_000, 50_000)


async def measure(setting: Setting) -> list[Line]:
    """Events per second, of the best round, for histories of different lengths and shapes."""
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
    path = setting.folder / f"{definition.name}_{size}.db"
    with open_storage(path) as storage:
        written = write_history(storage, definition, size)

        def once() -> float:
            gc.collect()
            started = time.perf_counter()
            replay(storage, definition)
            return time.perf_counter() - started

        once()
        best = min(once() for _ in range(max(3, setting.rounds)))
    _remove(path)
    return written / best


def _remove(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
