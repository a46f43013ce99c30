"""One run's code, as its drive holds it: loaded, run on engine threads, asked, stopped, let go of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from pyworkflow_ray.actors.engine_threads import CodePlace, Stretch
from pyworkflow_ray.actors.inboxes import decoded_history
from pyworkflow_ray.actors.logs import log_notes
from pyworkflow_ray.actors.queries import answer
from pyworkflow_ray.actors.services import Services, execution_of, load_definition
from pyworkflow_ray.engine.attempts import AttemptOutcome
from pyworkflow_ray.engine.executions import Execution
from pyworkflow_ray.engine.pending_steps import PendingStep
from pyworkflow_ray.storage.histories import EventRow
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.values import codec

_T = TypeVar("_T")


class RunCode:
    """The code of a run that is driven here.

    Args:
        services: What the coordinator lends.
    """

    def __init__(self, services: Services) -> None:
        self.execution: Execution | None = None
        """What runs the code; None before it is loaded, and once it is let go of."""
        self.is_abandoned = False
        """Whether it runs on without its drive, perhaps for ever."""
        self._services = services
        self._place = CodePlace(services.threads)

    @property
    def stretch(self) -> Stretch | None:
        """The code that is running; None while it waits."""
        return self._place.stretch

    @property
    def running(self) -> Execution:
        """The execution of code that is loaded."""
        assert self.execution is not None, "the run is not open"
        return self.execution

    @property
    def steps(self) -> Mapping[str, PendingStep]:
        """The steps that have no outcome."""
        return {} if self.execution is None else self.execution.steps

    @property
    def is_cancelled(self) -> bool:
        """Whether the code was asked to cancel."""
        return self.execution is not None and self.execution.cancellation.is_requested

    async def load(self, run: RunRecord) -> Execution:
        """Load the run's code, which has run nothing yet."""
        definition = await self._in_thread(partial(load_definition, self._services, run))
        execution = execution_of(self._services, run, definition)
        if run.attributes is not None:  # what it was started with
            execution.attributes.update(codec.decode(run.attributes))
        self.let_go()
        self.execution = execution
        return execution

    async def replay(self, run: RunRecord, history: list[EventRow]) -> None:
        """Load the code again, and bring it to where its history ends."""
        execution = await self.load(run)
        await self._in_thread(lambda: execution.replay(decoded_history(run.run_id, history)))

    async def ask(self, name: str, args: bytes, kwargs: bytes) -> AttemptOutcome:
        """What the run's query function returns or raises.

        Raises:
            CodeStoppedError: It did not come to an end.
        """

        def work() -> AttemptOutcome:
            return answer(self._services, self.running, name, args, kwargs)

        return await self._place.on_thread(partial(self.run, work, is_query=True))

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await self._place.on_thread(partial(self.run, work))

    def run(self, work: Callable[[], _T], *, is_query: bool = False) -> _T:
        """Run workflow code on the engine thread that calls this, and log what it notes."""
        execution = self.execution

        def noted() -> _T:
            try:
                return work()
            finally:
                if self.execution is not None and self.execution is execution:
                    log_notes(execution)

        try:
            return self._place.run(noted, is_query=is_query)
        finally:
            if self.is_abandoned and execution is not None:
                execution.drop()  # by this thread, in which its code ran

    def abandon(self) -> None:
        """Go on without the code that is running, which does not stop. Its thread may run for ever."""
        self.is_abandoned = True
        self.execution = None  # the thread drops it
        self._place.abandon()

    def let_go(self) -> None:
        """Drop the code where it stands."""
        execution, self.execution = self.execution, None
        if execution is not None:
            execution.drop()
