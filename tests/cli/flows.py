"""Workflows that the tests of the command line start."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

import pyworkflow_ray as pr


@pr.step(local=True, max_retries=0)
async def cli_double(number: int) -> int:
    """Twice the number."""
    print(f"doubling {number}")
    return number * 2


@pr.step(local=True, max_retries=0)
async def cli_break(text: str) -> None:
    raise ValueError(text)


@pr.workflow(tags=["numbers"], max_duration="1h")
async def cli_doubles(numbers: list[int], name: str = "nobody") -> str:
    """Double every number.

    And tell whose they are.
    """
    doubled = [await cli_double(number) for number in numbers]
    return f"{name} has {doubled}"


@pr.workflow
async def cli_fails(text: str) -> None:
    await cli_double(1)
    await cli_break(text)


class CliDecision(BaseModel):
    """What the boss says."""

    approved: bool
    by: str = Field(description="Who decides", min_length=2)
    level: Literal["low", "high"] = "low"
    share: int | None = None


CliApproval = pr.define_hook("cli_approval", CliDecision)


@pr.workflow
async def cli_asks() -> list[Any]:
    decision = await CliApproval(timeout="2d", metadata={"order": 7})
    return [decision.approved, decision.by, decision.level, decision.share]


@pr.workflow
async def cli_hears() -> Any:
    try:
        return await pr.hook("cli_ear")
    except pr.HookRejectedError as error:
        return f"rejected: {error}"


@pr.workflow
async def cli_sleeps() -> str:
    await pr.sleep("2h", name="nap")
    return "rested"


@pr.workflow
async def cli_counts(number: int = 1) -> int:
    await cli_double(number)
    if number < 3:
        pr.continue_as_new(number + 1)
    return number


@pr.workflow
async def cli_has_children() -> int:
    return await pr.start_child_workflow(cli_counts, 3)


@pr.workflow
async def cli_many(count: int) -> int:
    return len(await pr.gather(*(cli_double(number) for number in range(count))))


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


@pr.workflow
async def cli_takes(value: Any) -> str:
    return str(value)[:10]


@pr.scheduled_workflow(cron="0 9 * * *", timezone="Europe/Berlin")
async def cli_every_morning() -> None:
    """Nothing, each morning."""
