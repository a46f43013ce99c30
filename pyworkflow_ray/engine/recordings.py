"""What the workflow's code decides, compared with what is recorded.

In a replay, each decision of the code is compared with the event at the cursor. If they agree, the recorded
event counts and the cursor moves on. If they differ, the code has diverged from its history, and is stopped.
Beyond the history's end, each decision is a new command. What is recorded as unseen stands before the end of
a run, and is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from pyworkflow_ray.engine.commands import Command
from pyworkflow_ray.engine.divergences import divergence
from pyworkflow_ray.engine.events import EventBase, Recorded
from pyworkflow_ray.engine.unseen_events import is_unseen
from pyworkflow_ray.exceptions import NonDeterminismError

_E = TypeVar("_E", bound=EventBase)


class Halt(BaseException):
    """Unwinds the workflow's code after a divergence. Nothing of the code runs after that."""


class Recording:
    """The decisions in a run's history, and the new commands and notes of its code.

    Args:
        run_id: The run.
        halt: Called at a divergence. It must keep all of the run's code from running any more.
    """

    def __init__(self, run_id: str, halt: Callable[[], None]) -> None:
        self.is_replaying = False
        """Whether the code runs over recorded events. False again as soon as it makes a new decision."""
        self.divergence: NonDeterminismError | None = None
        """Set once and for ever when the code does not do what is recorded."""
        self._run_id = run_id
        self._halt = halt
        self._history: Sequence[Recorded] = ()
        self._cursor = 0
        # Invariant: events before the cursor are applied or have been decided again by the code.
        self._commands: list[Command] = []
        self._notes: list[str] = []

    # --- the history ------------------------------------------------------------------------------

    def begin(self, history: Sequence[Recorded]) -> None:
        """Compare the code's decisions with this history from now on."""
        self._history, self._cursor = history, 0
        # If the history holds nothing but the start, none of the code has run before.
        self.is_replaying = len(history) > 1

    def end(self) -> None:
        """Take every decision as a new one from now on."""
        self.is_replaying = False
        self._history, self._cursor = (), 0

    def upcoming(self) -> Recorded | None:
        """The recorded event at the cursor; None at the end of the history."""
        return self._history[self._cursor] if self._cursor < len(self._history) else None

    def last(self) -> EventBase | None:
        """The last recorded event; None when the code runs over none."""
        return self._history[-1].event if self._history else None

    def skip(self) -> None:
        """Move past the event that `upcoming` or `peek` has given."""
        self._cursor += 1

    # --- decisions --------------------------------------------------------------------------------

    def recorded(self, kind: type[_E], key: str = "") -> _E | None:
        """The event recorded for the decision that the code makes now; None when the decision is a new one.

        Raises:
            Halt: Another decision is recorded here, or the code has diverged before.
        """
        while self.divergence is None:
            if self._cursor >= len(self._history):
                self.is_replaying = False
                return None
            event = self._history[self._cursor].event
            if type(event) is kind and event.key == key:
                self._cursor += 1
                return event
            if not self._passes_unseen():
                self.diverge(kind, key)
        raise Halt

    def peek(self, kind: type[_E], key: str = "") -> _E | None:
        """The event at the cursor if it records this decision. The cursor stays there."""
        while self.divergence is None and self._cursor < len(self._history):
            event = self._history[self._cursor].event
            if type(event) is kind and event.key == key:
                return event
            if not self._passes_unseen():
                break
        return None

    def _passes_unseen(self) -> bool:
        """Move past an event that the code has not seen; whether there was one."""
        is_there = is_unseen(self._history[self._cursor].event)
        self._cursor += is_there
        return is_there

    def diverge(self, kind: type[EventBase] | None = None, key: str = "") -> NonDeterminismError:
        """Note that the code decides this (or nothing) where something else is recorded; what to raise."""
        self.divergence = divergence(self._run_id, self._history[self._cursor], kind, key)
        self._halt()
        return self.divergence

    # --- what comes out -----------------------------------------------------------------------------

    def emit(self, command: Command) -> None:
        """Ask for something that is not recorded yet."""
        self._commands.append(command)

    def take_commands(self) -> list[Command]:
        """The commands since the last call."""
        commands, self._commands = self._commands, []
        return commands

    def note(self, text: str) -> None:
        """Have the run's owner log a warning: the engine itself logs nothing."""
        self._notes.append(text)

    def take_notes(self) -> list[str]:
        """The notes since the last call."""
        notes, self._notes = self._notes, []
        return notes
