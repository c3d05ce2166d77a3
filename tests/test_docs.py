"""The documentation names what the code has."""

import json
import re
from pathlib import Path

import click
import pytest
import yaml

from guard.config import Settings, leaves
from guard.detection import DETECTORS
from guard.interventions import TABLE, load
from guard.targets import TargetSpec
from server.auth import PERMISSIONS, ROLES
from server.cli import main
from server.dialects import DIALECTS
from tests.server.test_admin_roles import NEEDS

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


DOCUMENTS = (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "CHANGELOG.md")
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def anchors(document):
    """What GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_documents_link_to_files_and_headings_that_exist():
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
            if link.startswith("http"):
                continue
            path, _, anchor = link.partition("#")
            there = document.parent / path if path else document
            assert there.exists(), (document.name, link)
            assert not anchor or anchor in anchors(there), (document.name, link)


@pytest.mark.parametrize("page", PAGES)
def test_the_readme_leads_to_every_page(page):
    assert f"](docs/{page}" in text("README.md")


def test_tests_that_documents_name_exist():
    for document in DOCUMENTS:
        for path in re.findall(r"`(tests/[\w./]+)", document.read_text(encoding="utf-8")):
            assert (ROOT / path).exists(), (document.name, path)


def commands(command, *names):
    """Every command below `command` that does something, with the names that lead to it."""
    if not isinstance(command, click.Group):
        yield " ".join(names)
        return
    with click.Context(command) as context:
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), *names, name)


@pytest.mark.parametrize("command", [*commands(main, "lethe")])
def test_every_command_is_documented(command):
    assert any(re.search(rf"\b{command}\b", text(f"docs/{page}")) for page in PAGES)


@pytest.mark.parametrize(("method", "path"), NEEDS)
def test_every_admin_route_is_documented_with_its_roles(method, path):
    (told,) = re.findall(rf"^\| `{method} {re.escape(path)}` \| ([^|]*) \|", text("docs/operations.md"), re.M)
    assert re.findall(r"`(\w+)`", told) == [
        role for role in ROLES if NEEDS[method, path] in PERMISSIONS[role]
    ]


def test_every_alert_has_its_section_among_the_incidents():
    groups = yaml.safe_load(text("deploy/prometheus/alerts.yaml"))["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"]]
    sections = re.split(r"^## ", text("docs/incidents.md"), flags=re.M)[1:]
    told = {name: body for name, _, body in (section.partition("\n") for section in sections)}
    assert {name for name in told if name.startswith("Lethe")} == set(alerts)
    for alert in alerts:
        assert "**Look**" in told[alert] and "**Do**" in told[alert], alert


def test_the_threat_model_gives_figures_of_the_evaluation_alone():
    """Each number with a decimal point stands there too, or is one of them rounded to two places."""
    known = {float(number) for number in re.findall(r"\d+\.\d+", text("docs/evaluation.md"))}
    for number in re.findall(r"\b\d+\.\d+\b", text("docs/threat-model.md")):
        assert float(number) in known | {round(one, 2) for one in known}, number
