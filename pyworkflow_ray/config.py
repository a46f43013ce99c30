"""The settings of this process, from one model: call > `configure` > environment > file > defaults."""

from __future__ import annotations

import contextlib
import difflib
import os
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable
from urllib.parse import quote

import msgspec
import yaml
from loguru import logger
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from pyworkflow_ray.durations import parse_duration
from pyworkflow_ray.exceptions import ConfigurationError

YAML_NAME = "pyworkflow.config.yaml"
DEFAULT_STORAGE = ".pyworkflow/pyworkflow.db"
_PREFIX = "PYWORKFLOW_"
_OFTEN_MEANT = ("storage", "default_runtime", "default_retries", "default_durable", "namespace", "address")
_OTHER_VARIABLES = ("discover", "debug")


class LogSettings(msgspec.Struct, frozen=True):
    """How log lines are written, as it travels to other processes.

    Args:
        level: The number of the lowest level that is written.
        json: Whether a line is a JSON object.
        context: Whether lines show the run and step that they belong to.
        file: The absolute path of a file that they go to as well.
    """

    level: int
    json: bool = False
    context: bool = True
    file: str | None = None


def log_settings(
    level: str | int, *, json: bool, context: bool, file: str | os.PathLike[str] | None
) -> LogSettings:
    """These settings, with what they mean here: the level's number, and where a relative path leads.

    Raises:
        ValueError: There is no such level.
    """
    path = None if file is None else str(Path(file).expanduser().absolute())
    return LogSettings(level_number(level), json, context, path)


def level_number(level: str | int) -> int:
    """The number of a level, of which loguru knows the name.

    Raises:
        ValueError: There is none.
    """
    if isinstance(level, str) and not level.isdigit():
        try:
            return int(logger.level(level.upper()).no)
        except ValueError:
            raise ValueError(
                f"there is no level {level!r}; give TRACE, DEBUG, INFO, SUCCESS, WARNING, ERROR, CRITICAL "
                "or a number"
            ) from None
    if isinstance(level, bool) or int(level) < 0:
        raise ValueError(f"the level is {level!r}; give a name, or a number from 0")
    return int(level)


class Settings(BaseSettings):
    """Everything that can be set. Durations take the forms of `sleep`.

    `storage` is a database URL, a file path or "memory". The text of a URL is kept out of `repr`, since it
    may hold a password. A relative path in a file of settings is meant from that file's folder.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    default_runtime: Literal["ray", "local"] = "ray"
    default_durable: bool = True
    default_retries: int = Field(3, ge=0)
    default_recover_on_worker_loss: bool = True
    default_max_recovery_attempts: int = Field(3, ge=0)
    storage: SecretStr | None = None
    sqlite_synchronous: Literal["FULL", "NORMAL", "OFF"] = "FULL"
    event_soft_limit: int = Field(10_000, ge=1)
    event_hard_limit: int = Field(50_000, ge=1)
    event_warning_interval: int = Field(100, ge=1)
    coordinators: int | Literal["per_run"] | None = None
    namespace: str = "pyworkflow"
    address: str | None = None
    suspend_after: timedelta = timedelta(seconds=2)
    coordinator_ttl: timedelta = timedelta(seconds=60)
    lease_ttl: timedelta = timedelta(seconds=30)
    worker_ttl: timedelta = timedelta(seconds=60)
    sweep_interval: timedelta = timedelta(seconds=5)
    payload_limit: int = Field(256 * 2**20, ge=1024)
    blob_threshold: int = Field(128 * 2**10, ge=1024)
    max_nesting_depth: int = Field(3, ge=0)
    payload_codec: str | None = None
    log_level: str | int | None = None
    log_json: bool = False
    log_context: bool = True
    log_file: str | None = None
    module: str | None = None
    modules: tuple[str, ...] = ()

    @field_validator(
        "suspend_after", "coordinator_ttl", "lease_ttl", "worker_ttl", "sweep_interval", mode="before"
    )
    @classmethod
    def _read_duration(cls, value: Any) -> timedelta:
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)  # the environment has only text: "2.5" is seconds
        return parse_duration(value)

    @field_validator("storage", mode="before")
    @classmethod
    def _read_storage(cls, value: Any) -> Any:
        return url_of(value) if isinstance(value, Mapping | Path | NamesDatabase) else value

    @model_validator(mode="before")
    @classmethod
    def _stay_in_process(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What is in the memory of this process can be reached by runs in this process alone."""
        if "default_runtime" in values or not is_in_memory(values.get("storage")):
            return values
        return {**values, "default_runtime": "local"}

    @field_validator("coordinators")
    @classmethod
    def _check_coordinators(cls, value: Any) -> Any:
        if isinstance(value, int) and value < 1:
            raise ValueError("give a number of coordinators, 1 or more, or 'per_run'")
        return value

    @field_validator("log_level")
    @classmethod
    def _read_level(cls, value: Any) -> Any:
        return None if value is None else level_number(value)  # raises where it is no level

    @property
    def log_settings(self) -> LogSettings | None:
        """How the engine's processes are to log; None leaves them as loguru is by itself."""
        if self.log_level is None:
            return None
        return log_settings(self.log_level, json=self.log_json, context=self.log_context, file=self.log_file)

    @property
    def storage_url(self) -> str:
        """Where the database is: the URL as it was set, with its password."""
        return self.storage.get_secret_value() if self.storage is not None else DEFAULT_STORAGE

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The sources come first to last: a call wins over the environment, and that over the file.
        file = find_file()
        values = {} if file is None else _at_home(read_file(file), file.parent)
        return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=values)


