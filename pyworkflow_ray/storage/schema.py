"""The tables. They hold all of the engine's state. Anything that is not in them may be lost at any moment.

Encoded values are JSON in TEXT columns. A database's own JSON type would change them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

from pyworkflow_ray.storage.dialects import decode_time, encode_time, require_aware


class UTCDateTime(TypeDecorator[datetime]):
    """An aware UTC instant with its microseconds, in either database."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return Text() if dialect.name == "sqlite" else DateTime(timezone=True)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        return encode_time(value) if dialect.name == "sqlite" else require_aware(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return None if value is None else decode_time(value)


metadata = MetaData()

# Names are ordered byte by byte, in either database and in Python. Pages of lists rely on that order.
_ID = Text().with_variant(Text(collation="C"), "postgresql")


def _run_id() -> Column[str]:
    return Column("run_id", _ID, ForeignKey("runs.run_id", ondelete="CASCADE"), nullable=False)


runs = Table(
    "runs",
    metadata,
    Column("run_id", _ID, primary_key=True),
    Column("workflow_name", _ID, nullable=False),
    Column("status", Text, nullable=False),
    # Which code the run uses, and where it runs.
    Column("code_hash", _ID),
    Column("environment", Text, nullable=False, server_default=""),
    Column("coordinator", _ID),
    # The lease. `owner` is the name of a claim. Without `lease_expires_at` it is a former holder that has
    # lost the run.
    Column("owner", _ID),
    Column("previous_owner", _ID),
    Column("epoch", Integer, nullable=False, server_default="0"),
    Column("lease_expires_at", UTCDateTime),
    # The position that the next event gets.
    Column("position", Integer, nullable=False, server_default="0"),
    Column("wake_at", UTCDateTime),
    Column("start_at", UTCDateTime),
    Column("durable", Boolean, nullable=False),
    # Relations.
    Column("parent_run_id", _ID),
    Column("root_run_id", _ID, nullable=False),
    Column("nesting_depth", Integer, nullable=False, server_default="0"),
    # The id of this run in its parent.
    Column("child_id", _ID),
    Column("continued_from_run_id", _ID),
    Column("continued_to_run_id", _ID),
    Column("idempotency_key", _ID),
    # The schedule that made the run, and the fire.
    Column("schedule_id", _ID),
    Column("scheduled_at", UTCDateTime),
    # Values.
    Column("input_hash", Text, nullable=False, server_default=""),
    Column("input_args", Text, nullable=False),
    Column("input_kwargs", Text, nullable=False),
    Column("result", Text),
    Column("error", Text),
    Column("error_type", Text),
    Column("metadata", Text),
    Column("attributes", Text),
    Column("tags", Text),
    # Limits.
    Column("max_duration", Float),
    Column("recover_on_worker_loss", Boolean, nullable=False),
    Column("recovery_attempts", Integer, nullable=False, server_default="0"),
    Column("max_recovery_attempts", Integer, nullable=False),
    Column("created_at", UTCDateTime, nullable=False),
    Column("updated_at", UTCDateTime, nullable=False),
    Column("started_at", UTCDateTime),
    Column("completed_at", UTCDateTime),
    # Takeovers in a row from processes that had other runs in them. `recovery_attempts` has the others.
    Column("shared_recoveries", Integer, nullable=False, server_default="0"),
)

HAS_ENDED = "status IN ('completed', 'failed', 'cancelled', 'continued_as_new')"
"""The condition of `RunStatus.is_terminal`."""

IS_LIVE = "status IN ('pending', 'running')"
"""The condition of `ix_runs_live`. A query must repeat it word for word to use that index."""


