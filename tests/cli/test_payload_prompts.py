"""What an answer at a prompt means, by the hook's JSON schema."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from datetime import date
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from pyworkflow_ray.cli import payload_prompts
from pyworkflow_ray.cli.outputs import Format, Output
from pyworkflow_ray.cli.payload_prompts import Questions


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    city: str
    zip: str | None = None


class Parcel(BaseModel):
    weight: float
    colour: Colour
    to: Address
    due: date | None = None
    labels: list[str] = []
    fragile: bool = False


Answer = Callable[[Any, Sequence[str]], tuple[Any, list[str]]]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Answer:
    """What answers make of a type, and the questions that were asked."""

    def ask(kind: Any, answers: Sequence[str]) -> tuple[Any, list[str]]:
        left, asked = list(answers), []

        def say(console: Any, question: Any, default: str | None) -> str:
            asked.append(question.plain)
            return left.pop(0) or (default or "")

        monkeypatch.setattr(payload_prompts, "_ask", say)
        schema = TypeAdapter(kind).json_schema()
        questions = Questions(Output(Format.TABLE, io.StringIO(), io.StringIO()), schema)
        value = questions.ask("payload", schema)
        assert not left
        return value, asked

    return ask


def test_fields_are_asked_for_in_their_order_with_kind_and_default(answer: Answer) -> None:
    value, asked = answer(Parcel, ["2.5", "red", "Oslo", "", "", '["a"]', "y"])
    assert TypeAdapter(Parcel).validate_python(value) == Parcel(
        weight=2.5, colour=Colour.RED, to=Address(city="Oslo"), labels=["a"], fragile=True
    )
    assert asked == [
        "payload.weight (number)",
        "payload.colour (text) [red/blue]",
        "payload.to.city (text)",
        "payload.to.zip (text)",
        "payload.due (text, date)",
        "payload.labels (JSON list)",
        "payload.fragile (y/n)",
    ]


@pytest.mark.parametrize(
    ("kind", "wrong", "right", "value"),
    [
        (int, ["x", "1.5"], "7", 7),
        (float, ["x"], "1", 1),
        (bool, ["perhaps", "2"], "no", False),
        (str, [], "7", "7"),
        (list[int], ["7", '["a"]', "[1"], "[1, 2]", [1, 2]),
        (dict[str, int], ["[]"], '{"a": 1}', {"a": 1}),
        (Colour, ["green"], "blue", "blue"),
        (int | None, ["x"], "null", None),
        (str | None, [], "null", None),
        (int | str, [], "7", 7),
    ],
)
def test_an_answer_that_does_not_fit_is_asked_for_again(
    answer: Answer, kind: Any, wrong: list[str], right: str, value: Any
) -> None:
    found, asked = answer(kind, [*wrong, right])
    assert (found, type(found)) == (value, type(value))
    assert len(asked) == len(wrong) + 1
