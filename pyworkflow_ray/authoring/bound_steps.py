"""Steps that are methods, bound to their object."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable
from typing import Any

from pyworkflow_ray.authoring.awaited_calls import must_be_awaited
from pyworkflow_ray.callables import shown_signature, without_first


class BoundStep:
    """A step that is a method, with its object: ``await shop.charge(order)``.

    The object is the first argument of each call. So it must be a value that can be stored.

    Args:
        step: The `StepFunction`.
        first: The object; the class, if the step is a class method.
    """

    def __init__(self, step: Any, first: Any) -> None:
        self.step, self.first = step, first

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.step(self.first, *args, **kwargs)

    def options(self, **overrides: Any) -> BoundStep:
        """The same with other options, for one call; see `StepFunction.options`."""
        return BoundStep(self.step.options(**overrides), self.first)

    @must_be_awaited("map()")
    async def map(
        self,
        *iterables: Iterable[Any],
        max_in_flight: int | None = None,
        batch_size: int | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """The results of one call for each item; see `StepFunction.map`."""
        firsts = (itertools.repeat(self.first),) if iterables else ()
        results: list[Any] = await self.step.map(
            *firsts,
            *iterables,
            max_in_flight=max_in_flight,
            batch_size=batch_size,
            return_exceptions=return_exceptions,
        )
        return results

    @property
    def name(self) -> str:
        """The step's name."""
        name: str = self.step.name
        return name

    @property
    def __method__(self) -> Any:
        return self.step.fn

    @property
    def __signature__(self) -> inspect.Signature | None:
        return without_first(shown_signature(self.step.fn))

    def __repr__(self) -> str:
        return f"<step {self.step.name!r} of {self.first!r}>"
