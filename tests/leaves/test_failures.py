"""Exceptions to data and back: nothing that an exception does may make this raise."""

from __future__ import annotations

import asyncio
import errno
import functools
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from pyworkflow_ray.durations import parse_duration
from pyworkflow_ray.exceptions import (
    CancellationError,
    ChildWorkflowFailedError,
    EventLimitExceededError,
    FatalError,
    RetryableError,
    StepFailedError,
    WorkflowFailedError,
)
from pyworkflow_ray.values.failures import MAX_PICKLE, MAX_TEXT, NOTE, Failure, capture, restore


class OwnMessageError(Exception):
    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"failed with {code}")
        self.code, self.hint = code, hint


class HoldsALockError(Exception):
    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


class BrokenTextError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class BrokenPickleError(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle")


class WithNewError(Exception):
    def __new__(cls, *, needed: int) -> WithNewError:
        return super().__new__(cls)

    def __init__(self, *, needed: int) -> None:
        super().__init__(f"needed {needed}")


class EmptyError(Exception):
    def __len__(self) -> int:
        return 0


class FrozenError(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """The exception as an `except` clause sees it."""
    try:
        if cause is None:
            raise error
        raise error from cause
    except BaseException as caught:
        return caught


def through_the_log(error: BaseException, **options: Any) -> Failure:
    """The failure as it is read back from where it was stored."""
    return msgspec.json.decode(msgspec.json.encode(capture(error, **options)), type=Failure)


def back(error: BaseException) -> BaseException:
    return restore(through_the_log(error), fallback=StepFailedError)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad", 3),
        KeyError("missing"),
        Exception(),
        OwnMessageError(7, hint="try later"),
        FatalError("stop", order="a-17"),
        RetryableError("again", retry_after="30s", order="a-17"),
        RetryableError("again", retry_after=timedelta(seconds=3)),
        EventLimitExceededError("run_1", 10, 5),
        ChildWorkflowFailedError("run_2", "child", "bad", "ValueError"),
        CancellationError(reason="asked"),
        FileNotFoundError(errno.ENOENT, "No such file", "a.txt"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        SyntaxError("bad", ("file.py", 1, 2, "x =")),
        EmptyError("empty"),
        BrokenTextError("quiet"),
        ValueError(float("nan")),
        ValueError("\ud800"),
    ],
    ids=repr,
)
def test_an_exception_comes_back_with_type_arguments_and_attributes(error: Exception) -> None:
    again = back(raised(error))
    state = {name: value for name, value in vars(again).items() if name != "__notes__"}
    assert type(again) is type(error)
    assert repr(again.args) == repr(error.args)
    assert state == vars(error)
    if not isinstance(error, BrokenTextError):
        assert str(again) == str(error)


def test_an_exception_group_comes_back_with_its_parts() -> None:
    group = ExceptionGroup(
        "two", [OwnMessageError(1, hint="a"), ExceptionGroup("in", [OSError(2, "no", "f")])]
    )
    again = back(raised(group))
    assert isinstance(again, ExceptionGroup)
    first, second = again.exceptions
    assert (type(first), first.hint, str(first)) == (OwnMessageError, "a", "failed with 1")  # type: ignore[union-attr]
    assert str(second.exceptions[0]) == "[Errno 2] no: 'f'"


@pytest.mark.parametrize(
    "error",
    [
        HoldsALockError(),
        BrokenPickleError("x"),
        WithNewError(needed=3),
        ValueError("x" * (MAX_PICKLE + 1)),
        ValueError(threading.Lock()),
        ValueError({"deep": threading.Lock()}),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_that_cannot_be_rebuilt_comes_back_told(error: Exception) -> None:
    failure = through_the_log(raised(error))
    assert failure.exception is None
    assert failure.python == ""
    again = restore(failure, fallback=WorkflowFailedError)
    assert type(again) is WorkflowFailedError
    assert str(again) == f"{failure.error_type}: {failure.error}"
    assert again.error_type == f"{type(error).__module__}.{type(error).__qualname__}".removeprefix(
        "builtins."
    )
    assert again.error_traceback == failure.traceback


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        StopIteration(1),
        BaseExceptionGroup("g", [KeyboardInterrupt()]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_would_end_its_raiser_comes_back_told(error: BaseException) -> None:
    assert type(back(raised(error))) is StepFailedError
    assert type(back(raised(ValueError(), error)).__cause__) is StepFailedError


def test_capture_never_raises() -> None:
    class Hostile(Exception):
        __notes__ = 3  # type: ignore[assignment]

        def __str__(self) -> str:
            raise ValueError

        def __eq__(self, other: object) -> bool:
            raise ValueError

        __hash__ = None  # type: ignore[assignment]

        def __reduce_ex__(self, protocol: Any) -> Any:
            raise ValueError

        @property
        def __cause__(self) -> Any:  # type: ignore[override]
            raise ValueError

    failure = through_the_log(raised(Hostile()))
    assert failure.error == "<its __str__ raised ValueError>"
    assert failure.error_type.endswith("Hostile")
    assert type(restore(failure, fallback=StepFailedError)) is StepFailedError


def test_an_exception_that_takes_no_note_comes_back_without() -> None:
    assert type(back(raised(FrozenError("ice")))) in (FrozenError, StepFailedError)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError(), "ValueError"),
        (asyncio.CancelledError(), "asyncio.exceptions.CancelledError"),
        (OwnMessageError(1, hint=""), f"{__name__}.OwnMessageError"),
    ],
)
def test_the_type_is_told_by_its_qualified_name(error: BaseException, name: str) -> None:
    assert capture(error).error_type == name


@pytest.mark.parametrize(
    ("error", "is_retryable"),
    [
        (ValueError(), True),
        (RetryableError(), True),
        (KeyboardInterrupt(), True),
        (FatalError(), False),
        (EventLimitExceededError("run_1", 2, 1), False),
        (CancellationError(), False),
    ],
)
def test_a_fatal_or_cancelled_error_is_not_retryable(error: BaseException, is_retryable: bool) -> None:
    assert capture(error).is_retryable is is_retryable


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (None, None),
        (3, 3.0),
        (0.5, 0.5),
        ("30s", 30.0),
        (timedelta(minutes=1), 60.0),
        ("soon", None),
        (-1, None),
        (datetime(2020, 1, 1), 0.0),
        (datetime(2020, 1, 1, tzinfo=UTC), 0.0),
    ],
)
def test_retry_after_is_seconds_from_now_and_never_negative(said: Any, seconds: float | None) -> None:
    assert capture(RetryableError("x", retry_after=said)).retry_after == seconds


