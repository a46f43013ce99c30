"""Test kit: workflows that run in this process, on the test's own clock, and replays of histories."""

from pyworkflow_ray.testing.clocks import VirtualClock
from pyworkflow_ray.testing.crash_checks import check_every_crash
from pyworkflow_ray.testing.environments import WorkflowEnvironment
from pyworkflow_ray.testing.fail_points import FailPoint
from pyworkflow_ray.testing.histories import History, load_history, save_history
from pyworkflow_ray.testing.mock_answers import NEVER, MissingMockError
from pyworkflow_ray.testing.mock_contexts import ContinuedAsNew, MockContext
from pyworkflow_ray.testing.replays import ReplayResult, replay, replay_directory

__all__ = [
    "NEVER",
    "ContinuedAsNew",
    "FailPoint",
    "History",
    "MissingMockError",
    "MockContext",
    "ReplayResult",
    "VirtualClock",
    "WorkflowEnvironment",
    "check_every_crash",
    "load_history",
    "replay",
    "replay_directory",
    "save_history",
]
