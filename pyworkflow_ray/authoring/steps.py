"""Steps: the functions that do a workflow's real work. They may be tried again."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Generic, Literal, ParamSpec, TypeVar, overload

from pyworkflow_ray.authoring.arguments import Arguments
from pyworkflow_ray.authoring.definitions import Registry
from pyworkflow_ray.durations import Duration, parse_duration
from pyworkflow_ray.engine.executions import Execution, current
from pyworkflow_ray.engine.options import ON_CANCEL, StepOptions
from pyworkflow_ray.engine.races import bounded_map
from pyworkflow_ray.engine.retries import Pauses, RetryDelay, as_retry_on
from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.ids import checked_text
from pyworkflow_ray.values import modules

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")

RAY_OPTIONS = (
    "num_cpus",
    "num_gpus",
    "memory",
    "object_store_memory",
    "resources",
    "accelerator_type",
    "label_selector",
    "runtime_env",
    "scheduling_strategy",
)
"""Options of a step that are handed to its Ray task."""

_OWN_OPTIONS = (
    "max_retries",
    "retry_delay",
    "timeout",
    "metadata",
    "local",
    "on_cancel",
    "compensate",
    "retry_on",
    "idempotent",
    "step_id",
    "name",
)

registry: Registry[StepFunction[Any, Any]] = Registry("step")


class StepFunction(Generic[P, T]):
    """A step. In a workflow, a call of it is recorded and runs elsewhere. Elsewhere it is the plain function.

    `fn` is the plain function itself.
    """

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
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, T]:
        execution = current.get()
        if execution is None:
            return self.fn(*args, **kwargs)  # type: ignore[no-any-return]
        if self._arguments is None:
            self._arguments = Arguments(self.fn, f"step {self.name!r}")
        checked_args, checked_kwargs = self._arguments.check(args, kwargs)
        undo = None
        if self.compensate is not None:
            undo = _compensating(execution, self.compensate, checked_args, checked_kwargs)
        return execution.call_step(self, self.name, checked_args, checked_kwargs, self.step_options, undo)

    def options(self, **overrides: Any) -> StepFunction[P, T]:
        """The same step with other options, for one call: ``charge.options(num_gpus=1)(order)``.

        Takes every option of `step`, and `step_id`, which names the call in place of the generated
        ``name#ordinal`` and must be unique in its run.

        Raises:
            ConfigurationError: An option is unknown or its value is not accepted.
        """
        name = overrides.pop("name", self.name)
        metadata = {**self.metadata, **(overrides.pop("metadata", None) or {})}
        compensate = overrides.pop("compensate", self.compensate)
        built = build_options(f"step {name!r}", self.step_options, overrides)
        changed: StepFunction[P, T] = StepFunction(self.fn, name, built, metadata, compensate)
        changed._arguments = self._arguments
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
        copy._arguments = self._arguments = self._arguments or Arguments(self.fn, f"step {self.name!r}")
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
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<step {self.name!r}>"


def build_options(what: str, base: StepOptions, given: Mapping[str, Any]) -> StepOptions:
    """The options of `base`, changed by those in `given`, and checked.

    Raises:
        ConfigurationError: An option is unknown (the error suggests one) or its value is not accepted.
    """
    changes: dict[str, Any] = {}
    ray_options = dict(base.ray_options)
    for option, value in given.items():
        try:
            match option:
                case "max_retries":
                    changes["max_retries"] = _as_count(value)
                case "retry_delay":
                    changes["pauses"] = Pauses(value)
                case "timeout":
                    changes["timeout"] = None if value is None else _as_timeout(value)
                case "retry_on":
                    changes["retry_on"] = as_retry_on(value)
                case "on_cancel":
                    if value not in ON_CANCEL:
                        raise ValueError(f"give one of {', '.join(map(repr, ON_CANCEL))}")
                    changes["on_cancel"] = value
                case "local" | "idempotent":
                    changes[option] = bool(value)
                case "step_id":
                    changes["step_id"] = None if value is None else str(value)
                case _ if option in RAY_OPTIONS:
                    if value is None:
                        ray_options.pop(option, None)
                    else:
                        ray_options[option] = _as_ray_option(option, value)
                case _:
                    known = (*_OWN_OPTIONS, *RAY_OPTIONS)
                    alike = difflib.get_close_matches(option, known, n=1)
                    hint = f"did you mean {alike[0]!r}?" if alike else f"the options are {', '.join(known)}"
                    raise ValueError(f"there is no such option; {hint}")
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"Option {option}={value!r} of {what}: {error}") from None
    options = replace(base, ray_options=ray_options, **changes)
    if options.local and options.ray_options:
        raise ConfigurationError(
            f"Options of {what}: a local step runs in the coordinator's process and takes no Ray resources "
            f"({', '.join(options.ray_options)}). Drop local=True or the resources."
        )
    return options


def _as_count(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("give a whole number of retries, 0 or more")
    return value


def _as_timeout(value: Duration) -> timedelta:
    timeout = parse_duration(value)
    if not timeout:
        raise ValueError("a timeout must be longer than 0")
    return timeout


def _as_ray_option(option: str, value: Any) -> Any:
    if option in ("num_cpus", "num_gpus", "memory", "object_store_memory"):
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ValueError("give a number, 0 or more")
    elif option == "resources":
        if not isinstance(value, Mapping) or not all(isinstance(v, int | float) for v in value.values()):
            raise ValueError("give a mapping of resource names to amounts")
        return dict(value)
    return value


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
def step(fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
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
    if fn is not None and not callable(fn):
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
        if "step_id" in self._options:
            raise ConfigurationError(
                "@step(step_id=...): a step id names one call, and must be unique in its run. Give it there: "
                "charge.options(step_id='charge-42')(order)."
            )
        self._built = build_options("@step", StepOptions(), self._options)

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]], /) -> StepFunction[P, T]: ...
    @overload
    def __call__(self, fn: Callable[P, T], /) -> StepFunction[P, T]: ...
    def __call__(self, fn: Callable[..., Any], /) -> StepFunction[Any, Any]:
        definition: StepFunction[Any, Any] = StepFunction(
            fn,
            checked_text(self._name or function_name(fn, "step"), "The step's name"),
            self._built,
            self._metadata,
            self._compensate,
        )
        registry.add(definition)
        return definition


def _as_compensation(value: Any) -> Callable[..., Any] | None:
    if value is not None and not callable(value):
        raise ConfigurationError(
            f"@step(compensate={value!r}): give the step (or function) that undoes this one."
        )
    return value  # type: ignore[no-any-return]


def _compensating(
    execution: Execution, compensate: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[[Any], None]:
    """A function that, once the step has its result, adds the compensation that undoes the step."""
    undo = as_step(compensate)
    wants_result = "result" in inspect.signature(compensate).parameters

    def on_completed(result: Any) -> None:
        given = {**kwargs, "result": result} if wants_result else kwargs
        execution.compensations.add(undo, *args, **given)

    return on_completed


def as_step(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A step unchanged; any other function made a step."""
    if isinstance(fn, StepFunction | Step):
        return fn
    return StepFunction(fn, function_name(fn, "step"), StepOptions())


