"""`pyworkflow-ray doctor`: what it checks, and how it prints what it finds."""

from __future__ import annotations

import asyncio
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter

from rich.text import Text

from pyworkflow_ray import config
from pyworkflow_ray.actors.connections import named_address
from pyworkflow_ray.cli.formatters import STYLES, sanitize
from pyworkflow_ray.cli.outputs import PROGRAM, Column, Format, Output
from pyworkflow_ray.client.engine_actors import EngineState, inspect_engine, join
from pyworkflow_ray.exceptions import ConfigurationError, StorageError
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.inspections import Inspection, inspect_database
from pyworkflow_ray.storage.runs import list_runs
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.sweeps import due, orphans

OK, WARNING, PROBLEM = "ok", "warning", "problem"
MARKS = {OK: "✓", WARNING: "!", PROBLEM: "✗"}
PACKAGES = ("pyworkflow-ray", "ray", "sqlalchemy", "pydantic", "msgspec", "cloudpickle")
CLOCK_TOLERANCE = 1.0
"""Seconds by which the clocks of host and database may differ."""
LATE = 60.0
"""Seconds after its time at which a run counts as late."""
MOST_COUNTED = 1000


@dataclass(frozen=True, slots=True)
class Check:
    """What was checked, what was found, and how to mend it."""

    name: str
    status: str
    found: str
    mend: str = ""


async def examine() -> list[Check]:
    """All checks, in the order in which a reader wants them."""
    checks = [_versions()]
    state, found = await _ray()
    checks += found
    url = _url(state)
    database, found = await asyncio.to_thread(_storage, url)
    checks += found
    if database is not None and state is not None:
        checks += await asyncio.to_thread(_agreement, state, database)
        checks += _actors(state, database)
    if database is not None and database.storage_id is not None:
        has_engine = state is not None and bool(state.actors)
        checks += [_clock(database), *await asyncio.to_thread(_runs, url, has_engine)]
    return checks


def _url(state: EngineState | None) -> str:
    """The configured database. If none is configured, that of the running engine."""
    settings = config.get_config()
    adopted = None if settings.storage is not None or state is None else state.storage_url
    return adopted or settings.storage_url


def _versions() -> Check:
    found = [f"Python {platform.python_version()}", *(f"{name} {_version(name)}" for name in PACKAGES)]
    return Check("versions", OK, ", ".join(found))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(from a checkout)" if package == PACKAGES[0] else "(missing)"


async def _ray() -> tuple[EngineState | None, list[Check]]:
    named = named_address(config.get_config().address)
    try:
        await join()
    except ConfigurationError as error:
        if named:
            return None, [Check("Ray", PROBLEM, str(error), "ray start --head, or the right --address")]
        mend = "ray start --head; without a cluster, each process that starts runs has one of its own"
        return None, [Check("Ray", WARNING, "no cluster runs here, and no address is named", mend)]
    state = await inspect_engine(config.get_config().namespace)
    cpus, gpus = sum(node.cpus for node in state.nodes), sum(node.gpus for node in state.nodes)
    nodes = "1 node" if len(state.nodes) == 1 else f"{len(state.nodes)} nodes"
    found = f"{state.ray_version} at {state.address}: {nodes}, {cpus:g} CPUs" + (
        f", {gpus:g} GPUs" if gpus else ""
    )
    return state, [Check("Ray", OK, found)]


def _storage(url: str) -> tuple[Inspection | None, list[Check]]:
    try:
        found = inspect_database(url)
    except StorageError as error:
        return None, [
            Check("storage", PROBLEM, str(error), "start the database, or name another one with --storage")
        ]
    facts = f"{found.url}, tables of version {found.schema_version}, {found.mode}"
    if not found.exists:
        return found, [Check("storage", WARNING, f"{found.url} is not there yet", "the first run creates it")]
    if found.schema_version > found.newest_version:
        return found, [
            Check("storage", PROBLEM, f"{facts}: newer than this program", "upgrade pyworkflow-ray here")
        ]
    if found.schema_version < found.newest_version:
        return found, [
            Check("storage", WARNING, f"{facts}: older than this program", f"{PROGRAM} db upgrade")
        ]
    if found.url.startswith("sqlite") and found.mode != "wal":
        return found, [
            Check("storage", WARNING, f"{facts}: no write-ahead log", "put the file on a local disk")
        ]
    return found, [Check("storage", OK, facts)]


