"""Workflows: the async functions whose runs survive."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, ParamSpec, TypeVar, overload

from pyworkflow_ray.authoring.arguments import Arguments, Hint
from pyworkflow_ray.authoring.definitions import Registry, function_name, refuse_misspelt
from pyworkflow_ray.callables import is_async, shown_signature, without_first
from pyworkflow_ray.durations import Duration, parse_duration
from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.ids import checked_text
from pyworkflow_ray.values import modules

P = ParamSpec("P")
T = TypeVar("T")

MAX_TAGS = 3
ISOLATIONS = ("process",)
_CLASS_OPTIONS = (
    "durable",
    "max_duration",
    "tags",
    "recover_on_worker_loss",
    "max_recovery_attempts",
    "isolation",
)
OPTIONS = ("name", *_CLASS_OPTIONS)
"""The options of `@workflow`."""

registry: Registry[WorkflowFunction[Any, Any]] = Registry("workflow")

_Code = Callable[..., Coroutine[Any, Any, Any]]
Caller = Callable[
    ["WorkflowFunction[Any, Any]", _Code, tuple[Any, ...], Mapping[str, Any]], Coroutine[Any, Any, Any]
]
caller: ContextVar[Caller | None] = ContextVar("pyworkflow_ray_caller", default=None)
"""What carries out calls of workflows in place of a plain call: a test's `MockContext`. None in runs."""


@dataclass(frozen=True, slots=True)
class WorkflowOptions:
    """The options of a workflow, checked; None leaves one to the settings."""

    durable: bool | None = None
    max_duration: timedelta | None = None
    tags: tuple[str, ...] = ()
    recover_on_worker_loss: bool | None = None
    max_recovery_attempts: int | None = None
    isolation: str | None = None


class WorkflowFunction(Generic[P, T]):
    """A workflow. `start` and `run_workflow` make runs of it. A call of it is the plain function.

    `fn` is the plain function itself.
    """

    def __init__(self, fn: Callable[P, Coroutine[Any, Any, T]], name: str, options: WorkflowOptions) -> None:
        functools.update_wrapper(self, fn, updated=())
        self.fn = fn
        self.name = name
        self.workflow_options = options
        self._arguments: Arguments | None = None

    # Not Coroutine[Any, Any, T]: in that, mypy loses the types of a gather of different steps.
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, T]:
        call = caller.get()
        return self.fn(*args, **kwargs) if call is None else call(self, self.fn, args, kwargs)

    def check_arguments(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], hint: Hint | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as the function will get them.

        Args:
            hint: Asked about a keyword that the function does not take.

        Raises:
            StepValidationError: They do not fit its signature.
        """
        if self._arguments is None:
            self._arguments = Arguments(self.fn, f"workflow {self.name!r}")
        return self._arguments.check(args, kwargs, hint)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the function's parameters."""
        signature = shown_signature(self.fn)
        return () if signature is None else tuple(signature.parameters)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A workflow of an installed package is imported where it is needed. Any other carries its code.
        reference = modules.reference_of(self)
        if reference is not None:
            return modules.load_reference, (reference,)
        return super().__reduce_ex__(protocol)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arguments": None}

    def __repr__(self) -> str:
        return f"<workflow {self.name!r}>"


@overload
def workflow(fn: Callable[P, Coroutine[Any, Any, T]], /) -> WorkflowFunction[P, T]: ...
@overload
def workflow(
    fn: None = None,
    /,
    *,
    name: str | None = None,
    durable: bool | None = None,
    max_duration: Duration | None = None,
    tags: Sequence[str] | None = None,
    recover_on_worker_loss: bool | None = None,
    max_recovery_attempts: int | None = None,
    isolation: str | None = None,
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], WorkflowFunction[P, T]]: ...
def workflow(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    durable: bool | None = None,
    max_duration: Duration | None = None,
    tags: Sequence[str] | None = None,
    recover_on_worker_loss: bool | None = None,
    max_recovery_attempts: int | None = None,
    isolation: str | None = None,
    **unknown: Any,
) -> Any:
    """Make an `async def` function a workflow; use it bare, or with options.

    Args:
        name: The workflow's name; the function's by default.
        durable: False runs it in memory, without a history. The setting `default_durable` (True) by default.
        max_duration: How long a run may take in all ("1h", seconds, `timedelta`).
        tags: Up to three words by which runs are found.
        recover_on_worker_loss: Whether a run goes on after its coordinator or a step's worker has died.
        max_recovery_attempts: How many times in a row that may happen before the run gets further.
        isolation: "process" gives every run a coordinator process of its own.

    Raises:
        ConfigurationError: The function is not `async def`, an option is not accepted, or another workflow
            has this name.
    """
    for option in unknown:
        alike = difflib.get_close_matches(option, OPTIONS, n=1)
        hint = f"did you mean {alike[0]!r}?" if alike else f"the options are {', '.join(OPTIONS)}"
        raise ConfigurationError(f"Option {option} of @workflow: there is no such option; {hint}")
    options = _build_options(
        durable, max_duration, tags, recover_on_worker_loss, max_recovery_attempts, isolation
    )

    def decorate(fn: Callable[..., Any]) -> WorkflowFunction[Any, Any]:
        definition = _define(fn, name, options)
        registry.add(definition)
        return definition

    return decorate if fn is None else decorate(fn)


