"""The Helm chart: linted and rendered by Helm, held against Kubernetes' schemas, and against what it promises."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from service.config import read
from service.errors import ConfigError
from service.portal.settings import read as read_portal
from tests.helm import chart, make
from tests.helm.chart import CRON, PLAIN, SEALED, changed, in_umbrella, of_kind, on_node

VERSIONS = ("1.29", "1.33", "1.37")
NAMES = tuple(chart.EXAMPLES)


@pytest.mark.parametrize("name", NAMES)
def test_helm_lints_it_strictly(name: str) -> None:
    if not chart.EXAMPLES[name].is_dir():
        reports = [helm.lint(chart.CHART, chart.example(name), strict=True, kube_version=f"v{VERSIONS[0]}.0")]
    else:
        with chart.umbrella() as path:
            reports = [helm.lint(path, strict=True, with_subcharts=True, kube_version=f"v{VERSIONS[-1]}.0")]
    assert [each for report in reports for each in report["errors"]] == []
    assert [each for report in reports for each in report["messages"] if each["severity"] > 1] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_version_of_kubernetes_knows_all_that_is_rendered(name: str) -> None:
    known = [one for one in chart.objects(chart.rendered(name)) if "monitoring.coreos.com" not in one["apiVersion"]]
    assert len(known) >= 2
    for version in VERSIONS:
        for one in known:
            kubernetes_validate.validate(one, version, strict=True)


def test_a_version_without_native_sidecars_does_not_know_the_sidecar() -> None:
    [pod] = [one for one in chart.objects(chart.rendered("umbrella")) if one["kind"] == "Deployment"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, "1.27", strict=True)
    about = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert about["kubeVersion"] == f">={VERSIONS[0]}.0-0"


@pytest.mark.parametrize("name", NAMES)
def test_renders_are_those_that_were_looked_at(name: str) -> None:
    """`make chart` renews them: look at what it changes."""
    assert chart.stream(name) == (make.GOLDEN / f"{name}.yaml").read_text()


def test_no_golden_render_is_left_of_an_example_that_is_gone() -> None:
    assert {file.stem for file in make.GOLDEN.iterdir()} == set(NAMES)


def pods_of(name: str) -> list[chart.Manifest]:
    found = list(chart.pods(chart.objects(chart.rendered(name))).values())
    assert len(found) >= 2  # hooks and tests are pods, too
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_container_is_restricted(name: str) -> None:
    for pod in pods_of(name):
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"])
        assert not [volume for volume in pod["spec"].get("volumes", []) if "hostPath" in volume]
        for container in chart.containers(pod):
            security = pod["spec"]["securityContext"] | container["securityContext"]
            assert security["runAsNonRoot"] is True
            assert security["runAsUser"] > 0
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("name", NAMES)
def test_every_mount_has_its_volume_and_every_volume_its_mount(name: str) -> None:
    for pod in pods_of(name):
        volumes = [volume["name"] for volume in pod["spec"].get("volumes", [])]
        assert len(volumes) == len(set(volumes))
        mounted = {mount["name"] for each in chart.containers(pod) for mount in each.get("volumeMounts", [])}
        assert mounted == set(volumes)
        for container in chart.containers(pod):
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            assert len(paths) == len(set(paths))


@pytest.mark.parametrize("name", NAMES)
def test_there_is_no_secret_in_it_and_nobody_is_given_rights(name: str) -> None:
    kinds = {one["kind"] for one in chart.objects(chart.rendered(name))}
    assert not kinds & {"Secret", "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}


@pytest.mark.parametrize("name", ["portal", "everything"])
def test_the_portal_has_the_secrets_that_its_configuration_names_and_no_others(name: str) -> None:
    [deployment] = [one for one in chart.objects(chart.rendered(name)) if one["kind"] == "Deployment"]
    service, portal = deployment["spec"]["template"]["spec"]["containers"]

    def secrets(container: chart.Manifest) -> set[str]:
        paths = {mount["mountPath"] for mount in container["volumeMounts"]}
        return {path for path in paths if path.startswith("/secrets/")}

    assert secrets(portal) == {"/secrets/portal"} < secrets(service)
    mounts = {mount["mountPath"] for mount in portal["volumeMounts"]}
    assert not mounts & {"/var/lib/deviceon-backup", "/backups"}


@pytest.mark.parametrize("name", NAMES)
def test_selectors_find_their_pods_and_no_others(name: str) -> None:
    objects = chart.objects(chart.rendered(name))
    pods = chart.pods(objects)
    found: dict[str, set[str]] = {}
    for one in objects:
        spec = one.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector")
        if one["kind"] not in ("ServiceMonitor", "PersistentVolumeClaim") and selector:
            labels = selector.get("matchLabels", selector)
            found[f"{one['kind']}/{one['metadata']['name']}"] = {
                which for which, pod in pods.items() if labels.items() <= pod["metadata"]["labels"].items()
            }
    for which, selected in found.items():
        if which.startswith("NetworkPolicy/"):  # hooks and tests need their way, too
            assert len(selected) >= 2, which
            continue
        assert len(selected) == 1, (which, selected)
        assert next(iter(selected)).startswith("Deployment/")


def test_the_monitor_finds_the_service_and_names_the_job_as_the_alerts_do() -> None:
    for name in ("deployment", "everything"):
        objects = chart.objects(chart.rendered(name))
        [monitor] = [one for one in objects if one["kind"] == "ServiceMonitor"]
        selected = [
            one
            for one in objects
            if one["kind"] == "Service"
            and monitor["spec"]["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
        ]
        assert [one["spec"]["ports"][0]["name"] for one in selected] == ["metrics"]
        assert selected[0]["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "deviceon-backup"


@pytest.mark.parametrize("name", NAMES)
def test_the_service_takes_every_configuration_that_is_rendered(name: str, tmp_path: Path) -> None:
    files = [
        one
        for one in chart.objects(chart.rendered(name))
        if one["kind"] == "ConfigMap" and "config.yaml" in one["data"]
    ]
    assert files
    for number, one in enumerate(files):
        path = tmp_path / f"{number}.yaml"
        path.write_text(one["data"]["config.yaml"])
        read(path)
        if portal := one["data"].get("portal.yaml"):
            (tmp_path / "portal.yaml").write_text(portal)
            assert str(read_portal(tmp_path / "portal.yaml").service.socket) == "/run/deviceon-backup/service.sock"


def test_the_command_of_the_hook_takes_the_configuration(tmp_path: Path) -> None:
    [job] = [one for one in of_kind("Job", PLAIN) if one["metadata"]["name"].endswith("-config-check")]
    [config] = [one for one in of_kind("ConfigMap", PLAIN) if one["metadata"]["name"].endswith("-new")]
    (tmp_path / "config.yaml").write_text(config["data"]["config.yaml"])
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    command = [sys.executable, "-m", "service", "--config", tmp_path / "config.yaml", *arguments]
    assert subprocess.run(command, check=False).returncode == 0
    (tmp_path / "config.yaml").write_text(config["data"]["config.yaml"] + "unknown: 1\n")
    assert subprocess.run(command, check=False, capture_output=True).returncode == 2


def test_null_takes_an_option_away_that_the_chart_around_has_given() -> None:
    own = {"config": {"target": {"url": "s3://b/p", "storage_options": {"secret": None}}}}
    [config] = [one for one in chart.objects(in_umbrella(own)) if one["metadata"]["name"] == "backup-deviceon-backup"]
    options = yaml.safe_load(config["data"]["config.yaml"])["target"]["storage_options"]
    assert set(options) == {"key", "region"}


def test_numbers_and_words_come_through_as_they_were_meant(tmp_path: Path) -> None:
    [config] = [one for one in of_kind("ConfigMap", PLAIN) if one["metadata"]["name"] == "backup-deviceon-backup"]
    (tmp_path / "config.yaml").write_text(config["data"]["config.yaml"])
    file = read(tmp_path / "config.yaml")
    assert (file.server.version, file.sealing.mode, file.compression.chunk_bytes) == ("5.3", "off", 67108864)


def test_the_schema_refuses_what_the_service_refuses_among_storage_options(tmp_path: Path) -> None:
    for name in ("password", "passphrase", "account_key", "api_key", "client_secret", "sas_token", "credential"):
        values = changed(PLAIN, "config.target.storage_options", {name: "x"})
        with pytest.raises(helm.HelmValuesError):
            chart.render(values)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(values["config"]))
        with pytest.raises(ConfigError, match="looks like a secret"):
            read(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("config", "ports"),
    [
        ({"target": {"url": "s3://b/p"}}, {443}),
        ({"target": {"url": "s3://b/p", "storage_options": {"endpoint_url": "https://s3.example:9000"}}}, {9000}),
        ({"target": {"url": "s3://b/p", "storage_options": {"endpoint_url": "http://s3.example"}}}, {80}),
        ({"target": {"url": "smb://nas/b"}}, {445}),
        ({"target": {"url": "smb://D;u@nas:1445/b"}}, {1445}),
        ({"target": {"url": "sftp://u@host/b"}, "copies": [{"url": "gs://b/p"}]}, {22, 443}),
        ({"target": {"url": "file:///backups"}}, set()),
    ],
)
def test_the_network_policy_lets_out_to_the_target(config: dict[str, Any], ports: set[int]) -> None:
    [policy] = of_kind("NetworkPolicy", changed(PLAIN, "config", PLAIN["config"] | config))
    allowed = {(each["protocol"], each["port"]) for rule in policy["spec"]["egress"] for each in rule["ports"]}
    assert allowed == {("UDP", 53), ("TCP", 53), ("TCP", 5433)} | {("TCP", port) for port in ports}
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["ingress"] == []


def test_a_server_over_its_socket_needs_no_way_out() -> None:
    [policy] = of_kind("NetworkPolicy", changed(PLAIN, "config.sources", [{"type": "postgresql"}]))
    assert [rule["ports"][0]["port"] for rule in policy["spec"]["egress"]] == [53]


@pytest.mark.parametrize(("stop", "own", "seconds"), [(None, None, 40), (60.5, None, 76), (60, 90, 90)])
def test_a_pod_has_the_time_that_the_service_takes_to_stop(stop: float | None, own: int | None, seconds: int) -> None:
    values = PLAIN if stop is None else changed(PLAIN, "config.service", {"stop_timeout": stop})
    [one] = of_kind("Deployment", values | ({"terminationGracePeriodSeconds": own} if own else {}))
    assert one["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == seconds


def test_archives_can_be_kept_at_another_path() -> None:
    values = changed(
        changed(PLAIN, "archives.mountPath", "/mnt/archives"), "config.target.url", "file:///mnt/archives/x"
    )
    [one] = of_kind("Deployment", values)
    mounts = one["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert {"name": "deviceon-backup-archives", "mountPath": "/mnt/archives"} in mounts


def test_a_changed_configuration_is_a_new_pod() -> None:
    def annotation(values: Mapping[str, Any]) -> str:
        [one] = of_kind("Deployment", values)
        return str(one["spec"]["template"]["metadata"]["annotations"]["deviceon-backup/config"])

    assert annotation(PLAIN) != annotation(changed(PLAIN, "config.log", {"level": "debug"}))
    assert annotation(PLAIN) == annotation(changed(PLAIN, "state.size", "2Gi"))


def test_the_sidecar_is_native_and_holds_up_nothing_of_the_server() -> None:
    pod = chart.pods(chart.objects(chart.rendered("umbrella")))["Deployment/backup"]["spec"]
    [sidecar] = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["args"] == ["serve"]
    assert "livenessProbe" in sidecar
    assert not {"startupProbe", "readinessProbe"} & set(sidecar)
    assert pod["nodeSelector"] == {"kubernetes.io/hostname": "plant-1"}
    assert pod["securityContext"]["supplementalGroups"] == [113]
    assert pod["securityContext"]["fsGroup"] == 1500
    assert sidecar["securityContext"]["runAsUser"] == 1500
    assert sidecar["resources"]["limits"]["githedgehog.com/tpmrm"] == 1
    shared = {volume["name"] for volume in pod["volumes"]}
    assert {"deviceon", "deviceon-backup-run"} <= shared
    [server] = pod["containers"]
    assert {"name": "deviceon-backup-run", "mountPath": "/run/deviceon"} in server["volumeMounts"]


def test_a_server_without_its_backup_is_the_server_alone() -> None:
    objects = chart.objects(in_umbrella({"enabled": False}))
    assert [one["kind"] for one in objects] == ["Deployment"]
    assert "initContainers" not in objects[0]["spec"]["template"]["spec"]


def test_each_server_has_a_cron_job_that_never_overlaps_itself() -> None:
    jobs = {one["metadata"]["name"]: one["spec"] for one in of_kind("CronJob", CRON)}
    assert set(jobs) == {"backup-deviceon-backup-plant-1", "backup-deviceon-backup-plant-2"}
    first, second = jobs.values()
    assert (first["schedule"], second["schedule"]) == ("0 2 * * *", "30 3 * * *")
    for job in jobs.values():
        assert (job["concurrencyPolicy"], job["timeZone"]) == ("Forbid", "Asia/Taipei")
        assert job["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    volumes = [job["jobTemplate"]["spec"]["template"]["spec"]["volumes"] for job in jobs.values()]
    states = [next(volume for volume in each if volume["name"] == "deviceon-backup-state") for each in volumes]
    assert "persistentVolumeClaim" in states[0]
    assert states[1] == {"name": "deviceon-backup-state", "emptyDir": {}}
    claims = {one["metadata"]["name"] for one in of_kind("PersistentVolumeClaim", CRON)}
    assert claims == {"backup-deviceon-backup-plant-1-state"}


def test_the_jitter_is_random_and_bounded() -> None:
    job = of_kind("CronJob", changed(CRON, "cronJob.jitterSeconds", 1))[0]
    [wait] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["initContainers"]
    program = wait["command"][wait["command"].index("-c") + 1]
    assert wait["command"][-1] == "1"
    script = f"""
