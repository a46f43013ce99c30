"""Pickles of code and values, for readers in other processes and on other days.

A class or function that readers find by its name is written as that name. The code of everything else goes
along by value, with the local modules that it needs.
"""

from __future__ import annotations

import dis
import importlib
import io
import linecache
import operator
import pickle
import re
import sys
import threading
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType, FunctionType, ModuleType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
from loguru import logger

from pyworkflow_ray.values.modules import (
    MOVED,
    is_importable_everywhere,
    is_module,
    load_reference,
    module_named,
    name_of,
    names_nothing,
    naming,
    reference_of,
)
from pyworkflow_ray.values.reducers import CACHE, reduced
from pyworkflow_ray.values.scripts import MAIN


def pickled(obj: Any, modules: set[str] | None = None) -> bytes:
    """A pickle of the object.

    Args:
        modules: The names of the local modules that a reader needs are added to it.

    Raises:
        Exception: Whatever the object raises when it is pickled, usually `TypeError` or `PicklingError`.
    """
    for _ in range(_TRIES - 1):
        try:
            return _pickled(obj, modules)
        except RuntimeError as error:
            # Another thread imports or defines something while this one iterates over it.
            if "changed size during iteration" not in str(error):
                raise
    return _pickled(obj, modules)


def pickle_by_value(obj: Any) -> bytes:
    """A pickle that holds the code of every local module it needs.

    Raises:
        Exception: Whatever the object raises when it is pickled, usually `TypeError` or `PicklingError`.
    """
    with naming(names_nothing):
        return pickled(obj)


def _pickled(obj: Any, modules: set[str] | None) -> bytes:
    with _local_modules_by_value(), io.BytesIO() as file:
        _Pickler(file, modules).dump(obj)
        return file.getvalue()


# What has a module and a name, and is pickled by cloudpickle or Python in ways that know `__main__` alone.
_NAMED = (type, FunctionType, CACHE, typing.NewType)
_TYPE_VARIABLES = (typing.TypeVar, typing.ParamSpec, typing.TypeVarTuple)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, modules: set[str] | None) -> None:
        super().__init__(file)
        self._modules = modules
        self._files: dict[str, str] = {}
        self._written: dict[str, range] = {}

    def reducer_override(self, obj: Any) -> Any:
        named = self._named(obj)
        if named is not None:
            return named
        taken_apart = reduced(obj)
        if taken_apart is not None:
            return taken_apart
        if type(obj) is CodeType:
            self._note_imports(obj)
            file, *text = self._place_of(obj)
            # Some versions of cloudpickle write the file too, and others a name that stands for none.
            _, parts = self.dispatch_table[CodeType](obj.replace(co_filename=file))
            return _made_code, (parts, file, *text)
        # By value, a module's logger would take its sinks with it: one more copy of them in each process, or
        # an open file that cannot be pickled. So it becomes the logger of the process where the code runs.
        if type(obj) is type(logger) and obj._core is logger._core:  # type: ignore[attr-defined]
            return _own_logger, (obj._options,)  # type: ignore[attr-defined]
        return super().reducer_override(obj)

    def _named(self, obj: Any) -> tuple[Any, tuple[str]] | None:
        """How a reader finds a thing of a local module by its name; None if it does not."""
        load: Any = load_reference
        if isinstance(obj, _NAMED):
            reference = reference_of(obj)
        elif isinstance(obj, _TYPE_VARIABLES):
            reference = _reference_of_variable(obj)
        elif is_module(obj):
            load, reference = module_named, name_of(_name_in(obj))
        else:
            return None
        module_name = (reference or "").partition(":")[0]
        # What every process has is written as usual, in fewer bytes.
        if reference is None or is_importable_everywhere(module_name):
            return None
        if self._modules is not None:
            self._modules.add(module_name)
        return load, (reference,)

    def _note_imports(self, code: CodeType) -> None:
        """Note the modules that a function imports when it runs."""
        if self._modules is not None:
            for instruction in dis.get_instructions(code):
                if instruction.opname == "IMPORT_NAME":
                    self._modules.add(str(instruction.argval))

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


def _reference_of_variable(obj: Any) -> str | None:
    """The reference of a type variable at the top of a module."""
    module, name = sys.modules.get(obj.__module__), obj.__name__
    if module is None or getattr(module, name, None) is not obj:
        return None
    found = name_of(obj.__module__)
    return None if found is None else f"{found}:{name}"


def _name_in(module: ModuleType) -> str:
    # Read from the dict, because access to an attribute of a lazy module would load it.
    return str(object.__getattribute__(module, "__dict__").get("__name__", ""))


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
        keep_source(file, first, text)
    return CodeType(*args).replace(co_filename=file)


def keep_source(file: str, first: int, text: str) -> None:
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


# Pickles that were stored before name these functions where they were then.
_FORMER_MODULE = "pyworkflow_ray.values.modules"
_FORMERLY_THERE = frozenset({"_made_code", "_own_logger"})


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, name: str) -> Any:
        if (module_name, name) == ("cloudpickle.cloudpickle", "subimport"):
            return _import_moved
        module_name = MOVED.get(module_name, module_name)
        if module_name == _FORMER_MODULE and name in _FORMERLY_THERE:
            module_name = __name__
        return super().find_class(module_name, name)


def _import_moved(module_name: str) -> ModuleType:
    return importlib.import_module(MOVED.get(module_name, module_name))


def unpickle(data: bytes) -> Any:
    """The object that `pickled` was given, now or in an earlier version of this package.

    Raises:
        Exception: Whatever loading it raises.
    """
    return _Unpickler(io.BytesIO(data)).load()


class _FreshUnpickler(_Unpickler):
    """Makes classes anew which this process knows already, as a process does that does not know them."""

    def find_class(self, module_name: str, name: str) -> Any:
        found = super().find_class(module_name, name)
        place = _IDENTITIES.get(name) if module_name in _MAKERS else None
        return found if place is None else partial(_without_identity, found, place)


_MAKERS = frozenset({"cloudpickle.cloudpickle", "pyworkflow_ray.values.reducers"})
# Where the calls that make classes have the class's identity. Without it, a new class is made each time.
_IDENTITIES = {
    "_make_skeleton_class": 4,
    "_make_skeleton_enum": 5,
    "_make_typevar": 5,
    "_make_enum": 6,
    "_make_struct": 7,
}


def _without_identity(make: Callable[..., Any], place: int, *args: Any) -> Any:
    return make(*args[:place], None, *args[place + 1 :])


def try_unpickle(data: bytes) -> None:
    """Unpickle in the way of a process that has not seen these classes.

    Raises:
        Exception: Whatever loading it raises there.
    """
    _FreshUnpickler(io.BytesIO(data)).load()


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
        name for name, module in list(sys.modules.items()) if is_module(module) and _is_local(name, module)
    }
    # cloudpickle keeps the name only, and takes all modules of a package with it. The name is not read from
    # the module itself, because that would load a lazy one.
    _local = tuple(ModuleType(name) for name in sorted(found) if name.rpartition(".")[0] not in found)
    _seen_modules = seen
    return _local


def _is_local(name: str, module: ModuleType) -> bool:
    if name == MAIN or is_importable_everywhere(name):
        return False
    names = object.__getattribute__(module, "__dict__")
    if names.get("__file__") is None:
        # A namespace package has no code, and registering it would include its installed portions. A module
        # that an extension made without a file (`cython_runtime`) holds nothing that can be pickled by value.
        # A module that has run Python code has builtins.
        return "__path__" not in names and "__builtins__" in names
    return True
