"""Pages of a list, newest first.

The cursor is the last row's place in the order. It contains the row's id. Without the id, rows of the same
instant could be lost at the end of a page.
"""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Column, ColumnElement, literal, tuple_

from pyworkflow_ray.storage.dialects import decode_time, encode_time
from pyworkflow_ray.storage.schema import UTCDateTime


def cursor_behind(created_at: datetime, *ids: str) -> str:
    """The cursor of the page that begins after the row of this time and these ids."""
    return base64.urlsafe_b64encode(msgspec.json.encode([encode_time(created_at), *ids])).decode()


def before(cursor: str, created_at: Column[Any], *ids: Column[Any]) -> ColumnElement[bool]:
    """The condition that a row comes after the cursor in a list that is newest first.

    Raises:
        ValueError: The cursor did not come from `cursor_behind` for such a list.
    """
    try:
        raw = base64.b64decode(cursor, altchars=b"-_", validate=True)
        instant, *place = msgspec.json.decode(raw, type=list[str])
        at = decode_time(instant)
        if len(place) != len(ids):
            raise ValueError("a cursor of another list")
    except (ValueError, binascii.Error):
        raise ValueError(
            f"{cursor!r} is not a cursor that this list gave; leave it out to begin at the newest."
        ) from None
    return tuple_(created_at, *ids) < tuple_(literal(at, UTCDateTime()), *map(literal, place))
