"""The options of steps, as people give them, checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from pyworkflow_ray.durations import Duration, parse_timeout
from pyworkflow_ray.engine.options import ON_CANCEL, StepOptions
from pyworkflow_ray.engine.retries import Pauses, as_retry_on
from pyworkflow_ray.exceptions import ConfigurationError

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

OWN_OPTIONS = (
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
"""Options of a step that are ours."""

OPTIONS = (*OWN_OPTIONS, *RAY_OPTIONS)


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
                    changes["timeout"] = _as_timeout(value)
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
                    alike = difflib.get_close_matches(option, OPTIONS, n=1)
                    hint = f"did you mean {alike[0]!r}?" if alike else f"the options are {', '.join(OPTIONS)}"
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


def _as_timeout(value: Duration | None) -> timedelta | None:
    timeout = parse_timeout(value)
    if timeout is not None and not timeout:
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
