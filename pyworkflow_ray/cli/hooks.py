"""`pyworkflow-ray hooks`: what runs wait for from outside, and the answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pyworkflow_ray.cli import completions
from pyworkflow_ray.cli.arguments import parse_json
from pyworkflow_ray.cli.confirmations import is_interactive
from pyworkflow_ray.cli.errors import print_error
from pyworkflow_ray.cli.invocations import STORED, begin_reading, begin_writing
from pyworkflow_ray.cli.outputs import Column, Output
from pyworkflow_ray.cli.run_ids import full_id
from pyworkflow_ray.client.event_loops import run_sync
from pyworkflow_ray.client.hooks import Hook, get_hook, list_hooks, reject_hook, resume_hook
from pyworkflow_ray.exceptions import HookNotFoundError, HookValidationError
from pyworkflow_ray.statuses import HookStatus

app = typer.Typer(no_args_is_help=True, help="Hooks: what runs wait for from outside, and the answers.")

MOST_CHOICES = 50

COLUMNS = [
    Column("hook", lambda hook: hook.hook_id),
    Column("run", lambda hook: hook.run_id, is_whole=True),
    Column("status", lambda hook: hook.status, is_whole=True),
    Column("created", lambda hook: hook.created_at, is_whole=True),
    Column("expires", lambda hook: hook.expires_at if hook.status is HookStatus.PENDING else None),
    Column("token", lambda hook: hook.token, is_whole=True),
]


@app.command("list")
def list_(
    ctx: typer.Context,
    status: Annotated[HookStatus | None, typer.Option(help="Only hooks in this state.")] = None,
    run: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Only hooks of this run.", autocompletion=completions.runs),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
) -> None:
    """List hooks, newest first."""
    output = begin_reading(ctx)
    of_run = None if run is None else full_id(run)
    found, following = run_sync(list_hooks(run_id=of_run, status=status, limit=limit))
    output.rows(
        found, COLUMNS, empty="No run waits for an answer." if status is HookStatus.PENDING else "No hooks."
    )
    output.suggest_limit(limit, following)


@app.command()
def info(
    ctx: typer.Context, token: Annotated[str, typer.Argument(metavar="TOKEN", help="The hook's token.")]
) -> None:
    """Show a hook: its state, and the schema of its payload."""
    output = begin_reading(ctx)
    hook = _found(token)
    output.record(
        hook,
        [
            ("hook", hook.hook_id),
            ("name", hook.name),
            ("run", hook.run_id),
            ("status", hook.status),
            ("created", hook.created_at),
            ("expires", hook.expires_at),
            ("received", hook.received_at),
            ("payload", hook.payload),
            ("payload schema", hook.payload_schema),
            ("metadata", hook.metadata or None),
            ("token", hook.token),
        ],
    )


@app.command()
def resume(
    ctx: typer.Context,
    token: Annotated[
        str | None,
        typer.Argument(metavar="[TOKEN]", help="The hook's token; without it you choose from a list."),
    ] = None,
    payload: Annotated[
        str | None, typer.Option("--payload", "-p", metavar="JSON", help="The payload for the run.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="Read the payload from a file; - is standard input."
        ),
    ] = None,
    reject: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Reject the hook: raise an error with this text in the run."),
    ] = None,
) -> None:
    """Answer a hook, so that its run goes on."""
    given = [each for each in (payload, file, reject) if each is not None]
    if len(given) > 1:
        raise typer.BadParameter("give one answer", param_hint="--payload, --file, --reject")
    if token is None and not is_interactive():
        raise typer.BadParameter("there is no terminal for a choice: give the token", param_hint="TOKEN")
    if not given and not is_interactive():
        raise typer.BadParameter(
            "there is no terminal for questions: give an answer, such as -p null",
            param_hint="--payload, --file, --reject",
        )
    value = _given(payload, file)
    output, is_hurried = begin_writing(ctx)
    hook = _chosen(output) if token is None else _found(token)
    if reject is not None:
        answered = run_sync(reject_hook(hook.token, reject))
    elif given:
        answered = run_sync(resume_hook(hook.token, value))
    else:
        answered = _ask_and_resume(output, hook)
    if output.is_json:
        output.data(answered)
    else:
        output.text(
            f"{answered.hook_id} of {answered.run_id} is {'rejected' if reject is not None else 'answered'}"
        )
    if not is_hurried:
        output.say(STORED)


def _given(payload: str | None, file: Path | None) -> Any:
    if payload is not None:
        return parse_json(payload, "--payload")
    if file is None:
        return None
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}", param_hint="--file") from None
    return parse_json(text, "--file")


def _found(token: str) -> Hook:
    hook = run_sync(get_hook(token))
    if hook is None:
        raise HookNotFoundError(token)
    return hook


def _chosen(output: Output) -> Hook:
    pending, _ = run_sync(list_hooks(status=HookStatus.PENDING, limit=MOST_CHOICES))
    if not pending:
        output.say("No run waits for an answer.")
        raise typer.Exit(1)
    from pyworkflow_ray.cli.payload_prompts import choose

    return choose(output, pending)


def _ask_and_resume(output: Output, hook: Hook) -> Any:
    """Ask until the hook accepts the answer. Its own type may refuse what its schema allows."""
    from pyworkflow_ray.cli.payload_prompts import ask_payload  # imported late: few commands ask

    while True:
        value = ask_payload(output, hook)
        try:
            return run_sync(resume_hook(hook.token, value))
        except HookValidationError as error:
            print_error(str(error))
