"""Pulses: whether the engine's actors still answer, and a new process for one that does not.

Theory of operation. Ray brings back an actor whose process has died. It does not notice a process that lives
and does nothing: one that was stopped, or whose code waits for ever while it holds the interpreter. So every
actor of the engine has a method `ping`, which answers on a thread of its own while everything else there is
busy. As long as this process waits for an actor, or visits it, one thread pings the actor now and then.

An actor that Ray counts as alive and that leaves a ping unanswered is *silent* after `SILENT_AFTER`. Whoever
waits for it is told, and takes another way. After the setting `hung_after` it is *hung*: Ray is told to kill
its process, and starts another one in its place. An actor that is being made or restarted is neither.

A wrong suspicion costs time and never truth. The new process claims the runs at a new epoch, and the fence
refuses what the old one may still write. Each time that an actor is replaced and answers nothing after that,
this process is twice as patient with it: a machine that is slow must not be kept from ever starting it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import Future
from typing import Any

from loguru import logger

from pyworkflow_ray.actors.connections import has_joined

SILENT_AFTER = 2.0
"""Seconds after which nobody waits any longer for an actor that has another way."""
PING_EVERY = 2.0
"""Seconds between an answer and the next ping."""
_TICK = 0.25
_MOST_DOUBLINGS = 6


class Pulses:
    """The pulses of the actors that this process waits for, or visits.

    Args:
        hung_after: Seconds without an answer after which an actor is replaced.
    """

    def __init__(self, hung_after: float) -> None:
        self._hung_after = hung_after
        self._pulses: dict[str, _Pulse] = {}
        self._replaced: dict[str, int] = {}
        """How often an actor was replaced since it last answered."""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def watch(self, name: str, handle: Any) -> Future[None]:
        """Done once the actor is silent, or this process has left its cluster. End with `unwatch`."""
        silence: Future[None] = Future()
        with self._changed:
            pulse = self._pulse(name, handle)
            pulse.waiting.add(silence)
            if pulse.is_silent:
                silence.set_result(None)
        return silence

    def unwatch(self, name: str, silence: Future[None]) -> None:
        """Wait no longer for the actor."""
        with self._changed:
            pulse = self._pulses.get(name)
            if pulse is not None:
                pulse.waiting.discard(silence)

    def visit(self, name: str, handle: Any) -> None:
        """See to it that an actor that is hung is replaced. This returns at once."""
        with self._changed:
            self._pulse(name, handle).is_visited = True

    def is_silent(self, name: str) -> bool:
        """Whether the actor was found to be silent, and has not answered since."""
        pulse = self._pulses.get(name)
        return pulse is not None and pulse.is_silent

    def _pulse(self, name: str, handle: Any) -> _Pulse:
        pulse = self._pulses.get(name)
        if pulse is None:
            pulse = self._pulses[name] = _Pulse(name, handle)
        elif pulse.handle._actor_id != handle._actor_id:  # another actor has the name now
            pulse.handle = handle
            pulse.begin_again(0.0)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pyworkflow-pulses", daemon=True)
            self._thread.start()
        self._changed.notify()
        return pulse

    def _run(self) -> None:
        seen_at = time.monotonic()
        while True:
            with self._changed:
                for name in [name for name, pulse in self._pulses.items() if not pulse.is_wanted]:
                    del self._pulses[name]
                if not self._pulses:
                    self._changed.wait()
                    seen_at = time.monotonic()
                pulses = list(self._pulses.values())
            now = time.monotonic()
            # Of a pause that took longer than it should, only a part counts: this process was stopped then,
            # or had no CPU, and an answer may have come that it has not seen.
            passed, seen_at = min(now - seen_at, 2 * _TICK), now
            for pulse in pulses:
                try:
                    self._beat(pulse, now, passed)
                except Exception as error:
                    logger.debug("The pulse of {} could not be taken: {!r}", pulse.name, error)
                    pulse.begin_again(now + PING_EVERY)
                    pulse.is_visited = False
            time.sleep(_TICK)

    def _beat(self, pulse: _Pulse, now: float, passed: float) -> None:
        if not has_joined():
            self._set_silent(pulse, False)  # what they wait for will never come
            with self._changed:
                self._pulses.pop(pulse.name, None)
            return
        if pulse.ping is None:
            if now >= pulse.next_at:
                pulse.ping = pulse.handle.ping.remote().future()
            return
        if pulse.ping.done():
            self._hear(pulse, now)
            return
        pulse.unanswered += passed
        if pulse.process is None and pulse.unanswered >= SILENT_AFTER / 2:
            pulse.process = _living_process(pulse.handle)
            if pulse.process is None:
                pulse.unanswered = 0.0
        elif not pulse.is_silent and pulse.unanswered >= SILENT_AFTER:
            if _living_process(pulse.handle) == pulse.process:
                self._set_silent(pulse, True)
            else:
                pulse.begin_again(now)
        elif pulse.unanswered >= self._patience(pulse.name):
            self._replace(pulse, now)

    def _patience(self, name: str) -> float:
        return float(self._hung_after * 2 ** min(self._replaced.get(name, 0), _MOST_DOUBLINGS))

    def _hear(self, pulse: _Pulse, now: float) -> None:
        assert pulse.ping is not None
        has_answered = pulse.ping.exception() is None
        if has_answered:
            self._replaced.pop(pulse.name, None)
        # If it has failed, the process is dead: it has gone, or it is being restarted.
        pulse.begin_again(now + PING_EVERY)
        pulse.is_silent = pulse.is_visited = False

    def _set_silent(self, pulse: _Pulse, is_silent: bool) -> None:
        with self._changed:
            pulse.is_silent = is_silent
            waiting = list(pulse.waiting)
        for silence in waiting:
            with contextlib.suppress(Exception):  # its event loop has been closed, or it is done
                silence.set_result(None)

    def _replace(self, pulse: _Pulse, now: float) -> None:
        import ray

        if _living_process(pulse.handle) == pulse.process and has_joined():
            seconds = round(pulse.unanswered, 1)
            logger.warning("Actor {} has not answered for {} s: it is replaced.", pulse.name, seconds)
            self._replaced[pulse.name] = self._replaced.get(pulse.name, 0) + 1
            ray.kill(pulse.handle, no_restart=False)
        pulse.begin_again(now + PING_EVERY)


class _Pulse:
    """The pulse of one actor."""

    def __init__(self, name: str, handle: Any) -> None:
        self.name, self.handle = name, handle
        self.waiting: set[Future[None]] = set()
        self.is_visited = self.is_silent = False
        self.next_at = 0.0
        """When to ping next, by the monotonic clock."""
        self.ping: Future[Any] | None = None
        self.unanswered = 0.0
        """Seconds for which the ping has been under way."""
        self.process: tuple[int, int] | None = None
        """The process that leaves the ping unanswered."""

    @property
    def is_wanted(self) -> bool:
        return bool(self.waiting) or self.is_visited or self.is_silent

    def begin_again(self, at: float) -> None:
        """Forget the ping under way, and ping next at this time."""
        self.ping, self.unanswered, self.process, self.next_at = None, 0.0, None, at


def _living_process(handle: Any) -> tuple[int, int] | None:
    """The actor's process if Ray counts it as alive: its id, and how many there were before it.

    Ray has no public way to ask that needs no dashboard. If this one goes, no actor is replaced: then the
    runs of a hung coordinator wait for the end of its lease.
    """
    from ray._private.state import actors

    facts = actors(handle._actor_id.hex())
    if facts.get("State") != "ALIVE":
        return None
    return int(facts["Pid"]), int(facts["NumRestarts"])
