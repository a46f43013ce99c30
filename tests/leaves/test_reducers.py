"""Definitions of a script without a guard travel by value, and are the same where they are loaded."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

LOAD = (
    "import sys\n"
    "from pyworkflow_ray.values.pickles import unpickle\n"
    "print(unpickle(bytes.fromhex(sys.stdin.read()))())"
)
HEAD = """
    import contextvars, dataclasses, enum, functools, sys, typing
    from typing import Any, NewType, ParamSpec, TypeVarTuple
    import msgspec
    from pydantic import BaseModel, TypeAdapter
"""
SCRIPTS = {
    "an enum with aliases": (
        """
        class Alias(enum.Enum):
            RUNNING = "running"; ACTIVE = "running"; DONE = "done"
        def look(): return [Alias["ACTIVE"] is Alias.RUNNING, Alias.ACTIVE.name, Alias("done").name]
        """,
        "[True, 'RUNNING', 'DONE']",
    ),
    "an enum with an __init__": (
        """
        class Planet(enum.Enum):
            EARTH = (5.9, 6.3); MARS = (0.6, 3.3)
            def __init__(self, mass, radius): self.mass, self.radius = mass, radius
            @property
            def density(self): return Planet.EARTH.mass / self.radius
        def look(): return [Planet.MARS.mass, Planet((5.9, 6.3)).name, round(Planet.EARTH.density, 2)]
        """,
        "[0.6, 'EARTH', 0.94]",
    ),
    "an enum with a __new__": (
        """
        class Level(enum.Enum):
            LOW = (1, "low"); HIGH = (2, "high")
            def __new__(cls, code, text):
                made = object.__new__(cls); made._value_ = code; made.text = text; return made
        def look(): return [Level(2).name, Level.LOW.text, Level.HIGH.value]
        """,
        "['HIGH', 'low', 2]",
    ),
    "an enum of numbers with attributes": (
        """
        class Status(enum.IntEnum):
            OK = (200, "fine"); GONE = (410, "gone")
            def __new__(cls, value, phrase):
                made = int.__new__(cls, value); made._value_ = value; made.phrase = phrase; return made
        def look(): return [Status.OK + 1, Status(410).phrase, isinstance(Status.OK, int)]
        """,
        "[201, 'gone', True]",
    ),
    "an enum of texts and a flag": (
        """
        class Text(enum.StrEnum):
            A = "a"; ALSO = "a"
        class Right(enum.Flag):
            READ = 1; WRITE = 2; RUN = 4; BOTH = 3
        def look():
            return [Text.ALSO + "b", Text("a") is Text.A, Right.READ | Right.WRITE, Right.READ | Right.RUN]
        """,
        "['ab', True, <Right.BOTH: 3>, <Right.READ|RUN: 5>]",
    ),
    "a cache": (
        """
        @functools.cache
        def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
        @functools.lru_cache(maxsize=3)
        def small(n): return n
        class Has:
            @functools.lru_cache
            def method(self): return 4
        def look():
            return [fib(60), fib.cache_info().currsize, small.cache_parameters()["maxsize"], Has().method()]
        """,
        "[1548008755920, 61, 3, 4]",
    ),
    "types": (
        """
        OrderId = NewType("OrderId", str)
        P = ParamSpec("P"); Ts = TypeVarTuple("Ts")
        def one(order: OrderId, *args: P.args, **kwargs: P.kwargs) -> OrderId: return OrderId(order)
        def look():
            hints = typing.get_type_hints(one)
            return [one("A"), OrderId.__supertype__, hints["order"] is OrderId, P, Ts]
        """,
        "['A', <class 'str'>, True, ~P, Ts]",
    ),
    "dataclasses": (
        """
        @dataclasses.dataclass
        class Order:
            id: str
            n: int = 1
            more: list = dataclasses.field(default_factory=list)
            _: dataclasses.KW_ONLY
            last: int = 2
        def look():
            made = TypeAdapter(Order).validate_python({"id": "a", "n": "2"})
            required = [f.default is dataclasses.MISSING for f in dataclasses.fields(Order)]
            return [made, required, dataclasses.replace(made, n=3).n, Order.__match_args__]
        """,
        "[Order(id='a', n=2, more=[], last=2), [True, False, True, False], 3, ('id', 'n', 'more')]",
    ),
    "a struct": (
        """
        class Base(msgspec.Struct, frozen=True):
            id: str
        class Order(Base, frozen=True, tag="order"):
            n: int = msgspec.field(name="number", default=1)
            more: list = []
            def twice(self): return Order(self.id, self.n * 2)
            @property
            def name(self): return self.id.upper()
        def look():
            text = msgspec.json.encode(Order("a"))
            again = msgspec.json.decode(text, type=Order)
            return [text, again.twice(), Order("a").name, hash(Base("a")) != 0]
        """,
        """[b'{"type":"order","id":"a","number":1,"more":[]}', Order(id='a', n=2, more=[]), 'A', True]""",
    ),
    "a context variable": (
        """
        with_default, without = contextvars.ContextVar("one", default=5), contextvars.ContextVar("two")
        def set_it(): without.set(6); return with_default.get() + without.get()
        def look(): return set_it()
        """,
        "11",
    ),
    "a single dispatch and cached properties": (
        """
        class Mine: pass
        @functools.singledispatch
        def kind(value): return "any"
        @kind.register
        def _(value: Mine): return "mine"
        class Box:
            @functools.cached_property
            def full(self): return 7
        def look(): return [kind(Mine()), kind(1), Box().full]
        """,
        "['mine', 'any', 7]",
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_definition_by_value_is_what_it_was(name: str) -> None:
    source, expected = SCRIPTS[name]
    script = (
        textwrap.dedent(HEAD)
        + textwrap.dedent(source)
        + (
            "from pyworkflow_ray.values.pickles import pickle_by_value\n"
            "sys.stderr.write(repr(look()))\n"
            "print(pickle_by_value(look).hex())\n"
        )
    )
    written = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert written.returncode == 0, written.stderr
    read = subprocess.run(
        [sys.executable, "-c", LOAD], input=written.stdout, capture_output=True, text=True, check=False
    )
    assert read.returncode == 0, read.stderr
    assert read.stdout.strip() == expected
    assert written.stderr == expected, "and so it is where it was defined"


def test_what_cannot_be_loaded_by_a_process_that_does_not_know_it_is_found_here() -> None:
    script = """
        import sys
        from pyworkflow_ray.values.pickles import pickle_by_value, try_unpickle
        class Meta(type):
            made = []
            def __new__(meta, name, bases, names, **options):
                cls = super().__new__(meta, name, bases, names)
                Meta.made.append(cls)
                if len(Meta.made) > 1: raise RuntimeError("there can be only one")
                return cls
        class Only(metaclass=Meta): pass
        data = pickle_by_value(Only)
        try: try_unpickle(data)
        except RuntimeError as error: print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "there can be only one"