import sys, time
sys.argv = ["-c", "3600"]
slept = []
time.sleep = slept.append
for _ in range(200):
    exec({program!r})
print(len(set(slept)), min(slept) >= 0, max(slept) <= 3600)
"""
    said = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["200", "True", "True"]
    without = of_kind("CronJob", changed(CRON, "cronJob.jitterSeconds", 0))[0]
    assert "initContainers" not in without["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def test_hooks_look_at_the_new_configuration_before_anything_is_changed() -> None:
    objects = chart.objects(chart.rendered("everything"))
    hooks = {
        one["metadata"]["name"]: one["metadata"]["annotations"]
        for one in objects
        if "helm.sh/hook" in one["metadata"].get("annotations", {})
    }
    name = "deviceon-backup-of-plant-1"
    weight = {
        which: int(hooks[f"{name}-{which}"]["helm.sh/hook-weight"]) for which in ("new", "config-check", "pre-upgrade")
    }
    assert weight["new"] < weight["config-check"] < weight["pre-upgrade"]
    assert hooks[f"{name}-config-check"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert hooks[f"{name}-pre-upgrade"]["helm.sh/hook"] == "pre-upgrade"
    assert hooks[f"{name}-doctor"]["helm.sh/hook"] == "test"
    pods = chart.pods(objects)
    for which in ("config-check", "pre-upgrade"):
        spec = pods[f"Job/{name}-{which}"]["spec"]
        assert "serviceAccountName" not in spec  # the release's is not there yet
        assert spec["volumes"][0]["configMap"]["name"] == f"{name}-new"
    jobs = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "Job"}
    assert jobs[f"{name}-config-check"]["activeDeadlineSeconds"] <= 300  # Helm itself waits no longer
    before_install = pods[f"Job/{name}-config-check"]["spec"]
    assert len(before_install["volumes"]) == 1  # nor are its claims


def test_no_name_that_is_rendered_is_too_long_for_kubernetes() -> None:
    """A Job's name is a label of its pods; a CronJob's is followed by eleven characters in its Jobs' names."""
    longest = 50 - len("backup-deviceon-backup-")
    values = changed(CRON, "servers.0.name", "p" * longest)
    for one in chart.objects(chart.render(values)):
        most = 52 if one["kind"] == "CronJob" else 63
        assert len(one["metadata"]["name"]) <= most, one["metadata"]["name"]
    with pytest.raises(helm.HelmRenderError, match="50 are the limit"):
        chart.render(changed(CRON, "servers.0.name", "p" * (longest + 1)))


