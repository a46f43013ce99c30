"""Where a class or function lives, and whether the readers of a value find it there by its name.

A name is ``"module:qualname"``. Three kinds of modules have one:

- *Installed* modules: built-in ones, the standard library, packages. Every process of a cluster has them.
- *Local* modules whose sources travel with the run: a file beside the script, a job's `working_dir`, an
  editable install, and the script itself if it guards its start (`values/bundles`).
- In a process of the engine: the modules of the bundle that it runs.

Any other code has no name elsewhere, such as that of a notebook. It is stored by value (`values/pickles`).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import PurePath
from types import ModuleType
from typing import Any

from pyworkflow_ray.exceptions import SerializationError
from pyworkflow_ray.values.scripts import MAIN, script_name

_OURS = "pyworkflow_ray"
_NEVER = frozenset({MAIN, "__mp_main__"})
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
    if not is_module(module):
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


def is_module(thing: Any) -> bool:
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


# --- local modules --------------------------------------------------------------------------------

Naming = Callable[[str], bool]
"""Whether the readers of what is written have this local module under its name."""


def has_source(module_name: str) -> bool:
    """Whether the module is a local one, loaded from a file that lies where its name says."""
    module = sys.modules.get(module_name)
    if not is_module(module) or module_name in _NEVER or is_importable_everywhere(module_name):
        return False
    file = file_of(module)
    if file is None:
        return False
    known = _sources.get(module_name)
    if known is None or known[0] is not file:
        known = _sources[module_name] = (file, lies_where_named(module_name, file) and os.path.isfile(file))
    return known[1]


_sources: dict[str, tuple[str, bool]] = {}


def file_of(module: Any) -> str | None:
    """The file that a module was loaded from; None if it has none."""
    # Read from the dict, because access to an attribute of a lazy module would load it.
    file = object.__getattribute__(module, "__dict__").get("__file__")
    return file if type(file) is str else None


def lies_where_named(module_name: str, file: str) -> bool:
    """Whether a process with the right folder on its `sys.path` would import this file under this name."""
    parts = PurePath(os.path.abspath(file)).parts
    names = tuple(module_name.split("."))
    return parts[-len(names) :] == (*names[:-1], f"{names[-1]}.py") or (
        parts[-len(names) - 1 :] == (*names, "__init__.py")
    )


def names_nothing(module_name: str) -> bool:
    """The naming of readers that have no local module."""
    return False


_process: list[Naming] = [has_source]
_context: ContextVar[Naming | None] = ContextVar("pyworkflow_ray_naming", default=None)


@contextmanager
def naming(names: Naming) -> Iterator[None]:
    """Write for readers that have the local modules that `names` says, and no others."""
    token = _context.set(names)
    try:
        yield
    finally:
        _context.reset(token)


def set_naming(names: Naming) -> None:
    """Which local modules the readers of all that this process writes have."""
    _process[0] = names


def name_of(module_name: str) -> str | None:
    """The name under which readers find this module; None if they do not have it."""
    if module_name in _NEVER:
        script = script_name()
        if script is None or module_name != MAIN:
            return None
        return script if _is_installed_script() or _has(script, is_script=True) else None
    return module_name if is_importable_everywhere(module_name) or _has(module_name) else None


def _has(module_name: str, *, is_script: bool = False) -> bool:
    names = _context.get() or _process[0]
    return names(module_name) or (is_script and names is has_source)


def _is_installed_script() -> bool:
    # `python -m pytest`, or a program that an installation has made
    file = getattr(sys.modules[MAIN], "__file__", None)
    return type(file) is str and _is_installed_path(file)


def module_named(name: str) -> ModuleType:
    """The module of a name that `name_of` gave, here or elsewhere. It is imported.

    Raises:
        Exception: Whatever the import raises.
    """
    name = MOVED.get(name, name)
    if name not in sys.modules and name == script_name():
        return sys.modules[MAIN]
    # Not from `sys.modules`: another thread may be about to import it, and half of it would be there.
    return importlib.import_module(name)


# --- references -----------------------------------------------------------------------------------


def reference_of(obj: Any) -> str | None:
    """``"module:qualname"`` of a class or function that readers find by this name, else None."""
    module_name = getattr(obj, "__module__", None)
    qualname = getattr(obj, "__qualname__", None)
    if type(module_name) is not str or type(qualname) is not str:
        return None
    found: Any = sys.modules.get(module_name)
    # A class that arrived by value names a module that is not here. A search on disk would be slow.
    if found is None or (name := name_of(module_name)) is None:
        return None
    for part in qualname.split("."):
        try:
            found = getattr(found, part)
        except Exception:  # "<locals>", or a class whose metaclass objects
            return None
    return f"{name}:{qualname}" if found is obj else None


def load_reference(ref: str) -> Any:
    """The class or function that a reference of `reference_of` names. Its module is imported.

    Raises:
        SerializationError: The text is no reference, or there is nothing of this name.
    """
    module_name, _, qualname = ref.partition(":")
    if not all(map(_is_module_part, module_name.split("."))) or not all(
        name.isidentifier() for name in qualname.split(".")
    ):
        raise SerializationError(f"{ref!r} is not a reference; it should look like 'package.module:Name'.")
    try:
        module: Any = module_named(module_name)
    except Exception as error:
        raise SerializationError(
            f"Cannot find {ref!r}: importing {module_name!r} raised {type(error).__name__}: {error}. "
            "Install in this process what the process that wrote the reference had."
        ) from error
    found = module
    for part in qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            place = getattr(module, "__file__", None) or "a built-in module"
            raise SerializationError(
                f"Cannot find {ref!r}: {module_name!r} ({place}) has no {qualname!r}. "
                "It may have been renamed or removed since the reference was written."
            ) from error
    return found


def _is_module_part(name: str) -> bool:
    # A script may be named as no other module can be: "my-script.py".
    return bool(name) and name.isprintable() and not set(name) & set(" :/\\")


MOVED = {
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
