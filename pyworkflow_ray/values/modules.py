"""Where a class or function lives, and whether every process of a cluster can import it.

What every process can import is stored as a reference, ``"module:qualname"``. Code in `__main__`, a notebook,
a local file, an editable install or a job's `working_dir` will not be there when a run resumes days later
in another process. So it is stored by value.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import linecache
import operator
import os
import pickle
import re
import site
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import PurePath
from types import CodeType, ModuleType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
from loguru import logger

from pyworkflow_ray.exceptions import SerializationError

_OURS = "pyworkflow_ray"
_NEVER = frozenset({"__main__", "__mp_main__"})
_INSTALLED = frozenset({"site-packages", "dist-packages"})


def _installed_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    # Some embedded interpreters and old virtual environments have a `site` without these functions.
    folders += getattr(site, "getsitepackages", list)()
    folders += [getattr(site, "getusersitepackages", str)()]
    every = {form for folder in folders if folder for form in (folder, os.path.realpath(folder))}
    return tuple(sorted(os.path.join(os.path.normcase(folder), "") for folder in every))


_FOLDERS = _installed_folders()
# A verdict is valid as long as the module keeps its spec and file: a reload may move it.
_verdicts: dict[str, tuple[Any, Any, bool]] = {}


def is_importable_everywhere(module_name: str) -> bool:
    """Whether any process of a cluster can import this module by name.

    True for built-in modules, the standard library, installed packages, and this package itself: every worker
    has it, even from a source checkout.
    """
    if module_name in _NEVER:
        return False
    if module_name.partition(".")[0] == _OURS:
        return True
    module = sys.modules.get(module_name)
    if not _is_module(module):
        return _can_be_found(module_name)
    # Read from the dict, because access to an attribute of a lazy module would load it.
    names = object.__getattribute__(module, "__dict__")
    spec, file = names.get("__spec__"), names.get("__file__")
    known = _verdicts.get(module_name)
    if known is not None and known[0] is spec and known[1] is file:
        return known[2]
    verdict = _is_installed(module_name, spec, file)
    _verdicts[module_name] = (spec, file, verdict)
    return verdict


def _is_module(thing: Any) -> bool:
    # By its type: an extension may put an object among the modules that only claims to be a module.
    return issubclass(type(thing), ModuleType)


def _can_be_found(module_name: str) -> bool:
    parent = module_name.rpartition(".")[0]
    # `find_spec` imports the parents. With a local parent the answer is no anyway.
    if parent and not is_importable_everywhere(parent):
        return False
    try:
        spec = importlib.util.find_spec(module_name)
    except Exception:  # whatever a finder or the import of a parent raises, the module is not there
        return False
    return spec is not None and _is_installed(module_name, spec, None)


def _is_installed(module_name: str, spec: Any, file: Any) -> bool:
    origin = getattr(spec, "origin", None)
    if origin in ("built-in", "frozen"):
        return True
    if isinstance(file, str):
        return spec is not None and _is_installed_path(file)
    if getattr(spec, "has_location", False) and isinstance(origin, str):
        return _is_installed_path(origin)
    folders = list(getattr(spec, "submodule_search_locations", None) or ())
    if folders:  # a namespace package: importable everywhere if all its portions are
        return all(_is_installed_path(os.path.join(folder, "")) for folder in folders)
    # A module with no file of its own (`six.moves`, a submodule that a C extension makes) is there
    # whenever its parent is.
    parent = module_name.rpartition(".")[0]
    return parent in sys.modules and is_importable_everywhere(parent)


def _is_installed_path(path: str) -> bool:
    normal = os.path.normcase(os.path.abspath(path))
    return normal.startswith(_FOLDERS) or not _INSTALLED.isdisjoint(PurePath(normal).parts)


def reference_of(obj: Any) -> str | None:
    """``"module:qualname"`` of a class or function that every process can import, else None."""
    module_name = getattr(obj, "__module__", None)
    qualname = getattr(obj, "__qualname__", None)
    if type(module_name) is not str or type(qualname) is not str:
        return None
    found: Any = sys.modules.get(module_name)
    # A class that arrived by value names a module that is not here. A search on disk would be slow.
    if found is None or not is_importable_everywhere(module_name):
        return None
    for part in qualname.split("."):
        try:
            found = getattr(found, part)
        except Exception:  # "<locals>", or a class whose metaclass objects
            return None
    return f"{module_name}:{qualname}" if found is obj else None


def load_reference(ref: str) -> Any:
    """The class or function that a reference of `reference_of` names. Its module is imported.

    Raises:
        SerializationError: The text is no reference, or there is nothing of this name.
    """
    module_name, _, qualname = ref.partition(":")
    names = [*module_name.split("."), *qualname.split(".")]
    if not all(name.isidentifier() for name in names):
        raise SerializationError(f"{ref!r} is not a reference; it should look like 'package.module:Name'.")
    module_name = _MOVED.get(module_name, module_name)
    try:
        # Not from `sys.modules`: there is a module, and half of it, while another thread imports it.
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise SerializationError(
            f"Cannot find {ref!r}: importing {module_name!r} raised {type(error).__name__}: {error}. "
            "Install in this process what the process that wrote the reference had."
        ) from error
    for part in qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            place = getattr(sys.modules.get(module_name), "__file__", None) or "a built-in module"
            raise SerializationError(
                f"Cannot find {ref!r}: {module_name!r} ({place}) has no {qualname!r}. "
                "It may have been renamed or removed since the reference was written."
            ) from error
    return found


def pickle_by_value(obj: Any) -> bytes:
    """A pickle that holds the code of every local module it needs.

    Raises:
        Exception: Whatever the object raises when it is pickled, usually `TypeError` or `PicklingError`.
    """
    for _ in range(_TRIES - 1):
        try:
            return _pickled(obj)
        except RuntimeError as error:
            # Another thread imports or defines something while this one iterates over it.
            if "changed size during iteration" not in str(error):
                raise
    return _pickled(obj)


def _pickled(obj: Any) -> bytes:
    with _local_modules_by_value(), io.BytesIO() as file:
        _Pickler(file).dump(obj)
        return file.getvalue()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._files: dict[str, str] = {}
        self._written: dict[str, range] = {}

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is CodeType:
            file, *text = self._place_of(obj)
            # Some versions of cloudpickle write the file too, and others a name that stands for none.
            _, parts = self.dispatch_table[CodeType](obj.replace(co_filename=file))
            return _made_code, (parts, file, *text)
        # By value, a module's logger would take its sinks with it: one more copy of them in each process, or
        # an open file that cannot be pickled. So it becomes the logger of the process where the code runs.
        if type(obj) is type(logger) and obj._core is logger._core:  # type: ignore[attr-defined]
            return _own_logger, (obj._options,)  # type: ignore[attr-defined]
        return super().reducer_override(obj)

    def _place_of(self, code: CodeType) -> tuple[Any, ...]:
        """The code's file, and the first line and the text of what is not in this pickle yet."""
        file = code.co_filename
        if file not in self._files:
            linecache.checkcache(file)
            # One string for each file: a pickle refers back to what is the same object, and processes
            # differ in which equal strings are.
            self._files[file] = _NOTEBOOK.sub("<notebook>/", "".join(file))
        first, last = max(1, code.co_firstlineno), _last_line(code)
        written = self._written.get(file, range(0))
        # Generated code has the name `<string>`, and so has what an interpreter was given by `-c`.
        if file == "<string>" or (first in written and last in written):
            return (self._files[file],)
        # Functions inside a function come after it, and their text is in its text.
        self._written[file] = range(first, last + 1)
        return self._files[file], first, "".join(linecache.getlines(file)[first - 1 : last])


