"""What the chart refuses, and how it says so."""

from __future__ import annotations

import re
from typing import Any

import helm_python as helm
import pytest

from tests.helm import chart
from tests.helm.chart import CRON, PLAIN, SEALED, changed, in_umbrella

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("a misspelt key", changed(PLAIN, "pesistence", {}), "pesistence"),
    ("a misspelt key further in", changed(PLAIN, "archives.storageclass", "x"), "storageclass"),
    ("a misspelt key of the configuration", changed(PLAIN, "config.compresion", {}), "compresion"),
    ("a misspelt key of a source", changed(PLAIN, "config.sources", [{"type": "tree", "pth": "/x"}]), "sources"),
    ("a version that YAML takes for a number", changed(PLAIN, "config.server.version", 5.3), "version"),
    ("an unknown mode", changed(PLAIN, "mode", "daemonset"), "mode"),
    ("servers without cronJob", changed(PLAIN, "servers", CRON["servers"]), "servers"),
    ("cronJob without servers", changed(PLAIN, "mode", "cronJob"), "servers"),
    ("cronJob with metrics", changed(CRON, "metrics.enabled", True), "metrics"),
    ("cronJob with a portal", changed(CRON, "portal.enabled", True), "portal"),
    ("a password in the URL", changed(PLAIN, "config.target.url", "smb://u:secret@nas/b"), "url"),
    (
        "a password among storage options",
        changed(PLAIN, "config.target.storage_options", {"password": "hunter2"}),
        "password",
    ),
    ("a password of PostgreSQL", changed(PLAIN, "config.sources.0.password", "hunter2"), "sources"),
    (
        "a secret in the environment",
        changed(PLAIN, "extraEnv", [{"name": "PGPASSWORD", "value": "x"}]),
        "extraEnv",
    ),
    ("a secret's value", changed(PLAIN, "secrets", [{"name": "a", "path": "a", "value": "x"}]), "value"),
    ("a privileged container", changed(PLAIN, "securityContext.privileged", True), "securityContext"),
    ("a limit without memory", changed(PLAIN, "resources", {"limits": {"memory": None}}), "resources"),
    ("a digest that is none", changed(PLAIN, "image.digest", "latest"), "digest"),
    ("a schedule with a time zone in it", changed(CRON, "cronJob.schedule", "TZ=UTC 0 2 * * *"), "schedule"),
    (
        "a budget for pods of somebody else",
        changed(CRON, "podDisruptionBudget.enabled", True),
        "podDisruptionBudget",
    ),
    ("the chart's own settings", changed(PLAIN, "config.state_dir", "/x"), "state_dir"),
    ("no sources", changed(PLAIN, "config.sources", []), "config.sources is empty"),
    ("no version of the server", changed(PLAIN, "config.server", {}), "config.server is missing"),
    ("a target on no volume", changed(PLAIN, "archives.enabled", False), "file:///backups is on no volume"),
    ("a target beside its volume", changed(PLAIN, "config.target.url", "file:///backups2"), "is on no volume"),
    ("a passfile", changed(PLAIN, "config.sources.0.passfile", "/secrets/a/b"), "use password_file"),
    ("no TPM", changed(SEALED, "tpm.resource", ""), "tpm.resource is empty"),
    ("a TPM that nobody may use", changed(SEALED, "tpm.groups", []), "tpm.groups is empty"),
    ("sealing on any node", changed(SEALED, "nodeSelector", {}), "nothing binds the pod to its node"),
    (
        "sealing on a node that is only preferred",
        changed(
            changed(SEALED, "nodeSelector", {}),
            "affinity",
            {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {}}]}},
        ),
        "nothing binds the pod to its node",
    ),
    (
        "sealing on any node, of a server",
        changed(CRON, "servers.1.nodeSelector", {}),
        "server plant-2: archives open only on the TPM",
    ),
    (
        "a service that forgets",
        changed(PLAIN, "state.ephemeral", True),
        "state.ephemeral is for mode: cronJob alone",
    ),
    (
        "retention that would remove nothing",
        changed(CRON, "servers.1.config.retention", {"keep_last": 1}),
        "server plant-2: state.ephemeral: config.retention would remove nothing",
    ),
    (
        "nobody who opens archives without the TPM",
        changed(CRON, "config.sealing", {}),
        "server plant-1: config.sealing.recovery must say",
    ),
    (
        "messages that nobody would send",
        changed(CRON, "servers.0.config.dead_man", {"url_file": "/secrets/x/y"}),
        "are the service's, and none runs",
    ),
    (
        "messages that the network policy keeps back",
        changed(PLAIN, "config.dead_man", {"url_file": "/secrets/x/y"}),
        "networkPolicy keeps config.notifications and config.dead_man",
    ),
    (
        "a target whose port nobody knows",
        changed(PLAIN, "config.target.url", "ftp://nas/b"),
        "nobody knows the port of ftp targets",
    ),
    (
        "a target that is set later",
        changed(PLAIN, "config.target", None),
        "name it in networkPolicy.target.ports",
    ),
    ("a portal that lets nobody in", changed(PLAIN, "portal.enabled", True), "portal.config needs access"),
    ("rules without metrics", changed(PLAIN, "metrics.prometheusRule.enabled", True), "need metrics.enabled"),
    (
        "a hook that cannot seal for the recovery key",
        changed(SEALED, "hooks.preUpgradeBackup", True),
        "config.sealing.recovery must say",
    ),
    (
        "a name that is too long",
        changed(CRON, "servers.0.name", "a-plant-with-a-name-that-is-far-too-long"),
        "50 are the limit",
    ),
    (
        "a hook that waits for a volume of the service",
        changed(changed(PLAIN, "hooks.preUpgradeBackup", True), "archives.accessMode", "ReadWriteOncePod"),
        "could not mount archives",
    ),
    ("a sidecar's Service without labels", chart.example("umbrella") | {"sidecar": {}}, "sidecar.podLabels is empty"),
]


@pytest.mark.parametrize(("values", "told"), [pytest.param(*rest, id=name) for name, *rest in REFUSED])
def test_it_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises((helm.HelmValuesError, helm.HelmRenderError), match=re.escape(told)):
        chart.render(values)


def test_a_pod_that_includes_the_service_needs_the_mode_for_it() -> None:
    with pytest.raises(helm.HelmRenderError, match="needs mode: sidecar"):
        in_umbrella({"mode": "deployment"})
