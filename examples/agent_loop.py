"""An agent that lives as long as somebody talks to it. Signals bring what is said, queries read it.

    python examples/agent_loop.py

Every call of the model or of a tool is a step. After a crash the agent knows what it has said and paid for,
and asks nothing twice. While nobody says anything, the agent is only a row. The model here is a few lines of
code that answer like a model.
"""

import asyncio

from pyworkflow_ray import (
    RunHandle,
    get_workflow_run,
    receive,
    set_attributes,
    set_query_handler,
    start,
    step,
    workflow,
)

PRICES = {"pears": 250, "plums": 180}


@step(max_retries=5, retry_delay="1s", timeout="1m")
def think(transcript: list[str]) -> dict[str, str]:
    """Asks the model. It answers with a tool to call, or with something to say."""
    said = transcript[-1]
    if said.startswith("tool: "):
        return {"say": f"They cost {said.removeprefix('tool: ')}."}
    for item in PRICES:
        if item in said:
            return {"call": "price", "with": item}
    return {"say": "I sell pears and plums."}


@step(local=True)
def price(item: str) -> str:
    return f"{PRICES[item] / 100:.2f}"


TOOLS = {"price": price}


@workflow
async def agent(customer: str) -> list[str]:
    transcript: list[str] = []
    set_query_handler("transcript", lambda since=0: transcript[since:])
    set_attributes(customer=customer, turns=0)
    turns = 0
    async for said in receive("say"):
        if said is None:
            return transcript
        transcript.append(f"{customer}: {said}")
        while "call" in (wish := await think(transcript)):
            transcript.append(f"tool: {await TOOLS[wish['call']](wish['with'])}")
        transcript.append(f"agent: {wish['say']}")
        turns += 1
        set_attributes(turns=turns)
    raise AssertionError("signals do not end")


async def talk(run: RunHandle[list[str]], said: str) -> None:
    """Say something, and show the new lines when the agent has answered."""
    since = len(await run.query("transcript"))
    await run.signal("say", said)
    while not (lines := await run.query("transcript", since=since)) or not lines[-1].startswith("agent"):
        await asyncio.sleep(0.05)
    print(*lines, sep="\n")


async def main() -> None:
    run = await start(agent, "Ada")
    while (await run.refresh()).started_at is None:  # it answers queries when its code has begun
        await asyncio.sleep(0.05)
    for said in ("hello", "what do plums cost?", "and pears?"):
        await talk(run, said)
    await run.signal("say", None)
    transcript = await run
    print(f"\n{len(transcript)} lines; attributes {(await get_workflow_run(run)).attributes}")
    # A run that has ended answers too: its history is replayed for the answer.
    print(f"the last line was {await run.query('transcript', since=-1)}")


if __name__ == "__main__":
    asyncio.run(main())
