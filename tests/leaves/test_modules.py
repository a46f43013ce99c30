"""Which modules every process can import, references, and pickles that carry local code along."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from http import HTTPStatus
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest

from pyworkflow_ray.durations import parse_duration
from pyworkflow_ray.exceptions import SerializationError
from pyworkflow_ray.values import modules, pickles

MakeModule = Callable[..., ModuleType]


@pytest.fixture
def make_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeModule]:
    """Writes a module's source below `folder`, and imports it."""
    made: list[str] = []

    def make(name: str, source: str, folder: str = "project") -> ModuleType:
        root = tmp_path / folder
        path = root.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(str(root))
        made.append(name)
        return importlib.import_module(name)

    yield make
    for name in made:
        sys.modules.pop(name, None)
        sys.modules.pop(name.partition(".")[0], None)


def run_elsewhere(script: str, *args: str, path: Path | None = None) -> str:
    """What the script prints in a process that knows nothing of this one's local modules."""
    environment = {"PYTHONPATH": str(path)} if path else {}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *args],
        capture_output=True,
        text=True,
        env=environment,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "name",
    [
        "sys",
        "builtins",
        "os",
        "json",
        "json.decoder",
        "collections.abc",
        "zipimport",
        "msgspec",
        "msgspec.json",
        "pydantic",
        "_ctypes",
        "pyworkflow_ray",
        "pyworkflow_ray.durations",
        "pyworkflow_ray.not_there",
    ],
)
def test_the_standard_library_installed_packages_and_this_one_are_everywhere(name: str) -> None:
    assert modules.is_importable_everywhere(name)


@pytest.mark.parametrize(
    "name", ["__main__", "__mp_main__", __name__, "tests", "no_such_module", "json.no_such", "no.such"]
)
def test_main_tests_and_missing_modules_are_not_everywhere(name: str) -> None:
    assert not modules.is_importable_everywhere(name)


def test_an_unloaded_module_is_judged_by_where_it_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "not_loaded.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not modules.is_importable_everywhere("not_loaded")
    sys.modules.pop("this", None)
    assert modules.is_importable_everywhere("this")
    assert "this" not in sys.modules


def test_a_local_module_that_shadows_an_installed_name_is_local(make_module: MakeModule) -> None:
    module = make_module("antigravity", "x = 1")
    assert module.x == 1
    assert not modules.is_importable_everywhere("antigravity")


def test_a_folder_of_installed_packages_counts_wherever_it_is(make_module: MakeModule) -> None:
    make_module("installed_one", "", folder="env/lib/site-packages")
    make_module("installed_two", "", folder="usr/lib/python3/dist-packages")
    assert modules.is_importable_everywhere("installed_one")
    assert modules.is_importable_everywhere("installed_two")


def test_a_verdict_follows_a_module_that_was_replaced(make_module: MakeModule) -> None:
    make_module("moved", "", folder="env/site-packages")
    assert modules.is_importable_everywhere("moved")
    del sys.modules["moved"]
    make_module("moved", "", folder="project")
    assert not modules.is_importable_everywhere("moved")


def test_a_module_without_a_file_is_where_its_parent_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "json.made_by_an_extension", ModuleType("json.made_by_an_extension"))
    monkeypatch.setitem(sys.modules, "made_by_hand", ModuleType("made_by_hand"))
    assert modules.is_importable_everywhere("json.made_by_an_extension")
    assert not modules.is_importable_everywhere("made_by_hand")


def test_a_lazy_module_is_not_loaded_by_looking_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lazy_one.py").write_text("raise RuntimeError('loaded')")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = importlib.util.find_spec("lazy_one")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lazy_one", module)
    spec.loader.exec_module(module)
    assert not modules.is_importable_everywhere("lazy_one")
    pickles.pickle_by_value(1)


# --- references -------------------------------------------------------------------------------------


@pytest.mark.parametrize("obj", [HTTPStatus, json.JSONDecoder, json.JSONDecoder.decode, parse_duration, int])
def test_a_reference_leads_back_to_the_same_object(obj: Any) -> None:
    reference = modules.reference_of(obj)
    assert reference is not None
    assert modules.load_reference(reference) is obj


def test_local_code_has_a_reference_for_readers_that_have_its_module() -> None:
    assert modules.reference_of(run_elsewhere) == f"{__name__}:run_elsewhere"
    with modules.naming(modules.names_nothing):
        assert modules.reference_of(run_elsewhere) is None
    with modules.naming({__name__}.__contains__):
        assert modules.reference_of(run_elsewhere) == f"{__name__}:run_elsewhere"


