"""Arrows point down: what each layer may import, held against the imports themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pyworkflow_ray"

LEAVES = {"exceptions", "statuses", "event_types", "config", "clock", "ids", "durations", "callables"}
"""The modules at the package's root that import nothing of ours. Every other module has a folder."""
FOLDERS = {
    "values": "leaves",
    "recurrences": "leaves",
    "cli": "surfaces",
    "web": "surfaces",
    "testing": "testing",
}
"""Folders whose layer has another name than they."""
ENTRY_POINTS = {"__main__": "surfaces"}

LAYERS: dict[str, set[str]] = {
    "leaves": set(),
    "engine": {"leaves"},
    "storage": {"leaves", "engine"},
    "authoring": {"leaves", "engine"},
    "actors": {"leaves", "engine", "storage"},
    "client": {"leaves", "engine", "storage", "authoring", "actors"},
    "testing": {"leaves", "engine", "storage", "authoring", "actors", "client"},
    "surfaces": {"leaves", "engine", "storage", "authoring", "actors", "client", "testing", "root"},
    "root": {"leaves", "engine", "authoring", "client"},
}
"""What each layer may import, besides itself."""

FOREIGN = {"ray": {"actors", "client"}, "sqlalchemy": {"storage"}}
"""The layers in which a library may appear."""

SILENT = {"engine"}
"""The layers that log nothing: what they want said they return as data."""

MAX_LINES = 500


def layer_of(module: str) -> str:
    first = module.removeprefix("pyworkflow_ray").lstrip(".").split(".")[0]
    if not first:
        return "root"
    if first in LEAVES:
        return "leaves"
    if (PACKAGE / first).is_dir():
        return FOLDERS.get(first, first)
    return ENTRY_POINTS.get(first, "root")  # a name that the package's `__init__` exports


def sources() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every import in a file, lazy and typing-only ones included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


@pytest.mark.parametrize(("module", "path"), list(sources()), ids=lambda value: str(value).split("/")[-1])
def test_a_module_imports_only_from_the_layers_below(module: str, path: Path) -> None:
    layer = layer_of(module)
    assert layer in LAYERS, f"{module} is in no layer: add it to the table, here and in ARCHITECTURE.md"
    for line, imported in imports(path):
        library = imported.split(".")[0]
        if library == "pyworkflow_ray":
            below = layer_of(imported)
            allowed = LAYERS[layer] | {layer}
            assert below in allowed, f"{path}:{line}: {layer} must not import {imported} ({below})"
        elif library in FOREIGN:
            assert layer in FOREIGN[library], f"{path}:{line}: {library} must not appear in {layer}"
        elif library in ("loguru", "logging"):
            assert layer not in SILENT, f"{path}:{line}: {layer} logs nothing"


def imported_modules() -> dict[str, set[str]]:
    """Which of our modules each of our modules imports."""
    modules = dict(sources())
    return {
        module: {
            name if name in modules else name.rpartition(".")[0]
            for _, name in imports(path)
            if name.split(".")[0] == PACKAGE.name
        }
        for module, path in modules.items()
    }


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The largest sets of modules in which each imports, over others of them, every other one."""
    reached: dict[str, set[str]] = {}
    for module in graph:
        found, left = set[str](), [module]
        while left:
            new = graph[left.pop()] - found
            found |= new
            left += new
        reached[module] = found
    rings = [{other for other in reached[module] if module in reached[other]} for module in graph]
    return [ring for number, ring in enumerate(rings) if ring and ring not in rings[:number]]


def test_a_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d", "a"}}
    assert circles(graph) == [{"b", "c"}, {"d"}]


def test_no_modules_import_one_another() -> None:
    assert not circles(imported_modules())


def test_the_modules_at_the_root_are_leaves() -> None:
    names = {path.stem for path in PACKAGE.glob("*.py")}
    assert names == LEAVES | ENTRY_POINTS.keys() | {"__init__"}, "a module belongs into its layer's folder"


def test_the_engine_reads_no_clock() -> None:
    for _, path in sources():
        if path.parent.name != "engine":
            continue
        text = path.read_text()
        for reading in ("datetime.now", "time.time(", "monotonic(", "utcnow"):
            assert reading not in text, f"{path} reads a clock: {reading}"


def test_a_file_can_be_read_in_one_sitting() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for _, path in sources()}
    long = {path: count for path, count in lengths.items() if count > MAX_LINES}
    assert not long


def test_architecture_md_says_what_every_module_is() -> None:
    text = (PACKAGE.parent / "ARCHITECTURE.md").read_text()
    modules = {path.stem for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__"}
    missing = {name for name in modules if not re.search(rf"`(\w+/)*{name}(\.py)?`", text)}
    assert not missing, "add them to the tables under 'Every module'"


def test_the_root_links_lead_into_the_package() -> None:
    root = PACKAGE.parent
    for room in ("actors", "storage"):
        assert (root / room).is_symlink()
        assert (root / room).readlink() == Path("pyworkflow_ray") / room


def test_importing_the_package_configures_no_logging_and_joins_no_cluster() -> None:
    import subprocess
    import sys

    script = (
        "from loguru import logger; before = repr(logger); import pyworkflow_ray, sys; "
        "assert repr(logger) == before; assert 'ray' not in sys.modules, 'ray was imported'; "
        "assert not {'typer', 'rich'} & set(sys.modules), 'the command line was imported'"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("folder", ["client", "cli", "testing"])
def test_no_module_of_a_folder_imports_itself_by_way_of_others(folder: str) -> None:
    inside = {module: path for module, path in sources() if module.startswith(f"pyworkflow_ray.{folder}.")}
    below = {
        module: {
            name
            for _, imported in imports(path)
            for name in (imported, imported.rpartition(".")[0])
            if name in inside and name != module
        }
        for module, path in inside.items()
    }
    while leaves := [module for module, needed in below.items() if not needed]:
        for module in leaves:
            del below[module]
        for needed in below.values():
            needed.difference_update(leaves)
    assert not below, f"these modules import each other in a circle: {', '.join(sorted(below))}"
