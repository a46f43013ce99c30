"""What the workflow's code decides, held against what is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pyworkflow_ray.engine.commands import Command
from pyworkflow_ray.engine.divergences import divergence
from pyworkflow_ray.engine.events import Event, Recorded
from pyworkflow_ray.exceptions import NonDeterminismError

_E = TypeVar("_E", bound=Event)


class Halt(BaseException):
    """Unwinds the workflow's code after a divergence; nothing of it runs any more."""


class Recording:
    """A run's recorded decisions, as far as its code has come, and the new ones behind them.

    Args:
        run_id: The run.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.is_replaying = False
        self._history: Sequence[Recorded] = ()
        self._cursor = 0
        self._commands: list[Command] = []
        self._divergence: NonDeterminismError | None = None

    def emit(self, command: Command) -> None:
        """Ask for something that is not recorded yet."""
        self._commands.append(command)

    def recorded(self, kind: type[_E], key: str = "") -> _E | None:
        """The event recorded for the decision that the code makes now; None when it is a new one."""
        if self._divergence is None:
            if self._cursor >= len(self._history):
                self.is_replaying = False
                return None
            recorded = self._history[self._cursor]
            event = recorded.event
            if type(event) is kind and event.key == key:
                self._cursor += 1
                return event
            self._diverge(recorded, (kind, key))
        raise Halt

    def peek(self, kind: type[_E], key: str = "") -> _E | None:
        """The recorded event that comes next, if it is this one."""
        if self._divergence is None and self._cursor < len(self._history):
            event = self._history[self._cursor].event
            if type(event) is kind and event.key == key:
                return event
        return None

    def take_commands(self) -> list[Command]:
        """What was asked for since this was last called."""
        commands, self._commands = self._commands, []
        return commands

    def _diverge(self, recorded: Recorded, asked: tuple[type[Event], str] | None) -> NonDeterminismError:
        self._divergence = divergence(self.run_id, recorded, asked)
        self.halt()
        return self._divergence

    def halt(self) -> None:
        """Run nothing more of the code."""
        raise NotImplementedError
