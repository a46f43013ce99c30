"""Settings: their sources, their order, and errors that help."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

import pyworkflow_ray as pr


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pr.reset_config()


def test_a_call_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyworkflow.config.yaml").write_text(
        "namespace: file\nlease_ttl: 40s\nrecovery:\n  max_recovery_attempts: 7\n"
    )
    monkeypatch.setenv("PYWORKFLOW_NAMESPACE", "environment")
    settings = pr.get_config()
    assert (settings.namespace, settings.lease_ttl) == ("environment", timedelta(seconds=40))
    assert settings.default_max_recovery_attempts == 7
    assert pr.configure(namespace="call").namespace == "call"
    assert pr.configure(default_retries=1).namespace == "call", "a second call keeps the first one's"


def test_the_table_of_a_projects_own_file_is_read_from_a_folder_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.pyworkflow]\nstorage = "x.db"\nsuspend_after = 1.5\n')
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert pr.get_config().storage_url == str(tmp_path / "x.db"), "wherever it is read from"
    assert pr.get_config().suspend_after == timedelta(seconds=1.5)


def test_an_unknown_setting_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(pr.ConfigurationError, match="Did you mean 'storage'"):
        pr.configure(storrage="x")
    (tmp_path / "pyworkflow.config.yaml").write_text("nmespace: x\n")
    with pytest.raises(pr.ConfigurationError, match="Did you mean 'namespace'"):
        pr.get_config()


def test_a_misspelt_variable_is_an_error_and_one_of_another_program_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYWORKFLOW_SOMETHING_ELSE", "x")
    monkeypatch.setenv("PYWORKFLOW_DISCOVER", "orders")
    pr.get_config()
    pr.reset_config()
    monkeypatch.setenv("PYWORKFLOW_STORGE", "x.db")
    with pytest.raises(pr.ConfigurationError, match=r"PYWORKFLOW_STORGE: .* Did you mean 'storage'"):
        pr.get_config()


def test_a_project_file_without_our_table_hides_no_file_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyworkflow.config.yaml").write_text("storage: {type: sqlite, db_path: data/runs.db}\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    monkeypatch.chdir(tmp_path / "package")
    assert pr.get_config().storage_url == str(tmp_path / "data" / "runs.db")


def test_what_is_wrong_in_a_file_or_a_variable_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyworkflow.config.yaml").write_text("namespace: x\nlease_ttl: soon\n")
    with pytest.raises(pr.ConfigurationError, match=r"config\.yaml, line 2: Setting 'lease_ttl'"):
        pr.get_config()
    monkeypatch.setenv("PYWORKFLOW_LEASE_TTL", "later")
    with pytest.raises(pr.ConfigurationError, match="variable PYWORKFLOW_LEASE_TTL: Setting 'lease_ttl'"):
        pr.get_config()
    monkeypatch.delenv("PYWORKFLOW_LEASE_TTL")
    (tmp_path / "pyworkflow.config.yaml").write_text("recovery:\n  max_recovery_attempts: -1\n")
    with pytest.raises(pr.ConfigurationError, match="line 2: Setting 'default_max_recovery_attempts'"):
        pr.get_config()


def test_a_variable_that_is_empty_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYWORKFLOW_STORAGE", "")
    assert pr.get_config().storage is None


def test_a_broken_file_is_an_error_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "pyworkflow.config.yaml").write_text("namespace: x\n  storage: [\n")
    with pytest.raises(pr.ConfigurationError, match="line 2"):
        pr.get_config()
    with pytest.raises(pr.ConfigurationError, match="Cannot read"):
        pr.configure_from_yaml(tmp_path / "absent.yaml")


def test_a_value_that_is_not_accepted_names_its_setting() -> None:
    with pytest.raises(pr.ConfigurationError, match="'lease_ttl'"):
        pr.configure(lease_ttl="soon")
    with pytest.raises(pr.ConfigurationError, match="'coordinators'"):
        pr.configure(coordinators=0)


def test_the_storages_password_is_never_shown() -> None:
    settings = pr.configure(storage="postgresql://user:secret@host/name")
    assert "secret" not in repr(settings)
    assert settings.storage_url.endswith("secret@host/name")


@pytest.mark.parametrize(
    ("mapping", "url"),
    [
        ({"type": "sqlite", "db_path": "a.db"}, "a.db"),
        ({"type": "file", "base_path": "data"}, "data/pyworkflow.db"),
        ({"type": "memory"}, "memory"),
        ({"type": "postgres", "dsn": "postgresql://h/d"}, "postgresql://h/d"),
        ({"type": "postgres", "host": "h", "user": "u", "database": "d"}, "postgresql://u@h:5432/d"),
        (
            {"type": "postgres", "host": "h", "user": "u", "password": "p@s/s", "database": "d"},
            "postgresql://u:p%40s%2Fs@h:5432/d",
        ),
    ],
)
def test_a_storage_may_be_said_as_a_mapping(mapping: dict[str, str], url: str) -> None:
    assert pr.configure(storage=mapping).storage_url == url


def test_a_broken_file_does_not_show_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "pyworkflow.config.yaml").write_text('storage: "postgresql://u:hunter2@h/db\n')
    with pytest.raises(pr.ConfigurationError, match=r"config\.yaml is broken, line \d") as caught:
        pr.get_config()
    assert "hunter2" not in str(caught.value)
    (tmp_path / "pyworkflow.config.yaml").unlink()
    with pytest.raises(pr.ConfigurationError, match="postgress") as caught:
        pr.configure(storage={"type": "postgress", "password": "hunter2"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["recovery: true\n", "1: 2\n", "- a\n"])
def test_a_file_of_another_form_is_an_error_that_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyworkflow.config.yaml").write_text(text)
    with pytest.raises(pr.ConfigurationError, match="name: value"):
        pr.get_config()


def test_a_key_that_a_storage_does_not_have_suggests_the_nearest() -> None:
    with pytest.raises(pr.ConfigurationError, match="did you mean 'password'"):
        pr.configure(storage={"type": "postgres", "pasword": "x"})


def test_a_named_file_means_paths_as_one_that_is_found_does(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "settings.yaml").write_text("storage: data/x.db\n")
    assert pr.configure_from_yaml("sub/settings.yaml").storage_url == str(tmp_path / "sub" / "data" / "x.db")


def test_a_database_in_memory_is_one_in_a_file_of_settings_too(tmp_path: Path) -> None:
    (tmp_path / "pyworkflow.config.yaml").write_text('storage: ":memory:"\n')
    assert (pr.get_config().storage_url, pr.get_config().default_runtime) == (":memory:", "local")


@pytest.mark.parametrize("name", ["STORAGE_URL", "RUNTIME", "RETRIES"])
def test_a_variable_that_is_often_meant_is_not_ignored(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"PYWORKFLOW_{name}", "1")
    with pytest.raises(pr.ConfigurationError, match=f"PYWORKFLOW_{name}"):
        pr.get_config()
