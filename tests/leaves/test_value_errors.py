"""What the codec refuses: values it cannot store, rows it cannot read, payloads above the limit."""

from __future__ import annotations

import base64
import contextlib
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from types import ModuleType
from typing import Any

import pytest

from pyworkflow_ray.exceptions import PayloadTooLargeError, SerializationError
from pyworkflow_ray.values import codec
from pyworkflow_ray.values.codec import Values, decode, describe, encode, preview


class Holder:
    def __init__(self, held: Any) -> None:
        self.held = held


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
    with pytest.raises(SerializationError, match=r"Cannot store \$\[0\]: .*Holder .*_thread.lock"):
        encode([Holder(threading.Lock())])


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
    assert decode(encode(nested(90))) == nested(90)
    assert decode(encode(nested(150))) == nested(150)
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
        ("", "not JSON"),
        ("{", "not JSON"),
        ("nope", "not JSON"),
        ("\ud800", "not UTF-8"),
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
            lambda: Values(Failing()).decode(codec.seal(b"1", Reversing())),
            r"Failing\.decode raised ValueError: wrong key",
        ),
        (lambda: codec.unseal(b'{"$":"sealed","data":"????"}', Reversing()), "damaged"),
        (lambda: codec.unseal(b'{"$":"sealed","data":"', Reversing()), "damaged"),
        (lambda: codec.seal(b"1", object()), "payload codec failed"),  # type: ignore[arg-type]
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


def test_a_reference_into_rays_object_store_is_refused() -> None:
    from ray import ObjectRef

    reference = ObjectRef.nil()
    with pytest.raises(SerializationError, match="ends with the process that made it"):
        codec.encode([1, reference])
