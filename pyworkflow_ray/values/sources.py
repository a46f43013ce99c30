"""The source files that local modules need: their own, and those of the local modules that they import.

Imports are found by reading the sources, not by looking at what this process happens to have imported. So two
drivers with the same files find the same files. Of a package all modules are taken, since a package may
import its own in ways that cannot be read. A module beside which no package stands brings along what it
imports, and everything beside it if it computes the names of its imports.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pathspec import GitIgnoreSpec

from pyworkflow_ray.values.modules import is_importable_everywhere
from pyworkflow_ray.values.scripts import MAIN, script_name
from pyworkflow_ray.values.syntax import parsed

_SUFFIXES = (".py", *EXTENSION_SUFFIXES)
_NO_PACKAGES = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})

Files = dict[str, Path]
"""Files by their places below a folder that stands on `sys.path`, such as ``shop/models.py``."""


class Stamp(NamedTuple):
    """What shows that a file or folder has changed."""

    modified: int
    size: int

    @classmethod
    def of(cls, path: str | Path) -> Stamp | None:
        """The stamp of a path; None if nothing is there."""
        try:
            status = os.stat(path)
        except OSError:
            return None
        return cls(status.st_mtime_ns, status.st_size)


class Closure:
    """What local modules need, found once. `is_current` says whether it is so still."""

    def __init__(self, modules: Iterable[str], patterns: Iterable[str] = ()) -> None:
        self.files: Files = {}
        self._stamps: dict[Path, Stamp | None] = {}
        self._roots: dict[Path, None] = {}
        self._seen: set[str] = set()
        waiting = sorted(modules)
        while waiting:
            name = waiting.pop()
            if name not in self._seen:
                self._seen.add(name)
                waiting += self._take(name)
        for root in self._roots:
            for pattern in patterns:
                self._take_data(root, pattern)

    def is_current(self) -> bool:
        """Whether no file has changed since, and none has come or gone beside them."""
        return all(Stamp.of(path) == stamp for path, stamp in self._stamps.items())

    def _take(self, name: str) -> list[str]:
        """Take the module's files; the names that they import."""
        top = name.partition(".")[0]
        found = _find(top)
        if found is None:
            return []
        if found.file is None:
            return self._take_of_namespace(name, found.folders)
        if found.file.name == "__init__.py":
            return self._take_package(top, found.file.parent)
        return self._take_module(top, found.file)

    def _take_of_namespace(self, name: str, folders: list[str]) -> list[str]:
        """Take what a name below a namespace package means: a module, a package, or a namespace again."""
        taken, *rest = name.split(".")
        while rest:
            part, *rest = rest
            inner = [Path(folder, part) for folder in folders]
            for folder in inner:
                if (folder / "__init__.py").is_file():
                    return self._take_package(f"{taken}.{part}", folder)
                if (file := folder.with_suffix(".py")).is_file():
                    return self._take_module(f"{taken}.{part}", file)
            folders = [str(folder) for folder in inner if folder.is_dir()]
            taken = f"{taken}.{part}"
        return []

    def _take_package(self, name: str, folder: Path) -> list[str]:
        if name in self._seen and name.replace(".", "/") + "/__init__.py" in self.files:
            return []
        place = PurePosixPath(*name.split("."))
        self._roots[_above(folder, name)] = None
        ignored = _Ignored(folder)
        imports: dict[str, None] = {}
        left_out: dict[str, Path] = {}
        for path in self._walk(folder):
            inner = place / PurePosixPath(*path.relative_to(folder).parts)
            if ignored(path):
                left_out[str(inner)] = path
            else:
                imports |= self._add(str(inner), path)
        # A file that a build has made (`_version.py`) is ignored by Git, and needed all the same.
        wanted = list(imports)
        while wanted:
            of = PurePosixPath(*wanted.pop().split("."))
            for inner_name in (f"{of}.py", f"{of}/__init__.py"):
                if inner_name in left_out:
                    new = self._add(inner_name, left_out.pop(inner_name))
                    wanted += [each for each in new if each not in imports]
                    imports |= new
        return list(imports)

    def _walk(self, folder: Path) -> Iterator[Path]:
        for here, folders, names in os.walk(folder):
            self._stamps[Path(here)] = Stamp.of(here)
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".")
                and name not in _NO_PACKAGES
                and not os.path.exists(os.path.join(here, name, "pyvenv.cfg"))
            )
            yield from (Path(here, name) for name in sorted(names) if name.endswith(_SUFFIXES))

    def _take_module(self, name: str, file: Path) -> list[str]:
        suffix = file.name[file.name.index(".") :] if not file.name.endswith(".py") else ".py"
        place = str(PurePosixPath(*name.split("."))) + suffix
        self._roots[_above(file, name)] = None
        if place in self.files:
            return []
        imports = self._add(place, file)
        if _COMPUTED in imports:
            self._stamps[file.parent] = Stamp.of(file.parent)
            package = name.rpartition(".")[0]
            for beside in sorted(file.parent.glob("*.py")):
                imports[f"{package}.{beside.stem}" if package else beside.stem] = None
        return list(imports)

    def _add(self, place: str, file: Path) -> dict[str, None]:
        """Add a file; the names that it imports."""
        self.files[place] = file
        self._stamps[file] = stamp = Stamp.of(file)
        if not place.endswith(".py") or stamp is None:
            return {}
        package = ".".join(PurePosixPath(place).parent.parts)
        return dict.fromkeys(_imports(file, stamp, package))

    def _take_data(self, root: Path, pattern: str) -> None:
        for path in sorted(root.glob(pattern)):
            if path.is_file():
                self.files[str(PurePosixPath(*path.relative_to(root).parts))] = path
                self._stamps[path] = Stamp.of(path)