def test_pods_that_mount_the_archives_while_the_service_runs_go_to_its_node() -> None:
    values = changed(PLAIN, "hooks.preUpgradeBackup", True) | {"affinity": on_node("plant-1")}
    objects = chart.objects(chart.render(values, upgrade=True))
    pods = chart.pods(objects)
    service = pods["Deployment/backup-deviceon-backup"]
    for which in ("Job/backup-deviceon-backup-pre-upgrade", "Pod/backup-deviceon-backup-doctor"):
        affinity = pods[which]["spec"]["affinity"]
        assert affinity["nodeAffinity"] == on_node("plant-1")["nodeAffinity"]
        [term] = affinity["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        wanted = term["podAffinityTerm"]
        assert wanted["topologyKey"] == "kubernetes.io/hostname"
        assert wanted["labelSelector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    for which in ("Job/backup-deviceon-backup-config-check", "Deployment/backup-deviceon-backup"):
        assert "podAffinity" not in pods[which]["spec"]["affinity"]
    for one in objects:
        if "monitoring.coreos.com" not in one["apiVersion"]:
            kubernetes_validate.validate(one, VERSIONS[0], strict=True)


def test_it_is_packaged_and_renders_the_same(tmp_path: Path) -> None:
    package = helm.package(chart.CHART, destination=tmp_path)
    with tarfile.open(package) as archive:
        assert "deviceon-backup/files/alerts.yaml" in archive.getnames()
    assert chart.render(SEALED, path=Path(package)) == chart.render(SEALED)
    project = (chart.ROOT / "pyproject.toml").read_text()
    about = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert f'version = "{about["appVersion"]}"' in project


def test_the_umbrella_asks_for_this_version_of_the_chart() -> None:
    about = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    [dependency] = yaml.safe_load((chart.UMBRELLA / "Chart.yaml").read_text())["dependencies"]
    assert dependency["version"] == about["version"]
    assert (chart.UMBRELLA / dependency["repository"].removeprefix("file://")).resolve() == chart.CHART


@pytest.mark.parametrize("name", ["deployment", "everything"])
def test_the_prometheus_operator_knows_the_monitor_and_the_rules(name: str) -> None:
    """Its types are made of the operator's own definitions; they leave out what they do not know."""
    known = importlib.import_module("cloudcoil.models.prometheus_operator.v1")
    found = [one for one in chart.objects(chart.rendered(name)) if one["apiVersion"] == "monitoring.coreos.com/v1"]
    assert {one["kind"] for one in found} == {"ServiceMonitor", "PrometheusRule"}
    for one in found:
        read = getattr(known, one["kind"]).model_validate(one)
        assert json.loads(read.model_dump_json(by_alias=True, exclude_unset=True)) == one


def test_rules_and_dashboard_are_the_files_as_they_are() -> None:
    objects = chart.objects(chart.rendered("deployment"))
    [rule] = [one for one in objects if one["kind"] == "PrometheusRule"]
    assert rule["spec"] == yaml.safe_load((chart.CHART / "files/alerts.yaml").read_text())
    [rule] = of_kind(
        "PrometheusRule", changed(SEALED, "metrics.prometheusRule.runbookBase", "https://git.example/backup/")
    )
    rules = [each for group in rule["spec"]["groups"] for each in group["rules"]]
    assert rules
    for each in rules:
        assert each["annotations"]["runbook_url"].startswith("https://git.example/backup/docs/RUNBOOKS.md#")
    [dashboard] = [one for one in objects if one["metadata"]["name"].endswith("-dashboard")]
    [text] = dashboard["data"].values()
    assert json.loads(text) == json.loads((chart.CHART / "files/dashboard.json").read_text())
