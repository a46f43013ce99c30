"""The same work of ours on PostgreSQL near and far."""

from __future__ import annotations

from clusters import EngineSettings
from databases import postgresql, round_trip_ms
from measurements import Line, Setting, Side, compared, in_turns, progress


async def near_and_far(setting: Setting, name: str, unit: str, side: Side) -> list[Line]:
    """The line that holds the far database against the near one; none when nothing far is measured.

    Args:
        side: What is measured, on the engine that is in use. Another one is in use after this.
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
