"""Ray decides where a step runs, by its CPUs, by resources of your own, and by options for one call.

    python examples/ray_resources.py

The cluster has two "scanner" resources, so two scans run at a time, however many are waiting. The event of
each step says which node and which process ran it.
"""

import os
import time

import ray

from pyworkflow_ray import gather, start_sync, step, workflow

RESOURCES = {"scanner": 2}


@step(num_cpus=0.5, resources={"scanner": 1})
def scan(page: int) -> float:
    time.sleep(0.5)
    return time.time()


@step(num_cpus=1)
def bind(pages: int) -> str:
    return f"a book of {pages} pages"


@workflow
async def make_book(pages: int) -> str:
    await gather(*(scan(page) for page in range(pages)))
    # This one call asks for less than the decorator says. GPUs work in the same way: num_gpus=1.
    return await bind.options(num_cpus=0.1)(pages)


if __name__ == "__main__":
    if "RAY_ADDRESS" not in os.environ:  # or your own cluster: ray start --head --resources='{"scanner": 2}'
        ray.init(num_cpus=4, resources=RESOURCES, include_dashboard=False, log_to_driver=False)
    run = start_sync(make_book, 6)
    print(run.wait())
    asked = {}
    for event in run.events_sync():
        data = event.data
        if event.type == "step.started":
            asked[data["step_id"]] = data["options"]
        elif event.type == "step.completed":
            where = f"node {data['node'][:8]} pid {data['worker_pid']}"
            print(f"{event.timestamp:%S.%f}  {data['step_id']:<7} {where}  asked {asked[data['step_id']]}")