@runtime_checkable
class NamesDatabase(Protocol):
    """What can be given as a storage: it has the database's URL, with its password."""

    @property
    def secret_url(self) -> str: ...


def url_of(storage: Any) -> str:
    """The URL, path or "memory" of what a caller gives as a storage.

    Raises:
        ConfigurationError: It is nothing that names a database.
        ValueError: It is a mapping of a type that is unknown.
    """
    match storage:
        case str() | Path():
            return str(storage)
        case Mapping():
            return storage_url(storage)
        case NamesDatabase():
            return storage.secret_url
        case _:
            raise ConfigurationError(
                f"storage is of type {type(storage).__name__}: give a database URL, a file path, 'memory', a "
                "mapping with `type`, or what get_storage() gives."
            )


def is_in_memory(storage: Any) -> bool:
    """Whether what a caller gives as a storage is a database in the memory of this process."""
    try:
        url = url_of(storage)
    except (ConfigurationError, ValueError):
        return False  # whoever opens it says what is wrong
    return url in ("memory", ":memory:", "sqlite://") or url.startswith("sqlite:///:memory:")


def find_file() -> Path | None:
    """The nearest file with settings, in the working directory or above it."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / YAML_NAME).is_file():
            return folder / YAML_NAME
        project = folder / "pyproject.toml"
        if project.is_file() and "[tool.pyworkflow" in project.read_text(encoding="utf-8", errors="replace"):
            return project
    return None


def _at_home(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A file's settings, with relative paths meant from the file's own folder."""
    if isinstance(values.get("log_file"), str):
        values = {**values, "log_file": str(folder / values["log_file"])}
    storage = values.get("storage")
    if isinstance(storage, Mapping):
        with contextlib.suppress(ValueError):  # the model says what is wrong with it
            storage = storage_url(storage)
    if not isinstance(storage, str) or is_in_memory(storage) or "://" in storage:
        return values if storage is None else {**values, "storage": storage}
    return {**values, "storage": str(folder / Path(storage).expanduser())}


