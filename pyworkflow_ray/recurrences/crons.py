"""Cron expressions: the wall times that they mean.

`cronsim` reads the expressions and finds the wall times. `zones.py` finds the instants of these, for
calendars and cron alike. `cronsim` could do that too, but it misses fires where clocks change by half an
hour, and gives times that do not exist where clocks change at midnight.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cronsim import CronSim, CronSimError

from pyworkflow_ray.exceptions import ConfigurationError

_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FIELDS = {
    "second": "0-59",
    "minute": "0-59",
    "hour": "0-23",
    "day-of-month": "1-31, L or LW",
    "month": "1-12 or JAN-DEC",
    "day-of-week": "0-7 (0 and 7 are Sunday) or SUN-SAT",
}
_WHOLE = {"second": r"\*|0-59|0/", "minute": r"\*|0-59|0/", "hour": r"\*|0-23|0/"}
_FORMS = "Give five fields, minute hour day-of-month month day-of-week, such as '0 9 * * 1-5'"
_SOME_DAY = datetime(2000, 1, 1)


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression that has been read.

    Args:
        fields: The expression for `cronsim`.
        repeats: Whether it means all seconds, minutes or hours, or steps of them. It runs in real time then.
        comes: Whether such a date exists in any year.
    """

    fields: str
    repeats: bool
    comes: bool

    def walls(self, after: datetime) -> Iterator[datetime]:
        """The wall times after this one. They end when none comes for fifty years."""
        return CronSim(self.fields, after) if self.comes else iter(())


@lru_cache(maxsize=512)
def read_cron(expression: str) -> Cron:
    """The expression, read: five fields, six with seconds in front, or an alias such as ``@daily``.

    Raises:
        ConfigurationError: It is not valid. The error names the place.
    """
    text = expression.strip()
    if text.startswith("@"):
        if text.lower() not in _ALIASES:
            raise ConfigurationError(
                f"There is no cron alias {text!r}: there are {', '.join(_ALIASES)}. {_FORMS}."
            )
        text = _ALIASES[text.lower()]
    fields = text.split()
    if len(fields) not in (5, 6):
        raise ConfigurationError(
            f"The cron expression {expression!r} has {len(fields)} fields. {_FORMS}; "
            "a sixth, in front of them, is the second."
        )
    named = dict(zip(reversed(_FIELDS), reversed(fields), strict=False))
    return Cron(" ".join(fields), _repeats(named), _check(expression, named))


def _repeats(fields: dict[str, str]) -> bool:
    return any(
        re.match(whole, term) for name, whole in _WHOLE.items() for term in fields.get(name, "").split(",")
    )


def _check(expression: str, fields: dict[str, str]) -> bool:
    """Whether the expression ever fires. An expression that is not valid is refused."""
    for name, field in fields.items():
        alone = [field if other == name else "*" for other in _FIELDS]
        if not _is_read(" ".join(alone)):
            raise ConfigurationError(
                f"The cron expression {expression!r} is broken: {field!r} is no {name}. "
                f"Accepted: {_FIELDS[name]}, lists, ranges and steps of them, or *."
            )
    # Each field by itself is valid. What cronsim refuses now is a date that no year has, such as 30 February.
    return _is_read(" ".join(fields[name] for name in _FIELDS if name in fields))


def _is_read(fields: str) -> bool:
    try:
        CronSim(fields, _SOME_DAY)
    except (CronSimError, ValueError):  # the latter for a number of thousands of digits
        return False
    return True
