"""Values that are the same in every replay: random numbers, side effects, patches, attributes."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from msgspec import Raw

from pyworkflow_ray.engine.commands import ApplyPatch, RecordSideEffect, SetAttributes
from pyworkflow_ray.engine.events import NONE, AttributesSet, PatchApplied, SideEffectRecorded
from pyworkflow_ray.engine.scopes import Scope
from pyworkflow_ray.exceptions import StepFailedError
from pyworkflow_ray.ids import Ordinals, require_storable
from pyworkflow_ray.values.failures import capture, restore

_T = TypeVar("_T")


class Effects:
    """A run's random source, side effects, patches and attributes.

    Args:
        scope: The run.
    """

    def __init__(self, scope: Scope) -> None:
        self.random = random.Random()
        self.attributes: dict[str, Any] = {}
        self._scope = scope
        self._ordinals = Ordinals()
        self._unpatched: set[str] = set()
        # Invariant: a patch that is in here is False for the rest of the run.
        self.seed(scope.run_id)

    def seed(self, seed: str) -> None:
        """Start the random source anew."""
        self.random.seed(f"pyworkflow-ray:{seed}")

    def uuid4(self) -> uuid.UUID:
        """A UUID from the run's own random source."""
        return uuid.UUID(int=self.random.getrandbits(128), version=4)

    def side_effect(self, function: Callable[[], _T], name: str) -> _T:
        """What the function returned or raised when the code first came here."""
        recording = self._scope.recording
        effect_id = self._ordinals.next(name)
        recorded = recording.recorded(SideEffectRecorded, effect_id)
        if recorded is None:
            command = self._run(function, effect_id)
            recording.emit(command)
            value, failure = command.value, command.failure
        else:
            value, failure = recorded.value, recorded.failure
        # The first time as in every replay, the code gets what comes out of the history.
        if failure is not None:
            raise restore(failure, fallback=StepFailedError)
        result: _T = self._scope.codec.decode(value)
        return result

    def _run(self, function: Callable[[], Any], effect_id: str) -> RecordSideEffect:
        # A replay does not call the function. So nothing that it does to the random source may stay.
        random_state = self.random.getstate()
        try:
            value = function()
            encoded = self._scope.codec.encode(value, f"side effect {effect_id!r}")
            return RecordSideEffect(effect_id, Raw(encoded))
        except Exception as error:
            return RecordSideEffect(effect_id, NONE, capture(error))
        finally:
            self.random.setstate(random_state)

    def patched(self, patch_id: str) -> bool:
        """Whether the run has this change of its code: True if it came here with the new code.

        A run that has gone the old way once keeps to it, beyond the end of its history too.
        """
        recording = self._scope.recording
        if recording.peek(PatchApplied, patch_id) is not None:
            recording.skip()
            return True
        if recording.upcoming() is not None:
            self._unpatched.add(patch_id)
        if patch_id in self._unpatched or recording.divergence is not None:
            return False
        require_storable(patch_id)
        recording.is_replaying = False
        recording.emit(ApplyPatch(patch_id))
        return True

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Merge attributes into the run's. They are shown with the run, and can be searched for."""
        raw = Raw(self._scope.codec.encode(dict(attributes), "the run's attributes"))
        if self._scope.recording.recorded(AttributesSet) is None:
            self._scope.recording.emit(SetAttributes(raw))
        self.attributes.update(attributes)
