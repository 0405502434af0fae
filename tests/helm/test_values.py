"""The values of the chart: described, typed, and each with an effect."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from tests.helm import chart, make
from tests.helm.chart import PLAIN, changed, in_umbrella, on_node


def test_readme_and_schema_are_made_of_the_values_and_the_configuration_as_they_are() -> None:
    renew = "run `make chart`, and look at what it changes"
    assert make.README.read_text() == make.readme(), renew
    assert make.SCHEMA.read_text() == make.schema(), renew


def test_every_value_is_described_and_typed() -> None:
    described = set(make.described(chart.VALUES.read_text()))
    leaves = set(_leaves(yaml.safe_load(chart.VALUES.read_text())))
    assert {leaf for leaf in leaves if not any(leaf == one or leaf.startswith(f"{one}.") for one in described)} == set()
    for node in _objects(json.loads(make.SCHEMA.read_text())):
        if "properties" in node and "if" not in node and node.get("type") == "object":
            assert node["additionalProperties"] is False, node


def _leaves(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def _objects(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _objects(each)


# What a value is set to, for seeing that it changes what is rendered: (path, value, values to set it in).
DIFFERENT: list[tuple[str, Any, str]] = [
    ("mode", "sidecar", "plain"),
    ("nameOverride", "other", "plain"),
    ("fullnameOverride", "other", "plain"),
    ("image.repository", "other", "plain"),
    ("image.tag", "other", "plain"),
    ("image.digest", "sha256:" + "0" * 64, "plain"),
    ("image.pullPolicy", "Never", "plain"),
    ("imagePullSecrets", [{"name": "other"}], "plain"),
    ("config", PLAIN["config"] | {"retention": {"keep_last": 3}}, "plain"),
    ("secrets", [{"name": "other", "path": "postgresql"}], "plain"),
    ("tpm.resource", "squat.ai/tpm", "deployment"),
    ("tpm.groups", [7], "deployment"),
    ("tpm.acceptUnpinned", True, "deployment"),
    ("nodeSelector", {"kubernetes.io/hostname": "other"}, "deployment"),
    ("affinity", {"podAffinity": {}}, "plain"),
    ("tolerations", [{"key": "other"}], "plain"),
    ("priorityClassName", "other", "plain"),
    ("state.existingClaim", "other", "plain"),
    ("state.storageClass", "other", "plain"),
    ("state.size", "2Gi", "plain"),
    ("state.accessMode", "ReadWriteOncePod", "plain"),
    ("state.keep", False, "plain"),
    ("state.ephemeral", True, "cronjob-plain"),
    ("archives.enabled", True, "deployment"),
    ("archives.existingClaim", "other", "plain"),
    ("archives.storageClass", "other", "plain"),
    ("archives.size", "2Gi", "plain"),
    ("archives.accessMode", "ReadWriteMany", "plain"),
    ("archives.keep", False, "plain"),
    ("resources", {"limits": {"memory": "1Gi"}}, "plain"),
    ("podSecurityContext.fsGroup", 7, "plain"),
    ("securityContext.runAsUser", 7, "plain"),
    ("serviceAccount.create", False, "plain"),
    ("serviceAccount.name", "other", "plain"),
    ("serviceAccount.annotations", {"a": "b"}, "plain"),
    ("podAnnotations", {"a": "b"}, "plain"),
    ("podLabels", {"a": "b"}, "plain"),
    ("commonLabels", {"a": "b"}, "plain"),
    ("annotations", {"a": "b"}, "plain"),
    ("extraEnv", [{"name": "A", "value": "b"}], "plain"),
    ("extraVolumes", [{"name": "a", "emptyDir": {}}], "plain"),
    ("extraVolumeMounts", [{"name": "a", "mountPath": "/a"}], "plain"),
    ("terminationGracePeriodSeconds", 7, "plain"),
    ("probes.startup.periodSeconds", 7, "plain"),
    ("probes.startup.failureThreshold", 7, "plain"),
    ("probes.liveness.periodSeconds", 7, "plain"),
    ("probes.liveness.timeoutSeconds", 7, "plain"),
    ("probes.liveness.failureThreshold", 7, "plain"),
    ("probes.readiness.periodSeconds", 7, "plain"),
    ("sidecar.startupProbe", True, "umbrella"),
    ("sidecar.readinessProbe", True, "umbrella"),
    ("sidecar.podLabels", {"a": "b"}, "umbrella"),
    ("cronJob.schedule", "1 1 * * *", "cronjob"),
    ("cronJob.timeZone", "Europe/Berlin", "cronjob"),
    ("cronJob.jitterSeconds", 7, "cronjob"),
    ("cronJob.startingDeadlineSeconds", 77, "cronjob"),
    ("cronJob.backoffLimit", 7, "cronjob"),
    ("cronJob.activeDeadlineSeconds", 7, "cronjob"),
    ("cronJob.successfulJobsHistoryLimit", 7, "cronjob"),
    ("cronJob.failedJobsHistoryLimit", 7, "cronjob"),
    ("cronJob.suspend", True, "cronjob"),
    ("servers.0.name", "other", "cronjob"),
    ("servers.0.resources", {"limits": {"memory": "1Gi"}}, "cronjob"),
    ("metrics.enabled", True, "plain"),
    ("metrics.address", "[::]", "deployment"),
    ("metrics.port", 7777, "deployment"),
    ("metrics.serviceMonitor.enabled", False, "deployment"),
    ("metrics.serviceMonitor.labels", {"a": "b"}, "deployment"),
    ("metrics.serviceMonitor.interval", "7s", "deployment"),
    ("metrics.prometheusRule.enabled", False, "deployment"),
    ("metrics.prometheusRule.labels", {"a": "b"}, "deployment"),
    ("metrics.prometheusRule.runbookBase", "https://git.example/backup/", "deployment"),
    ("metrics.dashboard.enabled", False, "deployment"),
    ("metrics.dashboard.labels", {"a": "b"}, "deployment"),
    ("metrics.dashboard.annotations", {"a": "b"}, "deployment"),
    ("portal.enabled", False, "portal"),
    ("portal.address", "[::]", "portal"),
    ("portal.port", 7777, "portal"),
    ("portal.config.language", "en", "portal"),
    ("portal.resources.limits.memory", "1Gi", "portal"),
    ("portal.ingress.enabled", True, "portal"),
    ("portal.ingress.className", "other", "everything"),
    ("portal.ingress.host", "other.example", "everything"),
    ("portal.ingress.path", "/other", "everything"),
    ("portal.ingress.tlsSecret", "other", "everything"),
    ("portal.ingress.annotations", {"a": "b"}, "everything"),
    ("networkPolicy.enabled", False, "plain"),
    ("networkPolicy.postgresql.to", [{"podSelector": {}}], "plain"),
    ("networkPolicy.target.to", [{"podSelector": {}}], "deployment"),
    ("networkPolicy.target.ports", [7], "plain"),
    ("networkPolicy.metrics.from", [{"podSelector": {}}], "deployment"),
    ("networkPolicy.portal.from", [{"podSelector": {}}], "portal"),
    ("networkPolicy.extraEgress", [{"ports": [{"port": 7}]}], "plain"),
    ("podDisruptionBudget.enabled", True, "plain"),
    ("hooks.configCheck", False, "plain"),
    ("hooks.preUpgradeBackup", True, "plain"),
]
NOT_RENDERED = {"enabled", "global"}
"""For charts above this one."""
TOGETHER = {"archives.mountPath"}
"""Values that have tests of their own, since others have to follow them."""


def _base(name: str) -> dict[str, Any]:
    if name == "cronjob-plain":
        server = {"name": "one", "config": {"target": {"url": "s3://b/p"}}}
        return PLAIN | {"mode": "cronJob", "servers": [server]}
    return chart.example(name)


@pytest.mark.parametrize(("path", "value", "base"), DIFFERENT, ids=[path for path, *_ in DIFFERENT])
def test_a_value_changes_what_is_rendered(path: str, value: Any, base: str) -> None:
    if path == "portal.ingress.enabled":
        before = changed(_base(base), "portal.ingress.host", "backup.example")
    else:
        before = _base(base)
    after = changed(before, path, value)
    if path == "tpm.acceptUnpinned":
        before, after = before | {"affinity": on_node("plant-1")}, after | {"nodeSelector": {}}
        before["nodeSelector"] = {}
    if base == "umbrella":
        assert in_umbrella(before) != in_umbrella(after)
    else:
        assert chart.render(before) != chart.render(after)


def test_no_value_is_left_out_of_that() -> None:
    tried = {path for path, *_ in DIFFERENT}
    for one in make.described(chart.VALUES.read_text()):
        seen = any(path == one or path.startswith(f"{one}.") for path in tried)
        assert seen or one in NOT_RENDERED | TOGETHER, one
