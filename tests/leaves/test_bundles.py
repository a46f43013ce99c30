"""Which files local modules need, bundles of them, and a process that runs one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pyworkflow_ray.exceptions import ConfigurationError, SerializationError
from pyworkflow_ray.values import bundles
from pyworkflow_ray.values.bundles import Bundler, hash_of, make
from pyworkflow_ray.values.scripts import is_guarded
from pyworkflow_ray.values.sources import Closure
from pyworkflow_ray.values.syntax import parsed

Write = Callable[[dict[str, str]], Path]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes files into a folder that is on `sys.path`."""
    folder = tmp_path / "project"
    monkeypatch.syspath_prepend(str(folder))

    def write(files: dict[str, str]) -> Path:
        for place, text in files.items():
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return folder

    return write


def places(*modules: str, patterns: tuple[str, ...] = ()) -> list[str]:
    return sorted(Closure(modules, patterns).files)


def test_a_module_brings_what_it_imports_and_nothing_else(project: Write) -> None:
    project(
        {
            "bu_main.py": "import json, bu_one\nfrom bu_two import thing\n",
            "bu_one.py": "def f():\n    import bu_three as t\n    return t\n",
            "bu_two.py": "import importlib\nthing = importlib.import_module('bu_four')\n",
            "bu_three.py": "",
            "bu_four.py": "",
            "bu_other.py": "",
        }
    )
    assert places("bu_main") == ["bu_four.py", "bu_main.py", "bu_one.py", "bu_three.py", "bu_two.py"]


def test_of_a_package_all_modules_come_along(project: Write) -> None:
    project(
        {
            "bu_shop/__init__.py": "",
            "bu_shop/flows.py": "from . import models\nfrom ..bu_nothing import far\n",
            "bu_shop/models.py": "import bu_helper",
            "bu_shop/plugins/first.py": "",
            "bu_shop/prices.json": "{}",
            "bu_shop/__pycache__/old.py": "",
            "bu_shop/.hidden/secret.py": "",
            "bu_shop/venv/pyvenv.cfg": "",
            "bu_shop/venv/lib.py": "",
            "bu_helper.py": "",
        }
    )
    code = [
        "bu_helper.py",
        *(f"bu_shop/{name}" for name in ("__init__.py", "flows.py", "models.py", "plugins/first.py")),
    ]
    assert places("bu_shop.flows") == code
    assert places("bu_shop.flows", patterns=("bu_shop/*.json",)) == sorted([*code, "bu_shop/prices.json"])


def test_of_a_namespace_package_only_what_is_used_comes_along(project: Write) -> None:
    project(
        {
            "bu_space/flows.py": """
                from bu_space import models
                from bu_space.inner import deep
                from . import beside
            """,
            "bu_space/models.py": "",
            "bu_space/beside.py": "",
            "bu_space/inner/deep.py": "from bu_space.whole.part import x",
            "bu_space/whole/__init__.py": "",
            "bu_space/whole/part.py": "",
            "bu_space/whole/other.py": "",
            "bu_space/unused.py": "",
        }
    )
    assert places("bu_space.flows") == [
        "bu_space/beside.py",
        "bu_space/flows.py",
        "bu_space/inner/deep.py",
        "bu_space/models.py",
        "bu_space/whole/__init__.py",
        "bu_space/whole/other.py",
        "bu_space/whole/part.py",
    ]


def test_a_module_that_computes_the_names_of_its_imports_brings_all_beside_it(project: Write) -> None:
    project(
        {
            "bu_loads.py": """
                import importlib
                for name in "ab":
                    importlib.import_module("bu_plug_" + name)
            """,
            "bu_plug_a.py": "import bu_pack",
            "bu_plug_b.py": "",
            "bu_pack/__init__.py": "",
        }
    )
    assert places("bu_loads") == ["bu_loads.py", "bu_pack/__init__.py", "bu_plug_a.py", "bu_plug_b.py"]


def test_installed_modules_do_not_travel() -> None:
    assert places("json", "msgspec", "pyworkflow_ray", "no_such_module") == []


def test_what_git_ignores_stays_out_unless_it_is_imported(project: Write) -> None:
    folder = project(
        {
            ".gitignore": "*_local.py\n_version.py\n/bu_git/build/\n",
            "bu_git/__init__.py": "from bu_git._version import version",
            "bu_git/_version.py": "version = 1",
            "bu_git/secrets_local.py": "",
            "bu_git/build/made.py": "",
        }
    )
    (folder / ".git").mkdir()
    assert places("bu_git") == ["bu_git/__init__.py", "bu_git/_version.py"]


