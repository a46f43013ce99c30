"""What a shop does with an order."""

import asyncio
from pathlib import Path

from pyworkflow import FatalError, RetryableError, step, workflow


@step()
async def check(order_id: str, cents: int) -> dict:
    if cents <= 0:
        raise FatalError(f"order {order_id} costs nothing")
    return {"order_id": order_id, "cents": cents}


@step(max_retries=3, retry_delay="1s")
async def charge(order: dict) -> str:
    seen = Path(f"{order['order_id']}.seen")
    if not seen.exists():
        seen.touch()
        raise RetryableError("the payment gateway is busy", retry_after="1s")
    return f"{order['cents'] / 100:.2f} paid"


@step()
async def pack(order: dict) -> str:
    return f"a box for {order['order_id']}"


@step()
async def notify(order: dict, payment: str) -> str:
    return f"a mail: {payment}"


@workflow(durable=True)
async def process_order(order_id: str, cents: int) -> list:
    order = await check(order_id, cents)
    payment = await charge(order)
    return await asyncio.gather(pack(order), notify(order, payment))
