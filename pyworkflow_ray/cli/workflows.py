"""`pyworkflow-ray workflows`: the workflows that modules define, and new runs of them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from pyworkflow_ray.authoring.workflows import WorkflowFunction, get_workflow, list_workflows
from pyworkflow_ray.cli import completions
from pyworkflow_ray.cli.arguments import Args, ArgsJson, arguments_of
from pyworkflow_ray.cli.errors import print_error
from pyworkflow_ray.cli.formatters import format_error, format_json, sanitize
from pyworkflow_ray.cli.invocations import begin, begin_driving, import_workflows, is_local
from pyworkflow_ray.cli.live_views import watch
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
        "No module with workflows is named. Give --module MODULE, or set `module: MODULE` in "
        "pyworkflow.config.yaml."
    )
    output.rows(defined, columns, empty=hint)


@app.command()
def info(ctx: typer.Context, name: Name) -> None:
    """Show a workflow: its parameters, its options, and where it is defined."""
    output = begin(ctx)
    import_workflows(ctx)
    described = _described(get_workflow(name))
    output.record(
        described,
        [
            ("workflow", described["name"]),
            ("description", described["description"] or None),
            ("defined in", described["place"]),
            *((f"  {each['name']}", _parameter(each)) for each in described["parameters"]),
            *((option, value) for option, value in described["options"].items()),
        ],
    )


@app.command()
def run(
    ctx: typer.Context,
    name: Name,
    arg: Args = None,
    args_json: ArgsJson = None,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Show the run that has this key, if there is one.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Show the run until it ends, or only start it.")
    ] = True,
) -> None:
    """Start a run, and show its progress until it ends."""
    output, is_own = begin_driving(ctx, may_start=wait)
    import_workflows(ctx)
    definition = get_workflow(name)
    args, kwargs = arguments_of(definition, arg or (), args_json)
    # In process, the call of `start` drives the run, so the run's id must be known before it.
    run_id = new_run_id() if is_local() else None

    async def starting() -> str:
        options = start.options(idempotency_key=idempotency_key, run_id=run_id)
        return str(await options(definition, *args, **kwargs))

    if not wait and not is_local():
        print_start(output, run_sync(starting()))
        return
    if is_own:
        output.say("No Ray cluster runs here. This process starts one of its own, which ends with it.", "dim")
    print_end(output, watch(output, starting(), is_own=is_own or is_local(), run_id=run_id))


def print_start(output: Output, run_id: str) -> None:
    """Print the id of a new run that the command does not wait for."""
    if output.is_json:
        output.data(run_sync(get_workflow_run(run_id)))
        return
    output.text(run_id)
    output.say("Look at it with:", "dim")
    output.suggest(f"runs status {run_id}")


def print_end(output: Output, ended: WorkflowRun) -> None:
    """Print how a run has ended. Without a result the exit code is 1."""
    if output.is_json:
        output.data(ended)
    elif ended.status is RunStatus.COMPLETED:
        _print_result(output, result_of(ended.run_id))
    if ended.status is RunStatus.COMPLETED:
        return
    if ended.status is RunStatus.SUSPENDED:  # only in process, where no timer wakes the run
        output.say(f"Run {ended.run_id} waits, and no engine will wake it. To go on with it:")
        output.suggest(f"runs resume {ended.run_id}")
        return
    record = session().storage.read(get_run(ended.run_id))
    what = format_error(record.error_type, ended.error) if record is not None else ""
    how = _ENDS.get(ended.status, f"is {ended.status.value}")
    print_error(
        f"Run {ended.run_id} {how}{': ' if what else ''}{what}", f"{PROGRAM} runs status {ended.run_id}"
    )
    raise typer.Exit(1)


def result_of(run_id: str) -> Any:
    """The result of a run in plain JSON values, however large; nothing is unpickled."""
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
        output.text(sanitize(result, lines=True) if output.out.is_terminal else result)
    elif result is not None or output.format is Format.PLAIN:
        output.text(format_json(result))


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


def _parameter(described: dict[str, Any]) -> str:
    default = "" if described["default"] is None else f", {described['default']} by default"
    return f"{described['type'] or 'any value'}{default}"