def test_a_source_that_cannot_be_read_as_python_travels_as_it_is(project: Write) -> None:
    project({"bu_odd/__init__.py": "", "bu_odd/template.py": "{{ not python }}"})
    assert places("bu_odd") == ["bu_odd/__init__.py", "bu_odd/template.py"]


def test_a_closure_is_current_until_a_file_changes_comes_or_goes(project: Write) -> None:
    folder = project({"bu_pkg/__init__.py": "", "bu_pkg/a.py": "1"})
    closure = Closure(["bu_pkg"])
    assert closure.is_current()
    (folder / "bu_pkg/a.py").write_text("22")
    assert not closure.is_current()
    closure = Closure(["bu_pkg"])
    (folder / "bu_pkg/b.py").write_text("")
    assert not closure.is_current()


def test_two_folders_with_the_same_files_make_the_same_bundle(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        file = tmp_path / name / "bu_same.py"
        file.parent.mkdir()
        file.write_text("x = 1\n")
        os.utime(file, (0, len(made)))
        made.append(make({"bu_same.py": file, "bu_pkg/__init__.py": file}, "it"))
    assert made[0] == made[1]
    assert made[0].modules == {"bu_same", "bu_pkg"}
    assert hash_of({"a": b"b"}) != hash_of({"ab": b""})


def test_too_much_code_is_refused_with_the_names_of_the_largest_files(tmp_path: Path) -> None:
    for name, size in (("large.py", 3000), ("small.py", 10)):
        (tmp_path / name).write_text("#" * size)
    files = {name: tmp_path / name for name in ("large.py", "small.py")}
    with pytest.raises(ConfigurationError, match=r"workflow 'w' .* largest: large.py .*code_limit"):
        make(files, "workflow 'w'", 2000)
    assert make(files, "workflow 'w'", 4000)


def test_a_bundler_looks_again_for_a_definition_that_it_has_not_seen(project: Write) -> None:
    folder = project({"bu_again.py": "x = 1"})
    bundler, first, second = Bundler(), object(), object()
    made = bundler.bundle(["bu_again"], first, "it")
    (folder / "bu_again.py").write_text("x = 22")
    assert bundler.bundle(["bu_again"], first, "it") is made
    assert bundler.bundle(["bu_again"], second, "it") != made
    assert bundler.bundle(["json"], first, "it") is None


@pytest.mark.parametrize(
    ("source", "guarded"),
    [
        ('if __name__ == "__main__":\n    go()', True),
        ("if '__main__' == __name__ and True:\n    go()", True),
        ("go()", False),
        ('def f():\n    if __name__ == "__main__": go()', False),
        ("this is no Python", False),
        ("x = '\0'", False),
    ],
)
def test_a_guard_is_found_at_the_top_of_a_script(source: str, guarded: bool) -> None:
    assert is_guarded(source.encode()) == guarded


# --- a process that runs a bundle -----------------------------------------------------------------

RUN = """
    import json, pathlib, sys
    from pyworkflow_ray.values import bundles, modules
    from pyworkflow_ray.values.codec import encode, decode
    data, hash_, cache, *rest = sys.argv[1:]
    import tempfile; tempfile.tempdir = cache
    fetched = []
    def fetch():
        fetched.append(1)
        return pathlib.Path(data).read_bytes()
    bundles.enter_engine()
    bundles.install(hash_, fetch)
"""


def run_bundle(bundle: bundles.Bundle, script: str, tmp_path: Path, *args: str) -> str:
    data = tmp_path / "bundle.zip"
    data.write_bytes(bundle.data)
    cache = tmp_path / "cache"
    cache.mkdir(exist_ok=True)
    done = subprocess.run(
        [
            *(sys.executable, "-c", textwrap.dedent(RUN) + textwrap.dedent(script)),
            *(str(data), bundle.hash, str(cache), *args),
        ],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def bundle_of(project: Write, files: dict[str, str], *modules: str) -> bundles.Bundle:
    project(files)
    made = Bundler().bundle(modules, object(), "it")
    assert made is not None
    return made


SHOP = {
    "bu_orders.py": """
        import enum, functools
        from bu_stock import Item
        class Tier(enum.Enum):
            GOLD = 1
        @functools.cache
        def cached(n): return n * 2
        def fails(): raise ValueError("here")
        if __name__ == "__main__":
            raise SystemExit("the start")
    """,
    "bu_stock.py": "import dataclasses\n@dataclasses.dataclass\nclass Item:\n    n: int = 1\n",
}


def test_modules_of_a_bundle_are_imported_under_their_names_and_values_find_their_classes(
    project: Write, tmp_path: Path
) -> None:
    bundle = bundle_of(project, SHOP, "bu_orders")
    script = """
        import traceback
        import bu_orders, bu_stock
        value = [bu_orders.Tier.GOLD, bu_stock.Item(2)]
        text = encode(value)
        assert b"pickle" not in text, text
        assert decode(text) == value and decode(text)[0] is bu_orders.Tier.GOLD
        assert bu_orders.cached(2) == 4 and bu_orders.cached.cache_info().currsize == 1
        bundles.know_as_main(bu_orders)
        import __main__
        assert __main__ is bu_orders
        assert modules.load_reference("bu_orders:fails") is bu_orders.fails
        try: bu_orders.fails()
        except ValueError: print(traceback.format_exc())
        print(len(fetched))
    """
    told = run_bundle(bundle, script, tmp_path)
    assert 'raise ValueError("here")' in told
    assert told.endswith("1")
    assert run_bundle(bundle, "print(len(fetched))", tmp_path) == "0", "the node has it by now"


def test_a_bundle_of_which_files_were_deleted_is_unpacked_again(project: Write, tmp_path: Path) -> None:
    bundle = bundle_of(project, SHOP, "bu_orders")
    run_bundle(bundle, "", tmp_path)
    (lost,) = (tmp_path / "cache").rglob("bu_stock.py")
    lost.unlink()
    assert run_bundle(bundle, "import bu_stock; print(len(fetched))", tmp_path) == "1"


def test_a_process_runs_one_bundle(project: Write, tmp_path: Path) -> None:
    bundle = bundle_of(project, SHOP, "bu_orders")
    script = """
        bundles.install(hash_, fetch)
        try: bundles.install("0" * 16, fetch)
        except modules.SerializationError as error: print(error)
    """
    assert "cannot run the code 0000000000000000 too" in run_bundle(bundle, script, tmp_path)


def test_a_local_module_with_the_name_of_one_that_the_engine_uses_is_refused(
    project: Write, tmp_path: Path
) -> None:
    file = project({"x.py": "shadow = 1"}) / "x.py"
    bundle = make({"msgspec.py": file}, "it")
    with pytest.raises(AssertionError, match="'msgspec' has the name of a module that the engine uses"):
        run_bundle(bundle, "", tmp_path)


def test_classes_from_elsewhere_are_written_by_value_in_a_process_of_the_engine(
    project: Write, tmp_path: Path
) -> None:
    folder = project({**SHOP, "bu_stray.py": "class Stray:\n    n = 3\n"})
    bundle = Bundler().bundle(["bu_orders"], object(), "it")
    assert bundle is not None
    script = """
        sys.path.append(rest[0])
        import bu_stray
        print(json.loads(encode(bu_stray.Stray()))["$"])
    """
    assert run_bundle(bundle, script, tmp_path, str(folder)) == "pickle"


@pytest.mark.parametrize("damage", ["cut", "changed", "outside"])
def test_a_damaged_bundle_is_refused(
    project: Write, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = project({"bu_whole.py": "x = 1"}) / "bu_whole.py"
    bundle = make({"../evil.py" if damage == "outside" else "bu_whole.py": file}, "it")
    hash_ = "1" * 16 if damage == "changed" else bundle.hash
    data: Any = bundle.data[:50] if damage == "cut" else bundle.data
    monkeypatch.setattr(bundles, "_cache", lambda: tmp_path)
    with pytest.raises(SerializationError, match=r"damaged|outside"):
        bundles.install(hash_, lambda: data)
    assert bundles.installed_hash() is None
    assert not list(tmp_path.rglob("evil.py"))


def test_old_bundles_are_forgotten(project: Write, tmp_path: Path) -> None:
    bundle = bundle_of(project, SHOP, "bu_orders")
    run_bundle(bundle, "", tmp_path)
    (unpacked,) = (tmp_path / "cache").rglob(bundle.hash)
    old = unpacked.with_name("0" * 16)
    old.mkdir()
    os.utime(old, (0, 0))
    (unpacked / "bu_orders.py").unlink()
    run_bundle(bundle, "", tmp_path)
    assert not old.exists()
    assert unpacked.exists()


def test_threads_that_parse_at_once_do_not_disturb_each_other() -> None:
    nested = "x = " + "(" * 40 + "1" + ")" * 40 + "\n"
    source = ("def f():\n    return [{'a': (1, 2)} for b in c if d]\n" + nested).encode() * 300
    with ThreadPoolExecutor(8) as threads:
        trees = list(threads.map(lambda _: parsed(source), range(24)))
    assert all(tree is not None and len(tree.body) == 600 for tree in trees)
    assert parsed(b"no python") is None
