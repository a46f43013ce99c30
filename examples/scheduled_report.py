"""A schedule runs a workflow again and again, and each run knows the time for which it was made.

    python examples/scheduled_report.py

Here it fires each second, so that you need not wait for nine o'clock. The schedule is a row in the database.
It fires as long as the engine is up, even without this process. So the example deletes it at the end.
"""

import asyncio

from pyworkflow_ray import (
    ScheduleSpec,
    create_schedule,
    delete_schedule,
    get_context,
    get_schedule,
    get_schedule_events,
    list_runs,
    pause_schedule,
    step,
    trigger_schedule,
    workflow,
)


@step(local=True)
async def count_orders(shop: str, until: str) -> str:
    await asyncio.sleep(0.3)
    return f"{shop}: {len(shop)} orders until {until}"


@workflow
async def report(shop: str) -> str:
    scheduled_at = get_context().scheduled_at  # the same however late the run begins
    return await count_orders(shop, f"{scheduled_at:%H:%M:%S}")


async def main() -> None:
    spec = ScheduleSpec(interval="1s")  # or cron="0 9 * * 1-5", timezone="Europe/Berlin"
    # If a report takes too long, the next one is not lost: it waits for its turn.
    make = create_schedule.options(schedule_id="reports", overlap_policy="buffer_all")
    schedule = await make(report, spec, "pears and plums")
    print(
        f"{schedule.schedule_id}: {schedule.workflow_name} {spec.describe()}, from {schedule.next_run_time}"
    )

    while schedule.successful_runs < 3:
        await asyncio.sleep(0.1)
        schedule = await get_schedule("reports") or schedule
    schedule = await pause_schedule("reports")
    run = await trigger_schedule("reports")
    print(f"by hand: {run and await run}")
    await delete_schedule("reports")

    print("\nits runs:")
    for each in reversed((await list_runs(workflow="report"))[0]):
        print(f"  for {each.metadata['scheduled_at']}  {each.status.value}  {each.result}")
    print("\nwhat has happened to it:")
    for event in await get_schedule_events("reports"):
        print(f"  {event.timestamp:%H:%M:%S}  {event.type:<19}  {event.data.get('reason', '')}")


if __name__ == "__main__":
    asyncio.run(main())
