"""Histories that were recorded once can be replayed for ever, whatever events are in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyworkflow_ray.event_types import EventType
from pyworkflow_ray.testing import replay
from pyworkflow_ray.testing.histories import load_history
from tests.upgrades import flows

FOLDER = Path(__file__).parent / "histories"
FILES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recorded_history_replays(path: Path) -> None:
    replay(path, getattr(flows, load_history(path).workflow))


def test_there_is_a_recorded_history_with_each_kind_of_event() -> None:
    """`tests/upgrades/record_histories.py` records them."""
    recorded = {event.type for path in FILES for event in load_history(path).events}
    assert recorded == {each for each in EventType if not each.startswith("schedule.")}