def test_retry_after_an_instant_is_the_time_until_then() -> None:
    seconds = capture(RetryableError("x", retry_after=datetime.now(UTC) + timedelta(hours=1))).retry_after
    assert seconds is not None
    assert 3500 < seconds <= 3600


# --- causes -------------------------------------------------------------------------------------------


def test_a_cause_comes_back_as_the_cause() -> None:
    again = back(raised(ValueError("outer"), raised(OwnMessageError(1, hint="h"), KeyError("k"))))
    assert isinstance(again.__cause__, OwnMessageError)
    assert isinstance(again.__cause__.__cause__, KeyError)
    assert again.__cause__.__cause__.__cause__ is None


def test_what_was_being_handled_counts_as_the_cause_unless_suppressed() -> None:
    def raise_while_handling(suppress: bool) -> BaseException:
        try:
            try:
                raise KeyError("k")
            except KeyError:
                if suppress:
                    raise ValueError("v") from None
                raise ValueError("v")  # noqa: B904
        except ValueError as error:
            return error

    assert isinstance(back(raise_while_handling(suppress=False)).__cause__, KeyError)
    assert back(raise_while_handling(suppress=True)).__cause__ is None


def test_causes_are_told_five_deep_even_in_a_circle() -> None:
    one, two = ValueError("one"), KeyError("two")
    one.__cause__, two.__cause__ = two, one
    failure, depth = capture(one), 0
    while failure.cause is not None:
        failure, depth = failure.cause, depth + 1
    assert depth == 5


