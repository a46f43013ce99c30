"""Whatever text is given where a value, a duration, a schedule or a setting belongs, the error is clear."""

from __future__ import annotations

import contextlib
import os
import threading
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import pyworkflow_ray as pr
from pyworkflow_ray.config import configure, reset_config
from pyworkflow_ray.durations import parse_duration, resolve_when
from pyworkflow_ray.exceptions import ConfigurationError, SerializationError, WorkflowError
from pyworkflow_ray.values.codec import Values, decode, describe, encode, preview
from pyworkflow_ray.values.failures import Failure, capture, restore
from pyworkflow_ray.values.tags import _READERS

BOUNDED = settings(
    max_examples=int(os.environ.get("PYWORKFLOW_TEST_EXAMPLES", "300")),
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

# --- stored values -----------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
KEYS = [
    "value", "items", "base64", "fields", "class", "zone", "zone_name", "fold", "days", "seconds", "data",
    "microseconds", "real", "imag", "kind", "escaped", "name", "python", "type", "extra", "set", "private",
    "attributes", "state", "hash", "size",
]  # fmt: skip
CLASSES = st.sampled_from(
    ["sys:exit", "os:abort", "builtins:object", "builtins:exit", "enum:Enum", "no:such", "", ":", "a:b:c",
     "pyworkflow_ray.statuses:RunStatus", "decimal:Decimal", "collections:OrderedDict", "pathlib:Path"]
)  # fmt: skip
TAGGED = st.recursive(
    PLAIN,
    lambda inner: (
        st.builds(
            lambda tag, rest, cls: {"$": tag, "class": cls, **rest},
            st.sampled_from(sorted(_READERS)),
            st.dictionaries(st.sampled_from(KEYS), inner | CLASSES, max_size=5),
            CLASSES,
        )
        | st.lists(inner, max_size=2)
    ),
    max_leaves=6,
)
VALID = [
    1, "text", [1, {"a": (1, 2)}], {1: 2}, {1, 2}, b"bytes", datetime(2026, 1, 1, tzinfo=UTC), 10**40,
    float("nan"), timedelta(days=1), complex(1, 2), pr.RunStatus.RUNNING, threading.Event, "\ud800",
    ValueError("x"),
]  # fmt: skip


def reads_or_refuses(data: bytes) -> None:
    """The value is read, or refused with the one error; and it can be looked at."""
    with contextlib.suppress(SerializationError):
        decode(data)
    describe(data)
    assert isinstance(preview(data), str)


@BOUNDED
@given(st.binary(max_size=64))
@example(b"[" * 100_000)
@example(b'{"$":' * 100_000)
@example(b'{"$":"tuple","items":[' * 5_000 + b"]}" * 5_000)
@example(b"1e999")
@example(b"9" * 10_000)
@example(b'"\\ud800"')
@example(b"\xff\xfe")
def test_any_bytes_are_read_as_a_value_or_refused_clearly(data: bytes) -> None:
    reads_or_refuses(data)


@BOUNDED
@given(TAGGED)
@example({"$": "enum", "class": "sys:exit", "value": 1})
@example({"$": "dict", "items": [[{"$": "dict", "items": []}, 1]]})
@example({"$": "int", "value": "1" * 10_000})
@example({"$": "decimal", "value": "1e99999999999"})
def test_any_object_with_tags_is_read_as_a_value_or_refused_clearly(plain: Any) -> None:
    reads_or_refuses(msgspec.json.encode(plain))


@BOUNDED
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255), st.booleans()), max_size=4),
)
def test_a_damaged_value_is_read_or_refused_clearly(value: Any, changes: list[tuple[int, int, bool]]) -> None:
    data = bytearray(encode(value))
    for place, byte, cut in changes:
        if cut:
            del data[place % (len(data) + 1) :]
        elif data:
            data[place % len(data)] = byte
    # What a damaged pickle does cannot be known: it is looked at, and not loaded.
    if b'"pickle"' not in encode(value):
        reads_or_refuses(bytes(data))
    describe(bytes(data))
    preview(bytes(data))


# --- values that fight back ---------------------------------------------------------------------------


class ExitsWhenPickled:
    def __reduce__(self) -> Any:
        raise SystemExit(3)


class ExitsWhenLoaded:
    def __reduce__(self) -> Any:
        return raising, (SystemExit,)


class Stops(BaseException):
    pass


class HasBadRepr:
    def __repr__(self) -> str:
        raise SystemExit(4)


class HasBadEquality:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __eq__(self, other: object) -> bool:
        raise SystemExit(5)

    __hash__ = None  # type: ignore[assignment]


def raising(kind: type[BaseException]) -> Any:
    raise kind("raised while loading")


def _cycle() -> list[Any]:
    cycle: list[Any] = [threading.Lock()]
    cycle.append(cycle)
    return cycle


def _deep(depth: int) -> Any:
    value: Any = threading.Lock()
    for _ in range(depth):
        value = [value]
    return value


def _generator() -> Any:
    yield 1


async def _coroutine() -> None:
    pass


@pytest.mark.parametrize(
    "make",
    [
        ExitsWhenPickled,
        HasBadEquality,
        threading.Lock,
        _generator,
        _cycle,
        lambda: _deep(10_000),
        lambda: _deep(50),
    ],
    ids=["exits when pickled", "bad equality", "lock", "generator", "cycle", "depth 10,000", "depth 50"],
)
def test_what_cannot_be_stored_is_refused_with_its_place_and_type(make: Any) -> None:
    value = {"orders": [1, make()]}
    with pytest.raises(SerializationError, match=r"Cannot store \$") as caught:
        encode(value)
    assert "of type" in str(caught.value)
    assert len(str(caught.value)) < 2_000


