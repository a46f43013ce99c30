"""The places from which the engine commits or sends something, as its code shows them.

Nobody lists them by hand. A place is a call of one of the storage's doors, of a dispatcher, or of Ray. Its
name is that of the function around it, with a number if the function has several.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyworkflow_ray

PACKAGE = Path(pyworkflow_ray.__file__).parent
DOORS = {"write", "write_aside", "submit", "write_here", "post"}
"""What a storage, or its writer, is asked to commit with."""
BELOW = {"storage", "testing"}
"""The doors themselves; and the test kit, which stands in for them."""


@dataclass(frozen=True)
class Place:
    """A call that commits or sends.

    Args:
        name: The module and the function.
        kind: "commit", "dispatch" (of an attempt) or "message" (through Ray).
        file, first, last: Where it is: the lines of the call.
    """

    name: str
    kind: str
    file: str
    first: int
    last: int


def _kind_of(call: ast.Call) -> str | None:
    function = call.func
    if not isinstance(function, ast.Attribute):
        return None
    of = ast.unparse(function.value)
    if function.attr in DOORS and of.rpartition(".")[2].strip("_") in ("storage", "writer"):
        return "commit"
    if function.attr == "dispatch" and of.rpartition(".")[2].strip("_") == "dispatcher":
        return "dispatch"
    if function.attr in ("remote", "_remote") and of != "ray":
        return "message"
    return None


def _calls(node: ast.AST, inside: tuple[str, ...]) -> Iterator[tuple[str, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        is_named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if isinstance(child, ast.Call):
            yield ".".join(inside), child
        yield from _calls(child, (*inside, child.name) if is_named else inside)


def places_in(path: Path, module: str) -> list[Place]:
    """The places in one file."""
    found: list[Place] = []
    counts: Counter[str] = Counter()
    for function, call in _calls(ast.parse(path.read_text()), ()):
        kind = _kind_of(call)
        if kind is not None:
            name = f"{module}.{function}"
            counts[name] += 1
            numbered = name if counts[name] == 1 else f"{name} {counts[name]}"
            found.append(Place(numbered, kind, str(path), call.lineno, call.end_lineno or call.lineno))
    return found


def all_places() -> dict[str, Place]:
    """Every place of the package, by its name."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in BELOW:
            found += places_in(path, ".".join(parts))
    return {place.name: place for place in found}
