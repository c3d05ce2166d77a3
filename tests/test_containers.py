"""What the Dockerfile, the compose file and the chart's values promise, as far as reading them tells."""

import json
import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from guard.config import FILE, OTHER_VARIABLES, PREFIX, SHORT_NAMES, Settings, leaves
from server.routes import Access, find

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
STEPS = [
    re.sub(r"\\\n\s*", "", step).strip()
    for step in re.split(r"(?<!\\)\n", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M))
    if step
]
FINAL = STEPS[[i for i, step in enumerate(STEPS) if step.startswith("FROM")][-1] :]
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())
SERVERS = {name: s for name, s in COMPOSE["services"].items() if name.startswith("lethe")}
CHART = ROOT / "deploy" / "chart"
VARIABLES = {PREFIX + key.replace(".", "_").upper() for key, _ in leaves(Settings)} | SHORT_NAMES.keys()


def known(variable):
    return not variable.startswith(PREFIX) or variable.removesuffix(FILE) in {*VARIABLES, *OTHER_VARIABLES}


def last(instruction):
    return (
        next(s for s in reversed(FINAL) if s.startswith(instruction + " ")).removeprefix(instruction).strip()
    )


def test_the_image_runs_as_a_numbered_user_without_rights():
    user, group = last("USER").split(":")
    assert int(user) >= 10_000 and int(group) >= 10_000
    assert not any(re.search(r"\b(sudo|setcap|chmod [0-7]*[2-7]7)\b", step) for step in STEPS)


def test_the_image_is_asked_whether_it_is_ready_and_gets_signals_itself():
    check = last("HEALTHCHECK")
    assert find(re.search(r"}(/\w+)'", check)[1]).access is Access.PUBLIC and "curl" not in check
    assert json.loads(last("ENTRYPOINT")) == ["lethe"] and json.loads(last("CMD"))[0] == "serve"


def test_the_image_sets_variables_that_exist_and_no_secret():
    given = [word.partition("=")[0] for word in shlex.split(last("ENV"))]
    assert "LETHE_DATA_DIR" in given and all(known(variable) for variable in given)
    named = [word for step in STEPS if step.startswith(("ARG", "ENV")) for word in step.split()[1:]]
    assert not [word for word in named if re.match(r"\w*(KEY|SECRET|TOKEN|PASSWORD)\w*(=|$)", word)]


def test_all_of_lethe_and_nothing_else_gets_into_the_image():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = {
        source
        for step in STEPS
        if step.startswith("COPY") and "--from" not in step
        for source in step.split()[1:-1]
    }
    assert packages <= copied
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    assert allowed == {source.partition("/")[0] for source in copied}


def test_requirements_that_the_image_can_ask_for_exist():
    (wanted,) = [step.split()[1] for step in STEPS if step.startswith("COPY requirements")]
    pattern = re.sub(r"\$\{\w+\}", "*", wanted)
    found = {
        path.name
        for path in (ROOT / "requirements").iterdir()
        if fnmatch(f"requirements/{path.name}", pattern)
    }
    assert {f"{s}-{a}.txt" for s in ("serve", "train") for a in ("cpu", "cuda")} <= found
    for name in ("serve", "train"):
        for accelerator in ("cpu", "cuda"):
            locked = (ROOT / "requirements" / f"{name}-{accelerator}.txt").read_text()
            assert "\npsycopg-binary==" in locked  # compose and chart keep the store in PostgreSQL


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_services_are_read_only_without_rights_and_bounded(service):
    told = COMPOSE["services"][service]
    assert told["read_only"] is True and told["cap_drop"] == ["ALL"]
    assert told["security_opt"] == ["no-new-privileges:true"]
    assert set(told["deploy"]["resources"]["limits"]) == {"cpus", "memory"} and told["pids_limit"]
    assert all(secret in COMPOSE["secrets"] for secret in told.get("secrets", []))
    assert not [name for name in told.get("environment", {}) if re.search("PASSWORD$|KEY$|SECRET$", name)]


def test_two_servers_share_store_and_keys_and_keep_what_is_their_own_apart():
    one, other = SERVERS.values()
    assert one["environment"] == other["environment"] and one["volumes"] != other["volumes"]
    assert {"LETHE_STORE_URL_FILE", "LETHE_MASTER_KEY_FILE"} <= one["environment"].keys()
    assert all(known(variable) for variable in one["environment"])
    for variable, value in one["environment"].items():
        if variable.endswith(FILE):
            assert value.removeprefix("/run/secrets/") in one["secrets"]


def test_nothing_but_the_gateway_can_be_reached_from_outside_and_by_default_from_this_machine_alone():
    ports = {name: told["ports"] for name, told in COMPOSE["services"].items() if "ports" in told}
    assert list(ports) == ["envoy"]
    assert all(re.match(r"(\$\{\w+:-)?127\.0\.0\.1:", port) for port in ports["envoy"])
    envoy = yaml.safe_load((ROOT / "deploy" / "compose" / "envoy.yaml").read_text())
    assert envoy["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    listening = {
        one["address"]["socket_address"]["port_value"] for one in envoy["static_resources"]["listeners"]
    }
    assert listening == {int(port.rpartition(":")[2]) for port in ports["envoy"]}
    for cluster in envoy["static_resources"]["clusters"]:
        (group,) = cluster["load_assignment"]["endpoints"]
        ends = [end["endpoint"]["address"]["socket_address"] for end in group["lb_endpoints"]]
        assert [end["address"] for end in ends] == list(SERVERS)
        told = [server["environment"].get("LETHE_SERVER_ADMIN_PORT") for server in SERVERS.values()]
        assert [end["port_value"] for end in ends] == (
            told if cluster["name"] == "lethe-admin" else [8000, 8000]
        )


def keys(tree, prefix=""):
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{name}.")


def test_the_charts_schema_has_every_value_and_takes_no_other():
    def told(schema, prefix=""):
        for name, part in schema["properties"].items():
            yield f"{prefix}{name}"
            if "properties" in part:
                assert part["additionalProperties"] is False
                yield from told(part, f"{prefix}{name}.")

    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["additionalProperties"] is False
    values = set(keys(yaml.safe_load((CHART / "values.yaml").read_text())))
    optional = {"global", "resources.claims"}
    unnamed = {key for key in values if re.match(r"resources\.\w+\.", key)}
    assert values - unnamed == set(told(schema)) - optional


def test_every_value_of_the_chart_has_a_comment():
    for line in (CHART / "values.yaml").read_text().splitlines():
        if not re.match(r"#|$|  (requests|limits):|\w+:$", line):
            assert " # " in line, line


def test_the_chart_has_the_projects_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == project["version"]