def test_a_coroutine_is_refused_with_its_place_and_type() -> None:
    coroutine = _coroutine()
    with pytest.raises(SerializationError, match=r"\$\.result: a value of type builtins\.coroutine"):
        encode({"result": coroutine})
    coroutine.close()


def test_a_value_with_a_broken_repr_is_stored_all_the_same() -> None:
    assert type(decode(encode(HasBadRepr()))) is HasBadRepr
    assert "raised SystemExit" in str(describe(encode(HasBadRepr())))


def test_a_pickle_that_exits_when_it_is_loaded_is_an_error_like_any_other() -> None:
    data = encode(ExitsWhenLoaded())
    with pytest.raises(SerializationError, match="SystemExit"):
        decode(data)


@pytest.mark.parametrize(
    "text", ["\0", "a\0b", "\ud800", "\udfff x", "\U0010ffff", "\x1b[31m", "x" * 1_000_000]
)
def test_any_text_is_stored_as_it_is(text: str) -> None:
    assert decode(encode(text)) == text
    assert decode(encode({text: [text]})) == {text: [text]}
    assert len(preview(encode(text))) <= 200


def test_a_very_large_text_is_refused_by_its_size() -> None:
    with pytest.raises(WorkflowError, match="payload_limit"):
        Values(limit=50_000_000).encode("x" * 100_000_000, "the result of step 'big#1'")


# --- errors that fight back -----------------------------------------------------------------------------


class BadInit(Exception):
    def __init__(self, *args: Any) -> None:
        raise SystemExit(1)


class BadText(Exception):
    def __str__(self) -> str:
        raise SystemExit(2)

    __repr__ = __str__


class BadReduce(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(3)


class BadState(Exception):
    def __getattr__(self, name: str) -> Any:
        raise SystemExit(4)


class BadClass(Exception):
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise SystemExit(5)


@pytest.mark.parametrize("kind", [BadInit, BadText, BadReduce, BadState, BadClass, Stops])
def test_an_error_that_fights_back_is_captured_and_restored(kind: type[BaseException]) -> None:
    error = kind.__new__(kind)
    error.args = ("text", ExitsWhenPickled())
    failure = capture(error)
    assert kind.__name__ in failure.error_type
    assert isinstance(restore(failure, fallback=pr.StepFailedError), Exception)


def test_an_error_that_exits_when_it_is_loaded_is_restored_as_another() -> None:
    from pyworkflow_ray.values.pickles import pickle_by_value

    failure = Failure(error="x", error_type="X", exception=pickle_by_value(ExitsWhenLoaded()))
    assert isinstance(restore(failure, fallback=pr.StepFailedError), pr.StepFailedError)


# --- words for times ------------------------------------------------------------------------------------

TEXTS = st.text(max_size=12) | st.from_regex(r"[-+0-9smhdw. eE_]{0,12}", fullmatch=True)
NUMBERS = st.integers() | st.floats() | st.booleans()
HOSTILE = TEXTS | NUMBERS | st.none() | st.binary(max_size=4) | st.lists(TEXTS, max_size=2)


@BOUNDED
@given(HOSTILE)
@example("1" * 5_000 + "s")
@example("٣s")
@example("1e309d")
def test_any_duration_is_read_or_refused_clearly(value: Any) -> None:
    for read in (parse_duration, lambda value: resolve_when(value, datetime.now(UTC))):
        with contextlib.suppress(ValueError, TypeError):
            read(value)


CRON_TEXT = st.from_regex(r"[-0-9*/,LW#?a-zA-Z@ ]{0,20}", fullmatch=True) | st.text(max_size=10)
FIELD = st.sampled_from(["*", "*/5", "0", "31", "1-5", "L", "MON", "60", "-1", "1,2", "2#3", "*/0", "5-1"])
FIELDS = st.lists(FIELD, min_size=4, max_size=7).map(" ".join)


@BOUNDED
@given(CRON_TEXT | FIELDS)
@example("0 0 31 2 *")
@example("* * * * * *" * 100)
def test_any_cron_expression_is_read_or_refused_clearly(expression: str) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    try:
        spec = pr.ScheduleSpec(cron=expression)
    except (ValueError, TypeError, ConfigurationError):
        return
    assert len(list(islice(spec.between(now, now + timedelta(days=2), now), 3))) <= 3
    assert spec.describe()


WORDS = [
    "cron",
    "interval",
    "calendar",
    "every",
    "timezone",
    "time_zone",
    "start",
    "end",
    "start_at",
    "end_at",
    "jitter",
    "x",
]


@BOUNDED
@given(st.dictionaries(st.sampled_from(WORDS), HOSTILE | PLAIN | CRON_TEXT, max_size=4))
def test_any_recurrence_is_read_or_refused_clearly(data: dict[str, Any]) -> None:
    for read in (pr.ScheduleSpec.from_dict, lambda data: pr.ScheduleSpec(**data)):
        try:
            spec = read(data)
        except (ValueError, TypeError, WorkflowError):
            continue
        now = datetime(2026, 1, 1, tzinfo=UTC)
        assert spec.describe()
        spec.next_after(now, now)


# --- settings ------------------------------------------------------------------------------------------

NAMES = sorted(type(pr.get_config()).model_fields)


@BOUNDED
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=6), HOSTILE | PLAIN, max_size=3))
def test_any_setting_is_taken_or_refused_clearly(values: dict[str, Any]) -> None:
    reset_config()
    try:
        with contextlib.suppress(ConfigurationError, ValueError, TypeError):
            configure(**values)
    finally:
        reset_config()
