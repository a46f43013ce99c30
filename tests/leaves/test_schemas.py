"""What a hook's schema makes of a payload: an instance stays as it is, and data becomes one or is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import pytest
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, computed_field, field_serializer
from typing_extensions import TypedDict

from pyworkflow_ray.engine.retries import RetryPolicy
from pyworkflow_ray.exceptions import ConfigurationError, HookValidationError
from pyworkflow_ray.values import codec
from pyworkflow_ray.values.schemas import schema_text, validated


class Aliased(BaseModel):
    approved: bool = Field(alias="isApproved")


class Secret(BaseModel):
    password: SecretStr


class Holding(BaseModel):
    data: bytes
    anything: Any = None


class Excluded(BaseModel):
    a: int
    b: int = Field(exclude=True)


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return 2 * self.a


class Serialized(BaseModel):
    when: datetime

    @field_serializer("when")
    def written(self, when: datetime) -> str:
        return when.strftime("%d.%m.%Y")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    when: datetime
    amount: Decimal


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[str]


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class Private(BaseModel):
    a: int
    _note: str = "none"


class Base(BaseModel):
    a: int


class Sub(Base):
    b: int


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


@dataclass
class Point:
    x: int
    y: Any = None


@dataclass
class Point3(Point):
    z: int = 0


class Seat(NamedTuple):
    row: int
    place: Any


class Ticket(TypedDict):
    seat: int
    price: Decimal


class Parcel(msgspec.Struct):
    weight: float
    content: Any = None


class Letter(Parcel):
    stamp: str = ""


def _private() -> Private:
    made = Private(a=1)
    made._note = "kept"
    return made


INSTANCES: list[tuple[Any, Any]] = [
    (Aliased, Aliased(isApproved=True)),
    (Secret, Secret(password=SecretStr("s3cret"))),
    (Holding, Holding(data=b"\xff\x00", anything=(1, {2: {3}}))),
    (Excluded, Excluded(a=1, b=2)),
    (Computed, Computed(a=1)),
    (Serialized, Serialized(when=datetime(2026, 1, 2))),
    (Strict, Strict(when=datetime(2026, 1, 2), amount=Decimal("1.10"))),
    (Pet, Cat(kind="cat", lives=9)),
    (Private, _private()),
    (Base, Sub(a=1, b=2)),
    (Extra, Extra(a=1, more=(1, 2))),  # type: ignore[call-arg]
    (list[Base], [Base(a=1), Sub(a=1, b=2)]),
    (dict[str, Base], {"a": Sub(a=1, b=2)}),
    (Base | None, None),
    (Base | None, Sub(a=1, b=2)),
    (Point, Point(1, (1, 2))),
    (Point, Point3(1, b"\xff", 3)),
    (RetryPolicy, RetryPolicy(initial=timedelta(seconds=3))),
    (Seat, Seat(1, (2, 3))),
    (Ticket, {"seat": 1, "price": Decimal("1.10")}),
    (Parcel, Parcel(1.5, (1, 2))),
    (Parcel, Letter(1.5, stamp="x")),
    (list[Parcel], [Parcel(1.5)]),
]


@pytest.mark.parametrize(("schema", "payload"), INSTANCES, ids=lambda each: type(each).__name__)
def test_an_instance_comes_out_of_the_log_and_its_schema_as_it_was(schema: Any, payload: Any) -> None:
    got = validated(schema, codec.decode(codec.encode(payload)), "h")
    assert got == payload
    assert type(got) is type(payload)
    assert repr(got) == repr(payload)
    assert getattr(got, "_note", None) == getattr(payload, "_note", None)


@pytest.mark.parametrize("point", [Point(1, (1, 2)), Point3(1, b"\xff", 3)])
def test_an_instance_of_a_dataclass_is_the_same_object(point: Point) -> None:
    assert validated(Point, point, "h") is point


@pytest.mark.parametrize(
    ("schema", "payload", "value"),
    [
        (Aliased, {"isApproved": True}, Aliased(isApproved=True)),
        (Secret, {"password": "s3cret"}, Secret(password=SecretStr("s3cret"))),
        (Computed, {"a": "1"}, Computed(a=1)),
        (Pet, {"kind": "dog", "tricks": []}, Dog(kind="dog", tricks=[])),
        (list[Base], [{"a": 1}], [Base(a=1)]),
        (Point, {"x": "1"}, Point(1)),
        (Seat, [1, 2], Seat(1, 2)),
        (Parcel, {"weight": 2}, Parcel(2.0)),
        (list[Parcel], [{"weight": 2}], [Parcel(2.0)]),
    ],
    ids=lambda each: type(each).__name__,
)
def test_data_becomes_an_instance(schema: Any, payload: Any, value: Any) -> None:
    assert validated(schema, payload, "h") == value
    assert schema_text(schema) is not None


@pytest.mark.parametrize(
    ("schema", "payload", "said"),
    [
        (Aliased, {"approved": True}, "isApproved: Field required"),
        (Computed, {"a": 1, "twice": 2}, "twice: Extra inputs are not permitted"),
        (Strict, {"when": "2026-01-02", "amount": "1"}, "when: Input should be a valid datetime"),
        (list[Base], [{"a": 1}, {"a": "x"}], "1.a: Input should be a valid integer"),
        (Base, Point(1), "a: Field required"),
        (int, "many", "payload: Input should be a valid integer"),
        (Parcel, {"weight": "much"}, r"Expected `float`, got `str` - at `\$.weight`"),
        (Secret, {"password": ["s3cret"]}, "password: Input should be a valid string"),
    ],
)
def test_what_does_not_fit_is_refused_without_being_shown(schema: Any, payload: Any, said: str) -> None:
    with pytest.raises(HookValidationError, match=said) as caught:
        validated(schema, payload, "h")
    assert "s3cret" not in str(caught.value)


def test_a_class_that_nothing_validates_is_no_schema() -> None:
    class Opaque:
        pass

    with pytest.raises(ConfigurationError, match="cannot describe a hook's payload"):
        schema_text(Opaque)


def test_a_struct_is_described_to_who_is_asked_for_it() -> None:
    described = json.loads(schema_text(Parcel) or "")
    assert described["$defs"]["Parcel"]["required"] == ["weight"]


# --- classes that another process has as its own ----------------------------------------------------------


def _order() -> tuple[Any, Any]:
    class Inner(BaseModel):
        secret: SecretStr
        hidden: int = Field(exclude=True)

    class Order(BaseModel):
        id_: int = Field(validation_alias=AliasChoices("id", "number"))
        lines: list[Inner]
        first: Inner

    return Inner, Order


def test_an_instance_of_the_class_as_another_process_has_it_fits() -> None:
    mine, (inner, order) = _order()[1], _order()
    line = inner(secret=SecretStr("s"), hidden=2)
    got = validated(mine, order(id=1, lines=[line], first=line), "h")
    assert type(got) is mine
    assert got.lines[0].secret.get_secret_value() == "s"
    assert (got.id_, got.lines[0].hidden, got.first.hidden) == (1, 2, 2)
