"""Outcomes on their way to runs: an inbox holds events that its run has yet to read."""

from __future__ import annotations

from typing import Any

import msgspec

from pyworkflow_ray.engine.events import Event, decode_event, encode_data, type_of
from pyworkflow_ray.exceptions import SerializationError
from pyworkflow_ray.storage.inboxes import InboxRow, post


class Mail(msgspec.Struct, frozen=True):
    """An outcome for a run, as whoever posts it makes it."""

    run_id: str
    dedup_key: str
    event: Event

    def post(self, connection: Any) -> None:
        """Put it into the inbox; that it is there already is a success."""
        post(connection, self.run_id, self.dedup_key, type_of(self.event), encode_data(self.event))


CANCEL_KEY = "cancel"
"""A run is asked to cancel once."""


def decoded_mail(run_id: str, rows: list[InboxRow]) -> tuple[list[int], list[Event]]:
    """The ids of the rows, and the outcomes that they hold.

    Raises:
        SerializationError: A row cannot be read.
    """
    outcomes = []
    for row in rows:
        try:
            outcomes.append(decode_event(row.kind, row.data))
        except ValueError as error:
            raise SerializationError(
                f"Something in the inbox of run {run_id!r} cannot be read: {error}"
            ) from error
    return [row.id for row in rows], outcomes
