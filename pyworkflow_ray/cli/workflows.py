"""`pyworkflow-ray workflows`: what is defined, and runs of it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from pyworkflow_ray.authoring.workflows import WorkflowFunction, get_workflow, list_workflows
from pyworkflow_ray.cli import completions
from pyworkflow_ray.cli.arguments import arguments_of
from pyworkflow_ray.cli.cells import error_text, json_text, shown
from pyworkflow_ray.cli.errors import print_error
from pyworkflow_ray.cli.invocations import begin, begin_driving, import_workflows, is_local
from pyworkflow_ray.cli.live import watch
from pyworkflow_ray.cli.outputs import PROGRAM, Column, Format, Output
from pyworkflow_ray.client.event_loops import run_sync
from pyworkflow_ray.client.records import WorkflowRun
from pyworkflow_ray.client.runs import get_workflow_run
from pyworkflow_ray.client.sessions import session
from pyworkflow_ray.client.starts import start
from pyworkflow_ray.ids import new_run_id
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.blobs import load_blob
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.values import codec

app = typer.Typer(no_args_is_help=True, help="Workflows that modules define, and new runs of them.")

_ENDS = {
    RunStatus.FAILED: "has failed",
    RunStatus.CANCELLED: "was cancelled",
    RunStatus.INTERRUPTED: "was set aside",
}

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A workflow's name.", autocompletion=completions.workflows)
]


@app.command("list")
def list_(ctx: typer.Context) -> None:
    """List the workflows that the modules define."""
    output = begin(ctx)
    import_workflows(ctx)
    defined = [_described(each) for _, each in sorted(list_workflows().items())]
    columns = [
        Column("workflow", lambda each: each["name"], is_whole=True),
        Column("parameters", lambda each: each["signature"]),
        Column("module", lambda each: each["module"]),
        Column("description", lambda each: each["description"].partition("\n")[0]),
    ]
    hint = (
        "No module that defines workflows is named: give --module MODULE, or set `module: MODULE` in "
        "pyworkflow.config.yaml."
    )
    output.rows(defined, columns, empty=hint)


@app.command()
def info(ctx: typer.Context, name: Name) -> None:
    """Show a workflow: its parameters, options and place."""
    output = begin(ctx)
    import_workflows(ctx)
    told = _described(get_workflow(name))
    output.record(
        told,
        [
            ("workflow", told["name"]),
            ("description", told["description"] or None),
            ("defined in", told["place"]),
            *((f"  {each['name']}", _parameter(each)) for each in told["parameters"]),
            *((option, value) for option, value in told["options"].items()),
        ],
    )


@app.command()
def run(
    ctx: typer.Context,
    name: Name,
    arg: Annotated[
        list[str] | None,
        typer.Option("--arg", "-a", metavar="NAME=VALUE", help="An argument, JSON or text; may be repeated."),
    ] = None,
    args_json: Annotated[
        str | None, typer.Option(help="Arguments as a JSON list, or as an object of named ones.")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Give the run that has this key, if there is one.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Whether to show the run until it ends.")
    ] = True,
) -> None:
    """Start a run, and show what it does until it ends."""
    output, is_own = begin_driving(ctx, may_start=wait)
    import_workflows(ctx)
    definition = get_workflow(name)
    args, kwargs = arguments_of(definition, arg or (), args_json)
    # In process, the start drives the run: its id must be known before.
    run_id = new_run_id() if is_local() else None

    async def starting() -> str:
        options = start.options(idempotency_key=idempotency_key, run_id=run_id)
        return str(await options(definition, *args, **kwargs))

    if not wait and not is_local():
        tell_start(output, run_sync(starting()))
        return
    if is_own:
        output.say(
            "No Ray cluster runs here: this process has one of its own for as long as it lasts.", "dim"
        )
    finish(output, watch(output, starting(), is_own=is_own or is_local(), run_id=run_id))


def tell_start(output: Output, run_id: str) -> None:
    """Print the id of a run that was started and is not waited for."""
    if output.is_json:
        output.data(run_sync(get_workflow_run(run_id)))
        return
    output.text(run_id)
    output.say("Look at it with:", "dim")
    output.suggest(f"runs status {run_id}")


def finish(output: Output, ended: WorkflowRun) -> None:
    """Print how a run has ended; anything but a result makes the exit code 1."""
    if output.is_json:
        output.data(ended)
    elif ended.status is RunStatus.COMPLETED:
        _print_result(output, result_of(ended.run_id))
    if ended.status is RunStatus.COMPLETED:
        return
    if ended.status is RunStatus.SUSPENDED:  # of the in-process runtime, which has no timer
        output.say(f"Run {ended.run_id} waits, and nothing runs meanwhile. It goes on with:")
        output.suggest(f"runs resume {ended.run_id}")
        return
    record = session().storage.read(get_run(ended.run_id))
    what = error_text(record.error_type, ended.error) if record is not None else ""
    told = _ENDS.get(ended.status, f"is {ended.status.value}")
    print_error(
        f"Run {ended.run_id} {told}{': ' if what else ''}{what}", f"{PROGRAM} runs status {ended.run_id}"
    )
    raise typer.Exit(1)


def result_of(run_id: str) -> Any:
    """The result of a run in plain JSON values, a large one as well; nothing is unpickled."""
    storage = session().storage
    record = storage.read(get_run(run_id))
    if record is None or record.result is None:
        return None
    digest = codec.blob_reference(record.result.encode())
    if digest is None:
        return codec.describe(record.result)
    return codec.describe(storage.read(load_blob(digest)).decode())


def _print_result(output: Output, result: Any) -> None:
    if isinstance(result, str) and output.format is Format.TABLE:
        output.text(shown(result, lines=True) if output.out.is_terminal else result)
    elif result is not None or output.format is Format.PLAIN:
        output.text(json_text(result))


def _described(definition: WorkflowFunction[Any, Any]) -> dict[str, Any]:
    """A workflow in plain JSON values."""
    signature = inspect.signature(definition.fn)
    code = getattr(definition.fn, "__code__", None)
    options = {
        name: getattr(definition.workflow_options, name)
        for name in type(definition.workflow_options).__dataclass_fields__
    }
    return {
        "name": definition.name,
        "module": definition.fn.__module__,
        "description": inspect.getdoc(definition.fn) or "",
        "signature": str(signature.replace(return_annotation=inspect.Signature.empty)),
        "parameters": [_parameter_of(each) for each in signature.parameters.values()],
        "options": {name: value for name, value in options.items() if value not in (None, ())},
        "place": None if code is None else f"{Path(code.co_filename)}:{code.co_firstlineno}",
    }


def _parameter_of(parameter: inspect.Parameter) -> dict[str, Any]:
    empty = inspect.Parameter.empty
    annotation = parameter.annotation
    return {
        "name": str(parameter).partition(":")[0].partition("=")[0].strip(),
        "type": None if annotation is empty else inspect.formatannotation(annotation).strip("'"),
        "is_required": parameter.default is empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD),
        "default": None if parameter.default is empty else repr(parameter.default),
    }


def _parameter(told: dict[str, Any]) -> str:
    default = "" if told["default"] is None else f", {told['default']} by default"
    return f"{told['type'] or 'any value'}{default}"
