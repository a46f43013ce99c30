"""Run ids, as a user types them."""

from __future__ import annotations

from typing import Annotated

import typer

from pyworkflow_ray.cli import completions
from pyworkflow_ray.client.sessions import session
from pyworkflow_ray.exceptions import WorkflowError, WorkflowNotFoundError
from pyworkflow_ray.storage.inspections import ids_that_begin
from pyworkflow_ray.storage.runs import get_runs

RunId = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's id, or enough of its beginning to be the only one.",
        autocompletion=completions.runs,
    ),
]


def full_id(given: str) -> str:
    """The run id that begins with this text, with or without "run_".

    Raises:
        WorkflowNotFoundError: There is none.
        WorkflowError: There are several.
    """
    storage = session().storage
    if storage.read(get_runs([given])):
        return given
    for prefix in (given, f"run_{given}"):
        found = storage.read(ids_that_begin(prefix))
        if len(found) > 1:
            raise WorkflowError(
                f"Several runs begin with {given!r}: {', '.join(found)}. Give more of the id."
            )
        if found:
            return found[0]
    raise WorkflowNotFoundError(given)