# A kernel names the files of cells after its process, and code is to be the same from every kernel.
_NOTEBOOK = re.compile(r"^.*[\\/]ipykernel_\d+[\\/]")
# Where `linecache` would break a line and a file does not.
_NO_BREAKS = str.maketrans(dict.fromkeys("\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", " "))
_lines: dict[str, dict[int, str]] = {}


def _last_line(code: CodeType) -> int:
    last = max((end or line or 0 for line, end, _, _ in code.co_positions()), default=0)
    inner = (_last_line(const) for const in code.co_consts if type(const) is CodeType)
    return max(code.co_firstlineno, last, *inner)


def _made_code(args: tuple[Any, ...], file: str, first: int = 0, text: str = "") -> CodeType:
    if text:
        _keep_source(file, first, text)
    return CodeType(*args).replace(co_filename=file)


def _keep_source(file: str, first: int, text: str) -> None:
    """Has tracebacks show these lines of a file that is not on this machine."""
    if file not in _lines and file in linecache.cache:
        return  # known to this process, and whole
    lines = _lines.setdefault(file, {})
    lines.update(enumerate(text.translate(_NO_BREAKS).removesuffix("\n").split("\n"), first))
    # A lazy entry stays through `checkcache`, and a file that is there after all goes before it.
    linecache.cache[file] = (partial(_text_of, lines),)
    if file.startswith("<") and file.endswith(">"):  # `linecache` looks for no source of such a name
        kept = _text_of(lines)
        linecache.cache[file] = (len(kept), None, kept.splitlines(keepends=True), file)


