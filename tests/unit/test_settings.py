"""Settings are read once, from the environment, and refuse what is wrong by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.settings import Settings, SettingsError, from_environment, to_environment


def test_an_empty_environment_suits_one_machine(tmp_path: Path) -> None:
    chosen = from_environment({"UNMASK_DATA_DIR": str(tmp_path), "HOME": "/elsewhere"})

    assert chosen.database == f"sqlite:///{tmp_path}/unmask.db"
    assert chosen.url == "http://127.0.0.1:8080"
    assert chosen.web_host == "127.0.0.1"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("UNMASK_WEB_PORT", "70000", "65535"),
        ("UNMASK_DETECTOR", "guess", "'mediapipe' or 'haar'"),
        ("UNMASK_MESH_COLOUR", "green", "#19ff8c"),
        ("UNMASK_SECRET_KEY", "short", "32 characters"),
        ("UNMASK_DATABASE_URL", "mysql://localhost/x", "postgresql+psycopg:"),
        ("UNMASK_INBOX_PREFIX", "/in", "slash"),
    ],
)
def test_a_wrong_value_is_refused_in_one_sentence_that_names_the_variable(variable: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        from_environment({variable: value})

    sentence = str(refusal.value)
    assert sentence.startswith(f"{variable}: ")
    assert said in sentence
    assert "\n" not in sentence


def test_an_unknown_variable_is_refused() -> None:
    with pytest.raises(SettingsError, match="UNMASK_LEASE is not a setting"):
        from_environment({"UNMASK_LEASE": "3"})


def test_credentials_come_in_pairs() -> None:
    with pytest.raises(SettingsError, match="UNMASK_S3_SECRET_KEY"):
        from_environment({"UNMASK_S3_ACCESS_KEY": "alice"})


def test_the_results_must_not_fall_into_the_inbox() -> None:
    with pytest.raises(SettingsError, match="UNMASK_RESULTS_PREFIX"):
        from_environment({"UNMASK_INBOX_BUCKET": "one", "UNMASK_RESULTS_BUCKET": "one"})

    assert from_environment({"UNMASK_INBOX_BUCKET": "one", "UNMASK_RESULTS_BUCKET": "one", "UNMASK_RESULTS_PREFIX": "out/"})


def test_secrets_and_addresses_may_come_from_files(tmp_path: Path) -> None:
    key, url = tmp_path / "key", tmp_path / "url"
    key.write_text("k" * 40 + "\n")
    url.write_text("postgresql://unmask:word@db/unmask\n")

    chosen = from_environment({"UNMASK_SECRET_KEY_FILE": str(key), "UNMASK_DATABASE_URL_FILE": str(url)})

    assert chosen.secret_key is not None
    assert chosen.secret_key.get_secret_value() == "k" * 40
    assert chosen.database == "postgresql+psycopg://unmask:word@db/unmask"
    assert "k" * 40 not in repr(chosen)


def test_a_file_is_for_secrets_must_exist_and_excludes_the_plain_variable(tmp_path: Path) -> None:
    key = tmp_path / "key"
    with pytest.raises(SettingsError, match="UNMASK_API_KEY_FILE: cannot read"):
        from_environment({"UNMASK_API_KEY_FILE": str(key)})
    key.write_text("word")
    with pytest.raises(SettingsError, match="both set"):
        from_environment({"UNMASK_API_KEY_FILE": str(key), "UNMASK_API_KEY": "word"})
    with pytest.raises(SettingsError, match="UNMASK_WEB_HOST_FILE is not a setting"):
        from_environment({"UNMASK_WEB_HOST_FILE": str(key)})


def test_settings_survive_the_way_to_another_process() -> None:
    chosen = Settings.model_validate({"data_dir": "/data", "api_key": "word", "lease_s": 3, "webhook_allow_http": True})

    assert from_environment(to_environment(chosen)) == chosen
