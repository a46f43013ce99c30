"""The settings that all actors of one engine share: the database, the names, the limits."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from typing import Any

from pyworkflow_ray.actors.names import COORDINATOR_PREFIX
from pyworkflow_ray.config import LogSettings, Settings
from pyworkflow_ray.storage.placements import Placement
from pyworkflow_ray.storage.storages import Storage


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The settings that travel to actors; the storage's URL is kept out of `repr`.

    Args:
        slots: How many coordinators runs are spread over.
        node_id: The node on which coordinators must live, because the SQLite file is only there.
        environment: Hash of the job's `runtime_env`, part of its coordinators' names.
    """

    storage_url: str = field(repr=False)
    synchronous: str = "FULL"
    namespace: str = "pyworkflow"
    slots: int = 4
    environment: str = ""
    node_id: str | None = None
    suspend_after: timedelta | None = timedelta(seconds=2)
    coordinator_ttl: timedelta = timedelta(seconds=60)
    lease_ttl: timedelta = timedelta(seconds=30)
    hung_after: timedelta = timedelta(seconds=10)
    worker_ttl: timedelta = timedelta(seconds=60)
    sweep_interval: timedelta = timedelta(seconds=5)
    default_retries: int = 3
    default_durable: bool = True
    default_recover_on_worker_loss: bool = True
    default_max_recovery_attempts: int = 3
    event_soft_limit: int = 10_000
    event_hard_limit: int = 50_000
    event_warning_interval: int = 100
    max_nesting_depth: int = 3
    payload_limit: int | None = None
    payload_codec: str | None = None
    blob_threshold: int = 128 * 2**10
    logging: LogSettings | None = None

    @classmethod
    def configured(cls, settings: Settings, **changes: Any) -> EngineSettings:
        """The settings of the engine that this process's settings describe."""
        shared = {each.name for each in fields(cls)} & set(type(settings).model_fields)
        configured = cls(
            storage_url=settings.storage_url,
            synchronous=settings.sqlite_synchronous,
            logging=settings.log_settings,
            **{name: getattr(settings, name) for name in shared},
        )
        return replace(configured, **changes)

    def open_storage(self, *, create: bool = False) -> Storage:
        """The engine's storage. Actors never create one: a new, empty one would hide a wrong path."""
        return Storage(self.storage_url, create=create, synchronous=self.synchronous)

    def placement(self, environment: str | None = None) -> Placement:
        """The slots to place a run in."""
        return Placement(
            prefix=COORDINATOR_PREFIX,
            slots=self.slots,
            environment=self.environment if environment is None else environment,
        )

    def first_coordinator(self, environment: str | None = None) -> str:
        """The name of the coordinator in the first slot: the one that is most probably there."""
        return self.coordinator(0, environment)

    def coordinator(self, slot: int, environment: str | None = None) -> str:
        """The name of the coordinator in a slot."""
        return f"{self.placement(environment).full_prefix}{slot}"


def other_storage(namespace: str) -> str:
    """What is said to whoever brings another storage to a running engine."""
    return (
        f"An engine with another storage runs in the namespace {namespace!r} of this cluster. Use its "
        "storage, or give this one a namespace of its own: configure(namespace='...')."
    )