def test_what_is_not_found_under_its_name_has_no_reference() -> None:
    def inner() -> None: ...

    class Disguised: ...

    Disguised.__module__, Disguised.__qualname__ = "json", "JSONDecoder"
    assert modules.reference_of(inner) is None
    assert modules.reference_of(Disguised) is None
    assert modules.reference_of(42) is None


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("no_such_module:Thing", "importing 'no_such_module' raised ModuleNotFoundError"),
        ("json:NoSuchThing", "json/__init__.py.* has no 'NoSuchThing'"),
        ("sys:NoSuchThing", "a built-in module"),
        ("json", "not a reference"),
        ("json:a b", "not a reference"),
        (":x", "not a reference"),
        ("..json:x", "not a reference"),
    ],
)
def test_a_reference_to_nothing_says_what_was_looked_for_and_where(reference: str, says: str) -> None:
    with pytest.raises(SerializationError, match=says):
        modules.load_reference(reference)


def test_a_module_that_fails_on_import_is_told_with_its_error(make_module: MakeModule) -> None:
    make_module("present", "")
    path = Path(str(sys.modules["present"].__file__)).with_name("broken.py")
    path.write_text("1 / 0")
    importlib.invalidate_caches()
    with pytest.raises(SerializationError, match="importing 'broken' raised ZeroDivisionError") as caught:
        modules.load_reference("broken:x")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


# --- pickles ----------------------------------------------------------------------------------------

UNPICKLE = """
    import sys
    from pyworkflow_ray.values import modules, pickles
    print(pickles.unpickle(bytes.fromhex(sys.argv[1]))(4))
"""


def test_a_module_that_another_thread_just_imports_is_waited_for(
    make_module: MakeModule, tmp_path: Path
) -> None:
    """1. A thread imports a module, and is in the middle of it. 2. Another one loads a reference into it."""
    gate = make_module("import_gate", "import threading\nbegan, go = threading.Event(), threading.Event()")
    slow = tmp_path / "project" / "slow_import.py"
    slow.write_text("import import_gate\nimport_gate.began.set()\nimport_gate.go.wait(30)\nlate = 5\n")
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(modules.load_reference, "slow_import:late")
        assert gate.began.wait(30)
        second = threads.submit(modules.load_reference, "slow_import:late")
        assert not wait([second], timeout=0.2).done, "it cannot know yet what the module has"
        gate.go.set()
        assert (first.result(), second.result()) == (5, 5)
    del sys.modules["slow_import"]


def test_a_local_function_takes_along_what_it_needs(make_module: MakeModule) -> None:
    make_module("shop.prices", "def double(n): return 2 * n")
    module = make_module("shop.orders", "from shop.prices import double\ndef total(n): return double(n) + 1")
    data = pickles.pickle_by_value(module.total)
    assert run_elsewhere(UNPICKLE, data.hex()) == "9"


def test_a_function_of_main_takes_along_a_local_module_it_names(tmp_path: Path) -> None:
    (tmp_path / "local_helper.py").write_text("def double(n): return 2 * n")
    script = """
        import local_helper
        from pyworkflow_ray.values import modules, pickles
        def work(n): return local_helper.double(n)
        print(pickles.pickle_by_value(work).hex())
    """
    assert run_elsewhere(UNPICKLE, run_elsewhere(script, path=tmp_path)) == "8"


def test_a_module_made_without_a_file_travels_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("made_from_text")
    exec("def triple(n): return 3 * n", vars(module))
    monkeypatch.setitem(sys.modules, "made_from_text", module)
    assert run_elsewhere(UNPICKLE, pickles.pickle_by_value(module.triple).hex()) == "12"


def test_installed_code_travels_by_reference() -> None:
    assert len(pickles.pickle_by_value(json.JSONDecoder)) < 100
    assert len(pickles.pickle_by_value(parse_duration)) < 100


def test_a_class_comes_back_as_itself_where_it_is_known(make_module: MakeModule) -> None:
    module = make_module("things", "class Thing: pass")
    assert pickles.unpickle(pickles.pickle_by_value(module.Thing)) is module.Thing


def test_a_namespace_package_is_not_taken_along_for_its_local_portion(make_module: MakeModule) -> None:
    make_module("spread.installed", "def one(n): return 1", folder="env/site-packages")
    local = make_module("spread.local", "def two(n): return 2")
    installed = importlib.import_module("spread.installed")
    assert modules.is_importable_everywhere("spread.installed")
    assert not modules.is_importable_everywhere("spread.local")
    assert b"co_code" not in pickles.pickle_by_value(installed.one)
    assert len(pickles.pickle_by_value(installed.one)) < 100 < len(pickles.pickle_by_value(local.two))


def test_nothing_stays_registered(make_module: MakeModule) -> None:
    module = make_module("passing", "def f(n): return n")
    before = cloudpickle.list_registry_pickle_by_value()
    pickles.pickle_by_value(module.f)
    with pytest.raises(TypeError):
        pickles.pickle_by_value([module.f, threading.Lock()])
    assert cloudpickle.list_registry_pickle_by_value() == before


def test_what_the_user_registered_stays_registered(make_module: MakeModule) -> None:
    module = make_module("kept", "def f(n): return n")
    cloudpickle.register_pickle_by_value(module)
    pickles.pickle_by_value(module.f)
    assert "kept" in cloudpickle.list_registry_pickle_by_value()
    cloudpickle.unregister_pickle_by_value(module)


