"""The codec: value and type survive, the text of each form is fixed, and damage is told as such.

The classes that take the tagged way must be installed ones, so the tests write a small package into a
folder called `site-packages`. Classes of this module are local, and take the way of the pickle.
"""

from __future__ import annotations

import dataclasses
import enum
import http
import math
import re
import subprocess
import sys
import textwrap
from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyworkflow_ray.exceptions import SerializationError
from pyworkflow_ray.values import codec
from pyworkflow_ray.values.codec import decode, describe, encode, preview
from pyworkflow_ray.values.tags import _READERS


@dataclasses.dataclass
class LocalOrder:
    id: str
    at: datetime | None = None


class LocalModel(pydantic.BaseModel):
    name: str
    at: datetime | None = None


class LocalStruct(msgspec.Struct):
    name: str
    n: int = 0


class LocalColor(enum.Enum):
    RED = 1


class LocalWord(str, enum.Enum):  # noqa: UP042  # the older spelling must work too
    YES = "yes"


class Meters(int):
    pass


class Title(str):
    __slots__ = ()


LocalPair = namedtuple("LocalPair", "a b")


def same(one: Any, other: Any) -> bool:  # a list of cases
    """Equal, and of one type, all the way down; NaN counts as equal to itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return bool(one.hex() == other.hex())
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, Decimal):
        return str(one) == str(other)
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, (set, frozenset)):
        return same(sorted(one, key=sort_key), sorted(other, key=sort_key))
    if isinstance(one, (datetime, time)):
        told = [
            (x.isoformat(), x.fold, x.tzname() if type(x.tzinfo) is timezone else str(x.tzinfo))
            for x in (one, other)
        ]
        return told[0] == told[1] and type(one.tzinfo) is type(other.tzinfo)
    return bool(one == other)


def sort_key(item: Any) -> str:
    return (
        f"{type(item).__name__}{item!r}"
        if not isinstance(item, frozenset)
        else f"f{sorted(map(sort_key, item))}"
    )


def survives(value: Any) -> bool:
    return same(decode(encode(value)), value)


# --- the property ---------------------------------------------------------------------------------------

any_text = st.text(st.characters(exclude_categories=()))
zones = st.none() | st.just(UTC) | st.timezones() | st.builds(
    timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23))
) | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)), any_text)  # fmt: skip
hashables = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    any_text,
    st.binary(),
    st.complex_numbers(),
    st.decimals().filter(lambda number: not number.is_snan()),
    st.uuids(),
    st.dates(),
    st.times(timezones=st.none() | st.just(UTC)),
    st.datetimes(timezones=zones),
    st.timedeltas(),
    st.fractions(),
    st.sampled_from(
        [http.HTTPStatus.OK, LocalColor.RED, LocalWord.YES, re.I, re.I | re.M, re.RegexFlag(0), ...]
    ),
    st.sampled_from(
        [int, http.HTTPStatus, math.pi, range(3), Meters(4), Title("a"), PureWindowsPath("c:/a")]
    ),
    any_text.map(PurePosixPath),
    st.builds(LocalPair, st.integers(), any_text),
)
keys = st.one_of(
    hashables, st.just("$"), st.tuples(hashables, hashables), st.frozensets(hashables, max_size=3)
)
anything = st.recursive(
    hashables | st.binary().map(bytearray) | st.builds(LocalOrder, any_text),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(any_text, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
        st.dictionaries(any_text, inner, max_size=2).map(OrderedDict),
        st.lists(inner, max_size=3).map(deque),
        st.builds(LocalPair, inner, inner),
    ),
    max_leaves=12,
)


@given(anything)
def test_value_and_type_survive(value: Any) -> None:
    text = encode(value)
    assert same(decode(text), value)
    assert same(decode(msgspec.Raw(text)), value)
    assert same(decode(text.decode()), value)


@given(anything)
def test_every_stored_value_can_be_looked_at(value: Any) -> None:
    text = encode(value)
    msgspec.json.encode(describe(text))
    assert len(preview(text, 50)) <= 50


plain_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text().filter(lambda key: key != "$"), inner),
    max_leaves=10,
)


@given(plain_json)
def test_plain_json_is_stored_as_it_is(value: Any) -> None:
    assert encode(value) == msgspec.json.encode(value)
    assert same(decode(encode(value)), value)
    assert describe(encode(value)) == value


KEYS = "$ value items class name fields set data base64 escaped days kind zone zone_name hash real repr type"
damaged = st.recursive(
    plain_json | st.sampled_from(sorted(_READERS)),
    lambda inner: st.dictionaries(st.sampled_from(KEYS.split()), inner),
)


@given(damaged)
def test_any_json_text_is_a_value_or_a_serialization_error(stored: Any) -> None:
    text = msgspec.json.encode(stored)
    describe(text)
    preview(text)
    try:
        decode(text)
    except SerializationError:
        return


@given(st.binary() | st.text())
def test_any_bytes_are_a_value_or_a_serialization_error(data: bytes | str) -> None:
    describe(data)
    try:
        decode(data)
    except SerializationError:
        return


# --- the storage format: these texts are in databases -----------------------------------------------------

BERLIN = ZoneInfo("Europe/Berlin")
GOLDEN: list[tuple[Any, str]] = [
    (None, "null"),
    (True, "true"),
    (1, "1"),
    (1.0, "1.0"),
    (-0.0, "-0.0"),
    (1e300, "1e300"),
    (2**64 - 1, "18446744073709551615"),
    (-(2**63), "-9223372036854775808"),
    ("é\n\x00", '"é\\n\\u0000"'),
    ([1, [2]], "[1,[2]]"),
    ({"b": 1, "a": None}, '{"b":1,"a":null}'),
    (2**64, '{"$":"int","value":"18446744073709551616"}'),
    (-(2**63) - 1, '{"$":"int","value":"-9223372036854775809"}'),
    (math.inf, '{"$":"float","value":"inf"}'),
    (-math.inf, '{"$":"float","value":"-inf"}'),
    (math.nan, '{"$":"float","value":"nan"}'),
    ("a\ud800", '{"$":"str","escaped":"a\\\\ud800"}'),
    ({"$": "tuple", "items": []}, '{"$":"dict","items":[["$","tuple"],["items",[]]]}'),
    ({1: "a", True and "1": "b"}, '{"$":"dict","items":[[1,"a"],["1","b"]]}'),
    ({(1, 2): 3}, '{"$":"dict","items":[[{"$":"tuple","items":[1,2]},3]]}'),
    ((), '{"$":"tuple","items":[]}'),
    ((1, (2,)), '{"$":"tuple","items":[1,{"$":"tuple","items":[2]}]}'),
    ({10, 9}, '{"$":"set","items":[9,10]}'),
    (frozenset("ba"), '{"$":"frozenset","items":["a","b"]}'),
    (b"hi", '{"$":"bytes","base64":"aGk="}'),
    (bytearray(b"hi"), '{"$":"bytearray","base64":"aGk="}'),
    (1 - 2j, '{"$":"complex","real":1.0,"imag":-2.0}'),
    (date(2026, 3, 1), '{"$":"date","value":"2026-03-01"}'),
    (time(12, 30), '{"$":"time","value":"12:30:00"}'),
    (time(12, tzinfo=UTC), '{"$":"time","value":"12:00:00+00:00"}'),
    (datetime(2026, 3, 1, 12), '{"$":"datetime","value":"2026-03-01T12:00:00"}'),
    (datetime(2026, 3, 1, 12, tzinfo=UTC), '{"$":"datetime","value":"2026-03-01T12:00:00+00:00"}'),
    (
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN),
        '{"$":"datetime","value":"2026-10-25T02:30:00+01:00","zone":"Europe/Berlin","fold":1}',
    ),
    (
        datetime(2026, 3, 1, tzinfo=timezone(timedelta(hours=1), "CET")),
        '{"$":"datetime","value":"2026-03-01T00:00:00+01:00","zone_name":"CET"}',
    ),
    (timedelta(days=-1, seconds=5), '{"$":"timedelta","days":-1,"seconds":5,"microseconds":0}'),
    (Decimal("1.10"), '{"$":"decimal","value":"1.10"}'),
    (Decimal("sNaN5"), '{"$":"decimal","value":"sNaN5"}'),
    (Decimal("-0E+3"), '{"$":"decimal","value":"-0E+3"}'),
    (UUID(int=1), '{"$":"uuid","value":"00000000-0000-0000-0000-000000000001"}'),
    (PurePosixPath("a/b"), '{"$":"path","kind":"PurePosixPath","value":"a/b"}'),
    (PureWindowsPath("c:/a"), '{"$":"path","kind":"PureWindowsPath","value":"c:\\\\a"}'),
    (http.HTTPStatus.OK, '{"$":"enum","class":"http:HTTPStatus","name":"OK"}'),
    (re.I, '{"$":"enum","class":"re:RegexFlag","name":"IGNORECASE"}'),
    (re.I | re.M, '{"$":"enum","class":"re:RegexFlag","name":"IGNORECASE|MULTILINE","value":10}'),
]


@pytest.mark.parametrize(("value", "text"), GOLDEN, ids=[text for _, text in GOLDEN])
def test_the_text_of_a_value_stays_what_it_is(value: Any, text: str) -> None:
    assert encode(value).decode() == text
    assert same(decode(text), value)


SHOP_GOLDEN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a dataclass": (
        lambda shop: shop.Order("a", (1,)),
        '{"$":"dataclass","class":"shop_models:Order",'
        '"fields":{"id":"a","lines":{"$":"tuple","items":[1]},"total":0.0}}',
    ),
    "a frozen dataclass with slots": (
        lambda shop: shop.Point(1, [2]),
        '{"$":"dataclass","class":"shop_models:Point","fields":{"x":1,"y":[2]}}',
    ),
    "a model": (
        lambda shop: shop.Customer(name="x", tags=("t",), more=1),
        '{"$":"pydantic","class":"shop_models:Customer","fields":{"name":"x","tags":{"$":"tuple","items":["t"]}},'
        '"set":["more","name","tags"],"extra":{"more":1},"private":{"_seen":null}}',
    ),
    "a root model": (
        lambda shop: shop.Numbers([1, 2]),
        '{"$":"pydantic","class":"shop_models:Numbers","fields":{"root":[1,2]},"set":["root"]}',
    ),
    "a struct": (
        lambda shop: shop.Item("s", Decimal(1)),
        '{"$":"struct","class":"shop_models:Item","fields":{"sku":"s","price":{"$":"decimal","value":"1"}}}',
    ),
    "a named tuple": (
        lambda shop: shop.Pair(1),
        '{"$":"namedtuple","class":"shop_models:Pair","fields":{"left":1,"right":null}}',
    ),
    "a subclass of a named tuple": (
        lambda shop: shop.NamedPair(1, 2),
        '{"$":"namedtuple","class":"shop_models:NamedPair","fields":{"a":1,"b":2}}',
    ),
    "an enum's alias": (
        lambda shop: shop.Color.ROUGE,
        '{"$":"enum","class":"shop_models:Color","name":"RED"}',
    ),
    "an int enum": (lambda shop: shop.Level.LOW, '{"$":"enum","class":"shop_models:Level","name":"LOW"}'),
    "a str enum": (lambda shop: shop.Word.YES, '{"$":"enum","class":"shop_models:Word","name":"YES"}'),
    "a flag of nothing": (
        lambda shop: shop.Right(0),
        '{"$":"enum","class":"shop_models:Right","name":null,"value":0}',
    ),
}


@pytest.mark.parametrize("kind", SHOP_GOLDEN)
def test_the_text_of_an_instance_stays_what_it_is(kind: str, shop: ModuleType) -> None:
    make, text = SHOP_GOLDEN[kind]
    value = make(shop)
    assert encode(value).decode() == text
    again = decode(text)
    assert type(again) is type(value)
    assert again == value


# --- instances --------------------------------------------------------------------------------------------


def test_a_dict_holding_the_tag_key_is_not_mangled() -> None:
    for value in (
        {"$": "pickle", "data": "x"},
        {"$": {"$": None}},
        [{"$": 1}],
        {"a": {"$": "blob", "hash": "0" * 64}},
    ):
        assert survives(value)
        assert codec.blob_reference(encode(value)) is None


def test_equal_sets_have_equal_text() -> None:
    words = [f"word {n}" for n in range(50)]
    assert encode(set(words)) == encode({*words[25:], *words[:25]})
    mixed = [*words, *range(50), (1, 2), None, b"x", 1.5]
    assert encode(frozenset(mixed)) == encode(frozenset(reversed(mixed)))


def test_an_int_of_many_thousand_digits_survives() -> None:
    assert survives(7**20_000)
    assert survives([-(7**20_000)])


def test_what_a_post_init_did_is_not_done_again(shop: ModuleType) -> None:
    assert survives(shop.CheckedOnce(1))
    frozen = shop.Frozen(n=1)
    frozen.__dict__["memo"] = (1,)
    again = decode(encode(frozen))
    assert (again, again.memo) == (frozen, (1,))
    assert b'"struct"' in encode(frozen)


def test_a_models_private_extra_and_set_fields_survive(shop: ModuleType) -> None:
    model = shop.Customer(name="x", **{"$": (1,)})
    model._seen = {1, 2}
    again = decode(encode(model))
    assert again == model
    assert again.model_fields_set == {"name", "$"}
    assert again.model_extra == {"$": (1,)}
    assert again._seen == {1, 2}
    again.tags = ("later",)
    assert again.model_dump()["tags"] == ("later",)


def with_attribute(value: Any, **attributes: Any) -> Any:
    for name, attribute in attributes.items():
        object.__setattr__(value, name, attribute)
    return value


def without_attribute(value: Any, name: str) -> Any:
    object.__delattr__(value, name)
    return value


@pytest.mark.parametrize(
    "make",
    [
        lambda shop: with_attribute(shop.Order("a"), note="more than the fields"),
        lambda shop: without_attribute(shop.Order("a"), "lines"),
        lambda shop: with_attribute(shop.OnSlots(1), memo=3),
        lambda shop: shop.PicklesItself(1),
        lambda shop: shop.FieldedDict(n=1),
        lambda shop: with_attribute(shop.NamedPair(1, 2), note=1),
        lambda shop: shop.Number(3),
        lambda shop: shop.Customer.model_construct(tags=()),
    ],
)
def test_an_instance_that_is_more_or_less_than_its_fields_is_pickled(make: Any, shop: ModuleType) -> None:
    value = make(shop)
    text = encode(value)
    assert text.startswith(b'{"$":"pickle"')
    again = decode(text)
    assert type(again) is type(value)
    assert getattr(again, "__dict__", None) == getattr(value, "__dict__", None)
    assert getattr(again, "memo", None) == getattr(value, "memo", None)


def test_cached_properties_survive(shop: ModuleType) -> None:
    for value in (shop.Order("a"), shop.Customer(name="a")):
        assert value.slow == 3
        assert decode(encode(value)).__dict__ == value.__dict__


@pytest.mark.parametrize(
    "value",
    [
        Meters(3),
        Title("x"),
        OrderedDict(a=1),
        defaultdict(list, a=[1]),
        Counter("aab"),
        deque([1], maxlen=3),
        UserDict(a=1),
        LocalOrder("a", datetime(2026, 1, 1)),
        LocalStruct("a", 3),
        LocalModel(name="a", at=datetime(2026, 1, 1, tzinfo=UTC)),
        LocalPair(1, 2),
        LocalColor.RED,
        LocalWord.YES,
        Fraction(1, 3),
        range(3),
        slice(1, 2),
        NotImplemented,
        UTC,
        BERLIN,
        time(1, tzinfo=timezone(timedelta(hours=1), "x")),
        math.floor,
        LocalOrder,
    ],
    ids=repr,
)
def test_a_subclass_or_a_class_of_this_file_keeps_its_exact_type(value: Any) -> None:
    again = decode(encode({"in": [value]}))["in"][0]
    assert type(again) is type(value)
    assert again == value


def test_a_datetime_of_a_zone_of_the_users_own_is_pickled() -> None:
    class Odd(timezone.__base__):  # type: ignore[misc,name-defined]
        def utcoffset(self, at: Any) -> timedelta:
            return timedelta(hours=3)

    assert decode(encode(datetime(2026, 1, 1, tzinfo=Odd()))).utcoffset() == timedelta(hours=3)


def test_the_encoder_runs_no_code_of_a_tagged_instance(
    shop: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = encode([shop.Point(1), shop.Color.RED])
    calls: list[str] = []
    for name in ("__repr__", "__eq__", "__hash__", "__str__"):
        monkeypatch.setattr(shop.Point, name, lambda *args, name=name: calls.append(name))
    assert encode([shop.Point(1), shop.Color.RED]) == text
    assert not calls


# --- elsewhere --------------------------------------------------------------------------------------------


def run_elsewhere(script: str, *args: str, path: Path | None = None) -> str:
    environment = {"PYTHONPATH": str(path)} if path else {}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *args],
        capture_output=True,
        text=True,
        env=environment,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_classes_of_a_script_and_of_a_local_module_survive_where_neither_is(tmp_path: Path) -> None:
    (tmp_path / "local_orders.py").write_text(
        "import dataclasses, enum, pydantic, msgspec\n"
        "@dataclasses.dataclass\nclass Order:\n    id: str\n"
        "class Color(enum.Enum):\n    RED = 1\n"
        "class Model(pydantic.BaseModel):\n    n: int\n"
        "class Struct(msgspec.Struct):\n    n: int\n"
    )
    written = run_elsewhere(
        """
        import dataclasses, enum, pydantic, local_orders
        from pyworkflow_ray.values import modules
        from pyworkflow_ray.values.codec import encode
        modules.set_naming(modules.names_nothing)
        @dataclasses.dataclass
        class Order: id: str
        class Model(pydantic.BaseModel): n: int
        class Color(enum.Enum): RED = 1
        mine = [Order("mine"), Model(n=1), Color.RED]
        local = [local_orders.Order("local"), local_orders.Color.RED, local_orders.Model(n=2)]
        print(encode(mine + local).decode())
        """,
        path=tmp_path,
    )
    read = run_elsewhere(
        """
        import sys
        from pyworkflow_ray.values.codec import decode
        print(decode(sys.argv[1]))
        """,
        written,
    )
    assert read == (
        "[Order(id='mine'), Model(n=1), <Color.RED: 1>, Order(id='local'), <Color.RED: 1>, Model(n=2)]"
    )
