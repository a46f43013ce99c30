"""How a workflow's code gets to where it runs, today or a week from now.

Code that readers find by its name goes as a reference: installed code, and local code whose files travel in a
bundle. Anything else (a notebook, a script that does not guard its start, functions in functions) goes by
value, and a bundle brings the local modules that it uses. Bytecode belongs to one Python version, so that is
kept beside it.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

from pyworkflow_ray.exceptions import ConfigurationError, SerializationError, WorkflowError
from pyworkflow_ray.storage.codes import Code
from pyworkflow_ray.values import bundles, modules
from pyworkflow_ray.values.bundles import Bundle, Bundler
from pyworkflow_ray.values.pickles import pickled, try_unpickle, unpickle

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def pack(definition: Any, what: str) -> Code:
    """The code of a workflow, step or function, for processes that have the same local modules as this one.

    Raises:
        ConfigurationError: It holds something that cannot travel; it names what.
    """
    return _referenced(definition, bundles.installed_hash()) or _by_value(
        definition, what, bundles.installed_hash()
    )


def ship(definition: Any, what: str, bundler: Bundler) -> tuple[Code, Bundle | None]:
    """The code of a definition, for processes that have nothing of this one's local modules, and its bundle.

    Raises:
        ConfigurationError: It holds something that cannot travel, or too much of it; it names what.
    """
    if bundles.installed_hash() is not None:  # a step starts a run: the bundle is stored already
        return pack(definition, what), None
    reference = modules.reference_of(definition)
    if reference is not None:
        module_name = reference.partition(":")[0]
        if modules.is_importable_everywhere(module_name):
            return pack(definition, what), None
        bundle = bundler.bundle([module_name], definition, what)
        if bundle is not None and module_name in bundle.modules:
            code = _referenced(definition, bundle.hash)
            assert code is not None
            return code, bundle
    names: set[str] = set()
    own = modules.name_of(getattr(definition, "__module__", None) or "")
    if own is not None:
        names.add(own)
    _pickled(definition, what, names)
    bundle = bundler.bundle(names, definition, what)
    with modules.naming(named_in(bundle)):
        code = _by_value(definition, what, None if bundle is None else bundle.hash)
    _require_loadable(code, what)
    return code, bundle


def named_in(bundle: Bundle | None) -> modules.Naming:
    """The local modules that readers with this bundle have."""
    return modules.names_nothing if bundle is None else bundle.modules.__contains__


def _referenced(definition: Any, bundle: str | None) -> Code | None:
    reference = modules.reference_of(definition)
    if reference is None:
        return None
    if modules.is_importable_everywhere(reference.partition(":")[0]):
        key, source_hash, bundle = f"reference:{reference}", _source_hash(definition), None
    elif bundle is None:  # in process: the module is this process's own
        key, source_hash = f"local:{reference}", _source_hash(definition)
    else:
        key, source_hash = f"source:{bundle}:{reference}", None
    return Code(
        hash=_hash(key.encode()),
        kind="reference",
        python=PYTHON,
        reference=reference,
        source_hash=source_hash,
        bundle=bundle,
    )


def _by_value(definition: Any, what: str, bundle: str | None) -> Code:
    data = _pickled(definition, what)
    origin = f"{getattr(definition, '__module__', '')}:{getattr(definition, '__qualname__', '')}"
    hash_ = _hash(data if bundle is None else bundle.encode() + data)
    return Code(hash=hash_, kind="value", python=PYTHON, reference=origin, data=data, bundle=bundle)


def _pickled(definition: Any, what: str, names: set[str] | None = None) -> bytes:
    try:
        return pickled(definition, names)
    except Exception as error:
        if isinstance(error, TypeError) and "pickle" in str(error):
            why = (
                f"{error}. It must not hold on to open files, connections, locks or the like in global "
                "variables or closures: make them inside the step."
            )
        else:
            why = f"storing it raised {type(error).__name__}: {error}. {_MODULE_HELPS}"
        raise ConfigurationError(f"The code of {what} cannot travel to the cluster: {why}") from error


_MODULE_HELPS = (
    "It is a pickle, because it is in no module that can be imported. Move it to a module beside the script, "
    'or guard the script\'s start with `if __name__ == "__main__":`. Then it travels as source.'
)
_loadable: set[str] = set()


def _require_loadable(code: Code, what: str) -> None:
    """Check that a process which does not know this code by value can load it.

    Raises:
        ConfigurationError: It cannot.
    """
    if code.hash in _loadable:
        return
    try:
        try_unpickle(code.data or b"")
    except Exception as error:
        raise ConfigurationError(
            f"The code of {what} cannot travel to the cluster: loading it again raised "
            f"{type(error).__name__}: {error}. {_MODULE_HELPS}"
        ) from error
    if len(_loadable) > 10_000:
        _loadable.clear()
    _loadable.add(code.hash)


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


FetchBundle = Callable[[str], bytes]
"""Gives the archive of a bundle by its hash."""


class CodeLoader:
    """Loads code and keeps what it has loaded, by hash.

    Args:
        fetch: Gives bundles. Without it the local modules are those of this process itself.
    """

    def __init__(self, fetch: FetchBundle | None = None, capacity: int = 500) -> None:
        self._fetch, self._capacity = fetch, capacity
        self._loaded: dict[str, Any] = {}

    def load(self, code: Code) -> Any:
        """The definition that `pack` was given.

        Raises:
            WorkflowError: This process cannot load it; it says why and what to do.
        """
        if code.hash in self._loaded:
            return self._loaded[code.hash]
        definition = _load(code, self._fetch)
        if len(self._loaded) >= self._capacity:
            self._loaded.pop(next(iter(self._loaded)))
        self._loaded[code.hash] = definition
        return definition

    def get(self, code_hash: str) -> Any:
        """What was loaded under this hash; None if nothing was."""
        return self._loaded.get(code_hash)


def _load(code: Code, fetch: FetchBundle | None) -> Any:
    hash_ = code.bundle
    if hash_ is not None and fetch is not None:
        bundles.install(hash_, lambda: fetch(hash_))
    if code.kind == "reference":
        reference = code.reference or ""
        definition = modules.load_reference(reference)
        if hash_ is not None and fetch is not None:
            bundles.know_as_main(modules.module_named(reference.partition(":")[0]))
        return definition
    if code.python != PYTHON:
        raise SerializationError(
            f"This code was written by Python {code.python} and this process runs Python {PYTHON}: bytecode "
            "belongs to one minor version. Resume the run on a cluster with the Python that started it, or "
            "fork it with the current code."
        )
    try:
        return unpickle(code.data or b"")
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
