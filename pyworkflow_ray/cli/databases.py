"""`pyworkflow-ray db`: the version of the tables, and upgrading them."""

from __future__ import annotations

import typer

from pyworkflow_ray.cli.invocations import begin
from pyworkflow_ray.cli.outputs import PROGRAM, Output
from pyworkflow_ray.client.sessions import session
from pyworkflow_ray.exceptions import StorageError
from pyworkflow_ray.storage.inspections import Inspection, inspect_database

app = typer.Typer(no_args_is_help=True, help="The database's tables.")


@app.command()
def current(ctx: typer.Context) -> None:
    """Show the version of the tables. Nothing is changed."""
    output = begin(ctx)
    found = inspect_database(session().storage.database.secret_url)
    _print(output, found)
    if found.schema_version < found.newest_version:
        output.say(f"{PROGRAM} db upgrade brings the tables to version {found.newest_version}.", "dim")


@app.command()
def upgrade(ctx: typer.Context) -> None:
    """Create the tables, or upgrade them to the newest version, in one transaction."""
    output = begin(ctx)
    storage = session().storage
    if storage.database.is_memory:
        raise StorageError("The storage 'memory' ends with this process: there is nothing to upgrade.")
    before = inspect_database(storage.database.secret_url)
    storage.facts()
    after = inspect_database(storage.database.secret_url)
    _print(output, after)
    if before.schema_version == after.schema_version:
        output.say("The tables are of the newest version already.", "dim")
    else:
        output.say(f"The tables were of version {before.schema_version}.", "dim")


def _print(output: Output, found: Inspection) -> None:
    version = str(found.schema_version) if found.schema_version else "none"
    output.record(
        found,
        [
            ("database", found.url),
            ("version", version),
            ("newest", str(found.newest_version)),
            ("storage id", found.storage_id),
        ],
    )
