"""The smallest workflow: two steps and a pause between them.

    python examples/hello.py

Every step runs as a Ray task, on a local cluster if no other is running. The history is in
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
