"""What is decided before anything is started."""

import dataclasses

import pytest

from guard.config import load_settings
from server.cli.options import ServeOptions
from server.launcher import DEMO_NAME, open_inference, settings_of, vllm_argv

NOTHING = ServeOptions(model=None, demo=False, config=None, host=None, port=None, no_auth=False, vllm_args=())


def options(**changes):
    return dataclasses.replace(NOTHING, **changes)


@pytest.mark.parametrize(
    ("changes", "is_open"),
    [
        ({"model": "m"}, False),
        ({"model": "m", "no_auth": True}, True),
        ({"model": "m", "host": "0.0.0.0", "no_auth": True}, True),
        ({"demo": True}, True),
        ({"demo": True, "host": "::1"}, True),
        ({"demo": True, "host": "0.0.0.0"}, False),
        ({"demo": True, "host": "192.168.1.5"}, False),
        ({"demo": True, "host": "localhost.example.org"}, False),
    ],
)
def test_only_the_demo_on_loopback_and_no_auth_open_inference(changes, is_open):
    assert open_inference(settings_of(options(**changes))) is is_open


def test_the_command_line_wins_over_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("server: {port: 9000, host: 10.0.0.1}")
    server = settings_of(options(model="m", config=file, port=9100)).server
    assert (server.port, server.host) == (9100, "10.0.0.1")


def test_what_follows_the_dashes_comes_last():
    settings = load_settings(None, {})
    argv = vllm_argv(options(demo=True, vllm_args=("--served-model-name", "mine")), settings)
    assert argv.index(DEMO_NAME) < argv.index("mine")
