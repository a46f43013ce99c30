"""Steps: the functions that do a workflow's real work. They may be tried again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any, Generic, Literal, ParamSpec, TypeVar, overload

from pyworkflow_ray.authoring.arguments import Arguments
from pyworkflow_ray.authoring.awaited_calls import must_be_awaited
from pyworkflow_ray.authoring.bound_steps import BoundStep
from pyworkflow_ray.authoring.definitions import Registry, function_name, refuse_misspelt
from pyworkflow_ray.authoring.step_options import OPTIONS, build_options
from pyworkflow_ray.callables import is_unfinished, shown_signature, without_first
from pyworkflow_ray.durations import Duration
from pyworkflow_ray.engine.executions import Execution, current
from pyworkflow_ray.engine.options import StepOptions
from pyworkflow_ray.engine.races import bounded_map
from pyworkflow_ray.engine.retries import RetryDelay
from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.ids import checked_text
from pyworkflow_ray.values import modules

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")

registry: Registry[StepFunction[Any, Any]] = Registry("step")


class StepFunction(Generic[P, T]):
    """A step. In a workflow, a call of it is recorded and runs elsewhere. Elsewhere it is the plain function.

    `fn` is the plain function itself.
    """

    binding: type[staticmethod[..., Any] | classmethod[Any, ..., Any]] | None = None
    """How the function was decorated below `@step`, which says what a step in a class is bound to."""

    def __init__(
        self,
        fn: Callable[P, Any],
        name: str,
        options: StepOptions,
        metadata: Mapping[str, Any] | None = None,
        compensate: Callable[..., Any] | None = None,
    ) -> None:
        functools.update_wrapper(self, fn, updated=())
        self.fn = fn
        self.compensate = compensate
        self.name = name
        self.step_options = options
        self.metadata = dict(metadata or {})
        self._arguments: Arguments | None = None

    # Not Coroutine[Any, Any, T]: in that, mypy loses the types of a gather of different steps.
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, T]:
        execution = current.get()
        if execution is None:
            return self.fn(*args, **kwargs)  # type: ignore[no-any-return]
        if self._arguments is None:
            self._arguments = self._new_arguments()
        checked_args, checked_kwargs = self._arguments.check(args, kwargs)
        undo = None
        if self.compensate is not None:
            # A step with a parameter `result` hands its own argument on.
            gives_result = not self._arguments.names("result")
            undo = _compensating(execution, self.compensate, gives_result, checked_args, checked_kwargs)
        return execution.call_step(self, self.name, checked_args, checked_kwargs, self.step_options, undo)

    def _new_arguments(self) -> Arguments:
        def hint(name: str) -> str:
            called = f"{getattr(self, '__name__', self.name)}.options({name}=...)(...)"
            return f"{name!r} is an option of steps: {called} gives it." if name in OPTIONS else ""

        return Arguments(self.fn, f"step {self.name!r}", hint)

    def options(self, **overrides: Any) -> StepFunction[P, T]:
        """The same step with other options, for one call: ``charge.options(num_gpus=1)(order)``.

        Takes every option of `step`, and `step_id`, which names the call in place of the generated
        ``name#ordinal`` and must be unique in its run.

        Raises:
            ConfigurationError: An option is unknown or its value is not accepted.
        """
        name = overrides.pop("name", None) or self.name
        metadata = {**self.metadata, **(overrides.pop("metadata", None) or {})}
        compensate = overrides.pop("compensate", self.compensate)
        built = build_options(f"step {name!r}", self.step_options, overrides)
        changed: StepFunction[P, T] = StepFunction(self.fn, name, built, metadata, compensate)
        changed._arguments, changed.binding = self._arguments, self.binding
        return changed

    @overload
    async def map(
        self,
        *iterables: Iterable[Any],
        max_in_flight: int | None = None,
        batch_size: int | None = None,
        return_exceptions: Literal[False] = False,
    ) -> list[T]: ...
    @overload
    async def map(
        self,
        *iterables: Iterable[Any],
        max_in_flight: int | None = None,
        batch_size: int | None = None,
        return_exceptions: bool,
    ) -> list[T | Exception]: ...
    @must_be_awaited("map()")
    async def map(
        self,
        *iterables: Iterable[Any],
        max_in_flight: int | None = None,
        batch_size: int | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """The results of one call for each item, in the items' order.

        Args:
            iterables: One for each argument of the call. As with the builtin `map`, the shortest ends it.
            max_in_flight: How many calls may be unfinished at once; None is all.
            batch_size: How many calls may share one Ray task, in which they run one after another. Each is
                still a step of its own. It pays for steps of a few milliseconds; see docs/steps.md.
            return_exceptions: Whether errors of steps stand in the places of their results. Otherwise the
                first one cancels the other calls and is raised. A cancellation is always raised.

        Raises:
            ValueError: `max_in_flight` or `batch_size` is not a whole number of 1 or more.
            ConfigurationError: The step is local or must not run twice, and cannot share a Ray task.
        """
        if not iterables:
            raise TypeError(f"{self.name}.map() needs at least one iterable.")
        step = self if batch_size is None else self._in_batches(batch_size)
        called: Callable[..., Any] = step
        calls: Iterable[tuple[Any, ...]] = zip(*iterables, strict=False)
        return await bounded_map(lambda args: called(*args), calls, max_in_flight, return_exceptions)

    def _in_batches(self, size: int) -> StepFunction[P, T]:
        """The same step, with attempts that share Ray tasks."""
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"batch_size is {size!r}: give a whole number of 1 or more, or None.")
        if self.step_options.local:
            raise ConfigurationError(
                f"{self.name}.map(batch_size={size}): a local step has no Ray task that several calls could "
                "share. Drop batch_size or local=True."
            )
        if not self.step_options.idempotent:
            raise ConfigurationError(
                f"{self.name}.map(batch_size={size}): the step must not run twice (idempotent=False), and a "
                "lost worker would fail all calls that share it. Drop batch_size."
            )
        options = replace(self.step_options, batch_size=size)
        copy: StepFunction[P, T] = StepFunction(self.fn, self.name, options, self.metadata, self.compensate)
        copy._arguments = self._arguments = self._arguments or self._new_arguments()
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A step of an installed package is imported wherever it is needed; any other carries its code.
        reference = modules.reference_of(self)
        if reference is not None:
            return modules.load_reference, (reference,)
        return super().__reduce_ex__(protocol)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arguments": None}

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if self.binding is classmethod:
            return BoundStep(self, type(instance) if owner is None else owner)
        return self if instance is None or self.binding is staticmethod else BoundStep(self, instance)

    def __repr__(self) -> str:
        return f"<step {self.name!r}>"


@overload
def step(fn: Callable[P, Coroutine[Any, Any, T]], /) -> StepFunction[P, T]: ...
@overload
def step(fn: Callable[P, T], /) -> StepFunction[P, T]: ...
@overload
def step(
    fn: None = None,
    /,
    *,
    name: str | None = None,
    max_retries: int | None = None,
    retry_delay: RetryDelay = "exponential",
    timeout: Duration | None = None,
    metadata: Mapping[str, Any] | None = None,
    local: bool = False,
    on_cancel: str = "wait",
    compensate: Callable[..., Any] | None = None,
    retry_on: Any = None,
    idempotent: bool = True,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    memory: float | None = None,
    resources: Mapping[str, float] | None = None,
    accelerator_type: str | None = None,
    label_selector: Mapping[str, str] | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    scheduling_strategy: Any = None,
) -> _StepDecorator: ...
def step(fn: Any = None, /, **options: Any) -> Any:
    """Make a function a step; use it bare, or with options.

    In a workflow, ``await charge(order)`` records the call, runs the function as a Ray task, and tries it
    again when it fails. Every replay gets the recorded result. The function may be `async def` or `def`.

    Args:
        name: The step's name in the history; the function's by default.
        max_retries: Further attempts after the first; the setting `default_retries` (3) by default.
        retry_delay: The pause before each: ``"exponential"`` (1 s, 2 s, 4 s ... 300 s at most, plus jitter),
            ``"fixed"`` (60 s), a duration, a list of durations (the last repeats), or a `RetryPolicy`.
        timeout: How long one attempt may take. It is stopped after that, and counts as failed.
        metadata: Kept on the step for tools to show.
        local: Run the step in the coordinator's process. A cheap call then needs one commit and no task.
        on_cancel: What happens to an attempt in flight when the run is cancelled: "wait", "interrupt", "kill"
            or "abandon".
        compensate: The step (or function) that undoes this one. It is called if the run fails or is cancelled
            later, with the same arguments, and with `result` if it has a parameter of that name.
        retry_on: Exception types, or a predicate of the exception. Other exceptions are not tried again.
        idempotent: False when a second run could do harm. A lost worker then fails the step.
        num_cpus, num_gpus, memory, resources, accelerator_type, label_selector, runtime_env,
            scheduling_strategy: Options of the Ray task.

    Raises:
        ConfigurationError: An option is unknown or not accepted, or another step has this name.
    """
    if fn is not None and not callable(fn) and not isinstance(fn, classmethod):
        raise ConfigurationError(f"@step takes its options by name; {fn!r} is not a function.")
    decorator = _StepDecorator(options)
    return decorator if fn is None else decorator(fn)


class _StepDecorator:
    """`@step(...)`, waiting for its function."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        self._name = self._options.pop("name", None)
        self._metadata = self._options.pop("metadata", None)
        self._compensate = _as_compensation(self._options.pop("compensate", None))
        _refuse_step_id(self._options)
        self._built = build_options("@step", StepOptions(), self._options)

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]], /) -> StepFunction[P, T]: ...
    @overload
    def __call__(self, fn: Callable[P, T], /) -> StepFunction[P, T]: ...
    def __call__(self, fn: Any, /) -> StepFunction[Any, Any]:
        binding = next((kind for kind in (staticmethod, classmethod) if isinstance(fn, kind)), None)
        if binding is not None:
            fn = fn.__func__
        _refuse_workflow(fn)
        definition: StepFunction[Any, Any] = StepFunction(
            fn,
            checked_text(self._name or function_name(fn, "step"), "The step's name"),
            self._built,
            self._metadata,
            self._compensate,
        )
        definition.binding = binding
        registry.add(definition)
        return definition


