"""Local code travels as source: what it makes is the same thing in every process. Two drivers, not one."""

from __future__ import annotations

import json
import shutil
import sqlite3
import textwrap
from pathlib import Path

import pytest

import pyworkflow_ray as pr
from tests.ray.conftest import EngineUnderTest, eventually
from tests.ray.test_drivers import drive

SHOP = {
    "shop/__init__.py": "",
    "shop/models.py": """
        import dataclasses, enum, functools
        from typing import NamedTuple, NewType, ParamSpec, TypeVarTuple
        import msgspec
        from pydantic import BaseModel

        OrderId = NewType("OrderId", str)
        P = ParamSpec("P")
        Ts = TypeVarTuple("Ts")

        class Decision(enum.Enum):
            YES = "yes"
            ALSO = "yes"
            NO = "no"

        class Planet(enum.Enum):
            EARTH = (5.9, 6.3)
            def __init__(self, mass, radius):
                self.mass, self.radius = mass, radius

        @dataclasses.dataclass(frozen=True)
        class Order:
            id: str
            decision: Decision = Decision.NO

        class Model(BaseModel):
            n: int

        class Struct(msgspec.Struct):
            n: int = 1

        class Pair(NamedTuple):
            a: int

        class Declined(Exception):
            pass

        VALUES = [Decision.YES, Planet.EARTH, Order("A"), Model(n=1), Struct(), Pair(1)]

        @functools.singledispatch
        def kind(value): return "any"
        @kind.register
        def _(value: Order): return "order"

        class Box:
            @functools.cached_property
            def full(self): return 7
    """,
    "shop/registry.py": """
        KNOWN = {}
        def register(fn):
            KNOWN[fn.__name__] = fn
            return fn
    """,
    "shop/plugins.py": """
        from shop.registry import register
        @register
        def greet(): return "hello"
    """,
    "shop/late.py": "def late(): return 'late'",
    "shop/prices.json": '{"pear": 3}',
    "shop/flows.py": """
        import contextvars, functools, json, pathlib
        import pyworkflow_ray as pr
        from . import plugins, registry
        from .models import *
        from .models import P, Ts, kind

        seen = contextvars.ContextVar("seen", default=0)
        MODEL = []

        @functools.cache
        def cached(n): return n * 2

        @pr.step(max_retries=0)
        def looks(order: Order, order_id: OrderId) -> list:
            from shop.late import late
            prices = json.loads((pathlib.Path(__file__).parent / "prices.json").read_text())
            return [
                order.decision is Decision.YES, Decision["ALSO"] is Decision.YES, Planet.EARTH.mass,
                cached(2), kind(order), Box().full, late(), registry.KNOWN["greet"](), prices["pear"],
                seen.get(), Struct() == Struct(1), order_id,
            ]

        @pr.step(max_retries=0)
        def loads_once() -> int:
            MODEL.append(1)
            return len(MODEL)

        @pr.step(max_retries=0)
        def echo(value):
            return value

        @pr.step(max_retries=0)
        def declines():
            raise Declined("no")

        @pr.workflow
        async def everything(order: Order) -> list:
            echoed = [await echo(value) for value in VALUES]
            same = [type(one) is type(other) and one == other for one, other in zip(echoed, VALUES)]
            return [isinstance(order, Order), all(same), *await looks(order, OrderId("A-1"))]

        @pr.workflow
        async def loads_a_model() -> int:
            for _ in range(2):
                last = await loads_once()
            return last

        @pr.workflow
        async def from_outside():
            pr.set_query_handler("is", lambda given: [given is Decision.YES, isinstance(given, Decision)])
            signals = [await pr.receive("s") for _ in VALUES]
            payload = await pr.define_hook("h", Decision)()
            try:
                await pr.hook("rejected")
            except Declined as error:
                rejected = str(error)
            same = [type(one) is type(other) and one == other for one, other in zip(signals, VALUES)]
            return [all(same), payload is Decision.YES, rejected]

        @pr.workflow
        async def fails():
            await declines()
    """,
}
STARTS = """
    import json
    from shop import flows
    from shop.models import *
    import pyworkflow_ray as pr

    if __name__ == "__main__":
        given = Order("A", Decision.YES)
        ids = [str(pr.start_sync(flows.everything, given, idempotency_key="k"))]
        ids += [str(pr.start_sync(flow)) for flow in (flows.from_outside, flows.fails)]
        print(json.dumps(ids))
"""
ANSWERS = """
    import json, sys, time
    import pyworkflow_ray as pr
    from shop import flows
    from shop.models import *

    def token(run, name):
        while True:
            hooks, _ = pr.run_sync(pr.list_hooks(run, status="pending"))
            for each in hooks:
                if each.name == name:
                    return each.token
            time.sleep(0.1)

    if __name__ == "__main__":
        first, outside, fails = map(pr.RunHandle, json.loads(sys.argv[1]))
        again = pr.start_sync(flows.everything, Order("A", Decision.YES), idempotency_key="k")
        assert again == first, (again, first)
        asked = pr.run_sync(outside.query("is", Decision.YES))
        for value in VALUES:
            pr.run_sync(outside.signal("s", value))
        pr.resume_hook_sync(token(outside, "h"), Decision.YES)
        pr.run_sync(pr.reject_hook(token(outside, "rejected"), Declined("too late")))
        try:
            fails.wait(timeout=60)
        except Declined as error:
            caught = str(error)
        print(json.dumps([again.wait(timeout=60), asked, outside.wait(timeout=60), caught]))
"""


