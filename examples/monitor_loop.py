"""A loop without end keeps its history short: after some rounds it continues in a new run.

    python examples/monitor_loop.py

The whole history is read whenever a run is brought back. A run whose history grows for ever gets slow, and is
ended at a limit. `continue_as_new` ends the run and starts its successor. The arguments say where the
successor goes on. Here each run looks four times. The handle of the first run follows the chain to the last
run.
"""

import asyncio

from pyworkflow_ray import (
    continue_as_new,
    get_context,
    get_workflow_chain,
    get_workflow_events,
    sleep,
    start,
    step,
    workflow,
)

ROUNDS = 4


@step(local=True)
def look(number: int) -> int:
    """The temperature of the machine. It is hot at the tenth look."""
    return 90 if number == 10 else 40 + number % 3


@workflow
async def monitor(number: int, hottest: int) -> str:
    for _ in range(ROUNDS):
        degrees = await look(number)
        hottest = max(hottest, degrees)
        if degrees >= 80:
            break
        number += 1
        await sleep("100ms")
    else:
        continue_as_new(number, hottest)
    return f"{hottest} °C at look {number}, in {get_context().run_id}"


async def main() -> None:
    run = await start(monitor, 1, 0)
    print(f"started as {run}\n{await run}\n")
    for each in await get_workflow_chain(run):
        events = await get_workflow_events(each.run_id)
        print(f"{each.run_id}  from look {each.input_args[0]}  {len(events)} events  {each.status.value}")


if __name__ == "__main__":
    asyncio.run(main())
