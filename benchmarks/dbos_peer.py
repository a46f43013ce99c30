"""The process of DBOS: ``python dbos_peer.py URL``; see `peers`."""

from __future__ import annotations

import asyncio
import sys

from peers import Answers, serve


def main(url: str) -> None:
    """Serve the workloads on the database of this URL."""
    answers = Answers()
    try:
        from dbos import DBOS
    except ImportError:
        answers.give_absence("not installed (pip install -r benchmarks/requirements.txt)")
        return
    DBOS(config={"name": "benchmark", "system_database_url": url, "log_level": "ERROR"})

    @DBOS.step()
    async def add(a: int, b: int) -> int:
        return a + b

    @DBOS.workflow()
    async def counting(count: int) -> int:
        total = 0
        for _ in range(count):
            total = await add(total, 1)
        return total

    @DBOS.workflow()
    async def one_step(number: int) -> int:
        return await add(number, 1)

    async def sequential_steps(count: int) -> None:
        assert await counting(count) == count

    async def one_step_runs(count: int) -> None:
        handles = await asyncio.gather(*(DBOS.start_workflow_async(one_step, i) for i in range(count)))
        results = await asyncio.gather(*(handle.get_result() for handle in handles))
        assert results == [i + 1 for i in range(count)]

    DBOS.launch()
    answers.give(_facts())
    asyncio.run(serve(answers, {"sequential_steps": sequential_steps, "one_step_runs": one_step_runs}))
    DBOS.destroy()


def _facts() -> dict[str, str]:
    """The durability settings in force on DBOS's own connections."""
    from importlib.metadata import version

    import sqlalchemy as sa
    from dbos._dbos import _get_dbos_instance

    engine = _get_dbos_instance()._sys_db.engine
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            names = ("journal_mode", "synchronous")
            statements = [f"PRAGMA {name}" for name in names]
        else:
            names = ("server_version", "fsync", "synchronous_commit")
            statements = [f"SHOW {name}" for name in names]
        values = [connection.execute(sa.text(statement)).scalar() for statement in statements]
    told = " ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
    return {"version": version("dbos"), "durability": told}


if __name__ == "__main__":
    main(sys.argv[1])