def function_name(fn: Callable[..., Any], kind: str) -> str:
    """The name that a definition takes from its function.

    Raises:
        ConfigurationError: The function is a generator, which cannot be run as one call.
    """
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise ConfigurationError(
            f"A {kind} cannot be a generator: {fn.__qualname__} yields. Return a list instead."
        )
    return getattr(fn, "__name__", type(fn).__name__)


async def run_step(fn: Callable[..., Any], /, *args: Any, **options_and_kwargs: Any) -> Any:
    """Call a function that nobody decorated as a step: ``await run_step(fetch, url, num_cpus=2)``.

    Keywords that are options of `step` are its options; the rest go to the function.
    """
    options = {k: v for k, v in options_and_kwargs.items() if k in _OWN_OPTIONS or k in RAY_OPTIONS}
    kwargs = {k: v for k, v in options_and_kwargs.items() if k not in options}
    if isinstance(fn, StepFunction):
        return await fn.options(**options)(*args, **kwargs)
    name = options.pop("name", None) or function_name(fn, "step")
    metadata = options.pop("metadata", None)
    compensate = _as_compensation(options.pop("compensate", None))
    call: StepFunction[Any, Any] = StepFunction(
        fn, name, build_options(f"step {name!r}", StepOptions(), options), metadata, compensate
    )
    result = call(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result


class Step:
    """A step as a class: subclass it, write `execute`, and call an instance: ``await Charge()(order)``.

    Class attributes `name`, `max_retries`, `retry_delay`, `timeout` and the other options of `step` set its
    options. What `__init__` stores on the instance goes with it to the process where the step runs.
    """

    name: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        given = {
            option: getattr(cls, option)
            for option in (*_OWN_OPTIONS, *RAY_OPTIONS)
            if option not in ("name", "metadata", "step_id") and hasattr(cls, option)
        }
        cls._step_name = cls.__dict__.get("name") or cls.__name__
        cls._compensate = staticmethod(given.pop("compensate")) if given.get("compensate") else None
        cls._step_options = build_options(f"step {cls._step_name!r}", StepOptions(), given)
        if cls.execute is not Step.execute:  # else a base of other steps
            registry.add(StepFunction(_ExecuteMethod(cls), cls._step_name, cls._step_options))

    _step_name: str = "Step"
    _compensate: Any = None
    _step_options: StepOptions = StepOptions()

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        """The step's work."""
        raise NotImplementedError(f"{type(self).__name__} must define `async def execute(self, ...)`.")

    def options(self, **overrides: Any) -> StepFunction[..., Any]:
        """This step with other options, for one call."""
        return self._as_function().options(**overrides)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._as_function()(*args, **kwargs)

    def _as_function(self) -> StepFunction[..., Any]:
        return StepFunction(
            self.execute, self._step_name, self._step_options, compensate=type(self)._compensate
        )


class _ExecuteMethod:
    """A step class as the function that makes an instance and executes it."""

    def __init__(self, cls: type[Step]) -> None:
        self.cls = cls
        self.__name__, self.__qualname__, self.__module__ = cls.__name__, cls.__qualname__, cls.__module__
        self.__doc__ = cls.__doc__
        signature = inspect.signature(cls.execute)
        self.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
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
