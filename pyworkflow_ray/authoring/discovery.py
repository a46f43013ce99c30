"""Importing the modules that define workflows, for processes that know the modules by name only."""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pyworkflow_ray.authoring.workflows import list_workflows
from pyworkflow_ray.config import find_file, get_config, read_file
from pyworkflow_ray.exceptions import DiscoveryError
from pyworkflow_ray.values import modules

VARIABLE = "PYWORKFLOW_DISCOVER"
_SHOWN_ALIKE = 3


def discover_workflows(
    module_path: str | Iterable[str] | None = None,
    config: Mapping[str, Any] | None = None,
    config_path: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Import the modules that define workflows, and return the names of all workflows known after that.

    The modules are those of `module_path`, else of the environment variable PYWORKFLOW_DISCOVER, else of the
    settings `module` and `modules`. With none of them nothing is imported. A package is imported with every
    module below it, except `__main__`. A module that is imported already is not imported again.

    The working directory becomes importable, and so does the folder of the file with the settings.

    Args:
        module_path: A module or package ("orders.flows"), several of them, or one text that separates them
            with commas. A path that ends in ".py" is the module in that file.
        config: Settings to take `module` and `modules` from, in place of those in force.
        config_path: A file to read them from.

    Raises:
        DiscoveryError: A module is not there, or its import raised an error, which is the cause.
        ConfigurationError: The file with the settings cannot be read.
    """
    make_importable(Path.cwd())
    importlib.invalidate_caches()  # a file that was written a moment ago is found
    for name in _chosen(module_path, config, config_path):
        _walk(_load(_module_of_file(name) if name.endswith(".py") else name))
    return sorted(list_workflows())


def make_importable(folder: Path) -> None:
    """Make Python look for modules in this folder first."""
    if str(folder) not in sys.path and not (folder == Path.cwd() and "" in sys.path):
        sys.path.insert(0, str(folder))


def _chosen(
    module_path: str | Iterable[str] | None,
    config: Mapping[str, Any] | None,
    config_path: str | os.PathLike[str] | None,
) -> list[str]:
    if module_path is not None:
        return _names(module_path)
    if os.environ.get(VARIABLE):
        return _names(os.environ[VARIABLE])
    if config is not None:
        return _configured(config)
    file = find_file() if config_path is None else Path(config_path)
    if file is not None:
        make_importable(file.resolve().parent)
    return _configured(get_config().model_dump() if config_path is None else read_file(Path(config_path)))


def _configured(settings: Mapping[str, Any]) -> list[str]:
    return [*_names(settings.get("module") or ()), *_names(settings.get("modules") or ())]


def _names(given: str | Iterable[str]) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given)
    names = [name.strip() for text in texts for name in re.split(f"[,{re.escape(os.pathsep)}]", text)]
    return list(dict.fromkeys(filter(None, names)))


def _module_of_file(path: str) -> str:
    """The module in a file; the folder above its outermost package is made importable."""
    file = Path(path).resolve()
    if not file.is_file():
        raise DiscoveryError(f"There is no file {path!r} in {Path.cwd()}.")
    parts = [file.stem] if file.stem != "__init__" else []
    folder = file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    make_importable(folder)
    return ".".join(parts)


def _walk(package: ModuleType) -> None:
    for found in pkgutil.iter_modules(getattr(package, "__path__", ()), f"{package.__name__}."):
        if not found.name.endswith(".__main__"):  # which is there to be run
            _walk(_load(found.name))


def _load(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise DiscoveryError(f"{name!r} is not the name of a module; it should look like 'package.module'.")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise DiscoveryError(_absent(name, error.name)) from error
        raise DiscoveryError(_broken(name, error)) from error
    except (Exception, SystemExit) as error:
        raise DiscoveryError(_broken(name, error)) from error


def _absent(name: str, missing: str) -> str:
    parent, _, last = missing.rpartition(".")
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    if parent and path is None:
        return f"There is no module {name!r}: {parent!r} is a module and not a package."
    there = [found.name for found in pkgutil.iter_modules(path)]
    alike = difflib.get_close_matches(last, there, n=_SHOWN_ALIKE)
    hint = " or ".join(repr(f"{parent}.{other}" if parent else other) for other in alike)
    # Nothing below the missing package can be compared.
    suffix = name.removeprefix(missing)
    folders = "\n  ".join(folder or str(Path.cwd()) for folder in (sys.path if path is None else path))
    return (
        f"There is no module {name!r}{f' ({missing!r} is missing)' if suffix else ''}."
        f"{f' Did you mean {hint}?' if hint else ''} It was looked for in:\n  {folders}\n"
        "Run from the folder that holds it, install it, or add that folder to PYTHONPATH."
    )


def _broken(name: str, error: BaseException) -> str:
    text = f"Importing {name!r} raised {type(error).__name__}: {error}{_place(error)}"
    if isinstance(error, SystemExit):
        return f"{text}. Put what a script does below `if __name__ == '__main__':`."
    if isinstance(error, ModuleNotFoundError):
        return f"{text}. Install what it imports, or correct the import."
    return f"{text}. Correct it, and try again."


def _place(error: BaseException) -> str:
    """Where the error was raised: the innermost line of the user's own code."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [
        (frame.f_code.co_filename, line)
        for frame, line in frames
        if not modules.is_importable_everywhere(frame.f_globals.get("__name__", "__main__"))
    ]
    return f" ({own[-1][0]}:{own[-1][1]})" if own else ""
