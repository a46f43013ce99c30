"""Records histories of today's format: `python -m tests.upgrades.record_histories`.

Run it when an event is new, or has new fields. What was recorded before stays: it is replayed for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pyworkflow_ray as pr
from pyworkflow_ray.testing import WorkflowEnvironment, save_history
from tests.upgrades import flows
from tests.upgrades.test_histories import FOLDER


async def _record(name: str, workflow: Any, *args: Any, crash: bool = False, **told: Any) -> None:
    """Save the history of a run that is sent signals, hooks' payloads and a request to cancel."""
    async with WorkflowEnvironment(blob_threshold=1024) as env:
        env.delay_step("upgrades_hang", "1h")
        run = await pr.start.options(run_id=name)(workflow, *args)
        await env.settle()
        if crash:
            await env.crash()
        for signal in told.get("signals", ()):
            await run.signal(signal, 5)
            await env.settle()
        for token in told.get("tokens", ()):
            while await pr.get_hook(token) is None:
                await env.advance("100ms")
            await pr.resume_hook(token, "yes")
        if told.get("is_cancelled"):
            await run.cancel("no more")
        with contextlib.suppress(Exception, pr.CancellationError):
            await run.result()
        file = save_history(run, FOLDER / f"{name}.json")
    here = str(Path(flows.__file__).parent)
    file.write_text(file.read_text().replace(here, "/release/tests/upgrades"))


async def main() -> None:
    """Record all of them."""
    await _record("sleeping", flows.upgrades_sleeping, 1, crash=True)
    await _record("asking", flows.upgrades_asking, tokens=["upgrades-answer"])
    await _record("letting_go", flows.upgrades_letting_go, tokens=["upgrades-second"])
    await _record("listening", flows.upgrades_listening, signals=["price", "price"])
    await _record("family", flows.upgrades_family)
    await _record("failing", flows.upgrades_failing)
    await _record("again", flows.upgrades_again, 1, signals=["last"])
    await _record("careful", flows.upgrades_careful, is_cancelled=True)
    await _record("wide", flows.upgrades_wide, signals=["go"])
    await _record("large", flows.upgrades_large, "x" * 4_000)


if __name__ == "__main__":
    asyncio.run(main())
