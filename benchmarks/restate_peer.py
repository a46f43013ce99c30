"""The process of Restate: ``python restate_peer.py FOLDER``; see `peers`.

It has three parts, all on the loopback interface. Restate's server is a child of this process, with its log
and state in FOLDER. The workflows are served over HTTP/2 by this process, with Restate's SDK for Python. The
client, also in this process, starts them through the server's ingress.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from peers import Answers, serve

PATIENCE = 60.0
_SERVERS = Path(__file__).parent / "node_modules" / "@restatedev"


def main(folder: str) -> None:
    """Serve the workloads with a server whose files are in this folder."""
    answers = Answers()
    program = _program()
    if program is None:
        answers.give_absence("server not installed (npm install --prefix benchmarks)")
        return
    try:
        import hypercorn  # noqa: F401
        import restate  # noqa: F401
    except ImportError:
        answers.give_absence("SDK not installed (pip install -r benchmarks/requirements.txt)")
        return
    with _server(program, Path(folder)) as (ingress, admin):
        asyncio.run(_work(answers, program, ingress, admin))


def _program() -> str | None:
    """Restate's server: one on the path, or the one that npm has installed in this folder."""
    found = shutil.which("restate-server")
    if found is None:
        found = next((str(path) for path in _SERVERS.glob("restate-server-*/bin/restate-server")), None)
    return found


@contextlib.contextmanager
def _server(program: str, folder: Path) -> Iterator[tuple[str, str]]:
    """The URLs of a new server's ingress and administration, while the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    ingress, admin, node = (f"127.0.0.1:{_free_port()}" for _ in range(3))
    settings = {
        "RESTATE_INGRESS__BIND_ADDRESS": ingress,
        "RESTATE_ADMIN__BIND_ADDRESS": admin,
        "RESTATE_BIND_ADDRESS": node,
        "RESTATE_ADVERTISED_ADDRESS": f"http://{node}/",
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_LOG_FILTER": "warn,octocrab=off",
    }
    command = [program, "--no-logo", "--base-dir", str(folder), "--node-name", "benchmark"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, env=os.environ | settings, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield f"http://{ingress}", f"http://{admin}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(20)


async def _work(answers: Answers, program: str, ingress: str, admin: str) -> None:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=600)
    async with _endpoint() as endpoint, aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
        await _until_healthy(client, admin)
        async with client.post(f"{admin}/deployments", json={"uri": endpoint}) as reply:
            assert reply.status == 201, f"{reply.status}: {await reply.text()}"

        async def run(workflow: str, number: int) -> int:
            url = f"{ingress}/{workflow}/{uuid.uuid4().hex}/run"
            async with client.post(url, json=number) as reply:
                assert reply.status == 200, f"{reply.status}: {await reply.text()}"
                return int(await reply.json())

        async def sequential_steps(count: int) -> None:
            assert await run("Counting", count) == count

        async def one_step_runs(count: int) -> None:
            results = await asyncio.gather(*(run("OneStep", number) for number in range(count)))
            assert results == [number + 1 for number in range(count)]

        answers.give(_facts(program))
        await serve(answers, {"sequential_steps": sequential_steps, "one_step_runs": one_step_runs})


@contextlib.asynccontextmanager
async def _endpoint() -> AsyncIterator[str]:
    """The URL at which the workflows are served, while the block runs."""
    import hypercorn.asyncio
    import hypercorn.config
    import restate

    address = f"127.0.0.1:{_free_port()}"
    config = hypercorn.config.Config()
    config.bind = [address]
    config.errorlog = config.accesslog = None
    is_over = asyncio.Event()
    app: Any = restate.app(services=_workflows())
    serving = asyncio.create_task(
        hypercorn.asyncio.serve(app, config, mode="asgi", shutdown_trigger=is_over.wait)
    )
    try:
        yield f"http://{address}"
    finally:
        is_over.set()
        await asyncio.wait([serving], timeout=10)


def _workflows() -> list[Any]:
    import restate

    counting, one_step = restate.Workflow("Counting"), restate.Workflow("OneStep")

    async def add(a: int, b: int) -> int:
        return a + b

    async def count_up(ctx, number):  # type: ignore[no-untyped-def]
        total = 0
        for _ in range(number):
            total = await ctx.run_typed("add", add, restate.RunOptions(), total, 1)
        return total

    async def add_one(ctx, number):  # type: ignore[no-untyped-def]
        return await ctx.run_typed("add", add, restate.RunOptions(), number, 1)

    # The SDK evaluates annotations. Those of a local function would be text that it cannot evaluate.
    for workflow, handler in ((counting, count_up), (one_step, add_one)):
        handler.__annotations__ = {"ctx": restate.WorkflowContext, "number": int, "return": int}
        workflow.main("run")(handler)
    return [counting, one_step]


async def _until_healthy(client: Any, admin: str) -> None:
    import aiohttp

    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            async with client.get(f"{admin}/health") as reply:
                if reply.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        assert time.monotonic() < deadline, "Restate's server does not start; see server.log in its folder"
        await asyncio.sleep(0.1)


def _facts(program: str) -> dict[str, str]:
    """The versions, and how the server says that it writes its log."""
    from importlib.metadata import version

    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()
    dumped = subprocess.run([program, "--dump-config"], capture_output=True, text=True, check=True).stdout
    section = dumped.partition("[log-server]")[2]
    setting = next(line for line in section.splitlines() if line.startswith("rocksdb-disable-wal-fsync"))
    return {"version": f"{told[-1]}, SDK {version('restate-sdk')}", "durability": f"its own log, {setting}"}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main(sys.argv[1])