def _partial(name: str, *columns: str, where: str, unique: bool = False) -> None:
    on = [runs.c[column] for column in columns]
    Index(name, *on, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


Index("ix_runs_created", runs.c.created_at, runs.c.run_id)
Index("ix_runs_workflow", runs.c.workflow_name, runs.c.created_at, runs.c.run_id)
Index("ix_runs_status", runs.c.status, runs.c.created_at, runs.c.run_id)
_partial("ix_runs_live", "coordinator", where=IS_LIVE)
_partial("ix_runs_wake", "status", "wake_at", where="wake_at IS NOT NULL")
_partial("ix_runs_lease", "lease_expires_at", where="lease_expires_at IS NOT NULL")
_partial("ix_runs_owner", "owner", where="owner IS NOT NULL")
_partial("ix_runs_parent", "parent_run_id", where="parent_run_id IS NOT NULL")
# A schedule that fires each second may have a million runs, of which one has not ended.
_partial(
    "ix_runs_schedule", "schedule_id", "created_at", where=f"schedule_id IS NOT NULL AND NOT {HAS_ENDED}"
)
_partial("ix_runs_root", "root_run_id", where="root_run_id <> run_id")
_partial(
    "uq_runs_idempotency",
    "idempotency_key",
    "workflow_name",
    where="idempotency_key IS NOT NULL",
    unique=True,
)

events = Table(
    "events",
    metadata,
    Column("run_id", _ID, ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("type", Text, nullable=False),
    Column("timestamp", UTCDateTime, nullable=False),
    Column("data", Text, nullable=False),
    sqlite_with_rowid=False,
)

# A row that was read stays, without its data. So its dedup key holds as long as the run exists.
inbox = Table(
    "inbox",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    _run_id(),
    Column("dedup_key", _ID, nullable=False),
    Column("kind", Text, nullable=False),
    Column("data", Text, nullable=False),
    Column("created_at", UTCDateTime, nullable=False),
    Column("read_position", Integer),
    UniqueConstraint("run_id", "dedup_key"),
)
Index(
    "ix_inbox_unread",
    inbox.c.run_id,
    sqlite_where=text("read_position IS NULL"),
    postgresql_where=text("read_position IS NULL"),
)

hooks = Table(
    "hooks",
    metadata,
    # Ids are unique in their run only: two runs may both wait for "approval#1".
    Column("run_id", _ID, ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    Column("hook_id", _ID, primary_key=True),
    Column("token", _ID, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("created_at", UTCDateTime, nullable=False),
    Column("received_at", UTCDateTime),
    Column("expires_at", UTCDateTime),
    Column("payload", Text),
    Column("payload_schema", Text),
    Column("schema_hash", _ID),
    # Which delivery was taken: its second try must find that the first one went through.
    Column("delivery_key", _ID),
    Column("metadata", Text),
)
Index("ix_hooks_created", hooks.c.created_at, hooks.c.run_id, hooks.c.hook_id)
Index(
    "ix_hooks_delivery",
    hooks.c.delivery_key,
    sqlite_where=text("delivery_key IS NOT NULL"),
    postgresql_where=text("delivery_key IS NOT NULL"),
)

schedules = Table(
    "schedules",
    metadata,
    Column("schedule_id", _ID, primary_key=True),
    Column("workflow_name", _ID, nullable=False),
    Column("status", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("overlap_policy", Text, nullable=False),
    Column("catchup_window", Float, nullable=False),
    # The model of its runs.
    Column("run", Text, nullable=False),
    Column("environment", Text, nullable=False),
    # A hash of the decorator's arguments.
    Column("declared", Text),
    Column("note", Text),
    # Changes with everything that concerns its fires. A plan of an older version fires nothing.
    Column("version", Integer, nullable=False),
    # Where an interval's grid begins.
    Column("anchor_at", UTCDateTime, nullable=False),
    Column("next_fire_at", UTCDateTime),
    Column("look_at", UTCDateTime),
    Column("buffered", Text, nullable=False),
    # What the schedule has done.
    Column("total_runs", Integer, nullable=False),
    Column("successful_runs", Integer, nullable=False),
    Column("failed_runs", Integer, nullable=False),
    Column("skipped_runs", Integer, nullable=False),
    Column("last_fire_at", UTCDateTime),
    Column("last_run_at", UTCDateTime),
    Column("last_run_id", _ID),
    Column("created_at", UTCDateTime, nullable=False),
    Column("updated_at", UTCDateTime, nullable=False),
)
Index(
    "ix_schedules_look",
    schedules.c.environment,
    schedules.c.look_at,
    sqlite_where=text("status = 'active'"),
    postgresql_where=text("status = 'active'"),
)

schedule_events = Table(
    "schedule_events",
    metadata,
    Column("schedule_id", _ID, ForeignKey("schedules.schedule_id", ondelete="CASCADE"), primary_key=True),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("timestamp", UTCDateTime, nullable=False),
    Column("type", Text, nullable=False),
    Column("data", Text, nullable=False),
    sqlite_with_rowid=False,
)

code = Table(
    "code",
    metadata,
    Column("hash", _ID, primary_key=True),
    Column("kind", Text, CheckConstraint("kind IN ('reference', 'value')"), nullable=False),
    Column("reference", Text),
    Column("source_hash", Text),
    Column("data", LargeBinary),
    Column("python", Text, nullable=False),
    Column("created_at", UTCDateTime, nullable=False),
    Column("bundle", Text),
)

# The local source files that code needs, in archives by their hash.
bundles = Table(
    "bundles",
    metadata,
    Column("hash", _ID, primary_key=True),
    Column("data", LargeBinary, nullable=False),
    Column("created_at", UTCDateTime, nullable=False),
)

# The `runtime_env`s of coordinators, by the `environment` of their runs. The data may hold a user's secrets.
environments = Table(
    "environments",
    metadata,
    Column("hash", _ID, primary_key=True),
    Column("data", Text, nullable=False),
)

blobs = Table(
    "blobs",
    metadata,
    Column("hash", _ID, primary_key=True),
    Column("data", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created_at", UTCDateTime, nullable=False),
)

# Which runs need a blob. When the last of them is deleted, the blob is deleted too.
run_blobs = Table(
    "run_blobs",
    metadata,
    Column("run_id", _ID, ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    Column("hash", _ID, ForeignKey("blobs.hash"), primary_key=True, index=True),
    sqlite_with_rowid=False,
)

# Facts about the installation: the schema's version, the storage's id.
engine = Table(
    "engine",
    metadata,
    Column("key", _ID, primary_key=True),
    Column("value", Text, nullable=False),
)
