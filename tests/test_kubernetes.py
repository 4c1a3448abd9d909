"""The Kubernetes manifests, without a cluster: held to Kubernetes' schemas, to KEDA's documentation, to the service."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from pipelines.catalog import Catalog
from scripts import dry_build
from service.api import health
from service.settings import Settings
from tests.test_containers import KNOWN, ROOT, TMP, values

FOLDER = ROOT / "deploy/kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
DOCUMENTS = [
    document for name in KUSTOMIZATION["resources"] for document in yaml.safe_load_all((FOLDER / name).read_text())
]
# The oldest with a pause before the end (lifecycle.preStop.sleep), and the newest that the checker knows.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
KEDA = "keda.sh/v1alpha1"


def named(kind):
    return {each["metadata"]["name"]: each for each in DOCUMENTS if each["kind"] == kind}


DEPLOYMENTS = named("Deployment")
PODS = {name: each["spec"]["template"]["spec"] for name, each in DEPLOYMENTS.items()}
CONTAINERS = {name: pod["containers"][0] for name, pod in PODS.items()}
MAPS = {each["name"]: each for each in KUSTOMIZATION["configMapGenerator"]}
LITERALS = dict(each.split("=", 1) for each in MAPS["superdiff"]["literals"])


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Meta(Strict):
    name: str


class Policy(Strict):
    type: Literal["Pods", "Percent"]
    value: Annotated[int, Field(gt=0)]
    periodSeconds: Annotated[int, Field(gt=0, le=1800)]  # noqa: N815


class Rules(Strict):
    stabilizationWindowSeconds: Annotated[int, Field(ge=0, le=3600)]  # noqa: N815
    policies: list[Policy]
    selectPolicy: Literal["Max", "Min", "Disabled"] = "Max"  # noqa: N815


class Behavior(Strict):
    scaleUp: Rules  # noqa: N815
    scaleDown: Rules  # noqa: N815


class Autoscaler(Strict):
    behavior: Behavior


class Modifiers(Strict):
    formula: str
    target: Annotated[str, Field(pattern=r"^[0-9.]+$")]
    metricType: Literal["AverageValue", "Value"]  # noqa: N815


class Advanced(Strict):
    scalingModifiers: Modifiers  # noqa: N815
    horizontalPodAutoscalerConfig: Autoscaler  # noqa: N815


class MetricsApi(Strict):
    """https://keda.sh/docs/2.17/scalers/metrics-api/: numbers are texts too."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    valueLocation: str  # noqa: N815
    targetValue: Annotated[str, Field(pattern=r"^[0-9.]+$")]  # noqa: N815
    authMode: Literal["apiKey", "basic", "tls", "bearer"]  # noqa: N815


class Trigger(Strict):
    type: Literal["metrics-api"]
    name: Annotated[str, Field(pattern=r"^[a-z_]+$")]
    metadata: MetricsApi
    authenticationRef: Meta  # noqa: N815


class ScaledObjectSpec(Strict):
    scaleTargetRef: Meta  # noqa: N815
    minReplicaCount: Annotated[int, Field(ge=0)]  # noqa: N815
    maxReplicaCount: Annotated[int, Field(ge=1)]  # noqa: N815
    pollingInterval: Annotated[int, Field(ge=1)]  # noqa: N815
    advanced: Advanced
    triggers: list[Trigger]


class ScaledObject(Strict):
    apiVersion: Literal["keda.sh/v1alpha1"]  # noqa: N815
    kind: Literal["ScaledObject"]
    metadata: Meta
    spec: ScaledObjectSpec


class SecretKey(Strict):
    parameter: str
    name: str
    key: str


class SecretKeys(Strict):
    secretTargetRef: list[SecretKey]  # noqa: N815


class TriggerAuthentication(Strict):
    apiVersion: Literal["keda.sh/v1alpha1"]  # noqa: N815
    kind: Literal["TriggerAuthentication"]
    metadata: Meta
    spec: SecretKeys


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "document", [each for each in DOCUMENTS if each["apiVersion"] != KEDA], ids=lambda each: each["kind"]
)
def test_kubernetes_knows_every_field(document, version):
    kubernetes_validate.validate(document, version, strict=True)


