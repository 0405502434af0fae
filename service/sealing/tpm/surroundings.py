"""Where this process runs, and how a TPM is let into it there: the exact flag or field. Pure look-ups, no TPM used."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["machine", "container", "kubernetes"]

_CGROUP_WORDS = ("docker", "containerd", "libpod", "lxc", "crio")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What runs this process."""

    kind: Kind

    def let_in(self, node: Path) -> str:
        """Say how a device node that is absent gets here."""
        if self.kind == "kubernetes":
            return (
                "Give the container a TPM by a device plugin, such as keylime/k8s-tpm-device-plugin: resources.limits: "
                "{githedgehog.com/tpmrm: 1}. A hostPath is not enough without privileged. Bind the pod to its node "
                f"(nodeName): another node is another TPM. The node itself needs {node}."
            )
        if self.kind == "container":
            return (
                f'Run the container with --device {node} (Compose: devices: ["{node}"]). The host needs it too: switch '
                "the TPM on in the firmware's settings."
            )
        return (
            f"Switch the TPM on in the firmware's settings. In a container pass it in with --device {node}; in "
            "Kubernetes use a TPM device plugin. A machine without a TPM needs sealing.mode: off."
        )

    def let_use(self, node: Path, gid: int, *, user: str, group: str) -> str:
        """Say how this process joins the group that may use a device node."""
        if self.kind == "kubernetes":
            return f"Give the pod securityContext.supplementalGroups: [{gid}] (the number counts there, not the name)."
        if self.kind == "container":
            return (
                f'Run the container with --group-add {gid} (Compose: group_add: ["{gid}"]); the number of the host\'s '
                "group counts, names differ in here."
            )
        return (
            f"Join group {gid}: usermod -aG {group} {user} and log in again; systemd unit: SupplementaryGroups={gid}; "
            f"container: --group-add {gid}; Kubernetes: securityContext.supplementalGroups: [{gid}] (the number counts "
            "there, not the name)."
        )

    def explain_open(self, node: Path, number: int | None) -> tuple[str, str] | None:
        """Return why a node that is there and permitted cannot be opened, and what to do; None when it can."""
        if number == errno.EPERM:
            how = self.let_in(node) if self.kind != "machine" else "Look at the device rules of the service's cgroup."
            return f"{node} is there, but the kernel forbids this process to open it (device cgroup)", how
        if number in (errno.ENXIO, errno.ENODEV):
            return (
                f"there is no TPM behind {node}",
                "Switch the TPM on in the firmware's settings, and load its driver.",
            )
        if number == errno.EBUSY:
            return f"another program has {node} open", "Use tcti: device:/dev/tpmrm0, which many can share."
        return None


def surroundings(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> Surroundings:
    """Find out where this process runs, by what container engines leave in files and environment."""
    if "KUBERNETES_SERVICE_HOST" in environment or (root / "var/run/secrets/kubernetes.io").exists():
        return Surroundings("kubernetes")
    if "container" in environment or any((root / name).exists() for name in (".dockerenv", "run/.containerenv")):
        return Surroundings("container")
    try:
        cgroup = (root / "proc/1/cgroup").read_text()
    except (OSError, UnicodeDecodeError):
        return Surroundings("machine")
    if "kubepods" in cgroup:
        return Surroundings("kubernetes")
    return Surroundings("container" if any(word in cgroup for word in _CGROUP_WORDS) else "machine")
