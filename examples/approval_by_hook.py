"""A run waits for a person's decision. Whoever has the token of its hook gives it, from any process.

    python examples/approval_by_hook.py

does all of it in one process. To do the same in two terminals, start a cluster that both join
(`ray start --head`):

    python examples/approval_by_hook.py wait
    python examples/approval_by_hook.py resume TOKEN --yes

You may end the first with Ctrl-C while the run waits. The run is a row until the decision comes. The second
then wakes a coordinator, which goes on with the run.
"""

import argparse
import time

from pydantic import BaseModel

from pyworkflow_ray import (
    HookAlreadyReceivedError,
    HookExpiredError,
    HookValidationError,
    RunHandle,
    define_hook,
    list_hooks,
    resume_hook_sync,
    run_sync,
    start_sync,
    step,
    workflow,
)


class Decision(BaseModel):
    approved: bool
    by: str


Approval = define_hook("approval", Decision)


@step
def invite(token: str) -> str:
    """In real life this sends an e-mail with a link. It runs once, and its result is in the history."""
    return f"https://example.org/decide/{token}"


@step
def publish(article: str, by: str) -> str:
    return f"{article!r} is published, as {by} has decided"


@workflow
async def review(article: str) -> str:
    try:
        decision = await Approval(timeout="10m", on_created=invite)
    except HookExpiredError:
        return f"{article!r} stays a draft: nobody has decided in time"
    if not decision.approved:
        return f"{article!r} stays a draft, as {decision.by} has decided"
    return await publish(article, decision.by)


def token_of(run: RunHandle[str]) -> str:
    """The token. In real life the person who decides has it from the e-mail."""
    while True:
        hooks, _ = run_sync(list_hooks(run, status="pending"))
        if hooks:
            return hooks[0].token
        time.sleep(0.05)


def wait() -> None:
    run = start_sync(review, "The far side of the moon")
    print(f"{run} waits. In another terminal:", flush=True)
    print(f"  python examples/approval_by_hook.py resume {token_of(run)} --yes", flush=True)
    print(run.wait())


def resume(token: str, approved: bool) -> None:
    done = resume_hook_sync(token, Decision(approved=approved, by="Ada"))
    print(f"hook {done.hook_id} of {done.run_id} has its payload")


def both() -> None:
    run = start_sync(review, "The far side of the moon")
    token = token_of(run)
    try:
        resume_hook_sync(token, {"approved": "perhaps", "by": "Ada"})
    except HookValidationError as error:
        print(f"refused: {error}")  # the hook still waits
    resume(token, approved=True)
    try:
        resume(token, approved=False)
    except HookAlreadyReceivedError as error:
        print(f"too late: {error}")
    print(run.wait())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("wait")
    answer = commands.add_parser("resume")
    answer.add_argument("token")
    choice = answer.add_mutually_exclusive_group(required=True)
    choice.add_argument("--yes", action="store_true")
    choice.add_argument("--no", action="store_true")
    given = parser.parse_args()
    match given.command:
        case "wait":
            wait()
        case "resume":
            resume(given.token, approved=given.yes)
        case _:
            both()
