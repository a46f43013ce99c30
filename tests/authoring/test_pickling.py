"""Steps and workflows travel: those of local files with their code, to processes that never saw them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WRITE = """
import sys, asyncio
from pydantic import BaseModel
from pyworkflow_ray.values.pickles import pickle_by_value
from pyworkflow_ray.authoring.steps import Step, step
from pyworkflow_ray.authoring.workflows import Workflow, workflow

RATE = 3

class Order(BaseModel):
    amount: int

@step(max_retries=7, num_cpus=2, retry_on=lambda error: isinstance(error, OSError))
def charge(order: Order) -> int:
    return order.amount * RATE

class Refund(Step):
    def __init__(self, share): self.share = share
    async def execute(self, amount: int) -> float:
        return amount * self.share

@workflow(tags=["shop"])
async def buy(amount: int) -> list:
    mine = charge.options(step_id="mine")
    return [await charge(Order(amount=amount)), await Refund(0.5)(amount), await mine({"amount": 1})]

class Buy(Workflow):
    async def run(self, amount: int) -> list:
        return [await charge(Order(amount=amount))]

charge(Order(amount=1))  # used, so that whatever is cached is there
from pyworkflow_ray.authoring.workflows import as_workflow
open(sys.argv[1], "wb").write(pickle_by_value((charge, charge.options(num_gpus=1), buy, as_workflow(Buy))))
"""

READ = """
import sys
from pyworkflow_ray.values.pickles import unpickle
from tests.engine.simulator import Simulation
charge, changed, buy, Buy = unpickle(open(sys.argv[1], "rb").read())
assert (charge.name, charge.step_options.max_retries) == ("charge", 7), charge
assert dict(changed.step_options.ray_options) == {"num_cpus": 2, "num_gpus": 1}
assert charge.step_options.retry_on(OSError()) and not charge.step_options.retry_on(ValueError())
assert buy.workflow_options.tags == ("shop",)
assert Simulation(buy, 4).run() == [12, 2.0, 3]
assert Simulation(Buy, 5).run() == [15]
print("read")
"""


def python(script: str, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_steps_and_workflows_of_a_script_run_in_a_process_that_never_saw_it(tmp_path: Path) -> None:
    python(WRITE, tmp_path / "pickle")
    assert python(READ, tmp_path / "pickle") == "read\n"
