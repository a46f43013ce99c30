"""A definition's code on its way to where it runs, with the local files that it needs."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from pyworkflow_ray.actors.codes import named_in, pack, ship
from pyworkflow_ray.client.sessions import Session
from pyworkflow_ray.storage.codes import Code, has_bundle, save_bundle
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.values import modules
from pyworkflow_ray.values.bundles import Bundle, Bundler


@dataclass(frozen=True, slots=True)
class Shipment:
    """Code that can be loaded wherever the storage is.

    Args:
        naming: Which local modules the processes have that will run it; None for those of this process.
    """

    code: Code
    naming: modules.Naming | None = None

    def for_its_run(self) -> AbstractContextManager[None]:
        """Within it, values are encoded for the processes that will run the code."""
        return nullcontext() if self.naming is None else modules.naming(self.naming)


async def shipped(of: Session, definition: Any, what: str) -> Shipment:
    """The code of a definition. What it needs beside its row is stored.

    Raises:
        ConfigurationError: It holds something that cannot travel, or too much of it; it names what.
    """
    if not of.runtime.has_other_processes:
        return Shipment(pack(definition, what))
    code, bundle = ship(definition, what, _bundler(of.settings.code_files, of.settings.code_limit))
    of.runtime.check_code(code, bundle)
    if bundle is not None:
        await _store(of.storage, bundle)
    if code.bundle is not None and bundle is None:  # this process runs the bundle itself
        return Shipment(code)
    return Shipment(code, named_in(bundle))


async def _store(storage: Storage, bundle: Bundle) -> None:
    stored = _stored.setdefault(storage, set())
    if bundle.hash not in stored:
        if not await asyncio.to_thread(storage.read, has_bundle(bundle.hash)):
            await storage.write(save_bundle(bundle.hash, bundle.data))
        stored.add(bundle.hash)


_stored: WeakKeyDictionary[Storage, set[str]] = WeakKeyDictionary()
"""The bundles that a storage is known to have. Nothing deletes them."""


@lru_cache(maxsize=16)
def _bundler(patterns: tuple[str, ...], limit: int) -> Bundler:
    return Bundler(patterns, limit)
