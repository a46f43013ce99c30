"""A workflow that waits for a decision, and the classes that its two scripts share with it."""

from __future__ import annotations

import dataclasses
import enum

from pyworkflow_ray import receive, step, workflow


class Decision(enum.Enum):
    APPROVED = "approved"
    DECLINED = "declined"


@dataclasses.dataclass(frozen=True)
class Answer:
    decision: Decision
    by: str


class DeclinedError(Exception):
    """Somebody has declined an order."""


@step
def ship(order: str) -> str:
    return f"{order} is on its way"


@workflow
async def place_order(order: str) -> str:
    answer: Answer = await receive("answer")
    # `is` and `==` hold: the other script's Decision and this one are the same class.
    if answer.decision is Decision.DECLINED:
        raise DeclinedError(f"{answer.by} has declined {order}")
    return f"{await ship(order)}, approved by {answer.by}"
