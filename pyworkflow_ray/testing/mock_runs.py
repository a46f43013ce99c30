"""Mock runs: a workflow's code runs in the test's event loop, and the test answers its commands.

Theory of operation. A coordinator drives an `Execution`. A `MockRun` is such an `Execution` that drives
itself. It feeds one outcome, takes the commands that come out, and looks up the test's answers to them. A
command without an answer is carried out: a step's function is called, a child is another `MockRun`. Nothing
is stored.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from msgspec import Raw

from pyworkflow_ray.actors.logs import log_notes
from pyworkflow_ray.actors.runner import Attempt
from pyworkflow_ray.actors.tickets import Ticket
from pyworkflow_ray.authoring.workflows import WorkflowFunction
from pyworkflow_ray.engine.attempts import AttemptFailed, AttemptOutcome
from pyworkflow_ray.engine.commands import (
    CancelChild,
    CancelRun,
    CancelStep,
    Command,
    CompleteRun,
    ContinueRun,
    CreateHook,
    DisposeHook,
    FailRun,
    ScheduleStep,
    SetAttributes,
    StartChild,
    StartTimer,
)
from pyworkflow_ray.engine.events import (
    CancellationRequested,
    ChildCancelled,
    ChildCompleted,
    ChildFailed,
    Event,
    HookReceived,
    SignalReceived,
    TimerFired,
    WorkflowStarted,
    failure_fields,
)
from pyworkflow_ray.engine.executions import Execution
from pyworkflow_ray.engine.limits import Limits
from pyworkflow_ray.exceptions import StepFailedError
from pyworkflow_ray.testing.mock_answers import NEVER, MissingMockError, resolve_answer, resolve_hook_answer
from pyworkflow_ray.testing.mock_states import (
    ChildCall,
    HookCall,
    MockState,
    Sleep,
    StepCall,
    outside_of_runs,
)
from pyworkflow_ray.values.failures import capture, restore

Ending = CompleteRun | FailRun | CancelRun | ContinueRun


class MockRun(Execution):
    """One run of a `MockContext`.

    Args:
        shared: What it shares with the other runs of the context.
        run_id: The run's id.
        name: The workflow's name.
        function: The workflow's code.
        definition: The workflow; None for the run of a test's direct calls.
        parent: The run that has started this one as a child.
    """

    def __init__(
        self,
        shared: MockState,
        run_id: str,
        name: str,
        function: Callable[..., Awaitable[Any]],
        definition: WorkflowFunction[Any, Any] | None = None,
        parent: MockRun | None = None,
    ) -> None:
        limits = Limits(
            max_duration=None if definition is None else definition.workflow_options.max_duration,
            max_nesting_depth=shared.settings.max_nesting_depth,
        )
        super().__init__(run_id, self._remembering(function), shared.values, limits)
        self.workflow_name = name
        self.is_child = parent is not None
        self.nesting_depth = 0 if parent is None else parent.nesting_depth + 1
        self.check_arguments = None if definition is None else definition.check_arguments
        self.ending: Ending | None = None
        self.raised: BaseException | None = None
        """The error object that the workflow's function raised."""
        self._shared = shared
        self._incoming: deque[Callable[[], Event | None]] = deque()
        self._arrived = asyncio.Event()
        self._failure: BaseException | None = None
        self._tickets: dict[str, Ticket] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._children_here: dict[str, MockRun] = {}
        self._timers: dict[str, Sleep] = {}
        self._receiving: list[str] = []

    def _remembering(self, function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def remembering(*args: Any, **kwargs: Any) -> Any:
            try:
                return await function(*args, **kwargs)
            except Exception as error:
                self.raised = error
                raise

        return remembering

    # --- playing ------------------------------------------------------------------------------------

    async def play(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Ending:
        """How the run ends.

        Raises:
            MissingMockError: The run needs an answer that the test has not given.
        """
        try:
            self.enter()
            self.begin(args, kwargs)
            while self.ending is None:
                self._apply_next(await self._next())
            self.leave()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)  # children that go on
            return self.ending
        finally:
            self.leave()
            self.close()

    def enter(self) -> None:
        """Count this run among those that are playing."""
        if self not in self._shared.playing:
            self._shared.playing.append(self)
        self._arrived = asyncio.Event()  # belongs to the loop that runs now

    def leave(self) -> None:
        """Count this run among those that are playing no more."""
        if self in self._shared.playing:
            self._shared.playing.remove(self)
            self._shared.look_soon()

    def begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Start the run's code."""
        values, what = self._shared.values, f"workflow {self.workflow_name!r}"
        self._apply_next(
            WorkflowStarted(
                workflow_name=self.workflow_name,
                args=Raw(values.encode(list(args), f"the arguments of {what}")),
                kwargs=Raw(values.encode(dict(kwargs), f"the keyword arguments of {what}")),
            )
        )
        if self.is_child:
            return
        for name, payloads in self._shared.events.items():
            for payload in payloads if isinstance(payloads, list) else [payloads]:
                data = Raw(values.encode(payload, f"the payload of signal {name!r}"))
                self.post(SignalReceived(name=name, payload=data))

    def post(self, event: Event) -> None:
        """Give the run an event."""
        self._come(lambda: event)

    def fail(self, error: BaseException) -> None:
        """End the play with this error, which is the test's fault."""
        self._failure = error
        self._arrived.set()

    def close(self) -> None:
        """Drop the run's code, and cancel what was begun for it."""
        for ticket in list(self._tickets.values()):
            ticket.cancel()
        for task in self._tasks.values():
            task.cancel()
        self._shared.working -= len(self._tickets)
        self._tickets.clear()
        self.drop()

    def waits_for(self) -> list[str]:
        """What the run's code waits for, other than time."""
        return [
            *(f"step {step_id!r}" for step_id in self.steps),
            *(f"hook {hook_id!r}" for hook_id in self.hooks.pending),
            *(f"child {child_id!r}" for child_id in self.children.open),
            *(f"signal {name!r}" for name in self._receiving if name.isprintable()),
        ]

    async def _next(self) -> Event:
        """The next outcome: one that has arrived, or a timer that is due. This waits until there is one."""
        shared = self._shared
        while True:
            if self._failure is not None:
                raise self._failure
            if self._incoming:
                event = self._incoming.popleft()()
                if event is not None:
                    return event
                continue
            timer = self.next_timer()
            if timer is not None and timer[0] <= shared.clock.now():
                return self.due_event(timer[1])
            self._arrived.clear()
            shared.look_soon()
            await shared.clock.wait(self._arrived, None if timer is None else timer[0])

    def _come(self, event: Callable[[], Event | None]) -> None:
        self._incoming.append(event)
        self._arrived.set()

    def _apply_next(self, event: Event) -> None:
        if isinstance(event, TimerFired) and event.sleep_id in self._timers:
            self._shared.sleeps.append(self._timers.pop(event.sleep_id))
        commands = self.feed(event, self._shared.clock.now())
        log_notes(self)
        for command in commands:
            self._act(command)

    # --- answering ------------------------------------------------------------------------------------

    def _act(self, command: Command) -> None:
        match command:
            case ScheduleStep():
                self._begin_step(command)
            case CancelStep(step_id=step_id, on_cancel=on_cancel):
                self._cancel_step(step_id, on_cancel)
            case StartTimer(sleep_id=sleep_id, resume_at=resume_at, name=name):
                self._timers[sleep_id] = Sleep((resume_at - self.now).total_seconds(), name)
            case CreateHook():
                self._begin_hook(command)
            case DisposeHook(hook_id=hook_id):
                if hook_id in self._tasks:
                    self._tasks[hook_id].cancel()
            case StartChild():
                self._begin_child(command)
            case CancelChild(child_run_id=run_id, reason=reason):
                if run_id in self._children_here:
                    request = CancellationRequested(reason=reason, requested_by=self.run_id)
                    self._children_here[run_id].post(request)
            case SetAttributes(attributes=attributes):
                self._shared.attributes.update(self._shared.values.decode(attributes))
            case CompleteRun() | FailRun() | CancelRun() | ContinueRun():
                self.ending = command
            case _:
                pass

    def _decoded(self, args: Raw, kwargs: Raw) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(self._shared.values.decode(args)), self._shared.values.decode(kwargs)

    def _answer_to(self, kind: str, name: str) -> tuple[bool, Any]:
        """Whether the test has an answer for this step or child, and the answer."""
        results = self._shared.results
        if name in results:
            return True, results.next(name)
        if self._shared.strict:
            raise MissingMockError(
                f"{kind.capitalize()} {name!r} is called and has no mock, and this MockContext is strict."
                f"{results.alike(name)} Give mock_results[{name!r}]: a value, an exception, a function, or a "
                f"list of these. Or give strict=False, to run the {kind} itself."
            )
        return False, None

    def _begin_step(self, command: ScheduleStep) -> None:
        step_id, name = command.step_id, command.step_name
        args, kwargs = self._decoded(command.args, command.kwargs)
        is_mocked, answer = self._answer_to("step", name)
        call = StepCall(name, step_id, args, kwargs, is_mocked)
        self._shared.step_calls.append(call)
        pending = self.steps.get(step_id)
        if answer is NEVER or pending is None:
            return
        pending.is_last = True  # one attempt: a mock is the outcome after all retries

        async def mocked(*args: Any, **kwargs: Any) -> Any:
            return await resolve_answer(answer, *args, **kwargs)

        def on_outcome(outcome: AttemptOutcome) -> None:
            if self._tickets.pop(step_id, None) is None:
                return  # cancelled
            self._shared.working -= 1
            if isinstance(outcome, AttemptFailed):
                call.error = restore(outcome.failure, fallback=StepFailedError)
            else:
                call.result = self._shared.values.decode(outcome.result)
            self._come(lambda: self.conclude(step_id, 1, outcome, self._shared.clock.now()))

        self._shared.working += 1
        self._tickets[step_id] = self._shared.dispatch(
            self._attempt(command), mocked if is_mocked else command.function, command.options, on_outcome
        )

    def _attempt(self, command: ScheduleStep) -> Attempt:
        timeout = command.options.timeout
        return Attempt(
            run_id=self.run_id,
            workflow_name=self.workflow_name,
            step_id=command.step_id,
            step_name=command.step_name,
            attempt=1,
            args=bytes(command.args),
            kwargs=bytes(command.kwargs),
            timeout=None if timeout is None else timeout.total_seconds(),
            payload_limit=self._shared.settings.payload_limit,
            payload_codec=self._shared.settings.payload_codec,
        )

    def _cancel_step(self, step_id: str, on_cancel: str) -> None:
        ticket = self._tickets.pop(step_id, None)
        if ticket is not None:
            self._shared.working -= 1
            if on_cancel != "abandon":
                ticket.cancel()

    def _begin_hook(self, command: CreateHook) -> None:
        hook_id, name = command.hook_id, command.name
        answers, values = self._shared.hooks, self._shared.values
        call = HookCall(name, hook_id, command.token)
        self._shared.hook_calls.append(call)
        if name not in answers:
            raise MissingMockError(
                f"The workflow waits for hook {name!r}, and nobody answers it.{answers.alike(name)} Give "
                f"mock_hooks[{name!r}]: the payload, an exception (HookExpiredError), a function, a list of "
                "these, or NEVER, to let time pass."
            )
        answer = answers.next(name)
        if answer is NEVER:
            return

        async def work() -> Event:
            try:
                call.payload = await resolve_hook_answer(answer, command.token)
                payload = Raw(values.encode(call.payload, f"the payload of hook {name!r}"))
            except Exception as error:
                call.error = error
                return HookReceived(hook_id=hook_id, failure=capture(error))
            return HookReceived(hook_id=hook_id, payload=payload)

        self._work(hook_id, work())

    def _begin_child(self, command: StartChild) -> None:
        definition, run_id = command.definition, command.child_run_id
        args, kwargs = self._decoded(command.args, command.kwargs)
        is_mocked, answer = self._answer_to("child workflow", definition.name)
        call = ChildCall(definition.name, run_id, args, kwargs, is_mocked)
        self._shared.child_calls.append(call)
        fields: dict[str, Any] = {
            "child_id": command.child_id,
            "child_run_id": run_id,
            "child_workflow_name": definition.name,
        }
        if not is_mocked:
            self._begin_child_run(command, call, fields)
        elif answer is not NEVER:
            self._work(run_id, self._answer_child(call, answer, fields))

    async def _answer_child(self, call: ChildCall, answer: Any, fields: dict[str, Any]) -> Event:
        try:
            call.result = await resolve_answer(answer, *call.args, **call.kwargs)
            result = Raw(self._shared.values.encode(call.result, f"the result of child {call.name!r}"))
        except Exception as error:
            call.error = error
            return ChildFailed(**fields, **failure_fields(capture(error)))
        return ChildCompleted(**fields, result=result)

    def _begin_child_run(self, command: StartChild, call: ChildCall, fields: dict[str, Any]) -> None:
        definition = command.definition
        run = MockRun(
            self._shared, command.child_run_id, definition.name, definition.fn, definition, parent=self
        )
        run.enter()

        async def play() -> None:
            try:
                ending = await run.play(call.args, call.kwargs)
                while isinstance(ending, ContinueRun):
                    args, kwargs = self._decoded(ending.args, ending.kwargs)
                    following = MockRun(
                        self._shared, ending.new_run_id, definition.name, definition.fn, definition, self
                    )
                    self._children_here[call.run_id] = following
                    ending = await following.play(args, kwargs)
            except Exception as error:  # the test's fault: a mock is missing
                self.fail(error)
                return
            self.post(self._child_outcome(ending, call, fields))

        self._children_here[call.run_id] = run
        self._tasks[call.run_id] = asyncio.get_running_loop().create_task(play())

    def _child_outcome(self, ending: Ending, call: ChildCall, fields: dict[str, Any]) -> Event:
        match ending:
            case FailRun(failure=failure):
                call.error = restore(failure, fallback=StepFailedError)
                return ChildFailed(**fields, **failure_fields(failure))
            case CancelRun(reason=reason):
                return ChildCancelled(**fields, reason=reason)
            case CompleteRun(result=result):
                call.result = self._shared.values.decode(result)
                return ChildCompleted(**fields, result=result)
            case ContinueRun():
                raise AssertionError("a child's outcome is that of its last run")

    def _work(self, key: str, work: Coroutine[Any, Any, Event]) -> None:
        """Let a function of the test produce an outcome."""
        self._shared.working += 1

        async def working() -> None:
            self.post(await work)

        def done(task: asyncio.Task[None]) -> None:
            self._shared.working -= 1
            self._tasks.pop(key, None)
            work.close()  # it may have been cancelled before it began
            if not task.cancelled() and task.exception() is not None:
                self.fail(task.exception() or AssertionError())

        self._tasks[key] = asyncio.get_running_loop().create_task(working(), context=outside_of_runs())
        self._tasks[key].add_done_callback(done)

    async def receive(self, name: str) -> Any:
        self._receiving.append(name)
        try:
            return await super().receive(name)
        finally:
            self._receiving.remove(name)
