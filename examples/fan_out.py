"""Many steps at once: all together, a few at a time, in batches, and each result as soon as it is there.

    python examples/fan_out.py

Steps are Ray tasks, so they run on as many CPUs as the cluster has. `asyncio.gather` and the rest of asyncio
work in a workflow as they do anywhere. After a crash only steps without a recorded result run again.
"""

import asyncio
import os
import time

from pyworkflow_ray import as_completed, run_workflow, step, workflow


@step
def square(number: int) -> int:
    return number * number


@step(num_cpus=0.5)
def crawl(page: str, seconds: float) -> str:
    time.sleep(seconds)
    return f"{page} in process {os.getpid()}"


@workflow
async def all_together(count: int) -> int:
    return sum(await asyncio.gather(*(square(number) for number in range(count))))


@workflow
async def a_few_at_a_time(count: int) -> int:
    # Results come in the order of the items. At most ten steps are under way at a time.
    return sum(await square.map(range(count), max_in_flight=10))


@workflow
async def in_batches(count: int) -> int:
    # So small a step costs less than a Ray task. Here 32 share a task, and each is still a step of its own.
    return sum(await square.map(range(count), batch_size=32))


@workflow
async def first_come(pages: dict[str, float]) -> list[str]:
    done = []
    async for page in as_completed([crawl(page, seconds) for page, seconds in pages.items()]):
        done.append(await page)
    return done


if __name__ == "__main__":
    for many in (all_together, a_few_at_a_time, in_batches):
        print(f"{many.name}: the sum of 200 squares is {run_workflow(many, 200)}")
    for line in run_workflow(first_come, {"slow": 1.5, "quick": 0.1, "middling": 0.7}):
        print(f"first_come: {line}")