def _refuse_step_id(options: Mapping[str, Any]) -> None:
    if "step_id" in options:
        raise ConfigurationError(
            "@step(step_id=...): a step id names one call, and must be unique in its run. Give it there: "
            "charge.options(step_id='charge-42')(order)."
        )


def _refuse_workflow(fn: Any) -> None:
    if hasattr(fn, "workflow_options"):
        raise ConfigurationError(
            f"{fn!r} is a workflow and cannot be a step too. Keep one of @workflow and @step. To run a "
            "workflow from another one, await start_child_workflow(workflow, ...)."
        )


def _as_compensation(value: Any) -> Callable[..., Any] | None:
    if value is not None and not callable(value):
        raise ConfigurationError(
            f"@step(compensate={value!r}): give the step (or function) that undoes this one."
        )
    return value  # type: ignore[no-any-return]


def _compensating(
    execution: Execution,
    compensate: Callable[..., Any],
    gives_result: bool,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Callable[[Any], None]:
    """A function that, once the step has its result, adds the compensation that undoes the step."""
    undo = as_step(compensate)
    signature = shown_signature(compensate) if gives_result else None
    wants_result = signature is not None and "result" in signature.parameters

    def on_completed(result: Any) -> None:
        given = {**kwargs, "result": result} if wants_result else kwargs
        execution.compensations.add(undo, *args, **given)

    return on_completed


def as_step(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A step unchanged; any other function made a step."""
    if isinstance(fn, StepFunction | Step | BoundStep):
        return fn
    return StepFunction(fn, function_name(fn, "step"), StepOptions())


class StepRunner:
    """`run_step` with its options given: a call takes the function and its arguments."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options

    @must_be_awaited("run_step()")
    async def __call__(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        options = dict(self._options)
        step: Any
        if isinstance(fn, StepFunction | Step | BoundStep):
            step = fn.options(**options)
        else:
            name = options.pop("name", None) or function_name(fn, "step")
            metadata = options.pop("metadata", None)
            compensate = _as_compensation(options.pop("compensate", None))
            built = build_options(f"step {name!r}", StepOptions(), options)
            step = StepFunction(fn, name, built, metadata, compensate)
        result = step(*args, **kwargs)
        return await result if is_unfinished(result) else result


class RunStep:
    """Runs steps. `run_step.options(...)` separates its options from the function's arguments."""

    @must_be_awaited("run_step()")
    async def __call__(self, fn: Callable[..., Any], /, *args: Any, **options_and_kwargs: Any) -> Any:
        """Call a function that nobody decorated as a step: ``await run_step(fetch, url, num_cpus=2)``.

        Keywords that are options of `step` are its options; the rest go to the function.

        Raises:
            ConfigurationError: A keyword is an option and a parameter of the function.
        """
        options = {name: value for name, value in options_and_kwargs.items() if name in OPTIONS}
        kwargs = {name: value for name, value in options_and_kwargs.items() if name not in options}
        if options:
            _refuse_ambiguous(fn, options)
        return await StepRunner(options)(fn, *args, **kwargs)

    def options(self, **options: Any) -> StepRunner:
        """``await run_step.options(timeout="5m")(fetch, url, timeout=30)``. Takes every option of `step`."""
        return StepRunner(options)


run_step = RunStep()


def _refuse_ambiguous(fn: Callable[..., Any], options: Mapping[str, Any]) -> None:
    execution = current.get()
    if execution is not None and execution.is_replaying:
        return  # what is recorded was an option
    signature = shown_signature(fn.step.fn if isinstance(fn, BoundStep) else fn)
    for name in options:
        if signature is not None and name in signature.parameters:
            called = getattr(fn, "__name__", type(fn).__name__)
            raise ConfigurationError(
                f"{name!r} is an option of run_step() and a parameter of {called}. Say which is meant: "
                f"run_step.options({name}=...)({called}, ...) for the option, "
                f"run_step.options()({called}, {name}=...) for the parameter."
            )


class Step:
    """A step as a class: subclass it, write `execute`, and call an instance: ``await Charge()(order)``.

    Class attributes `name`, `max_retries`, `retry_delay`, `timeout` and the other options of `step` set its
    options. What `__init__` stores on the instance goes with it to the process where the step runs.
    """

    name: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_misspelt(cls, "step", OPTIONS)
        given = {
            option: getattr(cls, option)
            for option in OPTIONS
            if option not in ("name", "metadata") and hasattr(cls, option)
        }
        _refuse_step_id(given)
        cls._step_name = cls.__dict__.get("name") or cls.__name__
        metadata = getattr(cls, "metadata", None)
        cls._metadata = metadata if isinstance(metadata, Mapping) else None
        cls._compensate = staticmethod(given.pop("compensate")) if given.get("compensate") else None
        cls._step_options = build_options(f"step {cls._step_name!r}", StepOptions(), given)
        if cls.execute is not Step.execute:  # else a base of other steps
            registry.add(StepFunction(_ExecuteMethod(cls), cls._step_name, cls._step_options, cls._metadata))

    _step_name: str = "Step"
    _metadata: Mapping[str, Any] | None = None
    _compensate: Any = None
    _step_options: StepOptions = StepOptions()

    async def execute(self, /, *args: Any, **kwargs: Any) -> Any:
        """The step's work."""
        raise NotImplementedError(f"{type(self).__name__} must define `async def execute(self, ...)`.")

    def options(self, **overrides: Any) -> StepFunction[..., Any]:
        """This step with other options, for one call."""
        return self._as_function().options(**overrides)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._as_function()(*args, **kwargs)

    def _as_function(self) -> StepFunction[..., Any]:
        return StepFunction(
            self.execute, self._step_name, self._step_options, self._metadata, type(self)._compensate
        )


class _ExecuteMethod:
    """A step class as the function that makes an instance and executes it."""

    def __init__(self, cls: type[Step]) -> None:
        self.cls = cls
        self.__name__, self.__qualname__, self.__module__ = cls.__name__, cls.__qualname__, cls.__module__
        self.__doc__ = cls.__doc__
        self.__signature__ = without_first(shown_signature(cls.execute))

    @property
    def __method__(self) -> Callable[..., Any]:
        return self.cls.execute

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.cls().execute(*args, **kwargs)


def list_steps() -> dict[str, StepFunction[Any, Any]]:
    """Every step that this process has defined, by name."""
    return registry.all()


def get_step(name: str) -> StepFunction[Any, Any]:
    """The step of this name.

    Raises:
        WorkflowNotFoundError: This process has defined none.
    """
    return registry.get(name)
