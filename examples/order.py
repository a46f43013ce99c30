"""Two orders: one payment is tried again, one card is declined for good and the order is undone.

    python examples/order.py

For the first order the payment gateway does not answer twice; the third attempt succeeds. The second order's
card is declined. That is a `FatalError`, so there is no other attempt. The workflow catches it with a plain
`try` and `except`, and puts the goods back on their shelf.
"""

from dataclasses import dataclass

from pyworkflow_ray import FatalError, get_context, run_workflow, step, workflow


class CardDeclined(FatalError):
    """The bank has said no. Another attempt would change nothing."""


@dataclass
class Order:
    id: str
    item: str
    cents: int
    card: str


@step
def reserve(order: Order) -> str:
    return f"box of {order.item}"


@step(max_retries=5, retry_delay="200ms")
def charge(order: Order) -> str:
    context = get_context()
    if order.card.endswith("0002"):
        raise CardDeclined(f"card {order.card} was declined")
    if context.attempt < 3:
        raise ConnectionError("the payment gateway does not answer")
    # The key is the same at every attempt. A provider that has seen it does not charge a second time.
    return f"payment of {order.cents / 100:.2f} under {context.idempotency_key}, attempt {context.attempt}"


@step
def release(reservation: str) -> str:
    return f"{reservation} is back on its shelf"


@step
async def ship(order: Order, reservation: str) -> str:
    return f"{reservation} is on its way"


@workflow
async def process_order(order: Order) -> list[str]:
    reservation = await reserve(order)
    try:
        payment = await charge(order)
    except CardDeclined as declined:
        return [str(declined), await release(reservation)]
    return [payment, await ship(order, reservation)]


if __name__ == "__main__":
    for order in (
        Order("A-17", "pears", 1250, card="4242 4242 4242 4242"),
        Order("A-18", "plums", 990, card="4000 0000 0000 0002"),
    ):
        print(f"order {order.id}")
        for line in run_workflow(process_order, order):
            print(f"  {line}")
