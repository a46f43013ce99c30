"""The settings of this process, in one model.

A call's own options come first, then `configure`, the environment, the file, and the defaults.
"""

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
    """How log lines are written. These settings travel to the engine's processes.

    Args:
        level: The number of the lowest level to write.
        json: Whether a line is a JSON object.
        context: Whether lines show the run and the step that they belong to.
        file: The absolute path of a file to which lines are written as well.
    """

    level: int
    json: bool = False
    context: bool = True
    file: str | None = None


def log_settings(
    level: str | int, *, json: bool, context: bool, file: str | os.PathLike[str] | None
) -> LogSettings:
    """The settings, with the level as a number and the path as an absolute one.

    Raises:
        ValueError: There is no such level.
    """
    path = None if file is None else str(Path(file).expanduser().absolute())
    return LogSettings(level_number(level), json, context, path)


def level_number(level: str | int) -> int:
    """The number of a level that loguru knows by name, or that is given as a number.

    Raises:
        ValueError: There is no such level.
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
    """All settings. Durations have the same forms as in `sleep`.

    `storage` is a database URL, a file path or "memory". A URL may hold a password, so `repr` does not show
    it. A relative path in a settings file starts at that file's folder.
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
    hung_after: timedelta = timedelta(seconds=10)
    """How long an actor of the engine may leave a ping unanswered before its process is replaced.

    That is well below `lease_ttl`, after which another coordinator takes its runs anyway. And it is longer
    than anything reasonable holds the interpreter, so that no thread of the actor can answer. Local steps and
    workflow code run there; a large text that is parsed, or a regular expression, may hold it for seconds."""
    worker_ttl: timedelta = timedelta(seconds=60)
    sweep_interval: timedelta = timedelta(seconds=5)
    payload_limit: int = Field(256 * 2**20, ge=1024)
    blob_threshold: int = Field(128 * 2**10, ge=1024)
    max_nesting_depth: int = Field(3, ge=0)
    payload_codec: str | None = None
    code_files: tuple[str, ...] = ()
    """Glob patterns of data files that travel with local code, such as ``shop/*.json``. They are relative to
    the folder from which the modules are imported."""
    code_limit: int = Field(10 * 2**20, ge=1024)
    """The bytes of local files that may travel with a run."""
    log_level: str | int | None = None
    log_json: bool = False
    log_context: bool = True
    log_file: str | None = None
    module: str | None = None
    modules: tuple[str, ...] = ()

    @field_validator(
        "suspend_after",
        "coordinator_ttl",
        "lease_ttl",
        "hung_after",
        "worker_ttl",
        "sweep_interval",
        mode="before",
    )
    @classmethod
    def _read_duration(cls, value: Any) -> timedelta:
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)  # the environment holds only texts: "2.5" means seconds
        return parse_duration(value)

    @field_validator("storage", mode="before")
    @classmethod
    def _read_storage(cls, value: Any) -> Any:
        return url_of(value) if isinstance(value, Mapping | Path | NamesDatabase) else value

    @model_validator(mode="before")
    @classmethod
    def _stay_in_process(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A database in memory sets the runtime "local": only runs in this process can reach it."""
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
        return None if value is None else level_number(value)  # raises an error if there is no such level

    @property
    def log_settings(self) -> LogSettings | None:
        """How the engine's processes log; None leaves loguru's defaults."""
        if self.log_level is None:
            return None
        return log_settings(self.log_level, json=self.log_json, context=self.log_context, file=self.log_file)

    @property
    def storage_url(self) -> str:
        """The URL of the database as it was set, with its password."""
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
        # An earlier source wins: a call over the environment, the environment over the file.
        file = find_file()
        values = {} if file is None else _at_home(read_file(file), file.parent)
        return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=values)


@runtime_checkable
class NamesDatabase(Protocol):
    """An object that can be given as a storage. It has the database's URL, with its password."""

    @property
    def secret_url(self) -> str: ...


def url_of(storage: Any) -> str:
    """The URL, the path, or "memory", for whatever a caller gives as a storage.

    Raises:
        ConfigurationError: It does not name a database.
        ValueError: It is a mapping of an unknown type.
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
    """Whether the storage that a caller gives is a database in this process's memory."""
    try:
        url = url_of(storage)
    except (ConfigurationError, ValueError):
        return False  # opening it will raise the error
    return url in ("memory", ":memory:", "sqlite://") or url.startswith("sqlite:///:memory:")


def find_file() -> Path | None:
    """The nearest settings file, in the working directory or above it; None if there is none."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / YAML_NAME).is_file():
            return folder / YAML_NAME
        project = folder / "pyproject.toml"
        if project.is_file() and "[tool.pyworkflow" in project.read_text(encoding="utf-8", errors="replace"):
            return project
    return None


def _at_home(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A file's settings; relative paths start at the file's own folder."""
    if isinstance(values.get("log_file"), str):
        values = {**values, "log_file": str(folder / values["log_file"])}
    storage = values.get("storage")
    if isinstance(storage, Mapping):
        with contextlib.suppress(ValueError):  # the model will raise the error
            storage = storage_url(storage)
    if not isinstance(storage, str) or is_in_memory(storage) or "://" in storage:
        return values if storage is None else {**values, "storage": storage}
    return {**values, "storage": str(folder / Path(storage).expanduser())}


def read_file(file: Path) -> dict[str, Any]:
    """The settings in a YAML file, or in the table `[tool.pyworkflow]` of a TOML file.

    Raises:
        ConfigurationError: The file cannot be read; the message says where it is broken.
    """
    try:
        text = file.read_text(encoding="utf-8")
        values = _toml_table(text) if file.suffix == ".toml" else yaml.safe_load(text) or {}
    except OSError as error:
        raise ConfigurationError(f"Cannot read {file}: {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        # The whole error quotes the line, which may hold a password: so only a part of it, and no cause.
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
    """The URL or path of the database that a mapping with the key `type` describes.

    Raises:
        ValueError: The type or a key is unknown.
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
    """Change settings of this process. They win over the environment and the file.

    A later call changes the settings that it names, and keeps the others.

    Raises:
        ConfigurationError: A setting is unknown (the message suggests one), or a value is not valid.
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
    """Change settings of this process to those of a YAML file.

    Raises:
        ConfigurationError: The file is missing or broken, or a setting in it is not valid.
    """
    file = Path(path).absolute()
    return configure(**_at_home(read_file(file), file.parent))


def get_config() -> Settings:
    """The present settings."""
    global _settings
    if _settings is None:
        _settings = _build({})
    return _settings


def reset_config() -> None:
    """Forget what `configure` has set. The environment and the file are read again."""
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
    except SettingsError as error:  # a variable that must hold JSON and does not
        raise ConfigurationError(f"A variable of the environment cannot be read: {error}.") from None


def _refuse_misspelt_variables() -> None:
    """Raise an error for a variable whose name is almost that of a setting; ignore any other."""
    for variable in os.environ:
        name = variable.removeprefix(_PREFIX).lower()
        if not variable.startswith(_PREFIX) or name in Settings.model_fields or name in _OTHER_VARIABLES:
            continue
        is_near = difflib.get_close_matches(name, Settings.model_fields, n=1, cutoff=0.8)
        if is_near or any(name in each.split("_", 1) or name.startswith(f"{each}_") for each in _OFTEN_MEANT):
            raise ConfigurationError(f"Environment variable {variable}: {_unknown(name)}")


def _source(name: str, overrides: Mapping[str, Any]) -> str:
    """Where a setting was made, as the beginning of an error message."""
    if name in overrides:
        return ""
    if _PREFIX + name.upper() in os.environ:
        return f"Environment variable {_PREFIX}{name.upper()}: "
    file = find_file()
    if file is None:
        return ""
    short = name.removeprefix("default_")  # the form under `recovery`
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip().strip("\"'").startswith((name, short)):
            return f"{file}, line {number}: "
    return f"{file}: "


def _unknown(name: str) -> str:
    alike = difflib.get_close_matches(name, Settings.model_fields, n=1)
    hint = f"Did you mean {alike[0]!r}?" if alike else f"Settings are {', '.join(Settings.model_fields)}."
    return f"There is no setting {name!r}. {hint}"
