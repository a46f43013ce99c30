"""Exceptions to data and back: nothing that an exception does may make this raise."""

from __future__ import annotations

import asyncio
import email.message
import errno
import functools
import io
import linecache
import subprocess
import sys
import threading
import traceback
import types
import urllib.error
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from pydantic import BaseModel, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from pyworkflow_ray.durations import parse_duration
from pyworkflow_ray.exceptions import (
    CancellationError,
    ChildWorkflowFailedError,
    EventLimitExceededError,
    FatalError,
    RetryableError,
    StepFailedError,
)
from pyworkflow_ray.values import codec
from pyworkflow_ray.values.error_pickles import LOST, MAX_PICKLE
from pyworkflow_ray.values.failures import MAX_TEXT, NOTE, Failure, capture, is_of, restore


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


class DiskFullError(OSError):
    def __init__(self, path: str, *, lock: Any) -> None:
        super().__init__(errno.ENOSPC, "no space", path)
        self.need, self.lock = 3, lock


class Answer(NamedTuple):
    status: int
    connection: Any


class AnsweredError(Exception):
    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def __str__(self) -> str:
        return f"answered {self.answer.status}"


class SlottedError(Exception):
    __slots__ = ("code", "lock")

    def __init__(self, lock: Any) -> None:
        super().__init__("slotted")
        self.code, self.lock = 7, lock


class CodedGroup(ExceptionGroup[Exception]):
    def __new__(cls, parts: list[Exception], code: int) -> CodedGroup:
        return super().__new__(cls, "coded", parts)

    def __init__(self, parts: list[Exception], code: int) -> None:
        self.code = code


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


def _missing(error: BaseException) -> str:
    """What the exception says that it is without; "" if it is whole."""
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith(LOST)]
    assert len(notes) < 2
    return notes[0].removeprefix(LOST) if notes else ""