def _text_of(lines: dict[int, str]) -> str:
    lines = dict(lines)  # another thread may add to it
    return "".join(f"{lines.get(number, '')}\n" for number in range(1, max(lines) + 1))


def _own_logger(options: tuple[Any, ...]) -> Any:
    return type(logger)(logger._core, *options)  # type: ignore[attr-defined, call-arg]


_MOVED = {
    f"{_OURS}.{old}": f"{_OURS}.{new}"
    for old, new in {
        "values": "values.codec",
        "value_tags": "values.tags",
        "value_objects": "values.objects",
        "value_views": "values.views",
        "failures": "values.failures",
        "schemas": "values.schemas",
        "modules": "values.modules",
        "recurrences": "recurrences.specs",
        "calendars": "recurrences.calendars",
        "crons": "recurrences.crons",
        "zones": "recurrences.zones",
        "overlaps": "recurrences.overlaps",
        "arguments": "authoring.arguments",
        "children": "authoring.children",
        "context": "authoring.context",
        "definitions": "authoring.definitions",
        "discovery": "authoring.discovery",
        "hooks": "authoring.hooks",
        "logs": "authoring.logs",
        "schedules": "authoring.schedules",
        "steps": "authoring.steps",
        "timers": "authoring.timers",
        "workflows": "authoring.workflows",
        "engine.logs": "authoring.logs",
    }.items()
}
"""The present names of modules of this package that had others when code and values were stored."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, name: str) -> Any:
        if (module_name, name) == ("cloudpickle.cloudpickle", "subimport"):
            return _import_moved
        return super().find_class(_MOVED.get(module_name, module_name), name)


def _import_moved(module_name: str) -> ModuleType:
    return importlib.import_module(_MOVED.get(module_name, module_name))


def unpickle(data: bytes) -> Any:
    """The object that `pickle_by_value` was given, now or in an earlier version of this package.

    Raises:
        Exception: Whatever loading it raises.
    """
    return _Unpickler(io.BytesIO(data)).load()


_TRIES = 10
_lock = threading.RLock()
_pickling = 0
_registered: list[ModuleType] = []


@contextmanager
def _local_modules_by_value() -> Iterator[None]:
    # The lock is not held while pickling, because that runs code of the user, which may wait for another
    # thread that pickles. The last thread to leave unregisters what the others have registered.
    with _lock:
        _register_local_modules()
    try:
        yield
    finally:
        with _lock:
            _unregister_local_modules()


def _register_local_modules() -> None:
    global _pickling
    known = cloudpickle.list_registry_pickle_by_value()
    for module in _local_modules():
        # What the user has registered stays registered.
        if module.__name__ not in known and module.__name__ in sys.modules:
            cloudpickle.register_pickle_by_value(module)
            _registered.append(module)
    _pickling += 1


def _unregister_local_modules() -> None:
    global _pickling
    _pickling -= 1
    if _pickling:
        return
    known = cloudpickle.list_registry_pickle_by_value()
    for module in _registered:
        if module.__name__ in known:
            cloudpickle.unregister_pickle_by_value(module)
    _registered.clear()


_seen_modules: tuple[Any, ...] = ()
_local: tuple[ModuleType, ...] = ()


def _local_modules() -> tuple[ModuleType, ...]:
    """Stand-ins for the modules to register: the local ones that are loaded, the topmost of each package."""
    global _seen_modules, _local
    seen = tuple(sys.modules.values())
    # If the modules and their order are the same, the answer is too. This check takes microseconds.
    if len(seen) == len(_seen_modules) and all(map(operator.is_, seen, _seen_modules)):
        return _local
    found = {
        name for name, module in list(sys.modules.items()) if _is_module(module) and _is_local(name, module)
    }
    # cloudpickle keeps the name only, and takes all modules of a package with it. The name is not read from
    # the module itself, because that would load a lazy one.
    _local = tuple(ModuleType(name) for name in sorted(found) if name.rpartition(".")[0] not in found)
    _seen_modules = seen
    return _local


def _is_local(name: str, module: ModuleType) -> bool:
    if name in _NEVER or is_importable_everywhere(name):
        return False
    names = object.__getattribute__(module, "__dict__")
    if names.get("__file__") is None:
        # A namespace package has no code, and registering it would include its installed portions. A module
        # that an extension made without a file (`cython_runtime`) holds nothing that can be pickled by value.
        # A module that has run Python code has builtins.
        return "__path__" not in names and "__builtins__" in names
    return True
