"""A run starts other runs: three chapters at once. Each is a run with a history of its own.

    python examples/parent_and_children.py

One chapter fails. Its parent sees a `ChildWorkflowFailedError`, whose cause is the child's own error, and
goes on without this chapter. The parent does not wait for the index. The index may outlive the book, since
its `parent_close` is "abandon".
"""

import asyncio

from pyworkflow_ray import (
    ChildWorkflowFailedError,
    RunHandle,
    get_children,
    run_sync,
    sleep,
    start_child_workflow,
    start_sync,
    step,
    workflow,
)


@step(max_retries=1, retry_delay="100ms")
def translate(text: str) -> str:
    if "?" in text:
        raise ValueError(f"what is meant by {text!r}?")
    return text.upper()


@workflow
async def chapter(number: int, text: str) -> str:
    return f"{number}. {await translate(text)}"


@workflow
async def index(book: str) -> str:
    await sleep("4s")
    return f"the index of {book!r}"


@workflow
async def book(title: str, texts: list[str]) -> list[str]:
    await start_child_workflow(index, title, wait_for_completion=False, parent_close="abandon")
    chapters = [start_child_workflow(chapter, number, text) for number, text in enumerate(texts, 1)]
    return [line_of(each) for each in await asyncio.gather(*chapters, return_exceptions=True)]


def line_of(done: str | BaseException) -> str:
    match done:
        case str():
            return done
        case ChildWorkflowFailedError():
            return f"-- {done.child_run_id} failed: {type(done.__cause__).__name__}: {done.error}"
        case _:
            raise done


if __name__ == "__main__":
    run = start_sync(book, "The moon", ["it shines", "it ???", "it sets"])
    for line in run.wait():
        print(line)
    print("\nthe children, when their parent has ended:")
    for child in run_sync(get_children(run)):
        print(f"  {child.run_id}  {child.workflow_name:<8} {child.status.value}")
        if child.workflow_name == "index":
            left = RunHandle(child.run_id)
    print(f"\nand later: {left.wait()}")