def _build_options(
    durable: bool | None,
    max_duration: Duration | None,
    tags: Sequence[str] | None,
    recover_on_worker_loss: bool | None,
    max_recovery_attempts: int | None,
    isolation: str | None,
) -> WorkflowOptions:
    if tags is not None and (isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags)):
        raise ConfigurationError(f"@workflow(tags={tags!r}): give a list of texts.")
    if tags is not None and len(tags) > MAX_TAGS:
        raise ConfigurationError(f"@workflow(tags={list(tags)!r}): {len(tags)} tags, and {MAX_TAGS} at most.")
    if isolation is not None and isolation not in ISOLATIONS:
        raise ConfigurationError(f"@workflow(isolation={isolation!r}): give 'process' or leave it out.")
    if max_recovery_attempts is not None and max_recovery_attempts < 0:
        raise ConfigurationError(
            f"@workflow(max_recovery_attempts={max_recovery_attempts!r}): give 0 or more."
        )
    try:
        duration = None if max_duration is None else parse_duration(max_duration)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"@workflow(max_duration={max_duration!r}): {error}") from None
    return WorkflowOptions(
        durable, duration, tuple(tags or ()), recover_on_worker_loss, max_recovery_attempts, isolation
    )


def _define(fn: Callable[..., Any], name: str | None, options: WorkflowOptions) -> WorkflowFunction[Any, Any]:
    if not callable(fn):
        raise ConfigurationError(f"@workflow takes its options by name; {fn!r} is not a function.")
    _refuse_step(fn)
    called = checked_text(name or function_name(fn, "workflow"), "The workflow's name")
    _refuse_method(fn, called)
    # A decorator's plain function may return what an `async def` function inside of it does.
    if not is_async(fn) and not is_async(inspect.unwrap(fn)):
        raise ConfigurationError(f"Workflow {called!r} must be an `async def` function.")
    return WorkflowFunction(fn, called, options)


def _refuse_step(fn: Any) -> None:
    if hasattr(fn, "step_options"):
        raise ConfigurationError(
            f"{fn!r} is a step and cannot be a workflow too. Keep one of @workflow and @step: a workflow is "
            "an `async def` function that calls steps."
        )


def _refuse_method(fn: Any, name: str) -> None:
    owner = getattr(fn, "__qualname__", "").rpartition(".")[0]
    parameters = list(getattr(shown_signature(fn), "parameters", ()))
    if owner and not owner.endswith("<locals>") and parameters[:1] in (["self"], ["cls"]):
        cls = owner.rpartition(".")[2]
        raise ConfigurationError(
            f"Workflow {name!r} is a method of {owner}, and a run has no object to call it on. Move the "
            "function out of the class, or make the class the workflow: "
            f"class {cls}(Workflow): async def run(self, ...)."
        )


class Workflow:
    """A workflow as a class: subclass it, write `async def run(self, ...)`, and `start(Order, order_id)`.

    Class attributes `name`, `durable`, `max_duration`, `tags`, `recover_on_worker_loss`,
    `max_recovery_attempts` and `isolation` are its options.
    """

    _definition: WorkflowFunction[Any, Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_misspelt(cls, "workflow", OPTIONS)
        if "run" not in cls.__dict__:
            return  # a base of other workflows
        if not is_async(cls.run) and not is_async(inspect.unwrap(cls.run)):
            raise ConfigurationError(f"{cls.__qualname__}.run must be an `async def` method.")
        options = _build_options(*(getattr(cls, option, None) for option in _CLASS_OPTIONS))
        definition: WorkflowFunction[Any, Any] = WorkflowFunction(
            _RunMethod(cls), cls.__dict__.get("name") or cls.__name__, options
        )
        cls._definition = definition
        registry.add(definition)

    async def run(self, /, *args: Any, **kwargs: Any) -> Any:
        """The workflow's code."""
        raise NotImplementedError

    def __call__(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        call = caller.get()
        if call is None or self._definition is None:
            return self.run(*args, **kwargs)
        return call(self._definition, self.run, args, kwargs)


class _RunMethod:
    """A workflow class as the function that makes an instance and runs it."""

    def __init__(self, cls: type[Workflow]) -> None:
        self.cls = cls
        self.__name__, self.__qualname__, self.__module__ = cls.__name__, cls.__qualname__, cls.__module__
        self.__doc__ = cls.__doc__
        self.__signature__ = without_first(shown_signature(cls.run))
        self.__annotations__ = cls.run.__annotations__

    @property
    def __method__(self) -> Callable[..., Any]:
        return self.cls.run

    def __call__(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        return self.cls().run(*args, **kwargs)


def as_workflow(value: Any) -> WorkflowFunction[Any, Any]:
    """The workflow that a caller means: a `@workflow` function, a `Workflow` class, or a name.

    Raises:
        WorkflowNotFoundError: No workflow has this name.
        ConfigurationError: It is none of these.
    """
    match value:
        case WorkflowFunction():
            return value
        case str():
            return registry.get(value)
        case type() if issubclass(value, Workflow) and value._definition is not None:
            return value._definition
        case Workflow() if value._definition is not None:
            return value._definition
        case Coroutine():
            value.close()  # nobody awaits it: without a word of Python's
            called = getattr(value, "__name__", "workflow")
            raise ConfigurationError(
                f"A coroutine was given where a workflow belongs: {called}(...) was called already. Give the "
                f"workflow itself, and its arguments after it: ({called}, ...) in place of ({called}(...))."
            )
        case _:
            name = getattr(value, "__qualname__", repr(value))
            raise ConfigurationError(
                f"{name} is not a workflow: decorate the function with @workflow, or subclass Workflow."
            )


def list_workflows() -> dict[str, WorkflowFunction[Any, Any]]:
    """Every workflow that this process has defined, by name."""
    return registry.all()


def get_workflow(name: str) -> WorkflowFunction[Any, Any]:
    """The workflow of this name.

    Raises:
        WorkflowNotFoundError: This process has defined none.
    """
    return registry.get(name)