@pytest.mark.parametrize(
    ("error", "missing"),
    [
        (HoldsALockError(), "lock (a value of type _thread.lock)."),
        (BrokenPickleError("x"), ""),
        (WithNewError(needed=3), ""),
        (ValueError("x" * (MAX_PICKLE + 1)), "args[0] (a value of type str)."),
        (ValueError(threading.Lock()), "args[0] (a value of type _thread.lock)."),
        (ValueError(1, {"deep": threading.Lock()}), "args[1]['deep'] (a value of type _thread.lock)."),
        (DiskFullError("/tmp", lock=threading.Lock()), "lock (a value of type _thread.lock)."),
        (ValueError([(1, threading.Lock())]), "args[0][0][1] (a value of type _thread.lock)."),
        (
            AnsweredError(Answer(503, threading.Lock())),
            "args[0].connection (a value of type _thread.lock); "
            "answer.connection (a value of type _thread.lock).",
        ),
        (ValueError(HoldsALockError()), "args[0].lock (a value of type _thread.lock)."),
        (SlottedError(threading.Lock()), "lock (a value of type _thread.lock)."),
        (ExceptionGroup("g", [HoldsALockError()]), "exceptions[0].lock (a value of type _thread.lock)."),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else "",
)
def test_an_exception_that_cannot_be_stored_whole_keeps_its_class_and_says_what_is_missing(
    error: Exception, missing: str
) -> None:
    again = back(raised(error))
    assert type(again) is type(error)
    assert len(again.args) == len(error.args)
    assert str(again)[:200] == str(error)[:200]
    assert _missing(again) == missing
    assert _missing(back(raised(again))) == missing


def test_what_is_left_of_an_exception_has_all_that_can_be_stored() -> None:
    again: Any = back(raised(DiskFullError("/tmp", lock=threading.Lock())))
    assert (again.errno, again.strerror, again.filename) == (errno.ENOSPC, "no space", "/tmp")
    assert again.args == (errno.ENOSPC, "no space")
    assert again.need == 3
    with pytest.raises(AttributeError):
        _ = again.lock
    slotted: Any = back(raised(SlottedError(threading.Lock())))
    assert slotted.code == 7
    lost: Any = back(raised(ValueError(threading.Lock(), 3))).args[0]
    assert (lost.type_name, repr(lost)[:9]) == ("_thread.lock", "<unlocked")


def test_a_group_of_a_users_class_comes_back() -> None:
    again: Any = back(raised(CodedGroup([ValueError("a"), HoldsALockError()], 7)))
    assert type(again) is CodedGroup
    assert (again.code, again.message) == (7, "coded")
    assert [type(each) for each in again.exceptions] == [ValueError, HoldsALockError]


def test_an_exception_of_which_the_text_cannot_be_had_says_what_it_was() -> None:
    class Teller:
        def __init__(self, lock: Any) -> None:
            self.lock = lock

    class Told(Exception):
        def __init__(self) -> None:
            self.teller = Teller(threading.Lock())

        def __str__(self) -> str:
            return f"told by {type(self.teller).__name__}"

    again = back(raised(Told()))
    assert type(again).__name__ == "Told"
    assert "its text, which was: told by Teller" in _missing(again)


# --- errors of other packages ----------------------------------------------------------------------------


class Item(BaseModel):
    n: int
    name: str = ""

    @field_validator("name")
    @classmethod
    def _check(cls, name: str) -> str:
        if name == "bad":
            raise ValueError(f"{name} is {{bad}}")
        if name == "worse":
            raise PydanticCustomError("worse", "it is {how}", {"how": "worse"})
        return name


@pytest.mark.parametrize(
    "value",
    [{}, {"n": "x"}, {"n": 1, "name": "bad"}, {"n": 1, "name": "worse"}, {"n": threading.Lock()}],
    ids=["missing", "wrong", "bad", "worse", "lock"],
)
def test_a_refusal_of_pydantic_comes_back(value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        Item.model_validate(value)
    again = back(caught.value)
    assert isinstance(again, ValidationError)
    errors, before = again.errors(include_input=False), caught.value.errors(include_input=False)
    assert [(each["type"], each["loc"], each["msg"]) for each in errors] == [
        (each["type"], each["loc"], each["msg"]) for each in before
    ]
    is_whole = not isinstance(value.get("n"), type(threading.Lock()))
    assert (str(again) == str(caught.value)) is is_whole
    assert (_missing(again) == "") is is_whole


def test_a_failed_request_comes_back_as_it_was_raised() -> None:
    requests = pytest.importorskip("requests")
    with pytest.raises(requests.ConnectionError) as caught:
        requests.get("http://127.0.0.1:9/x")
    again = back(caught.value)
    assert type(again) is requests.exceptions.ConnectionError
    assert isinstance(again, OSError)
    assert str(again) == str(caught.value)
    assert type(again.args[0]).__name__ == "MaxRetryError"
    assert again.request.url == "http://127.0.0.1:9/x"  # type: ignore[attr-defined]


def test_an_answer_of_a_web_server_that_says_no_comes_back() -> None:
    refused = urllib.error.HTTPError("http://h/", 404, "gone", email.message.Message(), io.BytesIO(b"x"))
    again: Any = back(raised(refused))
    assert type(again) is urllib.error.HTTPError
    assert (again.code, str(again)) == (404, "HTTP Error 404: gone")


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        StopIteration(1),
        StopAsyncIteration(),
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
    again = back(raised(FrozenError("ice"), ValueError("cold")))
    assert type(again) is FrozenError
    assert isinstance(again.__cause__, ValueError)


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


def raise_while_handling(how: str) -> BaseException:
    try:
        try:
            raise KeyError("k")
        except KeyError as handled:
            if how == "from none":
                raise ValueError("v") from None
            if how == "from another":
                raise ValueError("v") from OSError("o")
            if how == "from it":
                raise ValueError("v") from handled
            raise ValueError("v")  # noqa: B904
    except ValueError as error:
        return error


@pytest.mark.parametrize("how", ["", "from none", "from another", "from it"])
def test_the_cause_and_what_was_being_handled_come_back_as_they_were(how: str) -> None:
    error = raise_while_handling(how)
    again = back(error)
    for name in ("__cause__", "__context__"):
        assert type(getattr(again, name)) is type(getattr(error, name))
        assert repr(getattr(again, name)) == repr(getattr(error, name))
    assert again.__suppress_context__ is error.__suppress_context__
    assert (again.__cause__ is again.__context__) is (error.__cause__ is error.__context__)
    assert _printed(again) == _printed(error)


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


def _printed(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _fails_in_parts() -> None:
    def one(x: int) -> float:
        return 1 + x / 0

    try:
        one(3)
    except ZeroDivisionError as error:
        part = error
    part.add_note("a note of a part")
    inner = ExceptionGroup("inner", [raised(KeyError("k"), raised(OSError("o")))])
    raise ExceptionGroup("outer", [part, inner]) from raised(ValueError("the cause"))


@pytest.mark.parametrize(
    "fails",
    [
        fails,
        _fails_in_parts,
        lambda: eval("1 + (2 / 0)"),
        lambda: exec("raise ValueError"),
        lambda: compile("x = (", "own.py", "exec"),
        lambda: 3 + ["ä", {"ö": 1}["ü"]][0],
    ],
)
def test_an_exception_is_printed_as_if_it_had_never_travelled(fails: Callable[[], Any]) -> None:
    try:
        fails()
    except Exception as caught:
        error = _without_test_frames(caught)
    assert _printed(back(error)) == _printed(error)
    assert capture(back(error)).traceback == capture(error).traceback


def test_a_traceback_goes_on_where_the_exception_is_raised_again() -> None:
    once = back(raised(ValueError("x")))
    assert [frame.name for frame in traceback.extract_tb(once.__traceback__)] == ["raised"]
    twice = back(raised(once))
    assert [frame.name for frame in traceback.extract_tb(twice.__traceback__)] == ["raised", "raised"]
    assert not hasattr(twice, "__notes__")


def test_a_traceback_passes_over_frames_of_this_package() -> None:
    names: dict[str, Any] = {"__name__": "pyworkflow_ray.engine.steps"}
    exec(compile("def call(function):\n    function()", "steps.py", "exec"), names)

    def users_code() -> None:
        names["call"](fails)

    text = capture(call_from_package(users_code)).traceback
    assert ("in users_code" in text, "in fails" in text, "steps.py" in text) == (True, True, False)


_PLACED = "def fails():\n    x = 1\n    raise ValueError('placed')\n"


def _raised_in(file: Path | str, module: str) -> BaseException:
    """What the code raises, run from this file as this module."""
    names: dict[str, Any] = {"__name__": module}
    exec(compile(_PLACED, str(file), "exec"), names)
    try:
        names["fails"]()
    except ValueError as error:
        return _without_test_frames(error)
    raise AssertionError


def test_a_line_is_shown_in_the_file_that_this_process_has_of_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine runs local code from a folder of its own."""
    there, here = tmp_path / "there" / "placed.py", tmp_path / "here" / "placed.py"
    for file in (there, here):
        file.parent.mkdir()
        file.write_text(_PLACED)
    module = types.ModuleType("placed")
    module.__file__ = str(here)
    monkeypatch.setitem(sys.modules, "placed", module)

    def shown(error: BaseException) -> list[tuple[str, str | None]]:
        return [(frame.filename, frame.line) for frame in traceback.extract_tb(back(error).__traceback__)]

    line = "raise ValueError('placed')"
    assert shown(_raised_in(there, "placed")) == [(str(here), line)]
    assert shown(_raised_in(there, "another")) == [(str(there), line)]
    here.write_text(_PLACED.replace("x = 1", "x = 1\n    y = 2"))
    linecache.checkcache()
    assert shown(_raised_in(there, "placed")) == [(str(there), line)]


def test_a_line_is_shown_though_its_file_is_not_here(tmp_path: Path) -> None:
    file = tmp_path / "gone.py"
    file.write_text(_PLACED)
    failure = through_the_log(_raised_in(file, "gone"))
    file.unlink()
    linecache.clearcache()
    printed = _printed(restore(failure, fallback=StepFailedError))
    assert f"{file}\", line 3, in fails\n    raise ValueError('placed')" in printed


def test_a_deep_recursion_keeps_its_beginning_and_its_end() -> None:
    def down(depth: int) -> None:
        down(depth - 1) if depth else fails()

    with pytest.raises(ValueError, match="user code") as caught:
        down(200)
    frames = traceback.extract_tb(back(caught.value).__traceback__)
    assert len(frames) == 100
    assert (frames[0].name, frames[-1].name) == (
        "test_a_deep_recursion_keeps_its_beginning_and_its_end",
        "fails",
    )


def test_what_was_stored_before_there_were_frames_has_its_traceback_as_a_note() -> None:
    stored = msgspec.structs.replace(through_the_log(raised(ValueError("x"), KeyError("k"))), details=None)
    once = restore(stored, fallback=StepFailedError)
    assert (type(once), type(once.__cause__)) == (ValueError, KeyError)
    assert once.__notes__[0].startswith(NOTE)
    assert "in raised" in once.__notes__[0]
    assert len(back(raised(once)).__notes__) == 1


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


# --- ancestry -------------------------------------------------------------------------------------------


class UnloadableError(DiskFullError):
    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ImportError("not here")


@pytest.mark.parametrize("is_rebuilt", [True, False])
@pytest.mark.parametrize(
    ("cls", "is_one"),
    [
        (DiskFullError, True),
        (OSError, True),
        (Exception, True),
        (BaseException, True),
        (ValueError, False),
        (StepFailedError, False),
        (FatalError, False),
    ],
)
def test_an_error_is_of_the_classes_that_its_class_is_derived_from(
    cls: type[BaseException], is_one: bool, is_rebuilt: bool
) -> None:
    failure = through_the_log(raised(UnloadableError("/tmp", lock=None)))
    if not is_rebuilt:
        failure = msgspec.structs.replace(failure, exception=None)
    error = restore(failure, fallback=StepFailedError)
    assert isinstance(error, DiskFullError) is is_rebuilt
    assert is_of(failure, (KeyError, cls), error) is is_one


def test_what_ends_its_raiser_is_no_plain_exception() -> None:
    failure = through_the_log(raised(SystemExit(3)))
    error = restore(failure, fallback=StepFailedError)
    assert not is_of(failure, (Exception,), error)
    assert is_of(failure, (BaseException,), error)
    assert is_of(failure, (SystemExit,), error)


# --- exceptions as values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "missing"),
    [
        (ValueError("bad", 3), ""),
        (ValueError("x" * (MAX_PICKLE + 1)), ""),
        (OwnMessageError(7, hint="try later"), ""),
        (WithNewError(needed=3), ""),
        (CodedGroup([ValueError("a"), OwnMessageError(1, hint="b")], 7), ""),
        (DiskFullError("/tmp", lock=threading.Lock()), "lock (a value of type _thread.lock)."),
        (SystemExit(3), ""),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, BaseException) else "",
)
def test_an_exception_is_a_value_like_any_other(error: BaseException, missing: str) -> None:
    """Such as the results of `gather(..., return_exceptions=True)`."""
    (again,) = codec.decode(codec.encode([error]))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert _missing(again) == missing