# --- tracebacks -----------------------------------------------------------------------------------------


def call_from_package(function: Callable[[], None]) -> BaseException:
    """What the function raises, called through a frame that belongs to this package."""
    names: dict[str, Any] = {"__name__": "pyworkflow_ray.actors.runner"}
    exec(compile("def run(function):\n    function()", "runner.py", "exec"), names)
    try:
        names["run"](function)
    except Exception as error:
        return _without_test_frames(error)
    raise AssertionError


def _without_test_frames(error: BaseException) -> BaseException:
    assert error.__traceback__ is not None
    return error.with_traceback(error.__traceback__.tb_next)


def fails() -> None:
    raise ValueError("user code")


def test_the_traceback_starts_in_the_users_code() -> None:
    text = capture(call_from_package(fails)).traceback
    assert "runner.py" not in text
    assert "in fails" in text
    assert text.endswith("ValueError: user code\n")


def test_frames_of_named_modules_are_skipped_too() -> None:
    error = raised(ValueError("x"))
    assert "in raised" in capture(error).traceback
    error = call_from_package(functools.partial(asyncio.run, _fails_later()))
    assert "runners.py" in capture(error).traceback
    text = capture(error, skip_frames_of=("asyncio",)).traceback
    assert "runners.py" not in text
    assert "in _fails_later" in text


async def _fails_later() -> None:
    fails()


def test_an_error_of_this_packages_own_keeps_its_frames() -> None:
    with pytest.raises(ValueError, match="soon") as caught:
        parse_duration("soon")
    assert "in _parse_text" in capture(_without_test_frames(caught.value)).traceback


def test_a_cause_keeps_its_own_traceback_and_is_not_told_twice() -> None:
    failure = capture(raised(ValueError("outer"), raised(KeyError("inner"))))
    assert "inner" not in failure.traceback
    assert failure.cause is not None
    assert "KeyError: 'inner'" in failure.cause.traceback


def test_an_error_that_was_never_raised_has_a_traceback_of_one_line() -> None:
    assert capture(ValueError("x")).traceback == "ValueError: x\n"


def test_long_texts_are_cut_and_a_traceback_keeps_its_end() -> None:
    failure = capture(raised(ValueError("x" * 50_000 + "END")))
    assert len(failure.error) == len(failure.traceback) == MAX_TEXT
    assert failure.error.endswith("...")
    assert failure.traceback.endswith("END\n")


def test_the_remote_traceback_is_noted_once_however_often_it_travels() -> None:
    once = back(raised(ValueError("x")))
    assert len(once.__notes__) == 1
    assert once.__notes__[0].startswith(NOTE)
    assert "in raised" in "".join(traceback.format_exception(once))
    twice = back(raised(once))
    assert len(twice.__notes__) == 1
    assert twice.__notes__[0].count("in raised") == 2


def test_the_users_own_notes_are_kept() -> None:
    error = ValueError("x")
    error.add_note("while paying")
    assert back(raised(error)).__notes__[0] == "while paying"


# --- elsewhere ------------------------------------------------------------------------------------------


def test_an_exception_of_a_script_comes_back_in_another_process() -> None:
    script = """if True:
        import sys, msgspec
        from pyworkflow_ray.values.failures import capture
        class CardError(Exception):
            def __init__(self, card, *, bank): super().__init__(f"{card} declined"); self.bank = bank
        try: raise CardError("visa", bank="b")
        except CardError as error: sys.stdout.buffer.write(msgspec.json.encode(capture(error)))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    again = restore(msgspec.json.decode(done.stdout, type=Failure), fallback=StepFailedError)
    assert type(again).__qualname__ == "CardError"
    assert (str(again), again.bank) == ("visa declined", "b")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "data", [b"", b"damaged", b"\x80\x05K\x01."], ids=["empty", "damaged", "not an exception"]
)
def test_a_pickle_that_cannot_be_read_here_falls_back(data: bytes) -> None:
    failure = Failure(error="x", error_type="ValueError", exception=data, python="2.7")
    assert str(restore(failure, fallback=StepFailedError)) == "ValueError: x"