def project(folder: Path, files: dict[str, str]) -> Path:
    for place, text in files.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder


def drive_with(script: Path, engine: EngineUnderTest, *args: str, **environment: str) -> str:
    return drive(script, engine, *args, PYWORKFLOW_CODE_FILES='["shop/*.json"]', **environment)


def rows(engine: EngineUnderTest, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(engine.url) as connection:
        return list(connection.execute(query))


@pytest.mark.timeout(240)
def test_values_of_a_local_package_are_the_same_things_in_all_processes(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    starts = project(tmp_path / "a", SHOP | {"starts.py": STARTS}) / "starts.py"
    ids = drive_with(starts, engine)
    shutil.rmtree(starts.parent)
    before = rows(engine, "SELECT hash FROM code ORDER BY 1"), rows(engine, "SELECT hash FROM bundles")
    # Another driver in another folder, with the same files.
    answers = project(tmp_path / "b", SHOP | {"answers.py": ANSWERS}) / "answers.py"
    told = json.loads(drive_with(answers, engine, ids))
    results = [True, True, True, True, 5.9, 4, "order", 7, "late", "hello", 3, 0, True, "A-1"]
    assert told == [results, [True, True], [True, True, "too late"], "no"]
    assert len(rows(engine, "SELECT hash FROM bundles")) == 1
    assert set(before[0]) <= set(rows(engine, "SELECT hash FROM code ORDER BY 1"))


SCRIPT = """
    import dataclasses, enum, functools, traceback
    import pyworkflow_ray as pr

    class Tier(enum.Enum):
        GOLD = "gold"

    @dataclasses.dataclass
    class Order:
        id: str
        tier: Tier = Tier.GOLD

    class Refused(Exception):
        pass

    @pr.step(max_retries=0)
    def pay(order: Order) -> Order:
        assert order.tier is Tier.GOLD
        return order

    @pr.step(max_retries=0)
    def refuse() -> None:
        raise Refused("not today")  # as it is written

    @pr.workflow
    async def script_buys(order: Order) -> Order:
        try:
            await refuse()
        except Refused:
            return await pay(order)
        raise AssertionError

    @pr.workflow
    async def script_fails() -> None:
        await refuse()

    if __name__ == "__main__":
        run = pr.start_sync(script_buys, Order("A"), idempotency_key="once")
        result = run.wait(timeout=90)
        assert result == Order("A") and type(result) is Order and result.tier is Tier.GOLD
        try:
            pr.run_workflow(script_fails)
        except Refused:
            told = traceback.format_exc()
        assert 'line 23, in refuse' in told and 'raise Refused("not today")  # as it is written' in told, told
        print(run)
"""


def test_a_script_run_twice_gets_the_same_run_and_its_own_classes(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    script = project(tmp_path / "a", {"my-script.py": SCRIPT}) / "my-script.py"
    first = drive(script, engine)
    failed = next(
        event for event in pr.RunHandle[object](first).events_sync() if event.type.value == "step.failed"
    )
    assert 'File "my-script.py", line 23, in refuse' in failed.data["traceback"]
    stored = rows(engine, "SELECT hash FROM code ORDER BY 1")
    assert drive(script, engine) == first
    assert rows(engine, "SELECT hash FROM code ORDER BY 1") == stored
    assert len(rows(engine, "SELECT hash FROM bundles")) == 1


VERSION = """
    import sys, time
    import pyworkflow_ray as pr
    import version

    @pr.step(max_retries=0)
    def step_version() -> int:
        return version.NUMBER

    @pr.workflow
    async def versioned() -> list[int]:
        await pr.hook("go", token=f"go-{version.NUMBER}")
        return [version.NUMBER, await step_version()]

    if __name__ == "__main__":
        run = pr.start_sync(versioned)
        while run.status_sync() is not pr.RunStatus.SUSPENDED:
            time.sleep(0.05)
        print(run)
"""


@pytest.mark.timeout(300)
def test_runs_of_several_versions_of_a_file_end_each_with_its_own(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    script = project(tmp_path / "a", {"flow.py": VERSION}) / "flow.py"
    runs = []
    for number in range(4):
        (script.parent / "version.py").write_text(f"NUMBER = {number}\n")
        runs.append(drive(script, engine))
    # An idle coordinator of old code gives way to one of new code.
    eventually(lambda: len(engine.coordinators()) == 1)
    for number in range(4):
        pr.resume_hook_sync(f"go-{number}", None)
    assert [pr.RunHandle(run).wait(timeout=120) for run in runs] == [[n, n] for n in range(4)]


def test_a_worker_on_a_node_without_the_bundle_gets_it_from_its_coordinator(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    main = """
        import os, pathlib, shutil, tempfile
        import pyworkflow_ray as pr
        import beside

        @pr.step(max_retries=0)
        def far() -> int:
            return beside.NUMBER

        @pr.workflow
        async def forgets() -> int:
            from pyworkflow_ray.values import bundles
            for name in os.listdir(bundles._cache()):
                if name == bundles.installed_hash():
                    shutil.rmtree(bundles._cache() / name)
            return await far()

        if __name__ == "__main__":
            print(pr.run_workflow(forgets))
    """
    script = (
        project(tmp_path / "a", {"forgets.py": main, "beside.py": f"NUMBER = 5  # {tmp_path}"}) / "forgets.py"
    )
    assert drive(script, engine) == "5"


BROKEN = """
    import sys
    import pyworkflow_ray as pr
    if __name__ == "__main__":
        sys.modules["only_in_the_driver"] = sys
    import only_in_the_driver

    @pr.workflow
    async def not_there() -> int:
        return 1

    if __name__ == "__main__":
        run = pr.start_sync(not_there, idempotency_key="once")
        try:
            print(run, run.wait(timeout=60))
        except pr.WorkflowError as error:
            print(run, str(error).splitlines()[0])
"""


def test_a_run_whose_code_cannot_be_imported_there_says_so_and_leaves_its_key_to_the_next(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    script = project(tmp_path / "a", {"broken.py": BROKEN}) / "broken.py"
    first, told = drive(script, engine).split(" ", 1)
    assert "only_in_the_driver" in told
    handle: pr.RunHandle[int] = pr.RunHandle(first)
    # Where processes start slowly, the sweep may have placed the run once more.
    eventually(lambda: handle.status_sync() is pr.RunStatus.INTERRUPTED)
    script.write_text(script.read_text().replace("import only_in_the_driver\n", ""))
    second, told = drive(script, engine).split(" ", 1)
    assert told == "1"
    assert second != first
    eventually(lambda: handle.status_sync() is pr.RunStatus.CANCELLED)
    assert drive(script, engine).split(" ", 1) == [second, "1"]
