"""The same work of our engine on PostgreSQL near and far."""

from __future__ import annotations

from clusters import EngineSettings
from databases import postgresql, round_trip_ms
from measurements import Line, Setting, Side, compared, in_turns, progress


async def near_and_far(setting: Setting, name: str, unit: str, side: Side) -> list[Line]:
    """The line that compares the far database with the near one; no line if nothing far is measured.

    Args:
        side: The work to measure, on the engine that is in use. Afterwards another engine is in use.
    """
    if not setting.delay_ms:
        return []
    with postgresql(setting.folder / "pg", setting.delay_ms) as database:
        far = database.far()
        progress(f"the far PostgreSQL: {round_trip_ms(far):.2f} ms for the smallest question")
        sides = {
            "far": _on(EngineSettings("distances-far", far), side),
            "near": _on(EngineSettings("distances-near", database.near()), side),
        }
        for each in sides.values():
            await each()
        reached = await in_turns(min(setting.rounds, 3), sides)
    return [compared(f"{name}: {setting.far}", unit, reached, "far", "near")]


def _on(engine: EngineSettings, side: Side) -> Side:
    async def measured() -> float:
        engine.use()
        return await side()

    return measured
