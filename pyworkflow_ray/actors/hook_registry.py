"""The hook registry: takes payloads for hooks, from whoever has a token.

It keeps nothing in memory. A payload is checked. Then it is stored with the hook's new status and a row in
the run's inbox, in one transaction. After that the sender is answered, and the run's coordinator is nudged.
If the registry dies in between, the sweep finds the row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Raw

from pyworkflow_ray.actors.codes import CodeLoader
from pyworkflow_ray.actors.payloads import configured_values
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.engine.events import HookReceived, encode_data
from pyworkflow_ray.exceptions import HookNotFoundError
from pyworkflow_ray.storage.codes import load_code
from pyworkflow_ray.storage.hooks import HookRecord, deliver, get_hook
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.values.failures import Failure
from pyworkflow_ray.values.schemas import validated


class HookRegistry:
    """Takes payloads for the hooks of a storage.

    Args:
        settings: The settings of all actors.
        nudge: Has a run look into its inbox. It may fail: the sweep finds the row.
        storage: Where the hooks are; opened from `settings` by default.
        now: A clock for the hooks' timeouts; the database's by default.
    """

    def __init__(
        self,
        settings: EngineSettings,
        nudge: Callable[[str], None],
        storage: Storage | None = None,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self.settings = settings
        self._now = now
        self._nudge = nudge
        self._opened = storage
        self._loader = CodeLoader()

    async def resume(self, token: str, payload: bytes, delivery_key: str) -> tuple[str, str]:
        """Give a hook its payload; the ids of the run and the hook.

        Args:
            payload: The value, encoded.
            delivery_key: The same for the same delivery: a second one has no effect.

        Raises:
            HookValidationError: The payload does not fit the hook's schema; nothing was stored.
            HookNotFoundError, HookExpiredError, HookAlreadyReceivedError: The hook takes none.
        """
        storage = self._storage()
        hook = await asyncio.to_thread(storage.read, get_hook(token))
        if hook is None:
            raise HookNotFoundError(token)
        if hook.schema_hash is not None:
            await asyncio.to_thread(self._validate, hook, hook.schema_hash, payload)
        return await self._deliver(token, delivery_key, HookReceived(hook_id="", payload=Raw(payload)))

    async def reject(self, token: str, failure: bytes, delivery_key: str) -> tuple[str, str]:
        """Let the workflow see an error where it waits for the hook; as `resume` otherwise.

        Args:
            failure: A `Failure`, as JSON.
        """
        told = msgspec.json.decode(failure, type=Failure)
        return await self._deliver(token, delivery_key, HookReceived(hook_id="", failure=told))

    async def _deliver(self, token: str, delivery_key: str, received: HookReceived) -> tuple[str, str]:
        now = None if self._now is None else self._now()
        hook = await self._storage().write(deliver(token, delivery_key, _without_id(received), now=now))
        self._nudge(hook.run_id)
        return hook.run_id, hook.hook_id

    def _validate(self, hook: HookRecord, schema_hash: str, payload: bytes) -> None:
        code = self._storage().read(load_code(schema_hash))
        if code is None:
            return  # the workflow validates it too
        values = configured_values(self.settings.payload_codec, self.settings.payload_limit)
        validated(self._loader.load(code), values.decode(payload), hook.name)

    def _storage(self) -> Storage:
        if self._opened is None:
            self._opened = self.settings.open_storage()
        return self._opened

    async def status(self) -> dict[str, Any]:
        """Whether it is there, for tools."""
        return {"storage": self._storage().url}


def _without_id(received: HookReceived) -> str:
    """The event's data as JSON, without the hook's id: which hook has the token is known in the commit."""
    members = msgspec.json.decode(encode_data(received), type=dict[str, Raw])
    del members["hook_id"]
    return msgspec.json.encode(members).decode()
