"""The smallest workflow: two steps, a pause between them, and the history that was kept.

    python examples/hello.py

Every step runs as a Ray task, on a local cluster if none is running. What happened is in
`.pyworkflow/pyworkflow.db`.
"""

from pyworkflow_ray import run_workflow, sleep, step, workflow


@step
def greet(name: str) -> str:
    return f"Hello, {name}!"


@step
def shout(text: str) -> str:
    return text.upper()


@workflow
async def hello(name: str) -> str:
    greeting = await greet(name)
    await sleep("500ms")
    return await shout(greeting)


if __name__ == "__main__":
    print(run_workflow(hello, "World"))
