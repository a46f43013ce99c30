"""Looking at stored values without running anything, and the references to blobs."""

from __future__ import annotations

import base64
import http
import math
import pickle
import re
import sys
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from pyworkflow_ray.exceptions import SerializationError
from pyworkflow_ray.values import codec
from pyworkflow_ray.values.codec import decode, describe, encode, preview

BERLIN = ZoneInfo("Europe/Berlin")

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
    digest, reference = codec.make_blob_reference(b"abc")
    assert reference == b'{"$":"blob","hash":"%s","size":3}' % digest.encode()
    assert digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert codec.blob_reference(reference) == codec.blob_reference(reference.decode()) == digest
    assert codec.blob_reference(msgspec.Raw(reference)) == digest
    assert describe(reference) == "<blob of 3 bytes>"
    with pytest.raises(SerializationError, match="fetch the blob"):
        decode(reference)


def test_a_damaged_blob_reference_is_told() -> None:
    with pytest.raises(SerializationError, match="damaged"):
        codec.blob_reference(b'{"$":"blob","hash":"zz","size":3}')
