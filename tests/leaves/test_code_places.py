"""Code that travels by value keeps its file, its lines and their text, where there is no such file."""

from __future__ import annotations

import linecache
import subprocess
import sys
from pathlib import Path

import pytest

from pyworkflow_ray.values import pickles

SCRIPT = """\
import sys
from pyworkflow_ray.values.pickles import pickle_by_value


def plain(n):
    return 1 // n  # in plain


def outer(n):
    def inner(m):
        raise ValueError(  # in inner
            f"at {m}"
        )

    return inner(n)


class Order:
    def total(self, n):
        return 2 // n  # in a method

    class Line:
        @staticmethod
        def price(n):
            return 3 // n  # in a class in a class


short = lambda n: 4 // n  # in a lambda


async def workflow(n):
    return [5 // m for m in [n]]  # in a coroutine


def page(n):
    text = "before\x0cafter"
    return 6 // n  # after a form feed


every = (plain, outer, Order, short, workflow, page)
if __name__ == "__main__":
    sys.stdout.write(pickle_by_value(every).hex())
"""

READ = """
import asyncio, linecache, sys
from pyworkflow_ray.values.failures import capture
from pyworkflow_ray.values.pickles import unpickle

plain, outer, Order, short, workflow, page = unpickle(bytes.fromhex(sys.stdin.read()))

def fails(call, *args):
    linecache.checkcache()
    try:
        call(*args)
    except Exception as error:
        print(capture(error, skip_frames_of=("__main__", "asyncio")).traceback)

fails(plain, 0)
fails(outer, 0)
fails(Order().total, 0)
fails(Order.Line.price, 0)
fails(short, 0)
fails(lambda: asyncio.run(workflow(0)))
fails(page, 0)
"""


def python(*args: str, stdin: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *args],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tracebacks_show_file_line_and_source_where_the_script_is_gone(tmp_path: Path) -> None:
    script = tmp_path / "shop.py"
    script.write_text(SCRIPT)
    data = python(str(script))
    script.unlink()
    told = python("-c", READ, stdin=data)

    for number, text in enumerate(SCRIPT.split("\n"), 1):
        if "# in" in text or "# after" in text:
            at = told.index(f'File "{script}", line {number}, in ')
            assert told[at:].splitlines()[1].strip() == text.strip()
    assert told.count("Traceback") == 7


def test_functions_are_the_same_bytes_in_each_process_and_have_their_text_once(tmp_path: Path) -> None:
    (tmp_path / "outer_one.py").write_text(SCRIPT)
    write = (
        "import sys; sys.path.insert(0, sys.argv[1]); import outer_one; "
        "print(outer_one.pickle_by_value((outer_one.outer, outer_one.short, outer_one.plain)).hex())"
    )
    first, second = (python("-c", write, str(tmp_path)) for _ in range(2))
    assert first == second
    data = bytes.fromhex(first)
    assert data.count(b"# in inner") == 1
    assert b"# in a method" not in data
    assert data.count(str(tmp_path).encode()) <= 2  # in the code's file, and in `__file__`


def test_a_notebook_cell_shows_its_source_and_is_the_same_from_each_kernel() -> None:
    made = []
    for kernel in (17, 4711):
        name = f"/tmp/ipykernel_{kernel}/1234567.py"
        text = "def cell(n):\n    return 1 // n  # in the cell\n"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        names: dict[str, object] = {"__name__": "__main__"}
        exec(compile(text, name, "exec"), names)
        made.append(pickles.pickle_by_value(names["cell"]))
        del linecache.cache[name]
    assert made[0] == made[1]
    read = (
        "import sys, traceback; from pyworkflow_ray.values.pickles import unpickle\n"
        "try: unpickle(bytes.fromhex(sys.stdin.read()))(0)\n"
        "except ZeroDivisionError: traceback.print_exc(file=sys.stdout)"
    )
    told = python("-c", read, stdin=made[0].hex())
    assert 'File "<notebook>/1234567.py", line 2, in cell\n    return 1 // n  # in the cell' in told


def test_a_cell_of_an_older_kernel_shows_its_source_too() -> None:
    text = "def cell(n):\n    return 1 // n  # in the cell\n"
    pickles.keep_source("<ipython-input-7-0123>", 1, text)
    linecache.checkcache()
    assert linecache.getline("<ipython-input-7-0123>", 2) == "    return 1 // n  # in the cell\n"


def test_a_file_that_is_here_goes_before_the_text_that_came(tmp_path: Path) -> None:
    file = tmp_path / "here.py"
    file.write_text("a line\nof this machine\n")
    pickles.keep_source(str(file), 1, "a line\nof another\n")
    assert linecache.getline(str(file), 2) == "of this machine\n"


def test_lines_of_several_pickles_stand_side_by_side() -> None:
    pickles.keep_source("/nowhere/both.py", 2, "second\n")
    assert linecache.getline("/nowhere/both.py", 2) == "second\n"
    pickles.keep_source("/nowhere/both.py", 4, "fourth\nfifth")
    linecache.checkcache()
    assert linecache.getlines("/nowhere/both.py") == ["\n", "second\n", "\n", "fourth\n", "fifth\n"]


@pytest.mark.parametrize("name", ["<string>", "/nowhere/at_all.py"])
def test_code_without_a_source_travels_without(name: str) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile("def made(n): return 1 // n", name, "exec"), names)
    made = pickles.unpickle(pickles.pickle_by_value(names["made"]))
    assert made.__code__.co_filename == name
    assert made(1) == 1
