"""The types of events, as the log has them."""

from __future__ import annotations

from enum import StrEnum


class EventType(StrEnum):
    """The type of an event. It equals its text: `event.type == "step.completed"`."""

    WORKFLOW_STARTED = "workflow.started"
    WORKFLOW_COMPLETED = "workflow.completed"
    WORKFLOW_FAILED = "workflow.failed"
    WORKFLOW_INTERRUPTED = "workflow.interrupted"
    WORKFLOW_CANCELLED = "workflow.cancelled"
    WORKFLOW_CONTINUED_AS_NEW = "workflow.continued_as_new"
    STEP_STARTED = "step.started"
    STEP_COMPLETED = "step.completed"
    STEP_FAILED = "step.failed"
    STEP_RETRYING = "step.retrying"
    STEP_CANCELLED = "step.cancelled"
    SLEEP_STARTED = "sleep.started"
    SLEEP_COMPLETED = "sleep.completed"
    HOOK_CREATED = "hook.created"
    HOOK_RECEIVED = "hook.received"
    HOOK_EXPIRED = "hook.expired"
    HOOK_DISPOSED = "hook.disposed"
    CANCELLATION_REQUESTED = "cancellation.requested"
    CHILD_WORKFLOW_STARTED = "child_workflow.started"
    CHILD_WORKFLOW_COMPLETED = "child_workflow.completed"
    CHILD_WORKFLOW_FAILED = "child_workflow.failed"
    CHILD_WORKFLOW_CANCELLED = "child_workflow.cancelled"
    SIDE_EFFECT_RECORDED = "side_effect.recorded"
    PATCH_APPLIED = "patch.applied"
    SIGNAL_RECEIVED = "signal.received"
    ATTRIBUTES_SET = "attributes.set"
    SCHEDULE_CREATED = "schedule.created"
    SCHEDULE_UPDATED = "schedule.updated"
    SCHEDULE_PAUSED = "schedule.paused"
    SCHEDULE_RESUMED = "schedule.resumed"
    SCHEDULE_DELETED = "schedule.deleted"
    SCHEDULE_TRIGGERED = "schedule.triggered"
    SCHEDULE_SKIPPED = "schedule.skipped"
    SCHEDULE_BACKFILL_STARTED = "schedule.backfill_started"
    SCHEDULE_BACKFILL_COMPLETED = "schedule.backfill_completed"

    def __repr__(self) -> str:
        return repr(self.value)

    @property
    def is_known(self) -> bool:
        """Whether this version of the package knows the type."""
        return self._name_ in type(self).__members__

    @classmethod
    def _missing_(cls, value: object) -> EventType:
        # A later version of this package has written it. A reader can still show its text.
        unknown = str.__new__(cls, str(value))
        unknown._name_ = unknown._value_ = str(value)
        return unknown