def read_file(file: Path) -> dict[str, Any]:
    """The settings in a YAML file, or in the table `[tool.pyworkflow]` of a TOML file.

    Raises:
        ConfigurationError: The file cannot be read; it says where it is broken.
    """
    try:
        text = file.read_text(encoding="utf-8")
        values = _toml_table(text) if file.suffix == ".toml" else yaml.safe_load(text) or {}
    except OSError as error:
        raise ConfigurationError(f"Cannot read {file}: {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        # Not its whole text, which quotes the line: a password may be in there. For the same reason no cause.
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ConfigurationError(f"{file} is broken{line}: {error.problem}.") from None
    except (yaml.YAMLError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is broken: {error}") from error
    values = _named(values, str(file))
    recovery = _named(values.pop("recovery", None) or {}, f"`recovery` in {file}")
    return {**values, **{f"default_{name}": value for name, value in recovery.items()}}


def _named(values: Any, what: str) -> dict[str, Any]:
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigurationError(f"{what} must hold settings as `name: value`, and names are texts.")
    return dict(values)


def _toml_table(text: str) -> Any:
    return tomllib.loads(text).get("tool", {}).get("pyworkflow", {})


_STORAGE_KEYS = {
    "memory": set[str](),
    "file": {"base_path"},
    "sqlite": {"db_path", "base_path"},
    "postgres": {"dsn", "host", "port", "user", "password", "database"},
}


def storage_url(mapping: Mapping[str, Any]) -> str:
    """The database that a mapping with `type` and its own keys names.

    Raises:
        ValueError: The type is unknown, or a key is missing.
    """
    kind = mapping.get("type")
    known = _STORAGE_KEYS.get("postgres" if kind == "postgresql" else str(kind), set(mapping))
    for name in set(mapping) - known - {"type"}:
        alike = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {alike[0]!r}?" if alike else f"it has {', '.join(sorted(known)) or 'none'}"
        raise ValueError(f"storage type {kind!r} has no key {name!r}: {hint}")
    match kind:
        case "memory":
            return "memory"
        case "file":
            return str(Path(mapping.get("base_path", ".pyworkflow")) / "pyworkflow.db")
        case "sqlite":
            return str(mapping.get("db_path") or mapping.get("base_path") or DEFAULT_STORAGE)
        case "postgres" | "postgresql":
            if mapping.get("dsn"):
                return str(mapping["dsn"])
            user, password = mapping.get("user", "postgres"), mapping.get("password", "")
            login = quote(str(user), safe="") + (f":{quote(str(password), safe='')}" if password else "")
            return (
                f"postgresql://{login}@{mapping.get('host', 'localhost')}:{mapping.get('port', 5432)}"
                f"/{mapping.get('database', 'pyworkflow')}"
            )
        case _:
            raise ValueError(
                f"storage type {kind!r} is unknown; give 'sqlite', 'postgres', 'file' or 'memory'"
            )


_overrides: dict[str, Any] = {}
_settings: Settings | None = None


def configure(**settings: Any) -> Settings:
    """Set settings for this process, over the environment's and the file's; again to change some.

    Raises:
        ConfigurationError: A setting is unknown (it suggests the nearest) or its value is not accepted.
    """
    global _settings
    unknown = [name for name in settings if name not in Settings.model_fields]
    if unknown:
        raise ConfigurationError(_unknown(unknown[0]))
    merged = {**_overrides, **settings}
    _settings = _build(merged)
    _overrides.clear()
    _overrides.update(merged)
    return _settings


def configure_from_yaml(path: str | os.PathLike[str]) -> Settings:
    """Set settings from a YAML file.

    Raises:
        ConfigurationError: The file is not there or not readable, or holds what is not accepted.
    """
    file = Path(path).absolute()
    return configure(**_at_home(read_file(file), file.parent))


def get_config() -> Settings:
    """The settings in force."""
    global _settings
    if _settings is None:
        _settings = _build({})
    return _settings


def reset_config() -> None:
    """Forget what `configure` set; the environment and the file are read again."""
    global _settings
    _settings = None
    _overrides.clear()


def _build(overrides: Mapping[str, Any]) -> Settings:
    _refuse_misspelt_variables()
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        where = _source(str(first["loc"][0]), overrides) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            raise ConfigurationError(where + _unknown(name)) from None
        raise ConfigurationError(f"{where}Setting {name!r}: {first['msg']}.") from None
    except SettingsError as error:  # a variable that wants JSON and holds none
        raise ConfigurationError(f"A variable of the environment cannot be read: {error}.") from None


def _refuse_misspelt_variables() -> None:
    """A variable that is almost a setting is meant to be one; others with our prefix are somebody else's."""
    for variable in os.environ:
        name = variable.removeprefix(_PREFIX).lower()
        if not variable.startswith(_PREFIX) or name in Settings.model_fields or name in _OTHER_VARIABLES:
            continue
        is_near = difflib.get_close_matches(name, Settings.model_fields, n=1, cutoff=0.8)
        if is_near or any(name in each.split("_", 1) or name.startswith(f"{each}_") for each in _OFTEN_MEANT):
            raise ConfigurationError(f"Environment variable {variable}: {_unknown(name)}")


def _source(name: str, overrides: Mapping[str, Any]) -> str:
    """Where a setting was said, to put before what is wrong with it."""
    if name in overrides:
        return ""
    if _PREFIX + name.upper() in os.environ:
        return f"Environment variable {_PREFIX}{name.upper()}: "
    file = find_file()
    if file is None:
        return ""
    told = name.removeprefix("default_")  # of those under `recovery`
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip().strip("\"'").startswith((name, told)):
            return f"{file}, line {number}: "
    return f"{file}: "


def _unknown(name: str) -> str:
    alike = difflib.get_close_matches(name, Settings.model_fields, n=1)
    hint = f"Did you mean {alike[0]!r}?" if alike else f"Settings are {', '.join(Settings.model_fields)}."
    return f"There is no setting {name!r}. {hint}"
