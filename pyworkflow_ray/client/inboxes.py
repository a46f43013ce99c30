"""Posting events to runs: a row in the run's inbox, then a nudge to the coordinator that drives it."""

from __future__ import annotations

from loguru import logger

from pyworkflow_ray.actors.inboxes import InboxEntry
from pyworkflow_ray.client.sessions import Session
from pyworkflow_ray.engine.events import Event
from pyworkflow_ray.exceptions import ConfigurationError, WorkflowNotFoundError
from pyworkflow_ray.storage import runs
from pyworkflow_ray.storage.inboxes import finding_posted
from pyworkflow_ray.storage.locks import Locks, Strength
from pyworkflow_ray.storage.records import RunRecord, run_record
from pyworkflow_ray.storage.works import Steps, ask, last, locking, work


async def send(
    of: Session, run_id: str, dedup_key: str, event: Event, *, once_in_chain: bool = False
) -> RunRecord | None:
    """Post an event to a run, or to the run as which it continued; None when that run has ended.

    Once this has returned, no crash can lose the event.

    Args:
        dedup_key: A second event under the same key has no effect.
        once_in_chain: Whether the key also counts for the runs that this run continues.

    Raises:
        WorkflowNotFoundError: There is no such run.
    """
    record = await of.storage.write(_posted(InboxEntry(run_id, dedup_key, event), once_in_chain, set()))
    if record is not None:
        await nudge(of, record)
    return record


@locking(lambda entry, *_: Locks(runs={entry.run_id: Strength.POSTS}))
@work
def _posted(entry: InboxEntry, once_in_chain: bool, tried: set[str]) -> Steps[RunRecord | None]:
    """The run that has the entry in its inbox; None when it has ended.

    Args:
        tried: The runs that this has posted to. It outlasts a second try, made since the answer to the COMMIT
            got lost: then a row that is there is our own, also when the run has ended since.
    """
    to = entry.run_id
    while True:
        is_again = to in tried
        tried.add(to)
        if once_in_chain:
            to = yield from runs.latest_of_chain(to)
            row, earlier = yield ask(
                runs.finding_latest_of_chain(to), finding_posted(to, entry.dedup_key, over_chain=True)
            )
            if row is not None and earlier is not None:
                record = run_record(row)
                return None if record.status.is_terminal and not is_again else record
        posted, own, row = yield last(
            entry.posting(to), finding_posted(to, entry.dedup_key), runs.finding_latest_of_chain(to)
        )
        if row is None:
            raise WorkflowNotFoundError(entry.run_id)
        record = run_record(row)
        if posted == 1 or (own is not None and is_again):
            return record
        if record.run_id == to and record.status.is_terminal:
            return None
        if record.run_id == to and own is not None:
            return record  # somebody has posted it before
        to = record.run_id  # it goes on in that one


async def nudge(of: Session, record: RunRecord) -> None:
    """Have a run look into its inbox soon. Should this fail, the sweep finds the inbox."""
    try:
        await of.runtime.open()
        await of.runtime.wake(record)
    except ConfigurationError:
        raise
    except Exception as error:
        logger.info(
            "Run {} could not be nudged; the sweep will find it: {}", record.run_id, type(error).__name__
        )