class _Found(NamedTuple):
    """A local module: its file, or the folders of a namespace package."""

    file: Path | None
    folders: list[str]


def _find(top: str) -> _Found | None:
    """The local module of this name, loaded or not; None if there is none."""
    if top == script_name():
        return _Found(Path(os.path.abspath(str(sys.modules[MAIN].__file__))), [])
    if is_importable_everywhere(top):
        return None
    module = sys.modules.get(top)
    try:
        spec = getattr(module, "__spec__", None) or importlib.util.find_spec(top)
    except Exception:  # whatever a finder raises, the module is not there
        return None
    origin = getattr(spec, "origin", None) or getattr(module, "__file__", None)
    if isinstance(origin, str) and origin.endswith(_SUFFIXES) and os.path.isfile(origin):
        return _Found(Path(os.path.abspath(origin)), [])
    folders = [str(folder) for folder in getattr(spec, "submodule_search_locations", None) or ()]
    return _Found(None, folders) if folders else None


def _above(path: Path, name: str) -> Path:
    """The folder on `sys.path` below which the module of this name lies."""
    return path.parents[name.count(".")]


class _Ignored:
    """Whether the `.gitignore` files of a repository leave a file out."""

    def __init__(self, folder: Path) -> None:
        above = [folder, *folder.parents]
        roots = [each for each in above if (each / ".git").exists()]
        self._root = roots[0] if roots else None
        self._specs: dict[Path, GitIgnoreSpec | None] = {}

    def __call__(self, file: Path) -> bool:
        if self._root is None:
            return False
        for folder in file.parents:
            spec = self._spec(folder)
            if spec is not None and spec.match_file(str(file.relative_to(folder))):
                return True
            if folder == self._root:
                return False
        return False

    def _spec(self, folder: Path) -> GitIgnoreSpec | None:
        if folder not in self._specs:
            try:
                lines = (folder / ".gitignore").read_text(errors="replace").splitlines()
                self._specs[folder] = GitIgnoreSpec.from_lines(lines)
            except OSError:
                self._specs[folder] = None
        return self._specs[folder]


# --- imports, read from the source ----------------------------------------------------------------

_COMPUTED = "*"
"""Stands for an import whose name is computed."""


@functools.lru_cache(maxsize=20_000)
def _imports(file: Path, stamp: Stamp, package: str) -> tuple[str, ...]:
    """The names that a source imports anywhere, those of a ``from`` with what it takes; some may be none."""
    try:
        tree = parsed(file.read_bytes())
    except OSError:
        return ()
    if tree is None:
        return ()
    names: dict[str, None] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                names |= dict.fromkeys(alias.name for alias in aliases)
            case ast.ImportFrom(module=module, names=aliases, level=level):
                base = _absolute(module or "", level, package)
                if base is not None:
                    names |= dict.fromkeys((base, *(f"{base}.{alias.name}" for alias in aliases)))
            case ast.Call(func=func, args=[first, *_]) if _is_import(func):
                text = first.value if isinstance(first, ast.Constant) else None
                if not isinstance(text, str):
                    names[_COMPUTED] = None
                elif not text.startswith("."):
                    names[text] = None
    return tuple(names)


def _absolute(module: str, level: int, package: str) -> str | None:
    if level == 0:
        return module
    parts = package.split(".") if package else []
    if level - 1 > len(parts):
        return None
    return ".".join([*parts[: len(parts) - level + 1], *([module] if module else [])]) or None


def _is_import(func: ast.expr) -> bool:
    match func:
        case ast.Name(id="__import__" | "import_module"):
            return True
        case ast.Attribute(attr="import_module"):
            return True
    return False
