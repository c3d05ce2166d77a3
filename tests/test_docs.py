"""The documentation names what the code has."""

import json
from pathlib import Path

import pytest

from guard.config import Settings, leaves
from guard.detection import DETECTORS
from guard.interventions import TABLE, load
from guard.targets import TargetSpec
from server.auth import ROLES
from server.dialects import DIALECTS

ROOT = Path(__file__).parents[1]


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("key", [key for key, _ in leaves(Settings)])
def test_every_configuration_key_is_documented(key):
    assert f"| `{key}` |" in text("docs/operations.md")


@pytest.mark.parametrize("field", TargetSpec.model_fields)
def test_every_field_of_a_target_is_documented(field):
    assert f"`{field}`" in text("docs/operations.md")


@pytest.mark.parametrize("method", TABLE)
def test_every_method_has_a_card_with_its_parameters(method):
    card = text("docs/methods.md").split(f"\n## {method}\n")[1].split("\n## ")[0]
    for parameter in load(method).params_type.model_fields:
        assert f"`{parameter}`" in card
    assert f"`{method}`" in text("README.md")


@pytest.mark.parametrize("detector", DETECTORS)
def test_every_detector_is_documented(detector):
    assert f"`{detector}`" in text("docs/architecture.md")


@pytest.mark.parametrize("package", ["interventions", "detection"])
def test_a_name_of_a_table_stands_in_one_place(package):
    """A method's name may stand in its own file and in the table, so that one more is one file and one line."""
    table = TABLE if package == "interventions" else DETECTORS
    modules = {entry.split(":")[0] for entry in table.values()}
    assert len(modules) == len(table)
    for entry in modules:
        assert (ROOT / (entry.replace(".", "/") + ".py")).exists()


@pytest.mark.parametrize(
    "package", ["openai", "langchain-openai", "llama-index-llms-openai-like", "litellm", "lm-eval"]
)
def test_the_versions_of_clients_are_those_that_are_tested(package):
    lock = dict(line.split("==") for line in text("requirements/clients.txt").split() if "==" in line)
    assert f"| {lock[package]} |" in text("docs/clients.md")


def test_the_versions_of_openai_node_and_vllm_are_those_that_are_tested():
    packages = json.loads(text("tests/system/node/package-lock.json"))["packages"]
    node = packages["node_modules/openai"]["version"]
    vllm = next(line for line in text("requirements/serve-cpu.txt").split() if line.startswith("vllm"))
    for version in (node, vllm.split("==")[1]):
        assert f"| {version} |" in text("docs/clients.md")


@pytest.mark.parametrize("path", DIALECTS)
def test_every_check_for_gateways_is_documented(path):
    assert f"| `POST {path}` |" in text("docs/gateways.md")


@pytest.mark.parametrize("role", ROLES)
def test_every_role_is_documented(role):
    assert f"| `{role}` |" in text("docs/operations.md")


def test_the_readme_names_the_commands_that_a_newcomer_needs():
    for command in ("make serve", "make test", "make test-system"):
        assert command in text("README.md")


def test_documents_link_to_files_that_exist():
    import re

    for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert link.startswith("http") or (document.parent / link).exists(), (document.name, link)
