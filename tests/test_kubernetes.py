"""deploy/kubernetes: the resources fit the schemas of Kubernetes and KEDA, and fit each other and the service."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema_rs
import kubernetes_validate
import pytest
import yaml

from taskpool.settings import SETTING_FIELDS, Settings
from tests.api_client import api, publish_types

FOLDER = Path(__file__).parent.parent / "deploy" / "kubernetes"
OLDEST = "1.33"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
TEXT = {"type": "string", "minLength": 1}
NUMBER = {"type": "integer", "minimum": 0}
KEDA = {
    "ScaledObject": {
        "scaleTargetRef": {"type": "object", "required": ["name"], "properties": {"name": TEXT}},
        "minReplicaCount": NUMBER,
        "maxReplicaCount": NUMBER,
        "pollingInterval": NUMBER,
        "cooldownPeriod": NUMBER,
        "fallback": {"type": "object", "properties": {"failureThreshold": NUMBER, "replicas": NUMBER}},
        "advanced": {"type": "object"},
        "triggers": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "metadata"],
                "additionalProperties": False,
                "properties": {
                    "type": {"const": "metrics-api"},
                    # All values are texts, and `url`, `valueLocation` and `targetValue` are required.
                    "metadata": {
                        "type": "object",
                        "required": ["url", "valueLocation", "targetValue"],
                        "additionalProperties": TEXT,
                    },
                    "authenticationRef": {"type": "object", "required": ["name"]},
                },
            },
        },
    },
    "TriggerAuthentication": {
        "secretTargetRef": {
            "type": "array",
            "items": {"type": "object", "required": ["parameter", "name", "key"], "additionalProperties": TEXT},
        }
    },
}
"""What KEDA's resources may contain, of those fields that are used here."""


def resources() -> Iterator[dict[str, Any]]:
    for name in KUSTOMIZATION["resources"]:
        yield from yaml.safe_load_all((FOLDER / name).read_text())


ALL = {(each["kind"], each["metadata"]["name"]): each for each in resources()}
PODS = {name: each["spec"]["template"] for (kind, name), each in ALL.items() if kind == "Deployment"}


def container(name: str) -> dict[str, Any]:
    (found,) = PODS[name]["spec"]["containers"]
    return dict(found)


def environment(name: str) -> dict[str, str]:
    """The variables of a deployment's container, without secrets."""
    return {each["name"]: each["value"] for each in container(name)["env"] if "value" in each}


@pytest.mark.parametrize("key", ALL, ids="/".join)
@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_a_resource_fits_its_schema(key: tuple[str, str], version: str) -> None:
    resource = ALL[key]
    if resource["apiVersion"].startswith("keda.sh/"):
        assert resource["apiVersion"] == "keda.sh/v1alpha1"
        schema = {"type": "object", "additionalProperties": False, "properties": KEDA[resource["kind"]]}
        jsonschema_rs.validate(schema, resource["spec"])
    else:
        kubernetes_validate.validate(resource, version, strict=True)


def test_a_wrong_resource_fits_no_schema() -> None:
    wrong = {**ALL["Deployment", "taskpool-api"], "replica": 2}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, OLDEST, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which has kustomize, isn't installed")
def test_kustomize_builds_everything() -> None:
    built = subprocess.run(["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, check=True)

    found = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(built.stdout)}
    assert found.keys() == ALL.keys()
    assert {each["metadata"].get("namespace") for (kind, _), each in found.items() if kind != "Namespace"} == {
        "taskpool"
    }


def test_each_selector_finds_a_deployment() -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in PODS.items()}

    for (kind, name), resource in ALL.items():
        spec: Mapping[str, Any] = resource.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector")
        if kind == "ScaledObject":
            assert spec["scaleTargetRef"]["name"] in PODS
        elif selector is not None:
            assert selector.get("matchLabels", selector) == labels[name], (kind, name)
    assert {name for kind, name in ALL if kind == "PodDisruptionBudget"} == PODS.keys()
    assert {name for kind, name in ALL if kind == "NetworkPolicy"} == PODS.keys()


def test_the_settings_are_real_ones() -> None:
    shared = ALL["ConfigMap", "taskpool-settings"]["data"]

    for name in PODS:
        assert container(name)["envFrom"] == [{"configMapRef": {"name": "taskpool-settings"}}]
        variables = {**shared, **environment(name)}
        assert variables.keys() <= {field.env for field in SETTING_FIELDS}
        Settings.load(variables)


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_hardened(name: str) -> None:
    pod, of_container = PODS[name]["spec"], container(name)["securityContext"]

    assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert of_container["readOnlyRootFilesystem"] is True
    assert of_container["allowPrivilegeEscalation"] is False
    assert of_container["capabilities"] == {"drop": ["ALL"]}
    assert {"memory"} <= container(name)["resources"]["limits"].keys()


def test_a_pod_has_time_to_drain_its_workers() -> None:
    spec = PODS["taskpool-worker"]["spec"]

    assert spec["terminationGracePeriodSeconds"] >= float(environment("taskpool-worker")["TASKPOOL_GRACE_S"]) + 15


async def test_the_autoscaler_and_the_probes_ask_what_the_api_has(redis_url: str) -> None:
    (trigger,) = ALL["ScaledObject", "taskpool-worker"]["spec"]["triggers"]
    asked = urlsplit(trigger["metadata"]["url"])
    service = ALL["Service", "taskpool-api"]
    worker = environment("taskpool-worker")
    publish_types(redis_url)

    async with api(redis_url) as client:
        answer = await client.get(f"{asked.path}?{asked.query}")
        probes = [container("taskpool-api")[f"{kind}Probe"]["httpGet"]["path"] for kind in ("liveness", "readiness")]
        assert [(await client.get(path)).status_code for path in probes] == [200, 200]

    assert isinstance(answer.json()[trigger["metadata"]["valueLocation"]], int)
    assert answer.json()["queue"] == worker["TASKPOOL_QUEUES"]
    assert trigger["metadata"]["targetValue"] == worker["TASKPOOL_WORKERS"]
    assert asked.hostname == f"{service['metadata']['name']}.{KUSTOMIZATION['namespace']}.svc.cluster.local"
    assert asked.port == service["spec"]["ports"][0]["port"]
    authentication = ALL["TriggerAuthentication", trigger["authenticationRef"]["name"]]["spec"]["secretTargetRef"]
    assert [each["parameter"] for each in authentication] == ["token"]
