"""Dockerfile, compose file, gateway and chart, read by the programs that they are for."""

import json
import re
import subprocess

import pytest
import yaml

from guard.config import OTHER_VARIABLES, PREFIX, SHORT_NAMES, Settings, leaves
from server.routes import Access, find
from tests.tools import ROOT, python, tool

pytestmark = pytest.mark.system
VARIABLES = {PREFIX + key.replace(".", "_").upper() for key, _ in leaves(Settings)} | SHORT_NAMES.keys()
ALERTS = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())
PEER = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateway"}}}
OTHER = {"podSelector": {"matchLabels": {"app": "prometheus"}}}
ALL = {
    "nameOverride": "guard",
    "fullnameOverride": "lethe-server",
    "image": {"repository": "registry.example/lethe", "digest": "sha256:" + "0" * 64, "pullPolicy": "Always"},
    "imagePullSecrets": ["registry"],
    "replicas": 3,
    "model": "/models/mine",
    "vllmArgs": ["--max-model-len", "4096"],
    "config": {"version": 1, "encoder": {"threads": 2}},
    "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
    "keys": {"existingSecret": "lethe-keys"},
    "store": {"existingSecret": "lethe-store"},
    "persistence": {
        "artifactsClaim": "shared",
        "size": "50Gi",
        "storageClass": "fast",
        "accessModes": ["ReadWriteOncePod"],
    },
    "resources": {"requests": {"cpu": "8", "memory": "64Gi"}, "limits": {"memory": "64Gi"}},
    "gpu": {"count": 2, "runtimeClassName": "nvidia"},
    "shm": "8Gi",
    "service": {"type": "LoadBalancer", "port": 443, "annotations": {"a": "b"}},
    "networkPolicy": {
        "clients": [PEER],
        "operators": [OTHER],
        "egress": [{"to": [PEER], "ports": [{"port": 5432, "protocol": "TCP"}]}],
    },
    "serviceAccount": {"name": "other"},
    "monitoring": {
        "serviceMonitor": True,
        "prometheusRule": True,
        "existingSecret": "lethe-auditor",
        "labels": {"release": "prometheus"},
    },
    "podAnnotations": {"a": "b"},
    "podLabels": {"c": "d"},
    "nodeSelector": {"gpu": "yes"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
    ],
    "priorityClassName": "high",
    "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}],
    "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
}
BARE = {
    "persistence": {"enabled": False},
    "networkPolicy": {"enabled": False},
    "serviceAccount": {"create": False},
}
OFF = {"PodDisruptionBudget", "ConfigMap", "ServiceMonitor", "PrometheusRule"}


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def helm(values):
    command = [python(), ROOT / "tests" / "chart.py"]
    return subprocess.run(command, input=json.dumps(values), capture_output=True, text=True)


def rendered(values):
    done = helm(values)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def objects(values):
    found = {}
    for one in rendered(values)["objects"]:
        found.setdefault(one["kind"], []).append(one)
    return found


def pod(values):
    (found,) = objects(values)["StatefulSet"]
    spec = found["spec"]["template"]["spec"]
    return found["spec"], spec, spec["containers"][0]


def test_the_linter_finds_nothing_in_the_dockerfile():
    run(tool("hadolint"), "Dockerfile")


def test_the_compose_file_is_one():
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "deploy/compose/compose.yaml")


def test_envoy_takes_its_configuration():
    run(tool("envoy"), "--mode", "validate", "--config-path", "deploy/compose/envoy.yaml")


@pytest.mark.parametrize("values", [{}, ALL, BARE], ids=["default", "all", "bare"])
def test_the_chart_renders_to_what_kubernetes_takes(values):
    told = rendered(values)
    assert told["lint"] == ["icon is recommended"] and told["objects"] and "rollout status" in told["notes"]


@pytest.mark.parametrize("values", [{}, ALL, BARE], ids=["default", "all", "bare"])
def test_pods_have_no_rights(values):
    _, spec, container = pod(values)
    assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
    outer, inner = spec["securityContext"], container["securityContext"]
    assert outer["runAsNonRoot"] is True and outer["runAsUser"] == outer["fsGroup"] == 10001
    assert outer["seccompProfile"] == {"type": "RuntimeDefault"}
    assert inner == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    shared = {"/data/artifacts"} if "artifactsClaim" in values.get("persistence", {}) else set()
    assert writable == {"/data", "/tmp", "/dev/shm"} | shared


