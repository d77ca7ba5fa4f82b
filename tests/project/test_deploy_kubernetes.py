"""The Kubernetes manifests: valid, and matched to the server's settings, routes and metrics."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from bentoml._internal.configuration.containers import BentoMLContainer

from cache_dit_serving import __version__
from cache_dit_serving.config.footprints import WAYS, footprints
from cache_dit_serving.config.keys import read_keys
from cache_dit_serving.config.reading import Resolved, resolve
from tests.support.commands import commands_of, lines_of
from tests.support.custom_resources import SCHEMAS
from tests.support.manifests import (
    FOLDER,
    OVERLAYS,
    WEIGHTS,
    container,
    environment,
    needs_kubectl,
    of_kind,
    pod,
    render,
    rendered,
    selects,
)
from tests.support.promtool import needs_promtool
from tests.support.server import ROOT, free_port

pytestmark = needs_kubectl
EVERY = (*OVERLAYS, WEIGHTS)
PAGE = ROOT / "docs" / "deploy.md"
OLDEST, NEWEST = "1.30", "1.37"
"""Versions of Kubernetes that the manifests are for: `preStop.sleep` is on by default since 1.30."""
SECRETS = {
    "storage/database": "postgresql://serving:secret@postgres.postgres/serving",
    "storage/access-key-id": "id",
    "storage/secret-access-key": "secret",
    "hub/token": "hf_secret",
}
OTHERS = {"BENTOML_HOME", "BENTOML_DO_NOT_TRACK", "HOME", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"}
OF_S3 = {"AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
PREFIX = "CACHE_DIT_SERVING__"
DEFINED = {"PrometheusRule", "ScaledObject", "ServiceMonitor"}
"""Kinds that an operator of the cluster defines."""


def resolved(name: str) -> Resolved:
    """The settings that a pod of the overlay starts with."""
    return resolve(environment(name, SECRETS))


def triggers() -> dict[str, dict[str, Any]]:
    [scaled] = of_kind("replicas", "ScaledObject")
    return {each["name"]: each["metadata"] for each in scaled["spec"]["triggers"]}


# jsonschema is imported where it is used: it takes each process that collects the tests a second.


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", EVERY)
def test_kubernetes_takes_each_object(name: str, version: str) -> None:
    from kubernetes_validate.utils import validate

    objects = [each for each in rendered(name) if each["kind"] not in DEFINED]
    assert objects
    for each in objects:
        assert validate(each, version, strict=True) == version


def test_an_unknown_field_is_found() -> None:
    from kubernetes_validate.utils import ValidationError, validate

    [service] = of_kind("cpu", "Service")
    with pytest.raises(ValidationError, match="sessionAfinity"):
        validate(service | {"spec": {"sessionAfinity": "None"}}, NEWEST, strict=True)


@pytest.mark.parametrize("kind", sorted(DEFINED))
def test_the_operators_take_their_objects(kind: str) -> None:
    import jsonschema

    [made] = of_kind("replicas", kind)
    jsonschema.validate(made, SCHEMAS[kind])


@pytest.mark.parametrize("name", OVERLAYS)
def test_each_variable_is_a_setting_or_a_known_one_of_a_library(name: str) -> None:
    variables = environment(name, SECRETS)
    others = {variable for variable in variables if not variable.startswith("CACHE_DIT_SERVING")}
    assert others <= OTHERS | (OF_S3 if name == "replicas" else set())
    read = resolved(name)  # an unknown setting, or a value of another type, stops it
    set_by_variables = {origin for origin in read.origins.values() if origin.startswith(PREFIX)}
    assert set_by_variables == {variable for variable in variables if variable.startswith(PREFIX)}


@pytest.mark.parametrize(
    ("name", "config"),
    [("cpu", "embedded"), ("one-gpu", "qwen-image"), ("four-gpus", "qwen-image"), ("replicas", "qwen-image")],
)
def test_an_overlay_has_its_model_and_the_gpus_that_it_takes(name: str, config: str) -> None:
    read = resolved(name)
    assert read.name == config
    gpus = int(container(name)["resources"]["limits"].get("nvidia.com/gpu", "0"))
    assert gpus == (0 if config == "embedded" else read.settings.server.workers * read.settings.gpus_per_worker)
    assert gpus == {"cpu": 0, "four-gpus": 4}.get(name, 1)


def test_the_model_fits_the_gpu_that_the_page_names() -> None:
    [gigabytes] = re.findall(r"Qwen-Image on one GPU of (\d+) GB", PAGE.read_text())
    assert footprints()[resolved("one-gpu").name].fitting(int(gigabytes) * 10**9) == WAYS[0]


def test_the_weights_are_those_of_the_model_on_the_volume_that_the_servers_read() -> None:
    job, server = container(WEIGHTS), container("one-gpu")
    assert job["command"] == ["hf", "download", resolved("one-gpu").settings.model.path]
    volume = {each["name"]: each for each in pod(WEIGHTS)["spec"]["volumes"]}["weights"]
    [claim] = of_kind(WEIGHTS, "PersistentVolumeClaim")
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    for name, reads in ((WEIGHTS, job), ("one-gpu", server)):
        [mount] = [each for each in reads["volumeMounts"] if each["name"] == "weights"]
        assert mount["mountPath"] == environment(name, SECRETS)["HF_HUB_CACHE"]
        assert mount.get("readOnly", False) == (reads is server)


@pytest.mark.parametrize("name", OVERLAYS)
def test_jobs_and_outputs_are_where_their_overlay_keeps_them(name: str) -> None:
    settings = resolved(name).settings
    assert (settings.jobs.database is not None) == (settings.outputs.store is not None) == (name == "replicas")
    volumes = {each["name"]: each for each in pod(name)["spec"]["volumes"]}
    assert ("persistentVolumeClaim" in volumes["outputs"]) == (name in ("one-gpu", "four-gpus"))
    for claim in of_kind(name, "PersistentVolumeClaim"):
        assert volumes["outputs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_probes_ask_the_routes_and_the_port_of_the_server(name: str) -> None:
    served = container(name)
    [port] = served["ports"]
    assert port["containerPort"] == BentoMLContainer.http.port.get()
    paths = {probe: served[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert all(asked["port"] == port["name"] for asked in paths.values())
    assert [asked["path"] for asked in paths.values()] == ["/readyz", "/livez", "/readyz"]
    assert "health" in resolved(name).settings.server.open_routes, "kubelet has no key"
    [service] = of_kind(name, "Service")
    assert [each["targetPort"] for each in service["spec"]["ports"]] == [port["name"]]
    for policy in of_kind(name, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", ()):
            assert [each["port"] for each in rule["ports"]] == [port["name"]]


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_pod_has_the_time_to_load_and_to_drain(name: str) -> None:
    [deployment], spec, settings = of_kind(name, "Deployment"), pod(name)["spec"], resolved(name).settings
    startup, sleep = container(name)["startupProbe"], container(name)["lifecycle"]["preStop"]["sleep"]
    load_s = startup["periodSeconds"] * startup["failureThreshold"]
    assert deployment["spec"]["progressDeadlineSeconds"] > load_s
    assert settings.server.on_load_failure == "exit", "else a failed load is restarted after load_s alone"
    assert settings.server.drain_s is not None
    assert spec["terminationGracePeriodSeconds"] == settings.server.drain_s + sleep["seconds"] + 10
    assert settings.server.drain_s < settings.limits.max_request_s
    assert settings.limits.max_step_s <= settings.limits.max_request_s, "a hung GPU is found within a request's time"


@pytest.mark.parametrize("name", EVERY)
def test_a_pod_is_restricted(name: str) -> None:
    """The profile `restricted` of the Pod Security Standards, and a root that is read-only."""
    spec, secured = pod(name)["spec"], container(name)["securityContext"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert {spec["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {1034}
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert secured == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not spec["automountServiceAccountToken"]
    [namespace] = of_kind(name, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("name", OVERLAYS)
def test_each_folder_that_the_server_writes_to_is_a_writable_volume(name: str) -> None:
    mounts = {each["mountPath"]: each for each in container(name)["volumeMounts"]}
    writable = [PurePosixPath(path) for path, each in mounts.items() if not each.get("readOnly")]
    variables = environment(name, SECRETS)
    written = [str(resolved(name).settings.outputs.root), "/tmp", variables["BENTOML_HOME"], variables["HOME"]]
    written += [variables["HF_HOME"]] if "HF_HOME" in variables else []
    for folder in written:
        assert any(PurePosixPath(folder).is_relative_to(volume) for volume in writable), folder
    volumes = {each["name"] for each in pod(name)["spec"]["volumes"]}
    assert {each["name"] for each in mounts.values()} == volumes


@pytest.mark.parametrize("name", ["one-gpu", "four-gpus", "replicas"])
def test_keys_are_read_from_a_secret_that_may_change(name: str) -> None:
    file = resolved(name).settings.server.api_keys_file
    assert file is not None
    [mount] = [each for each in container(name)["volumeMounts"] if each["name"] == "keys"]
    assert PurePosixPath(mount["mountPath"]) == PurePosixPath(file).parent
    assert "subPath" not in mount, "a file mounted by subPath never changes"


@pytest.mark.parametrize("name", OVERLAYS)
def test_selectors_select_the_server_and_not_the_download(name: str) -> None:
    server, download = pod(name)["labels"], pod(WEIGHTS)["labels"]
    [service], [budget] = of_kind(name, "Service"), of_kind(name, "PodDisruptionBudget")
    selectors = [{"matchLabels": service["spec"]["selector"]}, budget["spec"]["selector"]]
    selectors += [each["spec"]["podSelector"] for each in of_kind(name, "NetworkPolicy")]
    selectors += [each["spec"]["selector"] for each in of_kind(name, "Deployment")]
    selectors += [each["labelSelector"] for each in pod(name)["spec"].get("topologySpreadConstraints", ())]
    for selector in selectors:
        assert selects(selector, server)
        assert not selects(selector, download)
    for monitor in of_kind(name, "ServiceMonitor"):
        assert selects(monitor["spec"]["selector"], service["metadata"]["labels"])


def test_outgoing_connections_are_to_names_and_storage_alone() -> None:
    def outgoing(name: str) -> list[tuple[str, int]]:
        rules = [rule for each in of_kind(name, "NetworkPolicy") for rule in each["spec"].get("egress", ())]
        return sorted((port["protocol"], port["port"]) for rule in rules for port in rule["ports"])

    names = [("TCP", 53), ("UDP", 53)]
    assert outgoing("cpu") == outgoing("one-gpu") == outgoing("four-gpus") == names
    assert outgoing("replicas") == sorted([*names, ("TCP", 443), ("TCP", 5432)])
    [[dns]] = [
        [peer for rule in each["spec"]["egress"] for peer in rule["to"]] for each in of_kind("cpu", "NetworkPolicy")
    ]
    assert dns["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    [open_block] = [
        peer["ipBlock"]
        for each in of_kind("replicas", "NetworkPolicy")
        for rule in each["spec"].get("egress", ())
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert "169.254.0.0/16" in open_block["except"], "the cloud's credentials are at 169.254.169.254"


def test_the_alert_rules_are_those_of_the_documentation() -> None:
    [rules] = of_kind("replicas", "PrometheusRule")
    assert rules["spec"] == yaml.safe_load((ROOT / "docs" / "alerts.yaml").read_text())


def test_the_metrics_that_scale_are_there() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    queries = [each["query"] for each in triggers().values()]
    names = {name for query in queries for name in re.findall(r"cache_dit_serving_\w+", query)}
    assert len(names) == 3
    assert {name for name in names if f"`{name}`" not in page} == set()
    [deployment] = of_kind("replicas", "Deployment")
    for query in queries:
        assert {*re.findall(r'namespace="([^"]+)"', query)} == {deployment["metadata"]["namespace"]}


def test_scaling_looks_back_further_than_a_generation_takes() -> None:
    """A generation is counted at its end."""
    minutes = {int(each) for trigger in triggers().values() for each in re.findall(r"\[(\d+)m\]", trigger["query"])}
    [scaled] = of_kind("replicas", "ScaledObject")
    [window] = minutes
    behavior = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    settings = resolved("replicas").settings
    assert timedelta(minutes=window) > timedelta(seconds=settings.limits.max_request_s)
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= window * 60
    [policy] = behavior["scaleDown"]["policies"]
    assert policy["periodSeconds"] >= (settings.server.drain_s or 0)
    [deployment] = of_kind("replicas", "Deployment")
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"], "each `kubectl apply` would set it back"


@needs_promtool
def test_the_queries_give_seconds_of_waiting_work_and_busy_pipelines(tmp_path: Path) -> None:
    labels = '{namespace="cache-dit-serving", pod="%s"}'
    waiting = [
        {"series": "cache_dit_serving_queue_waiting" + labels % "a", "values": "6x40"},
        {"series": "cache_dit_serving_queue_waiting" + labels % "b", "values": "3x40"},
        {"series": 'cache_dit_serving_queue_waiting{namespace="another"}', "values": "50x40"},
    ]
    worked = [  # each pod draws for half of the time, 20 s a generation
        {"series": f"cache_dit_serving_{name}{labels % each}", "values": f"0+{step}x40"}
        for each in "ab"
        for name, step in (("pipeline_busy_seconds_total", 30), ("generations_total", 1.5))
    ]
    idle = [each | {"values": "0x40"} for each in worked]
    seconds, busy = (triggers()[name]["query"] for name in ("waiting", "utilisation"))

    def case(series: list[dict[str, str]], query: str, value: float) -> dict[str, Any]:
        asked = {"expr": query, "eval_time": "30m", "exp_samples": [{"labels": "{}", "value": value}]}
        return {"interval": "1m", "input_series": waiting + series, "promql_expr_test": [asked]}

    cases = [case(worked, seconds, 9 * 20), case(worked, busy, 1), case(idle, seconds, 9 * 30), case(idle, busy, 0)]
    file = tmp_path / "scaling.yaml"
    file.write_text(yaml.safe_dump({"tests": cases}))
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", EVERY)
def test_the_image_is_of_this_version(name: str) -> None:
    """A tag that stays: `rollout undo` of `latest` would undo nothing."""
    assert container(name)["image"] == f"cache_dit_serving:{__version__}"


def test_the_page_makes_the_secrets_that_pods_name(tmp_path: Path) -> None:
    """Its lines as they stand: only `kubectl create` prints what it would send."""
    [key, *lines] = [line for line in lines_of(PAGE) if re.match(r"key=|printf -- |kubectl .* create secret ", line)]
    assert len(lines) == 4
    only_printing = 'kubectl() { command kubectl "$@" --dry-run=client --output yaml; echo ---; }'
    script = "\n".join([only_printing, key, *lines, 'printf %s "$key" > key'])
    environ = os.environ | {"HF_TOKEN": "hf_secret", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["sh", "-ec", script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=True
    )
    made = [each for each in yaml.safe_load_all(done.stdout) if each]
    [namespace] = of_kind("replicas", "Namespace")
    assert {each["metadata"]["namespace"] for each in made} == {namespace["metadata"]["name"]}
    values = {
        f"{each['metadata']['name']}/{name}": base64.b64decode(value).decode()
        for each in made
        for name, value in each["data"].items()
    }
    [keys] = [volume["secret"] for volume in pod("replicas")["spec"]["volumes"] if volume["name"] == "keys"]
    named = f"{keys['secretName']}/{PurePosixPath(str(resolved('replicas').settings.server.api_keys_file)).name}"
    assert values.keys() == {*SECRETS, named}
    assert values["hub/token"] == "hf_secret"
    assert resolve(environment("replicas", values)).settings.jobs.database is not None
    (tmp_path / "mounted.yaml").write_text(values[named])
    [read] = read_keys(tmp_path / "mounted.yaml")
    assert (read.name, read.sha256) == ("studio", hashlib.sha256((tmp_path / "key").read_bytes()).hexdigest())


def test_kubectl_takes_the_words_of_each_command_of_the_page() -> None:
    """Run each without a cluster: it gets as far as the connection."""
    port, made_by_the_reader = free_port(), "deploy/kubernetes/overlays/mine"
    commands = [
        words
        for words in commands_of(PAGE, "kubectl")
        if words[1] != "kustomize" and "create" not in words and made_by_the_reader not in words
    ]
    assert len(commands) >= 7
    for words in commands:
        asked = [words[0], f"--server=http://127.0.0.1:{port}", *words[1:]]
        done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert "refused" in done.stderr, f"{words}: {done.stderr}"


def test_an_overlay_as_on_the_page_has_its_own_image_and_bucket(tmp_path: Path) -> None:
    page = PAGE.read_text()
    [example] = re.findall(r"```yaml\n# kustomization\.yaml\n(.*?)```", page, re.DOTALL)
    copied = shutil.copytree(FOLDER, tmp_path / "kubernetes") / "overlays" / "mine"
    copied.mkdir()
    (copied / "kustomization.yaml").write_text(example)
    made = {each["kind"]: each for each in render(copied)}
    [server] = made["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert server["image"] == f"registry.example.com/team/cache_dit_serving:{__version__}"
    assert made["ConfigMap"]["data"]["CACHE_DIT_SERVING__OUTPUTS__STORE"] == "s3://my-bucket/outputs"
    assert server["envFrom"] == [{"configMapRef": {"name": made["ConfigMap"]["metadata"]["name"]}}]
