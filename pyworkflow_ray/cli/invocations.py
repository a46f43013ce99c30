"""One call of the command line: its global options, and the ways in which commands begin."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from pyworkflow_ray.actors.connections import address_of_local_cluster, has_joined, named_address
from pyworkflow_ray.authoring.discovery import discover_workflows
from pyworkflow_ray.cli.outputs import Format, Output
from pyworkflow_ray.client.engine_actors import join, store_only
from pyworkflow_ray.client.event_loops import run_sync
from pyworkflow_ray.client.runtimes import LOCAL
from pyworkflow_ray.client.sessions import session
from pyworkflow_ray.config import configure, get_config
from pyworkflow_ray.exceptions import ConfigurationError

STORED = (
    "No Ray cluster runs here. The request is stored, and reaches the run once an engine on this storage is "
    "up (pyworkflow-ray up)."
)

is_whole_process = False
"""Whether this process runs for one call alone."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """The global options of a call. None and () leave a setting to the environment and the files."""

    storage: str | None = None
    address: str | None = None
    namespace: str | None = None
    modules: tuple[str, ...] = ()
    format: Format = Format.TABLE
    debug: bool = False

    def apply(self) -> None:
        """Put the given options over the settings of the environment and the files.

        Raises:
            ConfigurationError: A setting is not accepted.
        """
        given = {"storage": self.storage, "address": self.address, "namespace": self.namespace}
        settings = configure(**{name: value for name, value in given.items() if value is not None})
        named = named_address(settings.address) or address_of_local_cluster()
        if settings.storage is None and named is None and not has_joined():
            # A command may find a cluster that some other process started for itself, with the engine of
            # another project. The storage of that engine is not meant: every command here must mean the same.
            configure(storage=settings.storage_url)


def invocation(ctx: typer.Context) -> Invocation:
    """The call that a command belongs to."""
    found = ctx.find_root().obj
    assert isinstance(found, Invocation)
    return found


def begin(ctx: typer.Context) -> Output:
    """Begin a command: apply its settings. What other code prints goes to standard error."""
    call = invocation(ctx)
    output = Output(call.format, sys.stdout, sys.stderr)
    # Steps, imported modules and Ray may print. Standard output must hold the answer alone.
    others = contextlib.redirect_stdout(sys.stderr)
    if is_whole_process:
        others.__enter__()  # for good: Ray prints lines of its workers until the process ends
    else:
        ctx.with_resource(others)
    call.apply()
    return output


def begin_reading(ctx: typer.Context) -> Output:
    """Begin a command that only reads. If there is no database, it is not created, and counts as empty."""
    output = begin(ctx)
    path, settings = session().storage.database.path, get_config()
    is_ours = settings.storage is not None or path == Path(settings.storage_url).absolute()
    if path is not None and is_ours and not path.exists():
        output.say(f"There is no database at {path} yet. The first run creates it.", style="dim")
        output.say(
            "To name another one, use --storage, PYWORKFLOW_STORAGE or pyworkflow.config.yaml.", style="dim"
        )
        configure(storage="memory")
    return output


def begin_writing(ctx: typer.Context) -> tuple[Output, bool]:
    """Begin a command that sends something to runs.

    The second value is False if no cluster runs: then the request is only stored.

    Raises:
        ConfigurationError: The cluster that was named is not there.
    """
    output = begin(ctx)
    return output, is_local() or _has_joined(ctx, output)


def begin_driving(ctx: typer.Context, *, may_start: bool = False) -> tuple[Output, bool]:
    """Begin a command for which runs must be driven.

    The second value is True if this process has started a cluster for that, which ends with it.

    Args:
        may_start: Whether this process may start such a cluster.

    Raises:
        ConfigurationError: There is no cluster.
    """
    output = begin(ctx)
    if is_local():
        return output, False
    with output.busy("joining Ray"):  # starting a cluster takes seconds
        return output, run_sync(join(may_start=may_start))


def import_workflows(ctx: typer.Context) -> list[str]:
    """Import the modules that --module or the settings name; the names of their workflows.

    Raises:
        DiscoveryError: One of them cannot be imported.
    """
    return discover_workflows(invocation(ctx).modules or None)


def is_local() -> bool:
    """Whether runs are driven in this process, without Ray."""
    return get_config().default_runtime == LOCAL


def _has_joined(ctx: typer.Context, output: Output) -> bool:
    try:
        with output.busy("joining Ray"):
            run_sync(join())
    except ConfigurationError:
        if named_address(get_config().address):
            raise
        ctx.with_resource(store_only())
        return False
    return True