def test_a_pickle_inside_a_pickle_does_not_take_the_outer_ones_modules(make_module: MakeModule) -> None:
    module = make_module(
        "nested",
        """
        from pyworkflow_ray.values import modules, pickles
        def f(n): return n
        class Inner:
            def __reduce__(self):
                pickles.pickle_by_value(1)
                return (f, (5,))
        """,
    )
    data = pickles.pickle_by_value([module.Inner(), module.f])
    assert run_elsewhere(UNPICKLE.replace("(4)", "[1](4)"), data.hex()) == "4"


def test_two_threads_that_pickle_at_once_do_not_take_each_others_modules(make_module: MakeModule) -> None:
    """
    1. A starts to pickle, and waits inside.
    2. B pickles and ends, while A is inside.
    3. A goes on: its function still travels by value.
    """
    module = make_module(
        "slow",
        """
        import threading
        inside, go_on = threading.Event(), threading.Event()
        class Gate:
            def __reduce__(self):
                inside.set()
                go_on.wait(10)
                return (int, ())
        """,
    )
    plain = make_module("plain", "def f(n): return n")
    result: list[bytes] = []
    thread = threading.Thread(target=lambda: result.append(pickles.pickle_by_value([module.Gate(), plain.f])))
    thread.start()
    assert module.inside.wait(10)
    pickles.pickle_by_value(1)
    module.go_on.set()
    thread.join(10)
    assert run_elsewhere(UNPICKLE.replace("(4)", "[1](4)"), result[0].hex()) == "4"
    assert "plain" not in cloudpickle.list_registry_pickle_by_value()


class Claimant:
    """Stands among the modules as some extensions' objects do: it claims to be one and has no `__dict__`."""

    __slots__ = ()
    __class__ = property(lambda self: ModuleType)  # type: ignore[assignment]


def test_what_only_claims_to_be_a_module_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "claimant_lib", Claimant())  # type: ignore[arg-type]
    assert not modules.is_importable_everywhere("claimant_lib")
    assert pickles.unpickle(pickles.pickle_by_value(lambda: 3))() == 3


def test_a_modules_logger_is_the_logger_of_wherever_the_code_runs(
    make_module: MakeModule, tmp_path: Path
) -> None:
    module = make_module(
        "logging_code",
        """
        from loguru import logger
        order_logger = logger.bind(order=7)
        def f():
            logger.info("plain")
            order_logger.info("bound")
        """,
    )
    sink = module.logger.add(tmp_path / "open.log")  # an open file cannot travel
    try:
        data = pickles.pickle_by_value(module.f)
    finally:
        module.logger.remove(sink)
    script = """
        import pickle, sys
        from loguru import logger
        logger.remove()
        logger.add(sys.stdout, format="{message} {extra}")
        pickle.loads(bytes.fromhex(sys.argv[1]))()
        """
    assert run_elsewhere(script, data.hex()) == "plain {}\nbound {'order': 7}"


@pytest.mark.parametrize(
    ("module", "name", "found"),
    [
        ("steps", "StepFunction", "pyworkflow_ray.authoring.steps"),
        ("workflows", "WorkflowFunction", "pyworkflow_ray.authoring.workflows"),
        ("hooks", "TypedHook", "pyworkflow_ray.authoring.hooks"),
        ("failures", "Failure", "pyworkflow_ray.values.failures"),
        ("recurrences", "ScheduleSpec", "pyworkflow_ray.recurrences.specs"),
        ("engine.logs", "_tell", "pyworkflow_ray.authoring.logs"),
    ],
)
def test_what_was_stored_before_modules_moved_still_loads(module: str, name: str, found: str) -> None:
    thing = getattr(importlib.import_module(found), name)
    assert modules.load_reference(f"pyworkflow_ray.{module}:{name}") is thing
    assert pickles.unpickle(f"cpyworkflow_ray.{module}\n{name}\n.".encode()) is thing, "a global of a pickle"
    subimport = f"ccloudpickle.cloudpickle\nsubimport\n(Vpyworkflow_ray.{module}\ntR.".encode()
    assert pickles.unpickle(subimport) is importlib.import_module(found), "a module of a pickle"


def test_code_that_an_earlier_version_pickled_by_value_is_loaded(make_module: MakeModule) -> None:
    module = make_module("kept_from_before", "from loguru import logger\ndef f(n): return (n * 7, logger)")
    data = pickles.pickle_by_value(module.f)
    before = data.replace(b"pyworkflow_ray.values.pickles", b"pyworkflow_ray.values.modules")
    assert before != data
    script = """
        import sys
        from loguru import logger
        from pyworkflow_ray.values.pickles import unpickle
        n, its_logger = unpickle(bytes.fromhex(sys.argv[1]))(6)
        print(n, its_logger._core is logger._core)
    """
    assert run_elsewhere(script, before.hex()) == "42 True"
