"""Takes two orders, the first of them twice, and shows their results.

    python shop.py

The second order is refused.
"""

import asyncio

from flows import process_order
from pyworkflow import (
    FatalError,
    InMemoryStorageBackend,
    configure,
    get_storage,
    get_workflow_events,
    start,
)


async def main() -> None:
    configure(storage=InMemoryStorageBackend(), default_runtime="local", default_durable=True)

    run_id = await start(process_order, "A-17", 1250, idempotency_key="A-17")
    again = await start(process_order, "A-17", 1250, idempotency_key="A-17")
    print("ordered twice, run once:", again == run_id)

    run = await get_storage().get_run(run_id)
    print(run.workflow_name, run.status.value, run.result)
    for event in await get_workflow_events(run_id):
        print(f"  {event.sequence:>2} {event.type.value}")

    try:
        await start(process_order, "A-18", 0)
    except FatalError as error:
        print("refused:", error)


if __name__ == "__main__":
    asyncio.run(main())
