"""Driving one run: from its claim to its end, its suspension or its loss.

Theory of operation. A drive holds a run's lease, and the execution of the run's code. All that happens to
the run happens in turns, and every turn goes the same way, through `_turn`:

1. *Decide.* On an engine thread, an activation is made. Mostly outcomes are fed to the code, which answers
   with commands (`turns`). A run may also be failed or cancelled without its code, set aside (`recoveries`),
   or suspended (`suspensions`).
2. *Commit.* The activation is written in one append, under the run's lease (`commits`).
3. *Act.* Only then the drive does what was decided: it begins and nudges other runs, and dispatches and
   cancels attempts.

The opening is a turn: of the start, or of what a replay and a recovery bring. Then the drive rests until
something has come for the run: a step's outcome, a row in its inbox, a timer that is due. The next turn
feeds all that has come by then. What comes during a turn waits for the one after it. The turn whose
activation has an `end` is the last.

A crash before the commit leaves no trace: the outcomes are learnt again. A crash between commit and action
is repaired by the next opening: a step that is scheduled and has no outcome is dispatched. If the fence
refuses an append, another coordinator has the run. The drive drops it then, and touches nothing else of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from pyworkflow_ray.actors.actions import moment_of_end, see_to_others, see_to_steps
from pyworkflow_ray.actors.activations import Activation, RunEnd
from pyworkflow_ray.actors.attempts import Attempts
from pyworkflow_ray.actors.commits import Decide, HistoryWriter
from pyworkflow_ray.actors.engine_threads import CodeStoppedError
from pyworkflow_ray.actors.hook_rows import due_hooks, expire_hooks, make_hooks, refusal
from pyworkflow_ray.actors.inboxes import (
    cancellation_in,
    ending_of,
    is_recorded,
    read_inbox,
    requests_to_children,
    require_whole,
)
from pyworkflow_ray.actors.observers import HistoryLong, RunLost, of_run
from pyworkflow_ray.actors.recoveries import (
    Loss,
    count_loss,
    counts_after,
    explained,
    pause_before,
    recovery_of,
    set_aside,
)
from pyworkflow_ray.actors.renewals import Hold
from pyworkflow_ray.actors.run_codes import RunCode
from pyworkflow_ray.actors.services import Services
from pyworkflow_ray.actors.suspensions import still_held, suspension, wait_of
from pyworkflow_ray.actors.turns import (
    Incoming,
    Turn,
    end_cancelled,
    end_failed,
    feed_incoming,
    feed_start,
    reopen,
    started_event,
)
from pyworkflow_ray.engine.events import MAX_DURATION, CancellationRequested, Event
from pyworkflow_ray.engine.executions import Execution
from pyworkflow_ray.exceptions import EventLimitExceededError, StorageError, WorkflowError
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.histories import FencedError, UnreadError, read_events
from pyworkflow_ray.storage.inboxes import InboxRow, readable_unread
from pyworkflow_ray.storage.records import RunRecord, require_json

_T = TypeVar("_T")


class Drive:
    """One run in a coordinator's memory, from claim to end, suspension or loss.

    Args:
        services: What the coordinator lends.
        run: The run's row, as it was claimed.
        hold: Until when the run is surely held.
        loss: How the run was lost before.
    """

    def __init__(self, services: Services, run: RunRecord, hold: Hold, loss: Loss = Loss.NONE) -> None:
        self.hold = hold
        self.run_id = run.run_id
        self.began_at = time.monotonic()
        self.ending: CancellationRequested | WorkflowError | None = None
        """Why the code is stopped: the run is cancelled, has no time left, or is set aside."""
        self.ending_since = 0.0
        self.opened = asyncio.Event()
        """Set once the run can be asked, or will not be for a while."""
        self.is_cancelled = False
        """Whether the run was asked to cancel."""
        self._services = services
        self._history = HistoryWriter(services, run, hold)
        self.code = RunCode(services)
        """The run's code. Only the drive feeds it."""
        self._wake = asyncio.Event()
        """Set when something has come. It only ends a rest: whoever sets it notes what has come."""
        self._attempts = Attempts(services, run, hold, self._wake.set)
        self._outcomes: list[Event] = []
        """Outcomes that the drive has found itself, to be fed in the next turn."""
        self._expired: set[str] = set()
        """Hooks whose rows take no payload any more."""
        # A run that was accepted with this coordinator's lease, and not claimed since, has an empty inbox.
        # Whoever writes into it later sends a nudge.
        self._has_unread = run.epoch != 1 or run.owner != run.coordinator or run.position > 0
        self._loss = loss
        self._owes_interruption = loss is not Loss.NONE and run.position > 0
        """Whether the run was taken over, and its history does not say so yet."""
        self._is_counted = run.recovery_attempts + run.shared_recoveries > 0
        """Whether takeovers are counted in the run's row."""
        self._warn_at = 0
        """The position from which on the length of the history is warned of again."""
        self._is_open = False
        self._end: RunEnd | None = None
        """How the drive ends. Once it is set there is no further turn."""

    @property
    def run(self) -> RunRecord:
        """The run's row as it was claimed, with the epoch under which it is held."""
        return self._history.run

    @property
    def in_flight(self) -> int:
        """How many attempts are under way, or have ended and are not fed. An unread inbox counts as one."""
        return self._attempts.under_way + self._attempts.arrived + self._has_unread

    @property
    def is_suspended(self) -> bool:
        """Whether the drive has ended because the run had nothing to do."""
        return self._end is not None and self._end.status == RunStatus.SUSPENDED.value

    @property
    def has_unread(self) -> bool:
        """Whether something may lie in the run's inbox."""
        return self._has_unread

    @property
    def execution(self) -> Execution | None:
        """The run's code, for queries; None if it cannot be asked."""
        return self.code.execution if self._is_open else None

    def notice(self) -> None:
        """Something lies in the run's inbox."""
        self._has_unread = True
        self._wake.set()

    def lose(self) -> None:
        """Drop the run: another process has it."""
        self.hold.lose()
        self._wake.set()

    def regain(self, epoch: int, since: float) -> None:
        """Hold the run under this epoch: a sweep has placed it here again, while it was here."""
        self._history.regain(epoch, since)

    async def drive(self) -> RunEnd:
        """Drive the run until it ends, is suspended, or is lost to another coordinator."""
        try:
            try:
                await self._open()
                self._is_open = True
                self.opened.set()
                while self._end is None:
                    if await self._rest():
                        await self._go_on()
                return self._end
            except StorageError:
                raise  # the run goes on when the database does
            except CodeStoppedError:
                return await self._end_stopped()
            except WorkflowError as error:
                return await self._set_aside(error)
            except Exception as error:
                # What keeps a run from being opened would keep it from that the next time, too.
                if self._is_open:
                    raise
                return await self._set_aside(error)
        except FencedError:
            self._services.observers.report(RunLost(**of_run(self.run)))
            return RunEnd(self.run_id, "lost")
        finally:
            self.opened.set()
            self._drop()

    # --- the one way: decide, commit, act -----------------------------------------------------------

    async def _turn(self, decide: Decide) -> None:
        """Have something decided, commit it, act on it."""
        self.hold.check()
        self._wake.clear()
        activation = await self._history.commit(decide)
        if "recovery_attempts" in activation.changes:
            self._is_counted = activation.changes["recovery_attempts"] > 0
            self._is_counted |= activation.changes["shared_recoveries"] > 0
        self._has_unread = self._has_unread or activation.is_unread
        if self.code.execution is not None:
            self.is_cancelled = self.code.is_cancelled
        self._end = activation.end
        for moment in activation.moments:
            self._services.observers.report(moment)
        await self._act(activation)
        if activation.end is not None:
            took = timedelta(seconds=time.monotonic() - self.began_at)
            wake_at = activation.changes.get("wake_at")
            moment = moment_of_end(self.run, activation.end, self._history.position, took, wake_at)
            self._services.observers.report(moment)

    def _deciding(self, fill: Callable[[Turn], None]) -> Decide:
        """The decision that `fill` makes, with the run's code at its disposal."""

        def decide() -> Activation:
            turn = Turn(self.run, self.code.execution, self._services)
            fill(turn)
            return turn.activation

        return lambda: self.code.run(decide)

    async def _act(self, activation: Activation) -> None:
        """Do what was committed: see to other runs, then to this one's steps."""
        see_to_others(self._services, self.run, activation)
        for hook_id, holder in activation.conflicts.items():
            self._found(refusal(hook_id, holder))
        # A run that has ended has steps left only if it was ended without its code. None of them is begun.
        await see_to_steps(self._attempts, activation, {} if activation.end is not None else self.code.steps)

    def _found(self, outcome: Event) -> None:
        self._outcomes.append(outcome)
        self._wake.set()

    # --- opening ------------------------------------------------------------------------------------

    async def _open(self) -> None:
        """Load the code, replay the history, and go on from there."""
        if self.run.epoch > 1:  # otherwise its row was written just now
            require_json(self.run)
            if self._history.position == 0:
                first = read_events(self.run_id, limit=1)
                require_whole(self.run, await asyncio.to_thread(self._services.storage.read, first))
        if not await self._may_open():
            return
        execution = await self.code.load(self.run)
        if self._has_begun():
            await self._reopen(execution)
        else:
            await self._start()

    def _has_begun(self) -> bool:
        """Whether the run's start is committed."""
        return self._history.position != 0 or not (self.run.durable or self.run.started_at is None)

    async def _may_open(self) -> bool:
        """See to how the run was lost, before any of its code runs here; False if it has failed now."""
        if self._is_early():
            return True
        await count_loss(self._services, self.run, self._loss, self._turn)
        pause = pause_before(self.run, self._loss)
        if self._end is None and pause:
            had_unread, self._has_unread = self._has_unread, False
            await self._services.clock.wait(asyncio.Event(), self._services.clock.now() + pause)
            self._has_unread = self._has_unread or had_unread
        return self._end is None

    async def _start(self) -> None:
        """Run the code from its beginning, once its time has come."""
        started = started_event(self.run)
        known: list[InboxRow] = []
        is_again = False
        while True:
            self.hold.check()
            if self._has_unread:
                known = await self._read_inbox()
                if await self._is_cancelled_at_once(known):
                    return
            if not self._is_early():
                # The start is committed by itself, before anything is fed that is due. Otherwise code that
                # ends its process would be recovered for ever, without a trace of it.
                feed = partial(feed_start, started=started, known=known, is_again=is_again)
                with contextlib.suppress(UnreadError):
                    await self._turn(self._deciding(feed))
                    self._has_unread = self._has_unread or bool(known)
                    return
                is_again = self._has_unread = True
                await self.code.load(self.run)
                continue
            self.opened.set()
            await self._services.clock.wait(self._wake, self.run.start_at)
            self._wake.clear()

    def _is_early(self) -> bool:
        """Whether the run is to start later."""
        return self.run.start_at is not None and self.run.start_at > self._services.clock.now()

    async def _reopen(self, execution: Execution) -> None:
        """Go on from where the history ends."""
        history = await asyncio.to_thread(self._services.storage.read, read_events(self.run_id))
        require_whole(self.run, history)
        recovery = recovery_of(self.run, self._loss, self._services.owner)
        counts = counts_after(self.run, self._loss)
        # Attempts are dispatched after this turn: an interruption gives all of them new numbers.
        await self._turn(self._deciding(lambda turn: reopen(turn, history, recovery, counts)))
        self._owes_interruption = False
        if self._end is None:
            for pending in list(execution.steps.values()):
                await self._attempts.go_on(pending)
            await self._make_hooks(execution)

    async def _make_hooks(self, execution: Execution) -> None:
        """Make the rows of pending hooks that are not there: those of a fork are not."""
        commands = [pending.command for pending in execution.hooks.pending.values()]
        if commands:
            conflicts = await make_hooks(self._services, self.run_id, commands)
            for hook_id, holder in conflicts.items():
                self._found(refusal(hook_id, holder))

    async def _is_cancelled_at_once(self, unread: list[InboxRow]) -> bool:
        """Whether a run that has run no code, or can run none, was asked to cancel; it ends here then."""
        request = cancellation_in(self.run_id, unread)
        if request is None:
            return False
        await self._end_at_once(request)
        return True

    async def _end_at_once(self, request: CancellationRequested) -> None:
        """End the run as the request says, without asking its code."""
        before: list[Event] = [] if self._has_begun() else [started_event(self.run)]
        outgoing = [] if before else await requests_to_children(self._services, self.run_id)
        if request.requested_by == MAX_DURATION:  # others come through the inbox
            before += [] if await is_recorded(self._services, self.run_id, request) else [request]
        await self._turn(self._deciding(lambda turn: end_cancelled(turn, request, outgoing, *before)))

    # --- going on -----------------------------------------------------------------------------------

    async def _go_on(self) -> None:
        """Feed all that has come."""
        if self.code.is_abandoned:
            raise CodeStoppedError
        if await self._is_at_limit():
            return
        await self._expire_hooks()
        unread = await self._read_inbox() if self._has_unread else []
        arrived = self._attempts.take_arrived()
        outcomes, self._outcomes = self._outcomes, []
        await self._feed(Incoming(arrived, outcomes, unread, self._expired, self._is_counted))

    async def _feed(self, incoming: Incoming) -> None:
        """Feed what has come. If the run ends while more comes for it, it did not end: it is fed that first.

        Its code has ended in memory, so it is replayed, as after a crash before the commit. What comes even
        then is recorded before the end, and the code does not see it.
        """
        try:
            await self._turn(self._deciding(partial(feed_incoming, incoming=incoming)))
        except UnreadError:
            history = await asyncio.to_thread(self._services.storage.read, read_events(self.run_id))
            await self.code.replay(self.run, history)
            incoming = replace(incoming, unread=await self._read_inbox(), is_again=True)
            await self._turn(self._deciding(partial(feed_incoming, incoming=incoming)))
        self._attempts.recorded(incoming.arrived)

    async def _read_inbox(self) -> list[InboxRow]:
        self._has_unread = False  # before the read: what comes during it is read the next time
        return await read_inbox(self._services, self.run_id)

    async def _expire_hooks(self) -> None:
        """Ask the rows of hooks whose time is over: a payload that was accepted in time comes first."""
        due = due_hooks(self.code.running, self._services.clock.now())
        if due:
            if not await expire_hooks(self._services, self.run_id, due):
                self._has_unread = True
            self._expired.update(due)

    async def _is_at_limit(self) -> bool:
        """Whether the history has become too long; the run ends here then."""
        settings, position = self._services.settings, self._history.position
        limit = settings.event_hard_limit
        if position < min(settings.event_soft_limit, limit):
            return False
        if self._warn_at <= position < limit:
            self._warn_at = position + settings.event_warning_interval
            self._services.observers.report(HistoryLong(**of_run(self.run), events=position, limit=limit))
        if position < limit:
            return False
        error = EventLimitExceededError(self.run_id, position, limit)
        await self._turn(self._deciding(lambda turn: end_failed(turn, error)))
        return True

    # --- resting ------------------------------------------------------------------------------------

    async def _rest(self) -> bool:
        """Wait until something has come or is due; False when the run was suspended instead."""
        self.hold.check()
        clock = self._services.clock
        if self._attempts.arrived or self._outcomes or self._has_unread:
            return True
        due_at = self._due_at()
        now = clock.now()
        if due_at is not None and due_at <= now:
            await self._retry_due(now)
            return True
        may_leave = not self._attempts.under_way and self.run.durable and not self._has_child_here()
        wait = wait_of(now, due_at, self._services.settings.suspend_after, may_leave=may_leave)
        has_come = await clock.wait(self._wake, wait.until)
        if not wait.then_suspend:
            await self._retry_due(clock.now())
        elif not has_come:
            await self._suspend(due_at)
            return False
        return True

    def _has_child_here(self) -> bool:
        children = self.code.running.children.open.values()
        return any(self._services.is_here(child.command.child_run_id) for child in children)

    def _due_at(self) -> datetime | None:
        timer = self.code.running.next_timer()
        dues = self._attempts.dues()
        if timer is not None:
            dues.append(timer[0])
        return min(dues, default=None)

    async def _retry_due(self, now: datetime) -> None:
        steps = self.code.running.steps
        due = [steps[step_id] for step_id in self._attempts.take_due(now) if step_id in steps]
        if not all(pending.command.options.idempotent for pending in due):
            # No event says that these attempts begin. Whoever has taken the run over meanwhile makes them.
            await self._turn(lambda: still_held(self.run_id))
        for pending in due:
            await self._attempts.dispatch(pending)

    # --- leaving ------------------------------------------------------------------------------------

    async def _suspend(self, due_at: datetime | None) -> None:
        """Let go of the run until something wakes it."""
        await self._turn(lambda: suspension(self.run_id, due_at))
        if due_at is not None:
            self._services.on_due(due_at)

    async def _set_aside(self, error: Exception) -> RunEnd:
        """Set the run aside: its code cannot go on over its history here. `resume` tries again.

        If it was asked to cancel, it is cancelled instead, and its code does not see that.
        """
        unread = await asyncio.to_thread(self._services.storage.read, readable_unread(self.run_id))
        if await self._is_cancelled_at_once(unread) and self._end is not None:
            return self._end
        why = await explained(self._services, self.run_id, error)
        leaves = self._owes_interruption or self._attempts.are_unfinished
        await self._turn(lambda: set_aside(self.run_id, why, leaves_attempts=leaves))
        assert self._end is not None
        return self._end

    def _drop(self) -> None:
        self._attempts.drop()
        self.code.let_go()

    # --- code that does not wait ----------------------------------------------------------------------

    def end_for(self, ending: CancellationRequested | WorkflowError) -> None:
        """The run is to end without its code, if that does not come to a wait soon."""
        if self.ending is None:
            self.ending, self.ending_since = ending, time.monotonic()

    async def seek_ending(self) -> None:
        """Look whether the run was asked to end. Its code, which is running, does not read its inbox."""
        request = await ending_of(self._services, self.run_id, self.code.execution)
        if request is not None:
            self.end_for(request)

    def abandon(self) -> None:
        """Go on without the code that is running, which does not stop. Its thread may run for ever."""
        self.code.abandon()
        self._history.abandon()
        self._wake.set()

    async def _end_stopped(self) -> RunEnd:
        """End the run without its code, which was stopped."""
        self.code.let_go()
        ending = self.ending
        if ending is None:
            raise WorkflowError(f"A query of run {self.run_id!r} does not end: the run goes on elsewhere.")
        if isinstance(ending, WorkflowError):
            return await self._set_aside(ending)
        await self._end_at_once(ending)
        assert self._end is not None
        return self._end
