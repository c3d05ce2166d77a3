"""Arguments and environment that would go round the guard are refused before anything starts."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from guard.config import AdapterSettings
from guard.engine import launch
from guard.errors import ConfigError

MODEL = ["--model", "m"]


def options(argv):
    return dict(zip(argv[::2], argv[1::2], strict=False)) if len(argv) % 2 == 0 else argv


def test_the_guards_worker_and_sites_are_named():
    argv = launch.guarded_args([*MODEL, "--dtype", "float32"], {})
    assert argv[:4] == ["--model", "m", "--dtype", "float32"]
    assert argv[argv.index("--worker-cls") + 1] == "guard.engine.worker.GuardCPUWorker"
    assert "--enforce-eager" in argv
    assert "--kv-cache-memory-bytes" in argv
    assert json.loads(argv[-1])["lethe"]["layers"] == "all"
    assert json.loads(launch.guarded_args(MODEL, {}, layers=(1, 3))[-1])["lethe"]["layers"] == [1, 3]


@pytest.mark.parametrize(
    "flags", [["--no-enforce-eager"], ["-O3"], ["-O", "2"], ["--compilation-config", "{}"], ["-cc.mode=3"]]
)
def test_compiling_is_left_to_who_asks_for_it(flags):
    assert "--enforce-eager" not in launch.guarded_args([*MODEL, *flags], {"CXX": "true"})


def test_what_the_operator_set_is_kept():
    argv = launch.guarded_args(
        [*MODEL, "--additional_config", '{"a": 1}', "--kv-cache-memory-bytes=5", "--enforce-eager"], {}
    )
    assert argv.count("--enforce-eager") == 1
    assert "--kv-cache-memory-bytes" not in argv
    assert [word for word in argv if "additional" in word] == ["--additional-config"]
    assert json.loads(argv[-1])["a"] == 1
    assert "--kv-cache-memory-bytes" not in launch.guarded_args(MODEL, {"VLLM_CPU_KVCACHE_SPACE": "2"})


@pytest.mark.parametrize(
    "flags",
    [
        ["--enable-prompt-embeds"],
        ["--enable_prompt_embeds"],
        ["--worker-cls", "x"],
        ["--worker-cls=x"],
        ["--worker_extension_cls", "x"],
        ["--config", "vllm.yaml"],
        ["--speculative-config", "{}"],
        ["--speculative-config.method=ngram"],
        ["--kv-transfer-config={}"],
        ["--headless"],
        ["--grpc"],
        ["--data-parallel-size", "2"],
        ["-dp=2"],
        ["--pipeline-parallel-size", "2"],
        ["--additional-config", "{"],
        ["--enable-log-requests"],
        ["--enable_log_requests"],
        ["--enable-log-outputs"],
        ["--log-error-stack"],
        ["--log-config-file", "log.json"],
        ["--logging-config.formatter", "json"],
        ["--log-level=DEBUG"],
        ["--uvicorn-log-level", "trace"],
        ["--disable-access-log-for-endpoints", "/health"],
    ],
)
def test_options_that_go_round_the_guard_are_refused(flags):
    with pytest.raises(ConfigError):
        launch.guarded_args([*MODEL, *flags], {})


def test_one_of_everything_is_fine():
    launch.guarded_args([*MODEL, "--api-server-count", "2", "-dp", "1"], {})


@pytest.mark.parametrize("flags", [["--api-server-count", "2"], ["-asc", "2"], ["--api-server-count=2"]])
def test_several_api_servers_have_no_unlearning_adapters(flags):
    with pytest.raises(ConfigError, match="adapters"):
        launch.guarded_args([*MODEL, *flags], {}, adapters=AdapterSettings(slots=2))


def test_the_environment_is_pinned():
    environ: dict[str, str] = {}
    launch.pin_environment(environ)
    assert environ["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    launch.pin_environment(environ)


def test_vllms_processes_log_as_ours_does(tmp_path):
    environ = {"VLLM_CONFIGURE_LOGGING": "0"}
    for _ in range(2):
        launch.pin_environment(environ, logging=tmp_path)
    assert (environ["VLLM_LOGGING_CONFIG_PATH"], environ["VLLM_CONFIGURE_LOGGING"]) == (str(tmp_path), "1")
    with pytest.raises(ConfigError, match="VLLM_LOGGING_CONFIG_PATH"):
        launch.pin_environment({"VLLM_LOGGING_CONFIG_PATH": "/mine.json"}, logging=tmp_path)


@pytest.mark.parametrize("flag", ["--enable-log-req", "--enable-log-requests"])
def test_an_abbreviation_of_an_option_that_logs_prompts_is_refused(flag):
    from guard.engine import serving

    with pytest.raises(ConfigError, match="prompts"):
        serving.parse([*MODEL, flag])


def test_stacks_of_errors_stay_out_of_the_log(monkeypatch):
    from guard.engine import serving

    assert serving.parse([*MODEL, "--log-error-st"]).log_error_stack is False


def test_the_operators_own_environment_is_kept():
    environ = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "0"}
    launch.pin_environment(environ)
    assert (environ["VLLM_CPU_OMP_THREADS_BIND"], environ["VLLM_NO_USAGE_STATS"]) == ("nobind", "0")


def test_without_a_compiler_nothing_is_compiled(tmp_path):
    environ = {"CXX": str(tmp_path / "none")}
    assert "--enforce-eager" in launch.guarded_args(MODEL, environ)
    with pytest.raises(ConfigError, match=r"install g\+\+"):
        launch.guarded_args([*MODEL, "--no-enforce-eager"], environ)
    launch.pin_environment(environ)
    assert environ["TORCH_COMPILE_DISABLE"] == "1"
    compiler = tmp_path / "some"
    compiler.touch(0o755)
    environ = {"CXX": str(compiler)}
    launch.guarded_args([*MODEL, "--no-enforce-eager"], environ)
    launch.pin_environment(environ)
    assert "TORCH_COMPILE_DISABLE" not in environ


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VLLM_USE_V2_MODEL_RUNNER", "1"),
        ("VLLM_USE_RUST_FRONTEND", "1"),
        ("VLLM_USE_RUST_FRONTEND", "true"),
        ("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "1"),
        ("PROMETHEUS_MULTIPROC_DIR", "/tmp/metrics"),
        ("VLLM_DEBUG_LOG_API_SERVER_RESPONSE", "true"),
    ],
)
def test_an_environment_that_goes_round_the_guard_is_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        launch.pin_environment({name: value})


def test_adapters_get_their_slots_and_the_rank_that_is_set_aside():
    argv = launch.guarded_args(MODEL, {}, adapters=AdapterSettings(slots=4, max_rank=8, resident=32))
    given = dict(pairwise(argv))
    assert "--enable-lora" in argv and (given["--max-loras"], given["--max-lora-rank"]) == ("4", "8")
    assert json.loads(argv[-1])["lethe"]["adapters"] == 32


def test_without_slots_adapters_are_off():
    argv = launch.guarded_args(MODEL, {})
    assert "--enable-lora" not in argv and json.loads(argv[-1])["lethe"]["adapters"] == 0


@pytest.mark.parametrize("flag", ["--max-loras", "--max-lora-rank", "--max-cpu-loras"])
def test_slots_are_given_in_one_place(flag):
    with pytest.raises(ConfigError, match=r"adapters\."):
        launch.guarded_args([*MODEL, flag, "8"], {}, adapters=AdapterSettings(slots=4))
