"""What an annotation makes of its argument: as little as a plain call would, and clear refusals."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import (
    AsyncIterator,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Optional, Protocol

import pytest
from pydantic import BaseModel, Field

from pyworkflow_ray.authoring.arguments import Arguments
from pyworkflow_ray.exceptions import StepValidationError

if TYPE_CHECKING:
    from nowhere import Order  # type: ignore[import-not-found]


class Colour(StrEnum):
    RED = "red"


class Account(BaseModel):
    number: int


class Savings(Account):
    rate: float


class Opaque:
    """A class that pydantic knows nothing of."""


@dataclass
class Parcel:
    weight: float
    content: Opaque | None = None
    tags: list[str] = field(default_factory=list)


class Closable(Protocol):
    def close(self) -> None: ...


def given(function: Any, *args: Any, **kwargs: Any) -> Any:
    """The first argument as the function gets it."""
    args, kwargs = Arguments(function, "step 'it'").check(args, kwargs)
    return args[0] if args else next(iter(kwargs.values()))


# --- iterables --------------------------------------------------------------------------------------


def of_ints(xs: Iterable[int]) -> None: ...
def of_any(xs: Iterable) -> None: ...  # type: ignore[type-arg]
def of_none(xs: Iterable[int] | None = None) -> None: ...
def of_optional(xs: Optional[Iterable[int]] = None) -> None: ...  # noqa: UP045
def of_iterator(xs: Iterator[int]) -> None: ...
def of_generator(xs: Generator[int, None, None]) -> None: ...
def of_annotated(xs: Annotated[Iterable[int], "whatever"]) -> None: ...
def of_many(*xs: Iterable[int]) -> None: ...
def of_collection(xs: Collection[int]) -> None: ...
def of_sequence(xs: Sequence[int]) -> None: ...


ITERABLES = [of_ints, of_any, of_none, of_optional, of_iterator, of_generator, of_annotated, of_many]


@pytest.mark.parametrize("function", [*ITERABLES, of_collection], ids=lambda function: function.__name__)
@pytest.mark.parametrize("value", [[1, 2], (1, 2), {1, 2}, frozenset({1}), deque([1])])
def test_an_iterable_stays_what_it_is(function: Any, value: Any) -> None:
    got = given(function, value)
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
    "value", [range(3), {1: "a"}, {1: "a"}.keys(), "text", iter([1])], ids=lambda value: type(value).__name__
)
def test_an_iterable_whose_items_nobody_can_look_at_is_the_same_object(value: Any) -> None:
    assert given(of_ints, value) is value


def test_the_items_of_an_iterable_are_checked() -> None:
    assert given(of_ints, ["1", 2]) == [1, 2]
    with pytest.raises(StepValidationError, match=r"'xs\[1\]' of step 'it' must be .*Iterable\[int\]"):
        given(of_ints, [1, "x"])
    with pytest.raises(StepValidationError, match="Input should be iterable"):
        given(of_ints, 3)


def of_deep(xs: dict[str, list[Iterable[int]]]) -> None: ...
def of_nested(xs: Iterable[Iterable[int]]) -> None: ...
def of_accounts(xs: Iterable[Account]) -> None: ...
def of_async(xs: AsyncIterator[int]) -> None: ...


def test_an_iterable_is_found_wherever_it_is_in_an_annotation() -> None:
    assert given(of_deep, {"a": [(1, 2), [3]]}) == {"a": [(1, 2), [3]]}
    assert given(of_nested, ((1, 2), [3])) == ((1, 2), [3])
    assert given(of_accounts, [{"number": "3"}]) == [Account(number=3)]
    with pytest.raises(StepValidationError, match=r"xs\[0\]\[1\]"):
        given(of_nested, [(1, "x")])
    with pytest.raises(StepValidationError, match="Input should be iterable"):
        given(of_async, [1])


# --- instances --------------------------------------------------------------------------------------


def of_dict(x: dict) -> None: ...  # type: ignore[type-arg]
def of_int(x: int) -> None: ...
def of_text(x: str) -> None: ...
def of_date(x: date) -> None: ...
def of_account(x: Account) -> None: ...
def of_closable(x: Closable) -> None: ...
def of_mapping(x: Mapping[str, int]) -> None: ...


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (of_dict, OrderedDict(a=1)),
        (of_int, True),
        (of_text, Colour.RED),
        (of_date, datetime(2026, 1, 2, 3, 4)),
        (of_account, Savings(number=1, rate=0.5)),
        (of_account, Account.model_construct(number="three")),
        (of_closable, Opaque()),
    ],
    ids=lambda each: getattr(each, "__name__", type(each).__name__),
)
def test_an_instance_of_the_annotated_class_is_the_same_object(function: Any, value: Any) -> None:
    assert given(function, value) is value


def of_parcel(x: Parcel) -> None: ...
def of_parcels(x: list[Parcel]) -> None: ...


def test_a_dataclass_is_made_of_a_dict_also_with_fields_of_any_class() -> None:
    assert given(of_parcel, {"weight": "2", "tags": ["a"]}) == Parcel(2.0, None, ["a"])
    assert given(of_parcels, [{"weight": 1}]) == [Parcel(1.0)]
    parcel = Parcel(1, Opaque())
    assert given(of_parcel, parcel) is parcel
    with pytest.raises(StepValidationError, match=r"\"x\['weight'\]\" of step 'it' must be .*Parcel"):
        given(of_parcel, {"weight": "much"})
    with pytest.raises(StepValidationError, match=r"x\[0\]\['weight'\]"):
        given(of_parcels, [{"weight": "much"}])


# --- annotations that cannot be resolved ---------------------------------------------------------------


def of_unknown(order: Order, amount: int, many: Annotated[list[int], Field(max_length=1)]) -> None: ...
def of_locks(lock: threading.Lock, amount: int) -> None: ...


def test_an_annotation_that_cannot_be_resolved_leaves_the_others() -> None:
    check = Arguments(of_unknown, "step 'it'").check
    assert check(("anything", "3", ["1"]), {}) == (("anything", 3, [1]), {})
    with pytest.raises(StepValidationError, match="'amount' of step 'it' must be int"):
        check(("anything", "much", [1]), {})
    with pytest.raises(StepValidationError, match="'many' of step 'it'"):
        check(("anything", 3, [1, 2]), {})


def test_a_class_that_is_defined_in_a_function_leaves_the_others() -> None:
    class Local:
        pass

    def function(x: Local, amount: int) -> None: ...

    with pytest.raises(StepValidationError, match="'amount'"):
        given(function, Local(), "much")
