"""Arguments of workflows, as a user types them: `--arg order=A-17 --arg cents=1250`."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter

from pyworkflow_ray.authoring.workflows import WorkflowFunction

Args = Annotated[
    list[str] | None,
    typer.Option("--arg", "-a", metavar="NAME=VALUE", help="An argument, JSON or text; may be repeated."),
]
ArgsJson = Annotated[
    str | None, typer.Option(help="Arguments as a JSON list, or as an object of named ones.")
]


def arguments_of(
    definition: WorkflowFunction[Any, Any], given: Iterable[str], args_json: str | None
) -> tuple[list[Any], dict[str, Any]]:
    """The positional and the named arguments. The library's own checks convert or refuse them later.

    Args:
        given: Texts "name=value".
        args_json: A JSON list of positional arguments, or an object of named ones.

    Raises:
        BadParameter: A text has another form, or a name is given twice.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    if args_json is not None:
        match parse_json(args_json, "--args-json"):
            case list() as args:
                pass
            case dict() as kwargs:
                pass
            case _:
                raise typer.BadParameter("give a JSON list or a JSON object", param_hint="--args-json")
    hints = _hints(definition)
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise typer.BadParameter(f"{text!r} is not of the form name=value", param_hint="--arg")
        if name in kwargs:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint="--arg")
        kwargs[name] = typed(value, hints.get(name, Any))
    return args, kwargs


def typed(text: str, annotation: Any) -> Any:
    """The value of a text for a parameter: JSON, if the parameter accepts that; else the text itself.

    So `--arg order=1234` is the text "1234" for a `str` parameter, and a number for other parameters.
    """
    if annotation is str:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    meanings = [text, value] if _is_text(annotation) and value is not None else [value, text]
    return next((each for each in meanings if annotation is Any or _takes(annotation, each)), value)


def _is_text(annotation: Any) -> bool:
    """Whether `str` is one of the alternatives, as in `str | None`."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return is_union and str in typing.get_args(annotation)


def _takes(annotation: Any, value: Any) -> bool:
    try:
        TypeAdapter(annotation).validate_python(value)
    except Exception:
        return False
    return True


def _hints(definition: WorkflowFunction[Any, Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(definition.fn, include_extras=True)
    except Exception:
        return {}


def parse_json(text: str, option: str) -> Any:
    """The value of the JSON text that was given for an option.

    Raises:
        BadParameter: It is not JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"it is not JSON: {error}. Texts need quotes in JSON, and the whole quotes of the shell: "
            "'\"a text\"', '{\"approved\": true}'",
            param_hint=option,
        ) from None