@pytest.mark.parametrize("values", [{}, ALL], ids=["default", "all"])
def test_probes_ports_and_variables_are_those_of_the_server(values):
    _, spec, container = pod(values)
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/readyz",
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
    env = {one["name"]: one for one in container["env"]}
    for probe in probes.values():
        assert find(probe["path"]).access is Access.PUBLIC and probe["port"] == "http"
    given = {"http": env["LETHE_SERVER_PORT"]["value"], "admin": env["LETHE_SERVER_ADMIN_PORT"]["value"]}
    assert given == ports
    ours = {name for name in env if name.startswith(PREFIX)}
    assert ours <= VARIABLES | set(OTHER_VARIABLES)
    waits = container["lifecycle"]["preStop"]["exec"]["command"][1]
    drains = container["args"][container["args"].index("--shutdown-timeout") + 1]
    assert spec["terminationGracePeriodSeconds"] > int(waits) + int(drains)


def test_the_default_is_one_server_of_the_demo_with_a_volume_that_nobody_else_can_reach():
    found = objects({})
    spec, _, container = pod({})
    assert (
        spec["replicas"] == 1
        and spec["volumeClaimTemplates"]
        and container["args"][:3] == ["serve", "--demo", "--"]
    )
    assert not OFF & found.keys() and "Secret" not in found
    (policy,) = found["NetworkPolicy"]
    assert [rule["from"] for rule in policy["spec"]["ingress"]] == [[{"podSelector": {}}]] * 2
    assert {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]} == {53}


def test_every_option_gets_to_its_place():
    found = objects(ALL)
    assert found.keys() >= OFF
    spec, inside, container = pod(ALL)
    assert container["args"][:3] == ["serve", "/models/mine", "--"]
    assert container["args"][-2:] == ["--max-model-len", "4096"]
    assert container["image"] == f"registry.example/lethe@sha256:{'0' * 64}"
    assert container["resources"]["limits"] == {"cpu": "4", "memory": "64Gi", "nvidia.com/gpu": 2}
    env = {one["name"]: one for one in container["env"]}
    for variable, secret, key in (
        ("LETHE_MASTER_KEY", "lethe-keys", "master-key"),
        ("LETHE_ADMIN_KEY", "lethe-keys", "admin-key"),
        ("LETHE_STORE_URL", "lethe-store", "url"),
    ):
        assert env[variable]["valueFrom"]["secretKeyRef"] == {"name": secret, "key": key}
    assert yaml.safe_load(found["ConfigMap"][0]["data"]["lethe.yaml"]) == ALL["config"]
    assert env["LETHE_CONFIG"]["value"] == "/etc/lethe/lethe.yaml"
    for name in ("nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "priorityClassName"):
        assert inside[name] == ALL[name]
    assert inside["serviceAccountName"] == "other" and inside["runtimeClassName"] == "nvidia"
    (policy,) = found["NetworkPolicy"]
    allowed = {rule["ports"][0]["port"]: rule["from"] for rule in policy["spec"]["ingress"]}
    assert allowed == {"http": [PEER], "admin": [OTHER]}
    assert policy["spec"]["egress"][1:] == ALL["networkPolicy"]["egress"]
    labels = spec["template"]["metadata"]["labels"]
    exposed = {one["spec"].get("type", "ClusterIP"): one["spec"]["ports"] for one in found["Service"]}
    assert [port["targetPort"] for port in exposed["LoadBalancer"]] == ["http"]
    for one in [*found["Service"], *found["PodDisruptionBudget"]]:
        selector = one["spec"]["selector"]
        assert selector.get("matchLabels", selector).items() <= labels.items()


def test_prometheus_gets_the_alerts_and_finds_the_servers_by_the_name_that_they_ask_for():
    found = objects(ALL)
    assert found["PrometheusRule"][0]["spec"] == ALERTS
    (monitor,) = found["ServiceMonitor"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert find(endpoint["path"]).access is Access.METRICS and endpoint["authorization"]["credentials"]["key"]
    (relabeling,) = endpoint["relabelings"]
    named = set(re.findall(r'job="(\w+)"', json.dumps(ALERTS).replace("\\", "")))
    assert {relabeling["replacement"]} == named and relabeling["targetLabel"] == "job"
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    (service,) = [one for one in found["Service"] if wanted <= one["metadata"]["labels"].items()]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replica": 2}, "additional properties 'replica' not allowed"),
        ({"image": {"registry": "x"}}, "additional properties 'registry' not allowed"),
        ({"replicas": 2}, "More than one server needs a shared store"),
        ({"replicas": 2, "keys": {"existingSecret": "k"}}, "More than one server needs a shared store"),
        ({"store": {"existingSecret": "s"}}, "set keys.existingSecret"),
        ({"monitoring": {"serviceMonitor": True}}, "set monitoring.existingSecret"),
        ({"image": {"digest": "latest"}}, "/image/digest"),
    ],
)
def test_values_that_would_not_work_are_refused_with_a_sentence(values, named):
    done = helm(values)
    assert done.returncode == 1 and named in done.stderr
