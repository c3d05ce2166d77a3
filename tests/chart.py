"""Renders the Helm chart of `deploy/` as `helm template` would; run by the interpreter of `.venv-tools`.

Reads values as JSON, writes what the linter says and the objects as JSON, or ends with 1 and Helm's words. Objects of
Kubernetes itself are checked against its schemas, strictly.
"""

import json
import sys
from pathlib import Path

import helm_python
import kubernetes_validate
import yaml

CHART = Path(__file__).parents[1] / "deploy" / "chart"


def main() -> None:
    values = json.load(sys.stdin)
    found = helm_python.lint(str(CHART), values=values)
    with helm_python.Chart.load(CHART) as chart:
        try:
            chart.validate_schema(values)
            rendered = chart.render(values, name="a", namespace="models")
        except helm_python.HelmError as error:
            sys.exit(str(error))
    notes = rendered.pop("lethe/templates/NOTES.txt")
    objects = [one for text in rendered.values() for one in yaml.safe_load_all(text) if one]
    for one in objects:
        if "monitoring.coreos.com" not in one["apiVersion"]:
            kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
    told = [message["error"] for message in found["messages"]] + found["errors"]
    json.dump({"objects": objects, "notes": notes, "lint": told}, sys.stdout)


main()
