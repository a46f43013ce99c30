"""Text that a database cannot hold: NUL, which PostgreSQL refuses, and surrogates, which none encodes."""

from __future__ import annotations

import contextlib

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.storage.acceptances import accept
from pyworkflow_ray.storage.hooks import get_hook
from pyworkflow_ray.storage.inboxes import post
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.storages import Storage
from tests.storage.builders import accepted, new_run, read, write

TEXTS = ["\0", "a\0b", "\ud800", "x" * 1_000_000]


@pytest.mark.parametrize("text", TEXTS)
def test_text_that_cannot_be_held_is_refused_and_the_writer_goes_on(storage: Storage, text: str) -> None:
    accepted(storage)
    for write_it in (
        lambda: write(storage, accept, new_run("run_2", idempotency_key=text)),
        lambda: write(storage, accept, new_run(text)),
        lambda: write(storage, post, "run_1", text, "signal.received", b"{}"),
        lambda: read(storage, get_run, text),
        lambda: read(storage, get_hook, text),
    ):
        with contextlib.suppress(pr.WorkflowError, ValueError):  # each is refused alone, or is held
            write_it()
    assert accepted(storage, "run_3").run_id == "run_3"
