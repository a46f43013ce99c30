"""Payload prompts: a command asks for a hook's payload, field by field, by its JSON schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import typer
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from rich.console import Console
from rich.prompt import Prompt
from rich.text import Text

from pyworkflow_ray.cli.formatters import format_cell, sanitize
from pyworkflow_ray.cli.outputs import Output
from pyworkflow_ray.client.hooks import Hook

Schema = Mapping[str, Any]

_LEFT_OUT = object()
"""The answer for an optional field that is left out."""
_YES, _NO = ("y", "yes", "true"), ("n", "no", "false")


def choose(output: Output, hooks: list[Hook]) -> Hook:
    """The hook that the user chooses by its number."""
    for number, hook in enumerate(hooks, 1):
        line = Text.assemble(
            f"{number:>3}  ",
            (sanitize(hook.hook_id), "bold"),
            f"  {hook.run_id}  ",
            format_cell(hook.created_at),
        )
        if hook.metadata:
            line.append(f"  {format_cell(hook.metadata).plain}", style="dim")
        output.err.print(line, soft_wrap=True)
    while True:
        text = _ask(output.err, Text("Which one?"), "1" if len(hooks) == 1 else None)
        if text.isdecimal() and 1 <= int(text) <= len(hooks):
            return hooks[int(text) - 1]
        output.say(f"Give a number from 1 to {len(hooks)}.", "red")


def ask_payload(output: Output, hook: Hook) -> Any:
    """A payload that fits the hook's schema. A hook without a schema takes any JSON."""
    schema = hook.payload_schema or {}
    output.err.print(
        Text.assemble("Answer to ", (sanitize(hook.hook_id), "bold"), f" of {hook.run_id}"), soft_wrap=True
    )
    if schema.get("description"):
        output.say(str(schema["description"]), "dim")
    questions = Questions(output, schema)
    return (
        questions.ask_object(schema, "")
        if _is_object(questions.resolved(schema))
        else questions.ask("payload", schema)
    )


class Questions:
    """Asks for values by a schema.

    Args:
        output: Where to ask.
        root: The schema with the definitions to which other schemas refer.
    """

    def __init__(self, output: Output, root: Schema) -> None:
        self._output, self._root = output, root

    def ask_object(self, schema: Schema, prefix: str) -> dict[str, Any]:
        """An object, asked for field by field. Fields of nested objects are named by their path."""
        known = self.resolved(schema)
        required = set(known.get("required", ()))
        answer = {}
        for name, field in known["properties"].items():
            value = self.ask(f"{prefix}{name}", field, is_required=name in required)
            if value is not _LEFT_OUT:
                answer[name] = value
        return answer

    def ask(self, name: str, field: Schema, *, is_required: bool = True) -> Any:
        """A value that fits its schema. This asks again until it fits."""
        known = self.resolved(field)
        if _is_object(known) and is_required:
            return self.ask_object(known, f"{name}.")
        validator = Draft202012Validator({**known, "$defs": self._root.get("$defs", {})})
        default = _default_text(known)
        while True:
            text = _ask(self._output.err, _question(name, known, is_required=is_required), default)
            if not text and not is_required:
                return _LEFT_OUT
            value = read(text, known)
            error = next(iter(validator.iter_errors(value)), None)
            if error is None:
                return value
            where = "".join(f"[{part!r}]" for part in error.absolute_path)
            self._output.say(f"{name}{where}: {error.message}", "red")

    def resolved(self, field: Schema) -> Schema:
        """The schema behind a reference. For an optional value it is the schema that is not null."""
        known: dict[str, Any] = dict(field)
        while "$ref" in known or len(known.get("allOf", ())) == 1:
            reference = known.pop("$ref", None)
            inner = known.pop("allOf")[0] if reference is None else self._definition(reference)
            known = {**inner, **known}
        alternatives = [each for each in known.get("anyOf", ()) if each.get("type") != "null"]
        if len(alternatives) == 1 and "type" not in known:
            inner = dict(self.resolved(alternatives[0]))
            # The alternatives stay, so that null is accepted. The question comes from the inner schema.
            return {
                **{name: inner[name] for name in ("enum", "format") if name in inner},
                **known,
                "_type": inner.get("type"),
            }
        return known

    def _definition(self, reference: str) -> Schema:
        found = self._root.get("$defs", {}).get(reference.rpartition("/")[2], {})
        return found if isinstance(found, Mapping) else {}


def read(text: str, field: Schema) -> Any:
    """The value of a text for a field: the text itself for a text field, else JSON if it is JSON."""
    kind = field.get("_type", field.get("type"))
    if kind == "boolean" and text.lower() in _YES + _NO:
        return text.lower() in _YES
    if kind == "string" and not (text == "null" and "_type" in field):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_object(schema: Schema) -> bool:
    return schema.get("type") == "object" and bool(schema.get("properties"))


def _question(name: str, field: Schema, *, is_required: bool) -> Text:
    question = Text.assemble((sanitize(name), "bold"), (f" ({_kind(field)}", "dim"))
    if not is_required and "default" not in field:
        question.append(", may be left out", style="dim")
    question.append(")", style="dim")
    if field.get("description"):
        question.append(f" – {sanitize(str(field['description']))}")
    choices = field.get("enum")
    if choices:
        question.append(f" [{'/'.join(map(str, choices))}]", style="cyan")
    return question


def _kind(field: Schema) -> str:
    kind = field.get("_type") or field.get("type")
    names = {
        "string": "text",
        "integer": "whole number",
        "boolean": "y/n",
        "array": "JSON list",
        "object": "JSON object",
    }
    if isinstance(kind, str):
        name = names.get(kind, kind)
        return f"{name}, {field['format']}" if field.get("format") else name
    return "JSON"


def _default_text(field: Schema) -> str | None:
    if "default" not in field:
        return None
    default = field["default"]
    return default if isinstance(default, str) else json.dumps(default)


def _ask(console: Console, question: Text, default: str | None) -> str:
    try:
        answer = Prompt.ask(
            question,
            console=console,
            default=default if default is not None else "",
            show_default=bool(default),
        )
    except EOFError:
        raise typer.Abort from None
    return str(answer).strip()
