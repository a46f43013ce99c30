"""What came for a run that ended before its code saw it.

It came in the moment in which the end was written, or the run was ended without its code. Such events stand
right before the end of a history. They record what senders were told the run would get. A replay passes over
them.
"""

from __future__ import annotations

import msgspec

from pyworkflow_ray.engine.events import Event, EventBase


def unseen(event: Event) -> Event:
    """The event as the history has it whose code does not see it, if it is one that may be unseen."""
    return msgspec.structs.replace(event, is_unseen=True) if hasattr(event, "is_unseen") else event


def is_unseen(event: EventBase) -> bool:
    """Whether the run ended before its code saw this outcome."""
    return getattr(event, "is_unseen", False)
