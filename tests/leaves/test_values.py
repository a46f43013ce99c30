"""The codec: value and type survive, the text of each form is fixed, and damage is told as such.

The classes that take the tagged way must be installed ones, so the tests write a small package into a
folder called `site-packages`. Classes of this module are local, and take the way of the pickle.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import enum
import http
import importlib
import math
import pickle
import re
import subprocess
import sys
import textwrap
import threading
from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
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

from pyworkflow_ray import values
from pyworkflow_ray.exceptions import PayloadTooLargeError, SerializationError
from pyworkflow_ray.value_tags import _READERS
from pyworkflow_ray.values import Values, decode, describe, encode, preview

SHOP = """
    import dataclasses, enum, functools
    from collections import namedtuple
    from typing import Any, NamedTuple
    import msgspec, pydantic

    @dataclasses.dataclass
    class Order:
        id: str
        lines: Any = ()
        total: float = dataclasses.field(init=False, default=0.0)

        @functools.cached_property
        def slow(self): return 3

    @dataclasses.dataclass(frozen=True, slots=True)
    class Point:
        x: Any
        y: Any = dataclasses.field(default_factory=list)

    @dataclasses.dataclass
    class CheckedOnce:
        n: int
        def __post_init__(self): self.n += 1

    @dataclasses.dataclass
    class KeepsMore:
        n: int
        __slots__ = ("n", "hidden")

    class SlotBase:
        __slots__ = ("memo",)

    @dataclasses.dataclass
    class OnSlots(SlotBase):
        n: int

    @dataclasses.dataclass
    class PicklesItself:
        n: int
        def __getstate__(self): return {"n": self.n}

    @dataclasses.dataclass(eq=True)
    class FieldedDict(dict):
        n: int = 0

    class Customer(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow")
        name: str
        tags: tuple[str, ...] = ()
        _seen: Any = pydantic.PrivateAttr(default=None)

        @functools.cached_property
        def slow(self): return 3

    class Numbers(pydantic.RootModel[list[int]]):
        pass

    class Item(msgspec.Struct):
        sku: str
        price: Any = None

    class Frozen(msgspec.Struct, frozen=True, kw_only=True, dict=True):
        n: int
        def __post_init__(self): msgspec.structs.force_setattr(self, "n", self.n + 1)

    class Pair(NamedTuple):
        left: Any
        right: Any = None

    class NamedPair(namedtuple("NamedPair", "a b")):
        pass

    class Color(enum.Enum):
        RED = 1
        ROUGE = 1
        BLUE = "blue"

    class Level(enum.IntEnum):
        LOW = 1

    class Word(str, enum.Enum):
        YES = "yes"

    class Right(enum.Flag):
        READ = 1
        WRITE = 2

    class Number(int):
        pass
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("env") / "site-packages"
    folder.mkdir()
    (folder / "shop_models.py").write_text(textwrap.dedent(SHOP))
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield importlib.import_module("shop_models")
    sys.path.remove(str(folder))
    del sys.modules["shop_models"]


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


def same(one: Any, other: Any) -> bool:  # noqa: PLR0911  # a list of cases
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


@pytest.mark.parametrize(("value", "text"), GOLDEN, ids=[repr(value) for value, _ in GOLDEN])
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
        assert values.blob_reference(encode(value)) is None


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
        from pyworkflow_ray.values import encode
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
        from pyworkflow_ray.values import decode
        print(decode(sys.argv[1]))
        """,
        written,
    )
    assert read == (
        "[Order(id='mine'), Model(n=1), <Color.RED: 1>, Order(id='local'), <Color.RED: 1>, Model(n=2)]"
    )


# --- what cannot be stored --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (threading.Lock(), r"\$: a value of type _thread.lock"),
        (
            {"orders": [1, 2, {"lock": threading.Lock()}]},
            r"\$\.orders\[2\]\.lock: a value of type _thread\.lock",
        ),
        ({"a b": (1, threading.Lock())}, r"\$\['a b'\]\[1\]: "),
        ({3: threading.Lock()}, r"\$\[3\]: "),
        ({(1, 2): threading.Lock()}, r"\$\[a tuple\]: "),
        ({"f": (n for n in "")}, r"\$\.f: a value of type builtins.generator"),
    ],
)
def test_what_cannot_be_stored_is_told_by_place_and_type(value: Any, place: str) -> None:
    with pytest.raises(SerializationError, match="Cannot store " + place) as caught:
        encode(value)
    assert "Pass data that describes it" in str(caught.value)
    assert isinstance(caught.value.__cause__, Exception)


def test_a_field_is_told_right_below_its_instance(shop: ModuleType) -> None:
    with pytest.raises(SerializationError, match=r"Cannot store order\.lines\[0\]: "):
        encode(shop.Order("a", [threading.Lock()]), path="order")


def test_a_value_inside_a_pickled_one_is_told_by_the_pickled_one() -> None:
    with pytest.raises(SerializationError, match=r"Cannot store \$\[0\]: .*LocalOrder .*_thread.lock"):
        encode([LocalOrder(threading.Lock())])  # type: ignore[arg-type]


def test_a_container_that_contains_itself_survives() -> None:
    knot: list[Any] = [1]
    knot.append({"again": knot})
    again = decode(encode(knot))
    assert again[1]["again"] is again


def test_a_container_that_contains_itself_and_a_lock_is_refused() -> None:
    knot: list[Any] = [threading.Lock()]
    knot.insert(0, knot)
    with pytest.raises(SerializationError, match="contains itself"):
        encode(knot)


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def test_deep_nesting_survives_and_deeper_nesting_is_refused() -> None:
    assert encode(nested(90)) == b"[" * 91 + b"]" * 91
    assert survives(nested(90))
    assert survives(nested(150))
    for value in (nested(10_000), {"a": nested(10_000)}, (nested(10_000),)):
        with pytest.raises(SerializationError, match="nests deeper"):
            encode(value)
    for text in (b"[" * 10_000 + b"]" * 10_000, b'{"$":"tuple","items":[' * 300 + b"]}" * 300):
        with pytest.raises(SerializationError):
            decode(text)


def test_little_stack_left_is_told_as_such() -> None:
    def descend(value: Any) -> bytes:
        try:
            return descend(value)
        except RecursionError:
            return encode(value)

    with contextlib.suppress(SerializationError):
        assert decode(descend(nested(60))) == nested(60)


def test_a_repr_that_raises_is_told_as_such() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise ValueError("no")

    assert describe(encode(Shy()))["repr"] == "<its repr raised ValueError>"


def test_a_long_or_odd_repr_is_cut() -> None:
    class Loud:
        def __repr__(self) -> str:
            return "\ud800" + "x" * 1000

    shown = describe(encode(Loud()))["repr"]
    assert shown.startswith("\\ud800xxx")
    assert shown.endswith("...")


# --- damage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("nope", "no JSON"),
        ("\ud800", "no UTF-8"),
        ('{"$":"tuple2"}', "its tag 'tuple2' is unknown"),
        ('{"$":3}', "its tag 3 is unknown"),
        ('{"$":null}', "is unknown"),
        ('{"$":["tuple"]}', "is unknown"),
        ('{"$":"tuple"}', "tagged 'tuple': KeyError: 'items'"),
        ('{"$":"tuple","items":"abc"}', "not of type list"),
        ('{"$":"set","items":[[]]}', "unhashable"),
        ('{"$":"dict","items":[[1]]}', "pairs"),
        ('{"$":"dict","items":["ab"]}', "pairs"),
        ('{"$":"dict","items":[[[],1]]}', "unhashable"),
        ('{"$":"int","value":"x"}', "int"),
        ('{"$":"int","value":7}', "not of type str"),
        ('{"$":"float","value":"x"}', "float"),
        ('{"$":"str","escaped":"\\\\u12"}', "str"),
        ('{"$":"bytes","base64":"a"}', "bytes"),
        ('{"$":"bytes","base64":"????"}', "bytes"),
        ('{"$":"complex","real":1.0,"imag":"x"}', "not floats"),
        ('{"$":"date","value":"soon"}', "date"),
        ('{"$":"datetime","value":"soon"}', "datetime"),
        ('{"$":"datetime","value":"2026-01-01T00:00:00","zone":"No/Where"}', "No/Where"),
        ('{"$":"datetime","value":"2026-01-01T00:00:00","zone_name":"x"}', "datetime"),
        ('{"$":"time","value":"25:00"}', "time"),
        ('{"$":"timedelta","days":1}', "seconds"),
        ('{"$":"timedelta","days":10000000000,"seconds":0,"microseconds":0}', "timedelta"),
        ('{"$":"decimal","value":"x"}', "decimal"),
        ('{"$":"uuid","value":"x"}', "uuid"),
        ('{"$":"path","kind":"Path2","value":"x"}', "path"),
        ('{"$":"path","kind":"PurePosixPath","value":3}', "not text"),
        ('{"$":"pickle","type":"a.B","data":"????"}', "pickle"),
        (
            '{"$":"pickle","type":"a.B","python":"2.7","data":"AAAA"}',
            "type a.B: .*Python 2.7 .* this is Python 3",
        ),
        ('{"$":"enum"}', "'class' is not text"),
        ('{"$":"enum","class":"no_such_module:X","name":"A"}', "importing 'no_such_module'"),
        ('{"$":"enum","class":"json:JSONDecoder","name":"A"}', "names no class of this kind"),
        ('{"$":"enum","class":"os:system","name":"A"}', "names no class of this kind"),
        ('{"$":"enum","class":"http:HTTPStatus","name":"NO"}', "has no member 'NO'"),
        ('{"$":"enum","class":"http:HTTPStatus","name":[]}', "has no member"),
        ('{"$":"enum","class":"http:HTTPStatus","value":200}', "only flags"),
        ('{"$":"enum","class":"http:HTTPStatus"}', "name"),
        ('{"$":"dataclass","class":"http:HTTPStatus","fields":{}}', "names no class of this kind"),
        (
            '{"$":"dataclass","class":"subprocess:Popen","fields":{"args":["ls"]}}',
            "names no class of this kind",
        ),
        ('{"$":"struct","class":"builtins:exec","fields":{"sku":"x"}}', "names no class of this kind"),
        ('{"$":"dataclass","class":"shop_models:Point","fields":[]}', "'fields' is not an object"),
        ('{"$":"dataclass","class":"shop_models:Point"}', "fields"),
        ('{"$":"dataclass","class":"shop_models:Point","fields":{}}', "has changed since .* has no 'x'"),
        ('{"$":"dataclass","class":"shop_models:Point","fields":{"x":1,"z":2}}', "the class has no 'z'"),
        ('{"$":"pydantic","class":"shop_models:Customer","fields":{},"set":[]}', "has no 'name'"),
        ('{"$":"pydantic","class":"shop_models:Customer","fields":{"z":1},"set":[]}', "the class has no 'z'"),
        ('{"$":"pydantic","class":"shop_models:Customer","fields":{"name":"x"},"set":[1]}', "list of names"),
        ('{"$":"struct","class":"shop_models:Item","fields":{}}', "sku"),
        ('{"$":"struct","class":"shop_models:Item","fields":{"sku":1,"z":1}}', "the class has no 'z'"),
        ('{"$":"namedtuple","class":"shop_models:Pair","fields":{}}', "has changed"),
        ('{"$":"sealed","data":""}', "sealed"),
        ('{"$":"blob","hash":"ab","size":3}', "blob ab of 3 bytes: fetch the blob"),
        ('[{"$":"blob"}]', "fetch the blob"),
    ],
)
def test_a_damaged_row_is_told_and_can_be_looked_at(text: str, says: str, shop: ModuleType) -> None:
    with pytest.raises(SerializationError, match=says):
        decode(text)
    preview(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ('{"$":"dataclass","class":"shop_models:Point","fields":{"x":1}}', "Point(x=1, y=[])"),
        (
            '{"$":"dataclass","class":"shop_models:Order","fields":{"id":"a"}}',
            "Order(id='a', lines=(), total=0.0)",
        ),
        ('{"$":"struct","class":"shop_models:Item","fields":{"sku":"a"}}', "Item(sku='a', price=None)"),
        ('{"$":"namedtuple","class":"shop_models:Pair","fields":{"left":1}}', "Pair(left=1, right=None)"),
        (
            '{"$":"pydantic","class":"shop_models:Customer","fields":{"name":"a"},"set":[]}',
            "Customer(name='a', tags=())",
        ),
    ],
)
def test_a_field_that_a_class_has_gained_takes_its_default(text: str, meant: str, shop: ModuleType) -> None:
    assert repr(decode(text)) == meant


def test_a_pickle_by_another_python_that_loads_is_read() -> None:
    text = encode(Fraction(1, 3)).replace(values_python(), b'"python":"3.99"')
    assert decode(text) == Fraction(1, 3)


def values_python() -> bytes:
    return b'"python":"%d.%d"' % sys.version_info[:2]


# --- looking ----------------------------------------------------------------------------------------------

loaded: list[str] = []


class Trap:
    def __reduce__(self) -> Any:
        return (loaded.append, ("loaded",))


def test_looking_never_unpickles_and_never_imports() -> None:
    data = base64.b64encode(pickle.dumps(Trap())).decode()
    text = f'[{{"$":"pickle","type":"a.Trap","repr":"Trap()","python":"3.11","data":"{data}"}}]'
    assert describe(text) == [{"$type": "a.Trap", "repr": "Trap()"}]
    sys.modules.pop("this", None)
    reference = '{"$":"enum","class":"this:Color","name":"RED"}'
    assert describe(reference) == "Color.RED"
    assert describe('{"$":"dataclass","class":"this:Order","fields":{"id":1}}') == {
        "$type": "this:Order",
        "id": 1,
    }
    assert "this" not in sys.modules
    assert loaded == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"a": (1, 2)}, {"a": [1, 2]}),
        ({1: "a"}, {"1": "a"}),
        ({1: "a", "1": "b"}, [[1, "a"], ["1", "b"]]),
        ({(1, "x"): 2}, {"(1, x)": 2}),
        ({"$": 1}, {"$": 1}),
        (2**70, str(2**70)),
        (math.nan, "nan"),
        (b"abcde", "<bytes of 5 bytes>"),
        (1 - 2j, "1.0-2.0j"),
        (datetime(2026, 3, 1, tzinfo=BERLIN), "2026-03-01T00:00:00+01:00[Europe/Berlin]"),
        (date(2026, 3, 1), "2026-03-01"),
        (timedelta(days=2, hours=1, microseconds=3), "2d 1:00:00.000003"),
        (-timedelta(minutes=1), "-0:01:00"),
        (Decimal("1.10"), "1.10"),
        (PurePosixPath("a"), "a"),
        (http.HTTPStatus.OK, "HTTPStatus.OK"),
        (re.I | re.M, "RegexFlag.IGNORECASE|MULTILINE"),
    ],
)
def test_a_value_is_shown_the_way_a_person_reads_it(value: Any, shown: Any) -> None:
    assert describe(encode(value)) == shown


def test_an_instance_shows_its_class_and_fields(shop: ModuleType) -> None:
    assert describe(encode(shop.Point(1, {2}))) == {"$type": "shop_models:Point", "x": 1, "y": [2]}
    shown = describe(encode(shop.Customer(name="a", more=(1,))))
    assert shown == {"$type": "shop_models:Customer", "name": "a", "tags": [], "more": [1]}


def test_a_preview_is_one_line_within_its_limit() -> None:
    assert preview(encode({"a": "x\ny"})) == '{"a":"x\\ny"}'
    text = preview(encode("x" * 1000), limit=20)
    assert len(text) == 20
    assert text.endswith("…")
    assert preview(b"nope").startswith("<unreadable: ")


# --- blobs ------------------------------------------------------------------------------------------------


def test_a_blob_reference_names_the_hash_of_its_bytes() -> None:
    digest, reference = values.make_blob_reference(b"abc")
    assert reference == b'{"$":"blob","hash":"%s","size":3}' % digest.encode()
    assert digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert values.blob_reference(reference) == values.blob_reference(reference.decode()) == digest
    assert values.blob_reference(msgspec.Raw(reference)) == digest
    assert describe(reference) == "<blob of 3 bytes>"
    with pytest.raises(SerializationError, match="fetch the blob"):
        decode(reference)


def test_a_damaged_blob_reference_is_told() -> None:
    with pytest.raises(SerializationError, match="damaged"):
        values.blob_reference(b'{"$":"blob","hash":"zz","size":3}')


# --- sealing and limits -----------------------------------------------------------------------------------


class Reversing:
    def encode(self, data: bytes) -> bytes:
        return data[::-1]

    def decode(self, data: bytes) -> bytes:
        return data[::-1]


class Failing:
    def encode(self, data: bytes) -> Any:
        return "text"

    def decode(self, data: bytes) -> bytes:
        raise ValueError("wrong key")


def test_a_sealed_value_shows_nothing_and_is_read_with_its_codec() -> None:
    sealing = Values(payload_codec=Reversing())
    data = sealing.encode(("secret", 1), "the result")
    assert data == b'{"$":"sealed","data":"%s"}' % base64.b64encode(encode(("secret", 1))[::-1])
    assert sealing.decode(data) == sealing.decode(data.decode()) == ("secret", 1)
    assert describe(data) == preview(data) == "<sealed>"
    for read in (decode, Values().decode):
        with pytest.raises(SerializationError, match=r"sealed .*configure the payload codec"):
            read(data)


def test_values_from_before_there_was_a_codec_are_read_as_they_are() -> None:
    assert Values(payload_codec=Reversing()).decode(encode((1,))) == (1,)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: Values(Failing()).encode(1, "the result"),
            r"The result cannot be stored\..*must give bytes",
        ),
        (
            lambda: Values(Failing()).decode(values.seal(b"1", Reversing())),
            r"Failing\.decode raised ValueError: wrong key",
        ),
        (lambda: values.unseal(b'{"$":"sealed","data":"????"}', Reversing()), "damaged"),
        (lambda: values.unseal(b'{"$":"sealed","data":"', Reversing()), "damaged"),
        (lambda: values.seal(b"1", object()), "payload codec failed"),  # type: ignore[arg-type]
    ],
)
def test_a_codec_that_fails_is_told(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(SerializationError, match=says):
        call()


def test_a_value_above_the_limit_is_refused_with_both_sizes() -> None:
    limited = Values(limit=10)
    assert limited.encode("x" * 8, "the result of step 'charge'") == b'"xxxxxxxx"'
    with pytest.raises(PayloadTooLargeError, match=r"The result of step 'charge' is 11 bytes .* is 10"):
        limited.encode("x" * 9, "the result of step 'charge'")


def test_an_error_says_what_could_not_be_stored() -> None:
    with pytest.raises(
        SerializationError, match=r"The arguments of step 'charge' cannot be stored\. .*\$\[0\]"
    ):
        Values().encode([threading.Lock()], "the arguments of step 'charge'")
