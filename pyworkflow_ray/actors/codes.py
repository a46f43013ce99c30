"""How a workflow's code gets to where it runs, today or a week from now.

What every process of the cluster can import by itself (installed packages) goes as a reference; anything
else (`__main__`, a notebook, a file beside the script, a job's working directory) goes by value, with the
local modules that it uses. Bytecode belongs to one Python version, so that is kept beside it.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from typing import Any

from pyworkflow_ray.exceptions import ConfigurationError, SerializationError, WorkflowError
from pyworkflow_ray.storage.codes import Code
from pyworkflow_ray.values import modules

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def pack(definition: Any, what: str) -> Code:
    """The code of a workflow, step or function, ready to travel.

    Raises:
        ConfigurationError: It holds something that cannot travel; it names what.
    """
    reference = modules.reference_of(definition)
    if reference is not None:
        return Code(
            hash=_hash(b"reference:" + reference.encode()),
            kind="reference",
            python=PYTHON,
            reference=reference,
            source_hash=_source_hash(definition),
        )
    try:
        data = modules.pickle_by_value(definition)
    except Exception as error:
        raise ConfigurationError(
            f"The code of {what} cannot travel to the cluster: {error}. It must not hold on to open files, "
            "connections, locks or the like in global variables or closures: make them inside the step."
        ) from error
    origin = f"{getattr(definition, '__module__', '')}:{getattr(definition, '__qualname__', '')}"
    return Code(hash=_hash(data), kind="value", python=PYTHON, reference=origin, data=data)


class Packer:
    """Packs the code of definitions that workflow code names, each once."""

    def __init__(self) -> None:
        self._packed: dict[int, tuple[Any, Code]] = {}

    def __call__(self, definition: Any, what: str) -> Code:
        known = self._packed.get(id(definition))
        if known is None or known[0] is not definition:
            if len(self._packed) > 1000:
                self._packed.clear()
            known = self._packed[id(definition)] = (definition, pack(definition, what))
        return known[1]


class CodeLoader:
    """Loads code and keeps what it has loaded, by hash."""

    def __init__(self, capacity: int = 500) -> None:
        self._capacity = capacity
        self._loaded: dict[str, Any] = {}

    def load(self, code: Code) -> Any:
        """The definition that `pack` was given.

        Raises:
            WorkflowError: This process cannot load it; it says why and what to do.
        """
        if code.hash in self._loaded:
            return self._loaded[code.hash]
        definition = _load(code)
        if len(self._loaded) >= self._capacity:
            self._loaded.pop(next(iter(self._loaded)))
        self._loaded[code.hash] = definition
        return definition

    def get(self, code_hash: str) -> Any:
        """What was loaded under this hash; None if nothing was."""
        return self._loaded.get(code_hash)


def _load(code: Code) -> Any:
    if code.kind == "reference":
        return modules.load_reference(code.reference or "")
    if code.python != PYTHON:
        raise SerializationError(
            f"This code was written by Python {code.python} and this process runs Python {PYTHON}: bytecode "
            "belongs to one minor version. Resume the run on a cluster with the Python that started it, or "
            "fork it with the current code."
        )
    try:
        return modules.unpickle(code.data or b"")
    except WorkflowError:
        raise
    except Exception as error:
        raise SerializationError(
            f"The code of this run cannot be loaded here: {type(error).__name__}: {error}. "
            "Install on the cluster what it imports."
        ) from error


def source_changed(code: Code, definition: Any) -> bool:
    """Whether code by reference is no longer what it was when the run started."""
    return bool(code.source_hash) and _source_hash(definition) != code.source_hash


def _source_hash(definition: Any) -> str:
    try:
        return _hash(inspect.getsource(inspect.unwrap(definition)).encode())
    except (OSError, TypeError):
        return ""


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