def _agreement(state: EngineState, database: Inspection) -> list[Check]:
    """Whether the running engine uses the database that is configured here."""
    if state.storage_url is None:
        return []
    try:
        running = inspect_database(state.storage_url)
    except StorageError as error:
        mend = "an SQLite file is on one node: use PostgreSQL, or run this on that node"
        return [Check("engine's storage", PROBLEM, f"cannot be read from here: {error}", mend)]
    if running.storage_id == database.storage_id and running.storage_id is not None:
        return [Check("engine's storage", OK, "the same")]
    mend = "name that database with --storage, or another engine with --namespace"
    return [Check("engine's storage", PROBLEM, f"another database: {running.url}", mend)]


def _actors(state: EngineState, database: Inspection) -> list[Check]:
    if not state.actors:
        found = f"none runs in the namespace {config.get_config().namespace!r}"
        return [Check("engine", WARNING, found, f"{PROGRAM} up, or start a run")]
    checks = []
    deaf = [actor.name for actor in state.actors if actor.pid is None]
    names = ", ".join(_actor(actor.name, actor.runs) for actor in state.actors)
    if deaf:
        mend = f"wait, if Ray is restarting them; else {PROGRAM} down, then up"
        checks.append(Check("engine", PROBLEM, f"no answer from {', '.join(deaf)}", mend))
    else:
        checks.append(Check("engine", OK, names))
    if len(state.nodes) > 1 and database.url.startswith("sqlite"):
        found = f"the SQLite file is on one of {len(state.nodes)} nodes; runs stop if that node stops"
        checks.append(Check("nodes", WARNING, found, "use PostgreSQL"))
    return checks


def _actor(name: str, runs: int | None) -> str:
    return name if runs is None else f"{name} ({runs} {'run' if runs == 1 else 'runs'})"


def _clock(database: Inspection) -> Check:
    ahead = database.clock_ahead
    if abs(ahead) <= CLOCK_TOLERANCE:
        return Check("clocks", OK, f"host and database agree to {abs(ahead):.2f} s")
    found = f"the database's clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this host's"
    return Check("clocks", WARNING, f"{found}: sleeps are wrong by that much", "let NTP set both")


def _runs(url: str, has_engine: bool) -> list[Check]:
    with Storage(url, create=False) as storage:
        lost = storage.read(orphans(MOST_COUNTED))
        late = storage.read(due(-LATE, MOST_COUNTED))
        aside, _ = storage.read(list_runs(status=RunStatus.INTERRUPTED, limit=MOST_COUNTED))
    mend = f"{PROGRAM} up"
    return [
        _counted(
            "runs that nobody drives",
            [run.run_id for run in lost],
            WARNING,
            "the sweep finds them within seconds: check again" if has_engine else mend,
        ),
        _counted(
            "runs that should be awake",
            [run.run_id for run in late],
            PROBLEM if has_engine else WARNING,
            f"{PROGRAM} down, then up: the timer does not keep up" if has_engine else mend,
        ),
        _counted(
            "runs set aside",
            [run.run_id for run in aside],
            WARNING,
            f"{PROGRAM} runs status ID shows why; {PROGRAM} runs resume ID lets it go on",
        ),
    ]


def _counted(name: str, run_ids: list[str], status: str, mend: str) -> Check:
    if not run_ids:
        return Check(name, OK, "none")
    count = f"{MOST_COUNTED} or more" if len(run_ids) >= MOST_COUNTED else str(len(run_ids))
    some = ", ".join(run_ids[:3]) + (", …" if len(run_ids) > 3 else "")
    return Check(name, status, f"{count}: {some}", mend)


def print_checks(output: Output, checks: list[Check]) -> None:
    """Print a line for each check. A second line says how to mend what is wrong."""
    if output.format is not Format.TABLE:
        columns = [Column(name, attrgetter(name)) for name in Check.__dataclass_fields__]
        output.rows(checks, columns)
        return
    width = max(len(check.name) for check in checks)
    for check in checks:
        head = Text.assemble((MARKS[check.status], STYLES[check.status]), f" {check.name:<{width}}")
        output.hanging(head, Text(sanitize(check.found)))
        if check.status != OK:
            output.hanging(Text(" " * head.cell_len), Text.assemble(("→ ", "dim"), (check.mend, "bold")))
    bad = sum(check.status == PROBLEM for check in checks)
    if bad:
        output.say(f"{bad} {'problem' if bad == 1 else 'problems'}.", "red")
