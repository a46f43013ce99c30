"""Finding workflows by the names of their modules, and telling why one cannot be imported."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.authoring.workflows import registry


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with no modules yet; what a test imports is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYWORKFLOW_DISCOVER", raising=False)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != ""])
    monkeypatch.setattr(registry, "_definitions", {})
    known = set(sys.modules)
    pr.reset_config()
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


def module(path: Path, name: str | None = None, code: str = "") -> None:
    """Write a module that defines a workflow of this name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flow = f"@pr.workflow\nasync def {name}() -> None: ...\n" if name else ""
    path.write_text(f"import pyworkflow_ray as pr\n{flow}{code}")


def test_a_module_in_the_working_directory_is_imported(own_folder: Path) -> None:
    module(own_folder / "shop_a.py", "buy_a")
    assert pr.discover_workflows("shop_a") == ["buy_a"]
    assert pr.get_workflow("buy_a").name == "buy_a"


def test_a_package_is_imported_with_all_below_it_but_its_main(own_folder: Path) -> None:
    module(own_folder / "shop_b" / "__init__.py")
    module(own_folder / "shop_b" / "flows.py", "buy_b")
    module(own_folder / "shop_b" / "deep" / "__init__.py", "ship_b")
    module(own_folder / "shop_b" / "deep" / "down.py", "return_b")
    module(own_folder / "shop_b" / "__main__.py", code="raise SystemExit('it was run')")
    assert pr.discover_workflows("shop_b") == ["buy_b", "return_b", "ship_b"]


def test_a_second_time_changes_nothing(own_folder: Path) -> None:
    module(own_folder / "shop_c.py", "buy_c", code="open('imported', 'a').write('x')\n")
    first, path = pr.discover_workflows("shop_c"), list(sys.path)
    assert pr.discover_workflows("shop_c") == first
    assert sys.path == path
    assert (own_folder / "imported").read_text() == "x"


def test_the_argument_wins_over_the_environment_and_that_over_the_file(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for letter in "defg":
        module(own_folder / f"shop_{letter}.py", f"buy_{letter}")
    (own_folder / "pyworkflow.config.yaml").write_text("module: shop_d\nmodules: [shop_e]\n")
    assert pr.discover_workflows() == ["buy_d", "buy_e"]
    registry.clear()
    monkeypatch.setenv("PYWORKFLOW_DISCOVER", f"shop_f{os.pathsep} shop_g,")
    assert pr.discover_workflows() == ["buy_f", "buy_g"]
    registry.clear()
    module(own_folder / "shop_h.py", "buy_h")
    assert pr.discover_workflows(["shop_h"]) == ["buy_h"]


def test_modules_beside_the_settings_are_found_from_a_folder_below(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(own_folder / "shop_i.py", "buy_i")
    (own_folder / "pyproject.toml").write_text('[tool.pyworkflow]\nmodule = "shop_i"\n')
    (own_folder / "below").mkdir()
    monkeypatch.chdir(own_folder / "below")
    assert pr.discover_workflows() == ["buy_i"]


def test_settings_may_be_given(own_folder: Path) -> None:
    module(own_folder / "shop_j.py", "buy_j")
    module(own_folder / "elsewhere" / "shop_k.py", "buy_k")
    (own_folder / "elsewhere" / "other.yaml").write_text("modules: [shop_k]\n")
    assert pr.discover_workflows(config={"module": "shop_j"}) == ["buy_j"]
    assert pr.discover_workflows(config_path="elsewhere/other.yaml") == ["buy_j", "buy_k"]


def test_a_path_names_the_module_in_that_file(own_folder: Path) -> None:
    module(own_folder / "src" / "shop_l" / "__init__.py")
    module(own_folder / "src" / "shop_l" / "flows.py", "buy_l")
    assert pr.discover_workflows("src/shop_l/flows.py") == ["buy_l"]
    assert pr.get_workflow("buy_l").fn.__module__ == "shop_l.flows"
    with pytest.raises(pr.DiscoveryError, match=r"no file 'src/none\.py'"):
        pr.discover_workflows("src/none.py")


def test_nothing_to_import_is_no_error() -> None:
    assert pr.discover_workflows() == []


def test_a_missing_module_suggests_the_nearest_and_tells_where_it_was_looked_for(own_folder: Path) -> None:
    module(own_folder / "shop_m" / "__init__.py")
    module(own_folder / "shop_m" / "flows.py")
    with pytest.raises(pr.DiscoveryError, match="Did you mean 'shop_m'") as caught:
        pr.discover_workflows("shop_n.flows")
    assert str(own_folder) in str(caught.value)
    assert "'shop_n' is missing" in str(caught.value)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    with pytest.raises(pr.DiscoveryError, match=r"Did you mean 'shop_m\.flows'"):
        pr.discover_workflows("shop_m.flow")
    with pytest.raises(pr.DiscoveryError, match=r"'shop_m\.flows' is a module and not a package"):
        pr.discover_workflows("shop_m.flows.order")
    with pytest.raises(pr.DiscoveryError, match="not the name of a module"):
        pr.discover_workflows("shop-m")


@pytest.mark.parametrize(
    ("code", "error", "line"),
    [
        ("\n\nraise KeyError('no such thing')\n", KeyError, 4),
        ("import shop_that_is_nowhere\n", ModuleNotFoundError, 2),
        ("def broken(:\n", SyntaxError, 2),
        ("\n@pr.workflow\ndef plain(): ...\n", pr.ConfigurationError, 3),
        ("import json\njson.loads('{')\n", ValueError, 3),
        ("raise SystemExit(2)\n", SystemExit, 2),
    ],
)
def test_a_module_that_raises_is_told_with_its_line_and_the_cause_is_kept(
    own_folder: Path, code: str, error: type[BaseException], line: int
) -> None:
    module(own_folder / "shop_o" / "__init__.py")
    module(own_folder / "shop_o" / "flows.py", code=code)
    with pytest.raises(pr.DiscoveryError, match=r"Importing 'shop_o\.flows' raised") as caught:
        pr.discover_workflows("shop_o")
    assert isinstance(caught.value.__cause__, error)
    assert f"({own_folder / 'shop_o' / 'flows.py'}:{line})" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_program_whose_folder_is_elsewhere_finds_the_working_directory(own_folder: Path) -> None:
    module(own_folder / "shop_p.py", "buy_p")
    program = own_folder / "bin" / "program.py"
    program.parent.mkdir()
    program.write_text("import pyworkflow_ray as pr; print(pr.discover_workflows('shop_p'))\n")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True)
    assert done.stdout == "['buy_p']\n"
