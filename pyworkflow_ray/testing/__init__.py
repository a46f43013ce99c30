"""Test kit: workflows in this process, on a clock of the test's, and replays of recorded histories."""

from pyworkflow_ray.testing.answers import NEVER, MissingMockError
from pyworkflow_ray.testing.clocks import VirtualClock
from pyworkflow_ray.testing.crashes import check_every_crash
from pyworkflow_ray.testing.environments import WorkflowEnvironment
from pyworkflow_ray.testing.fail_points import FailPoint
from pyworkflow_ray.testing.mocks import ContinuedAsNew, MockContext
from pyworkflow_ray.testing.replays import replay

__all__ = [
    "NEVER",
    "ContinuedAsNew",
    "FailPoint",
    "MissingMockError",
    "MockContext",
    "VirtualClock",
    "WorkflowEnvironment",
    "check_every_crash",
    "replay",
]
