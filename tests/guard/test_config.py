"""Configuration: every key is shown, every mistake is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from guard.config import SHORT_NAMES, leaves, load_settings
from guard.config import Settings as Config
from guard.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    known = dict(leaves(Config))
    found = {}
    for key, value in tree.items():
        if f"{prefix}{key}" in known:
            found[f"{prefix}{key}"] = value
        else:
            found.update(flat(value, f"{prefix}{key}."))
    return found


def load(tmp_path: Path, text: str, **env: str) -> Config:
    path = tmp_path / "lethe.yaml"
    path.write_text(text)
    return load_settings(path, env)


def test_the_default_file_shows_every_key_with_its_default():
    shown = flat(yaml.safe_load((CONFIGS / "default.yaml").read_text()))
    assert shown.keys() == dict(leaves(Config)).keys()
    assert load_settings(CONFIGS / "default.yaml", {}) == Config()


def test_every_key_of_the_default_file_has_a_comment():
    lines = (CONFIGS / "default.yaml").read_text().splitlines()
    assert [
        line for line in lines if ":" in line and "#" not in line and not line.rstrip().endswith(":")
    ] == []


def test_the_demo_file_loads():
    assert load_settings(CONFIGS / "demo.yaml", {}).auth.demo


def test_variables_stand_in_for_values(tmp_path):
    text = (
        "encoder: {name: '${NAME}', threads: '${THREADS:3}'}\nserver: {host: '$${x}'}\nstore: {url: '${P:}'}"
    )
    settings = load(tmp_path, text, NAME="bge")
    assert (settings.encoder.name, settings.encoder.threads) == ("bge", 3)
    assert (settings.server.host, settings.store.url) == ("${x}", None)


def test_a_missing_variable_is_named(tmp_path):
    with pytest.raises(ConfigError, match="needs the environment variable NAME"):
        load(tmp_path, "encoder: {name: '${NAME}'}")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("detectoin: {}", "'detectoin'; the nearest known one is 'detection'"),
        ("server: {prot: 1}", "'server.prot'; the nearest known one is 'server.port'"),
        ("target_defaults: {polcy: {}}", "'polcy'; the nearest known one is 'policy'"),
        ("server: {port: many}", "server.port: input should be a valid integer"),
        ("server: 5", "server: "),
        ("target_defaults: {mode: often}", "mode"),
        ("version: 2", "version: "),
        ("- a", "must hold keys and values"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_that_names_it(tmp_path, text, named):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert named in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.message.endswith(".")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file"):
        load_settings(tmp_path / "none.yaml", {})


def test_the_environment_overrides_the_file(tmp_path):
    env = {
        "LETHE_DATA_DIR": "/var/lib/lethe",
        "LETHE_SERVER_PORT": "9",
        "LETHE_ADAPTERS_MAX_RANK": "64",
        "LETHE_ENCODER": "e",
        "LETHE_ADMIN_KEY": "k",
        "LETHE_DECISION_LOG_TEXT": "true",
        "LETHE_ENCODER_THREADS": "",
    }
    settings = load(tmp_path, "data_dir: x\nserver: {port: 1}\nencoder: {threads: 2}", **env)
    assert settings.store_url == "sqlite:////var/lib/lethe/lethe.db"
    assert (settings.server.port, settings.encoder.name, settings.decision_log.text) == (9, "e", True)
    assert (settings.encoder.threads, settings.adapters.max_rank) == (2, 64)
    assert settings.auth.admin_key is not None
    assert settings.auth.admin_key.get_secret_value() == "k"
    assert "'k'" not in repr(settings)


def test_a_variable_can_name_a_file_that_holds_the_value(tmp_path):
    secret = tmp_path / "admin"
    secret.write_text("k\n")
    settings = load_settings(None, {"LETHE_ADMIN_KEY_FILE": str(secret), "LETHE_STORE_URL_FILE": ""})
    assert settings.auth.admin_key is not None
    assert settings.auth.admin_key.get_secret_value() == "k" and settings.store.url is None


@pytest.mark.parametrize(
    ("content", "more", "named"),
    [(None, {}, "cannot be read"), (" \n", {}, "is empty"), ("k", {"LETHE_ADMIN_KEY": "j"}, "both set")],
)
def test_a_file_that_gives_no_value_ends_the_start(tmp_path, content, more, named):
    secret = tmp_path / "admin"
    if content is not None:
        secret.write_text(content)
    with pytest.raises(ConfigError, match=named):
        load_settings(None, {"LETHE_ADMIN_KEY_FILE": str(secret), **more})


def test_short_names_name_keys():
    assert set(SHORT_NAMES.values()) <= dict(leaves(Config)).keys()


def test_a_misspelt_variable_is_warned_about(caplog):
    caplog.set_level("WARNING", "guard")  # libraries that other tests import raise the root's level
    load_settings(None, {"LETHE_DATADIR": "x", "LETHE_SERVER": "http://h"})
    assert "did you mean LETHE_DATA_DIR?" in caplog.text
    assert caplog.text.count("did you mean") == 1
