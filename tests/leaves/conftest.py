"""A small installed package: classes that every process can import, as the codec sees it."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from types import ModuleType

import pytest

SHOP = """
    import dataclasses, enum, functools
    from collections import namedtuple
    from typing import Any, NamedTuple
    import msgspec, pydantic

    @dataclasses.dataclass
    class Order:
        id: str
        lines: Any = ()
        total: float = dataclasses.field(init=False, default=0.0)

        @functools.cached_property
        def slow(self): return 3

    @dataclasses.dataclass(frozen=True, slots=True)
    class Point:
        x: Any
        y: Any = dataclasses.field(default_factory=list)

    @dataclasses.dataclass
    class CheckedOnce:
        n: int
        def __post_init__(self): self.n += 1

    @dataclasses.dataclass
    class KeepsMore:
        n: int
        __slots__ = ("n", "hidden")

    class SlotBase:
        __slots__ = ("memo",)

    @dataclasses.dataclass
    class OnSlots(SlotBase):
        n: int

    @dataclasses.dataclass
    class PicklesItself:
        n: int
        def __getstate__(self): return {"n": self.n}

    @dataclasses.dataclass(eq=True)
    class FieldedDict(dict):
        n: int = 0

    class Customer(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow")
        name: str
        tags: tuple[str, ...] = ()
        _seen: Any = pydantic.PrivateAttr(default=None)

        @functools.cached_property
        def slow(self): return 3

    class Numbers(pydantic.RootModel[list[int]]):
        pass

    class Item(msgspec.Struct):
        sku: str
        price: Any = None

    class Frozen(msgspec.Struct, frozen=True, kw_only=True, dict=True):
        n: int
        def __post_init__(self): msgspec.structs.force_setattr(self, "n", self.n + 1)

    class Pair(NamedTuple):
        left: Any
        right: Any = None

    class NamedPair(namedtuple("NamedPair", "a b")):
        pass

    class Color(enum.Enum):
        RED = 1
        ROUGE = 1
        BLUE = "blue"

    class Level(enum.IntEnum):
        LOW = 1

    class Word(str, enum.Enum):
        YES = "yes"

    class Right(enum.Flag):
        READ = 1
        WRITE = 2

    class Number(int):
        pass
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("env") / "site-packages"
    folder.mkdir()
    (folder / "shop_models.py").write_text(textwrap.dedent(SHOP))
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield importlib.import_module("shop_models")
    sys.path.remove(str(folder))
    del sys.modules["shop_models"]