def test_the_checker_finds_what_is_wrong():
    wrong = {**DEPLOYMENTS["superdiff-api"], "spec": {**DEPLOYMENTS["superdiff-api"]["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_keda_knows_every_field():
    (scaled,) = named("ScaledObject").values()
    (authentication,) = named("TriggerAuthentication").values()
    spec = ScaledObject.model_validate(scaled).spec
    secrets = TriggerAuthentication.model_validate(authentication)
    assert spec.scaleTargetRef.name in DEPLOYMENTS
    assert {each.authenticationRef.name for each in spec.triggers} == {secrets.metadata.name}
    # What authMode bearer reads.
    assert [each.parameter for each in secrets.spec.secretTargetRef] == ["token"]
    used = set(re.findall(r"[a-z_]+", spec.advanced.scalingModifiers.formula))
    assert used == {each.name for each in spec.triggers}
    (backlog,) = (each for each in spec.triggers if each.name == "backlog")
    assert spec.advanced.scalingModifiers.formula == f"busy + backlog / {backlog.metadata.targetValue}"


def test_what_the_scaler_reads_is_in_the_answer():
    from service.schemas import answers

    fields = answers.WorkerList.model_fields
    (scaled,) = named("ScaledObject").values()
    read = {each["name"]: each["metadata"]["valueLocation"] for each in scaled["spec"]["triggers"]}
    assert read == {"backlog": "backlog.seconds", "busy": "workers.#(running_jobs>0)#|#"}
    assert {"seconds"} <= set(fields["backlog"].annotation.model_fields)
    assert {"running_jobs"} <= set(answers.WorkerInfo.model_fields)


def test_the_namespace_is_named_once():
    assert not any("namespace" in each["metadata"] for each in DOCUMENTS)
    (replacement,) = KUSTOMIZATION["replacements"]
    assert replacement["source"] == {"kind": "Service", "name": "superdiff-api", "fieldPath": "metadata.namespace"}
    (target,) = replacement["targets"]
    assert target["fieldPaths"] == ["spec.triggers.*.metadata.url"]
    options = target["options"]
    for trigger in named("ScaledObject")[target["select"]["name"]]["spec"]["triggers"]:
        parts = trigger["metadata"]["url"].split(options["delimiter"])
        parts[options["index"]] = KUSTOMIZATION["namespace"]
        assert ".".join(parts) == "http://superdiff-api.superdiff.svc/v1/workers"


def test_the_kustomization_has_all_files_and_what_is_referred_to():
    files = {path.name for path in FOLDER.iterdir()}
    listed = {*KUSTOMIZATION["resources"], *MAPS["superdiff-catalog"]["files"], "kustomization.yaml"}
    assert files == listed
    assert {each["image"] for each in CONTAINERS.values()} == {each["name"] for each in KUSTOMIZATION["images"]}
    for pod in PODS.values():
        asked = {each["configMap"]["name"] for each in pod["volumes"] if "configMap" in each}
        sources = pod["containers"][0]["envFrom"]
        asked |= {each["configMapRef"]["name"] for each in sources if "configMapRef" in each}
        assert asked == set(MAPS)


def test_variables_are_settings_and_the_catalogue_can_be_read():
    for container in CONTAINERS.values():
        assert {each["name"] for each in container["env"]} <= KNOWN
    assert set(LITERALS) <= KNOWN
    Settings(**{name.removeprefix("SUPERDIFF_").lower(): value for name, value in LITERALS.items()})
    assert Catalog.read(FOLDER / "superdiff.toml").names == ("emoji", "shapes")


def test_secrets_are_referred_to_and_never_written():
    assert not named("Secret")
    for container in CONTAINERS.values():
        (database,) = (each for each in container["env"] if each["name"] == "SUPERDIFF_DATABASE")
        assert set(database) == {"name", "valueFrom"}
    text = "".join(path.read_text() for path in FOLDER.iterdir())
    assert not re.search(r"postgresql://|password:|AKIA|whsec_", text)


def test_pods_are_confined_and_write_only_where_the_image_does():
    steps = [(each["instruction"], each["value"]) for each in dry_build.instructions(ROOT / "Dockerfile")]
    written = {*yaml.safe_load(values(steps, "VOLUME")[0]), TMP}
    (user,) = re.findall(r"--uid (\d+)", "".join(values(steps, "RUN")))
    for name, pod in PODS.items():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == int(user)
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert len(pod["containers"]) == 1
        assert CONTAINERS[name]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounts = {each["mountPath"]: each for each in CONTAINERS[name]["volumeMounts"]}
        volumes = {each["name"]: each for each in pod["volumes"]}
        assert {each["name"] for each in mounts.values()} == set(volumes)
        assert {path for path, each in mounts.items() if not each.get("readOnly")} == written
        assert not any("hostPath" in each for each in volumes.values())


def test_pods_have_time_to_end():
    """GRACE_S, the last answers and what is kept, as docs/operations.md has it."""
    grace = int(LITERALS["SUPERDIFF_GRACE_S"])
    for name, pod in PODS.items():
        pause = CONTAINERS[name].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert pod["terminationGracePeriodSeconds"] >= pause + grace + 5 + 10


def test_only_workers_have_a_gpu_and_all_say_what_they_need():
    limits = {name: each["resources"]["limits"] for name, each in CONTAINERS.items()}
    assert limits["superdiff-worker"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in limits["superdiff-api"]
    for container in CONTAINERS.values():
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


def test_probes_ask_what_there_is():
    container = CONTAINERS["superdiff-api"]
    paths = {route.path for route in health.router.routes}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
        assert container[probe]["httpGet"]["port"] == "http"
    # Who drains is taken out of the service, not killed.
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"


@pytest.mark.parametrize(("age_s", "passes"), [(None, True), (0, True), (3600, False)])
def test_a_worker_that_stands_still_is_found(tmp_path, age_s, passes):
    program, flag, code = CONTAINERS["superdiff-worker"]["livenessProbe"]["exec"]["command"]
    file = tmp_path / "alive"
    if age_s is not None:
        file.touch()
        os.utime(file, (time.time() - age_s,) * 2)
    told = re.sub(r'"/tmp/[\w.-]+"', repr(str(file)), code)
    assert told != code
    assert (program, flag) == ("python", "-c")
    assert (subprocess.run([sys.executable, flag, told], check=False).returncode == 0) is passes


def test_selectors_meet_their_pods_and_scaled_deployments_have_no_number():
    for deployment in DEPLOYMENTS.values():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels
        assert "replicas" not in deployment["spec"], "applying it anew would undo what the autoscaler did"
        assert deployment["spec"]["template"]["spec"]["containers"][0]["args"][0] in {"serve", "worker"}
    pods = {name: each["spec"]["template"]["metadata"]["labels"] for name, each in DEPLOYMENTS.items()}
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        for name, each in named(kind).items():
            spec = each["spec"]
            selected = (
                spec["selector"] if kind == "Service" else spec.get("selector", spec.get("podSelector"))["matchLabels"]
            )
            assert selected == pods[name]
    for name, each in named("HorizontalPodAutoscaler").items():
        assert each["spec"]["scaleTargetRef"]["name"] == name
        assert name in DEPLOYMENTS
    (service,) = named("Service").values()
    ports = {each["name"]: each["containerPort"] for each in CONTAINERS["superdiff-api"]["ports"]}
    assert service["spec"]["ports"][0]["targetPort"] in ports
    steps = [(each["instruction"], each["value"]) for each in dry_build.instructions(ROOT / "Dockerfile")]
    assert str(ports["http"]) in values(steps, "EXPOSE")


def test_it_is_kept_at_work_while_nodes_are_emptied():
    budgets = {name: each["spec"] for name, each in named("PodDisruptionBudget").items()}
    assert set(budgets) == set(DEPLOYMENTS)
    (autoscaler,) = named("HorizontalPodAutoscaler").values()
    assert autoscaler["spec"]["minReplicas"] > budgets["superdiff-api"]["minAvailable"] >= 1


def test_the_folder_is_where_the_document_says():
    assert Path(FOLDER).relative_to(ROOT).as_posix() in (ROOT / "docs/scaling.md").read_text()
