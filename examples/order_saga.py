"""A saga: each step names what undoes it. A run that fails undoes what it has done, the last step first.

    python examples/order_saga.py

The first order succeeds. The second order's parcel is lost at the third step. The payment is then given back
and the goods go back on their shelf, before the run fails with the carrier's error. A compensation is a step
like any other: it is recorded, tried again, and goes on after a crash.
"""

from pyworkflow_ray import FatalError, RunHandle, compensations, start_sync, step, workflow


class ParcelLost(FatalError):
    """The parcel is gone. Another attempt would change nothing."""


@step
def release(order: str, item: str) -> str:
    return f"{item} of {order} is back on its shelf"


@step(compensate=release)
def reserve(order: str, item: str) -> str:
    return f"{item} is in a box for {order}"


@step(max_retries=10, retry_delay="200ms")
def refund(order: str, cents: int, result: str) -> str:
    """Gets the arguments of `charge`, and its result."""
    return f"{result} is given back"


@step(compensate=refund)
def charge(order: str, cents: int) -> str:
    return f"payment of {cents / 100:.2f} for {order}"


@step
def ship(order: str, lost: bool) -> str:
    if lost:
        raise ParcelLost(f"the parcel for {order} fell off a lorry")
    return f"{order} has arrived"


@step
def apologize(order: str) -> str:
    return f"a letter to whoever waits for {order}"


@workflow
async def process_order(order: str, item: str, cents: int, lost: bool = False) -> str:
    compensations().add(apologize, order)  # belongs to no single step; runs last
    await reserve(order, item)
    await charge(order, cents)
    return await ship(order, lost)


def show(run: RunHandle[str]) -> None:
    for event in run.events_sync():
        if event.type == "step.completed":
            print(f"  {event.data['step_name']:<10} {event.data['result']}")
        elif event.type in ("step.failed", "workflow.failed"):
            what = event.data.get("step_name", "the run")
            print(f"  {what:<10} {event.data['error_type'].rpartition('.')[2]}: {event.data['error']}")


if __name__ == "__main__":
    for number, lost in ((17, False), (18, True)):
        run = start_sync(process_order, f"A-{number}", "box of pears", 1250, lost=lost)
        try:
            print(run.wait())
        except ParcelLost as error:
            print(f"A-{number} failed: {error}")
        show(run)
