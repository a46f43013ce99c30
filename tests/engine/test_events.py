"""The closed sets of events and commands: what a class says, what is documented, and what users are given."""

from __future__ import annotations

import re
import typing
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from pyworkflow_ray.engine import commands, events
from pyworkflow_ray.engine.commands import COMMANDS, command_of
from pyworkflow_ray.engine.events import ENDINGS, EVENTS, OUTCOMES, TYPES, EventBase, FailureEvent
from pyworkflow_ray.event_types import EventType
from pyworkflow_ray.exceptions import NonDeterminismError
from tests.engine.simulator import Simulation

DOCUMENTED = Path(__file__).parents[2] / "docs" / "storage.md"
ROW = re.compile(r"^\| ((?:`[a-z_.]+`(?:, )?)+) \| (.*) \|$", re.MULTILINE)


def fields(kind: type[EventBase]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(kind)}


def documented() -> dict[str, set[str]]:
    """The fields of each type of event, as the table of the documentation has them."""
    found: dict[str, set[str]] = {}
    section = DOCUMENTED.read_text().partition("## An event\n")[2].partition("\n## ")[0]
    for types, text in ROW.findall(section):
        shown = re.sub(r"\([^)]*\)", "", text).partition(":")[0]
        names = set[str]()
        for part in re.split(r"[,;]", shown):
            if (alike := re.search(r"as `([a-z_.]+)`", part)) is not None:
                names |= found[alike[1]]
            else:
                names.add(part.removeprefix(" and").split()[0])
        for type_ in re.findall(r"`([a-z_.]+)`", types):
            found[type_] = names
    return found


def test_every_class_of_event_is_in_the_union_and_only_there_once() -> None:
    concrete = {
        kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, EventBase) and kind not in (EventBase, FailureEvent)
    }
    assert set(EVENTS) == concrete
    assert len(EVENTS) == len(concrete)


def test_every_type_is_written_by_one_class() -> None:
    assert all(TYPES.values())
    assert len(set(TYPES.values())) == len(EVENTS)


def test_the_unions_are_what_the_classes_say() -> None:
    assert set(typing.get_args(events.Outcome)) == set(OUTCOMES)
    assert set(typing.get_args(events.Ending)) == set(ENDINGS)
    assert set(typing.get_args(events.CommandEvent)) == set(EVENTS) - set(OUTCOMES)
    assert not set(OUTCOMES) & set(ENDINGS)


def test_every_class_of_command_is_in_the_union() -> None:
    concrete = {
        kind
        for kind in vars(commands).values()
        if isinstance(kind, type)
        and issubclass(kind, commands.CommandBase)
        and kind is not commands.CommandBase
    }
    assert set(COMMANDS) == concrete


def test_every_command_event_records_one_class_of_commands_and_no_outcome_does() -> None:
    recorded = [command.event_class for command in COMMANDS if command.event_class is not None]
    assert sorted(recorded, key=str) == sorted(set(EVENTS) - set(OUTCOMES), key=str)
    assert all(command_of(kind) is None for kind in OUTCOMES)


def test_a_command_says_truly_which_event_records_it() -> None:
    for command in COMMANDS:
        hints = typing.get_type_hints(command.to_event, vars(commands))
        assert hints["return"] is (type(None) if command.event_class is None else command.event_class)


def test_users_are_given_every_type_of_event() -> None:
    of_runs = {each.value for each in EventType if not each.value.startswith("schedule.")}
    assert of_runs == set(TYPES.values())


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.type)
def test_the_documentation_has_the_data_of_an_event(kind: type[EventBase]) -> None:
    assert documented().get(kind.type) == fields(kind)


def test_the_documentation_has_no_other_events() -> None:
    assert documented().keys() == set(TYPES.values())


def test_a_table_by_type_decodes_what_its_class_encodes() -> None:
    event = events.HookExpired(hook_id="h#1")
    assert events.decode_event(event.type, events.encode_data(event)) == event


def test_an_event_that_is_no_outcome_is_not_fed() -> None:
    async def workflow() -> None: ...

    execution = Simulation(workflow).execution
    with pytest.raises(NonDeterminismError, match="is not an outcome"):
        execution.feed(events.HookDisposed(hook_id="h#1"), datetime.now(UTC))
