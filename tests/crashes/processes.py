"""Processes that run a scenario, and may be killed in it."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from tests.crashes.deaths import Death, expect
from tests.crashes.engines import OneProcess

KILLED, PATIENCE = -signal.SIGKILL, 40.0


def _live(name: str, url: str, folder: Path, death: Death | None) -> None:
    from tests.crashes.scenarios import scenarios

    logger.remove()
    logger.add(folder / "log", level="WARNING")
    expect(death, folder / "passed")

    async def live() -> Any:
        async with asyncio.timeout(PATIENCE), OneProcess(url, folder) as engine:
            return await scenarios[name](engine)

    try:
        result = asyncio.run(live())
    except BaseException:
        (folder / "error").write_text(traceback.format_exc())
        sys.exit(1)
    (folder / "result").write_text(json.dumps(result))


def result_of(name: str, url: str, folder: Path, deaths: Sequence[Death] = ()) -> Any:
    """What the scenario comes to, if its first processes die in this way, one after another."""
    folder.mkdir(exist_ok=True)
    # Forked from a process that has imported everything: a new one for each would take a second longer.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.crashes.scenarios"])
    for death in (*deaths, None):
        process = context.Process(target=_live, args=(name, url, folder, death))
        process.start()
        process.join(PATIENCE + 10)
        error = folder / "error"
        assert not error.exists(), f"{death}: {error.read_text()}"
        assert process.exitcode == (0 if death is None else KILLED), f"{death}: {process.exitcode}"
    return json.loads((folder / "result").read_text())


def passed(folder: Path) -> set[str]:
    """The places that the scenario's processes have passed."""
    return set((folder / "passed").read_text().splitlines())
