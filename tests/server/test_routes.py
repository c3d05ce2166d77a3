"""The route table is the whole surface of the server."""

import pytest

from server.routes import TABLE, Access, find


@pytest.fixture(scope="module")
def vllm_paths():
    """Every path that vLLM registers, with development routes and all tasks on; no engine is started."""
    import os

    os.environ["VLLM_SERVER_DEV_MODE"] = "1"
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    argv = ["--model", "none", "--enable-scale-out", "--enable-tokenizer-info-endpoint"]
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(argv)
    tasks = ("generate", "embed", "classify", "token_embed", "score", "transcription", "realtime")
    try:
        return {route.path for route in build_app(args, tasks, None).routes}
    finally:
        del os.environ["VLLM_SERVER_DEV_MODE"]


def test_every_route_of_vllm_is_in_the_table(vllm_paths):
    assert len(vllm_paths) > 40
    assert vllm_paths - {route.path for route in TABLE} == set()


def test_no_path_stands_twice():
    paths = [route.path for route in TABLE]
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize(
    "path", ["/nowhere", "/v1/chat/completions/", "/docs", "/collective_rpc", "/v1//models"]
)
def test_unknown_and_closed_paths_are_not_found(path):
    assert find(path) is None


@pytest.mark.parametrize(
    ("path", "access"),
    [
        ("/v1/chat/completions", Access.INFERENCE),
        ("/v1/responses/resp_1", Access.INFERENCE),
        ("/admin/v1/targets/export", Access.ADMIN),
        ("/sleep", Access.CONTROL),
        ("/livez", Access.PUBLIC),
    ],
)
def test_who_may_call(path, access):
    assert find(path).access is access


def test_exact_paths_win_over_templates():
    assert find("/admin/v1/targets/validate").path == "/admin/v1/targets/validate"
