"""Telling a run something from outside: a row in its inbox, and a nudge to whoever drives it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from loguru import logger

from pyworkflow_ray.actors.mail import Mail
from pyworkflow_ray.client.sessions import Session
from pyworkflow_ray.engine.events import Event
from pyworkflow_ray.exceptions import ConfigurationError, WorkflowNotFoundError
from pyworkflow_ray.storage import runs
from pyworkflow_ray.storage.inboxes import was_posted
from pyworkflow_ray.storage.records import RunRecord


async def send(
    of: Session, run_id: str, dedup_key: str, event: Event, *, once_in_chain: bool = False
) -> RunRecord | None:
    """Post an event to a run, or to the run in which it goes on; None when it has ended.

    When this returns the run will learn of it, whoever crashes.

    Args:
        once_in_chain: Whether the key counts for all runs that this one continues, too.

    Raises:
        WorkflowNotFoundError: There is no such run.
    """
    while True:
        record = await latest_of_chain(of, run_id)
        if record.status.is_terminal:
            return None
        mail = Mail(record.run_id, dedup_key, event)
        is_there = await of.storage.write(partial(_post, mail, once_in_chain))
        if is_there:
            record = await latest_of_chain(of, record.run_id)
            if not record.status.is_terminal:
                await tell(of, record)
            return record
        # It has ended, or continued, before the row was there.


def _post(mail: Mail, once_in_chain: bool, connection: Any) -> bool:
    """Whether the event is in the run's inbox now, or was before."""
    if once_in_chain and was_posted(connection, mail.run_id, mail.dedup_key, over_chain=True):
        return True
    return mail.post(connection) or was_posted(connection, mail.run_id, mail.dedup_key)


async def latest_of_chain(of: Session, run_id: str) -> RunRecord:
    """The run in which this one goes on at last; itself, if it does not.

    Raises:
        WorkflowNotFoundError: There is no such run.
    """
    # In one snapshot: it may continue once more between two.
    record = await asyncio.to_thread(
        of.storage.read, lambda c: runs.get_run(c, runs.latest_of_chain(c, run_id))
    )
    if record is None:
        raise WorkflowNotFoundError(run_id)
    return record


async def tell(of: Session, record: RunRecord) -> None:
    """Have a run look into its inbox soon; the sweep has it look in any case."""
    try:
        await of.runtime.open()
        await of.runtime.wake(record)
    except ConfigurationError:
        raise
    except Exception as error:
        logger.info("Run {} could not be told, and will be found: {}", record.run_id, type(error).__name__)
