"""The script that this process runs, as a module that other processes can import.

Code of a script is in the module `__main__`, which is another one in each process. A script that guards its
start with ``if __name__ == "__main__":`` can be imported under the name of its file, as `multiprocessing`
does. So its classes and functions have a name that every process understands: ``orders:charge``.
"""

from __future__ import annotations

import ast
import os
import sys
from types import ModuleType
from typing import Any

from pyworkflow_ray.values.syntax import parsed

MAIN = "__main__"

_known: tuple[Any, Any, str | None] = (None, None, None)


def script_name() -> str | None:
    """The name under which other processes can import this process's script; None if they cannot.

    They cannot import a script without a guard, a notebook, an interactive session, or code that was read
    from the command line or the standard input.
    """
    global _known
    main = sys.modules.get(MAIN)
    if type(main) is not ModuleType:
        return None
    file = main.__dict__.get("__file__")
    if _known[0] is not main or _known[1] != file:
        _known = (main, file, _name_of(main, file))
    return _known[2]


def _name_of(main: ModuleType, file: Any) -> str | None:
    if type(file) is not str or not file.endswith(".py") or "get_ipython" in main.__dict__:
        return None
    name = getattr(main.__dict__.get("__spec__"), "name", None) or os.path.basename(file)[: -len(".py")]
    if name == MAIN or name.startswith("<") or "." in os.path.basename(file)[: -len(".py")]:
        return None
    try:
        with open(file, "rb") as source:
            return name if is_guarded(source.read()) else None
    except OSError:
        return None


def is_guarded(source: bytes) -> bool:
    """Whether a script's own start stands behind ``if __name__ == "__main__":``."""
    tree = parsed(source) if MAIN.encode() in source else None
    return tree is not None and any(
        isinstance(statement, ast.If) and _is_guard(statement.test) for statement in tree.body
    )


def _is_guard(test: ast.expr) -> bool:
    return any(
        isinstance(node, ast.Compare)
        and len(node.ops) == 1
        and isinstance(node.ops[0], ast.Eq)
        and {_text(node.left), _text(node.comparators[0])} == {"__name__", MAIN}
        for node in ast.walk(test)
    )


def _text(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None
