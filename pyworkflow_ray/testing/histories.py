"""Histories in files: saved from a storage, readable by people, replayed by tests."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec import Raw

from pyworkflow_ray.client.records import Event
from pyworkflow_ray.client.sessions import session
from pyworkflow_ray.engine.events import Recorded, WorkflowStarted, decode_event
from pyworkflow_ray.exceptions import SerializationError, WorkflowNotFoundError
from pyworkflow_ray.ids import file_name
from pyworkflow_ray.storage.blobs import load_blob
from pyworkflow_ray.storage.histories import read_events
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.values import codec

FORMAT = "pyworkflow-ray history 1"
SUFFIX = ".json"


@dataclass(frozen=True)
class History:
    """A run's history, with everything that a replay needs."""

    run_id: str
    events: Sequence[Event]
    blobs: Mapping[str, bytes] | None = field(default=None, repr=False)
    """Large values by their hash, to which the events refer; None if they are in the storage."""
    nesting_depth: int = 0

    @property
    def workflow(self) -> str:
        """The name of the workflow."""
        return str(self.events[0].data.get("workflow_name", ""))

    def recorded(self) -> list[Recorded]:
        """The events as objects of the engine."""
        return [
            Recorded(event.sequence, event.timestamp, decode_event(event.type, _stored(event)))
            for event in self.events
        ]

    def blob(self, digest: str) -> bytes:
        """A large value."""
        if self.blobs is None:
            return session().storage.read(load_blob(digest))
        return self.blobs[digest]


class _Entry(msgspec.Struct):
    position: int
    at: datetime
    type: str
    data: Raw


class _File(msgspec.Struct, kw_only=True):
    format: str
    workflow: str
    run_id: str
    nesting_depth: int = 0
    events: list[_Entry]
    blobs: dict[str, str] = {}


_decoder = msgspec.json.Decoder(_File)


def history_of(run_or_events: str | Sequence[Event]) -> History:
    """The history of a run in the storage, or of these events.

    Raises:
        WorkflowNotFoundError: There is no such run, or it has no events.
    """
    depth = 0
    if isinstance(run_or_events, str):
        run_id, storage = str(run_or_events), session().storage
        events = [Event.of(run_id, row) for row in storage.read(read_events(run_id))]
        run = storage.read(get_run(run_id))
        depth = 0 if run is None else run.nesting_depth
    else:
        events = list(run_or_events)
    if not events:
        raise WorkflowNotFoundError(
            str(run_or_events), f"There is no history to replay for {run_or_events!r}."
        )
    return History(events[0].run_id, events, nesting_depth=depth)


def save_history(run_or_events: str | Sequence[Event], path: str | os.PathLike[str]) -> Path:
    """Save a run's history to a JSON file, for `replay` in tests; return the path of the file.

    The file holds everything that a replay needs. Nothing is unpickled to write it. Arguments and results
    are in the file as they are in the storage: encrypted, if there is a payload codec.

    Args:
        run_or_events: A run's id or handle (the history is read from the storage), or a run's events.
        path: The file. If it is a folder, the file in it is named after the workflow and the run.

    Raises:
        WorkflowNotFoundError: There is no such run.
    """
    history = history_of(run_or_events)
    file = Path(path)
    if file.suffix != SUFFIX:
        file = file / f"{file_name(history.workflow)}-{file_name(history.run_id)}{SUFFIX}"
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = [
        _Entry(event.sequence, event.timestamp, event.type, Raw(_stored(event))) for event in history.events
    ]
    stored = _File(
        format=FORMAT,
        workflow=history.workflow,
        run_id=history.run_id,
        nesting_depth=history.nesting_depth,
        events=entries,
        blobs={digest: history.blob(digest).decode() for digest in _references(history)},
    )
    file.write_bytes(msgspec.json.format(msgspec.json.encode(stored), indent=2) + b"\n")
    return file


def load_history(path: str | os.PathLike[str]) -> History:
    """The history in a file; no value in it is unpickled.

    Raises:
        SerializationError: The file holds no history, or one in the form of another version.
        FileNotFoundError: There is no such file.
    """
    try:
        stored = _decoder.decode(Path(path).read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SerializationError(
            f"{path} holds no history: {error}. Write one with save_history()."
        ) from None
    if stored.format != FORMAT or not stored.events:
        raise SerializationError(
            f"{path} holds a history of the form {stored.format!r}, and this version reads {FORMAT!r}: save "
            "it anew with save_history()."
        )
    events = []
    for entry in stored.events:
        # The text as it was stored: the codec recognises a wrapped value by its exact text.
        text = msgspec.json.format(bytes(entry.data), indent=-1).decode()
        events.append(Event.of(stored.run_id, (entry.position, entry.at, entry.type, text)))
    blobs = {digest: text.encode() for digest, text in stored.blobs.items()}
    history = History(stored.run_id, events, blobs, stored.nesting_depth)
    try:
        first, missing = history.recorded()[0].event, set(_references(history)) - blobs.keys()
    except ValueError as error:
        raise SerializationError(f"{path} holds a history that cannot be read: {error}") from None
    if not isinstance(first, WorkflowStarted):
        raise SerializationError(f"{path} holds a history that does not begin with its run's start.")
    if missing:
        raise SerializationError(
            f"{path} refers to the blob {min(missing)} and does not hold it. Save the history again from the "
            "storage that has the run."
        )
    return history


def _stored(event: Event) -> bytes:
    return event.stored.encode() or msgspec.json.encode(event.data)


def _references(history: History) -> list[str]:
    """The blobs that the events refer to."""
    found = []
    for recorded in history.recorded():
        for name in recorded.event.__struct_fields__:
            value = getattr(recorded.event, name)
            digest = codec.blob_reference(value) if isinstance(value, Raw) else None
            if digest is not None and digest not in found:
                found.append(digest)
    return found
