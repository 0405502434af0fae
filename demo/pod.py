"""Pods as a cluster would run them, by podman: a kubelet's part, for what the chart renders where no cluster is.

Volumes are directories as a kubelet makes them: ConfigMaps and Secrets as files behind a link that is exchanged, and
all that can be written of the pod's group. Each field of a pod is carried out, or known to be what only a cluster has;
one that is neither is an error, so that nothing is left out unnoticed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Object = dict[str, Any]

_CLUSTERS = {"serviceAccountName", "nodeSelector", "affinity", "tolerations", "priorityClassName", "imagePullSecrets"}
"""What only a cluster has."""
_HERE = {"restartPolicy", "automountServiceAccountToken", "enableServiceLinks", "terminationGracePeriodSeconds"}
_POD = _CLUSTERS | _HERE | {"securityContext", "initContainers", "containers", "volumes"}
_CONTAINER = {
    "name",
    "image",
    "imagePullPolicy",
    "command",
    "args",
    "env",
    "resources",
    "securityContext",
    "volumeMounts",
}
_CONTAINER |= {"ports", "startupProbe", "livenessProbe", "readinessProbe", "restartPolicy"}


class NotCarriedOut(Exception):
    """The pod has something that this stand-in does not know."""


@dataclass(slots=True)
class Pod:
    """A pod here. `claims` are the directories of its claims, `files` the content of its ConfigMaps and Secrets."""

    spec: Object
    directory: Path
    files: Mapping[str, Mapping[str, str]]
    claims: Mapping[str, Path]
    image: str
    more: tuple[str, ...] = ()
    """Options of `podman run` for what a device plugin gives in a cluster."""
    volumes: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _known(self.spec, _POD, "pod")
        security = self.spec["securityContext"]
        known = {"fsGroup", "fsGroupChangePolicy", "supplementalGroups", "runAsNonRoot", "runAsUser", "runAsGroup"}
        _known(security, known | {"seccompProfile"}, "securityContext")
        self.directory.mkdir(mode=0o755)
        for volume in self.spec["volumes"]:
            self.volumes[volume["name"]] = self._volume(volume)

    @property
    def _group(self) -> int:
        return int(self.spec["securityContext"]["fsGroup"])

    def _volume(self, volume: Object) -> Path:
        kind = next(key for key in volume if key != "name")
        what = volume[kind]
        path = self.directory / str(volume["name"])
        if kind == "persistentVolumeClaim":
            claim: Path = self.claims[what["claimName"]]
            _give_group(claim, self._group)
            return claim
        path.mkdir()
        if kind == "emptyDir":
            _known(what, {"sizeLimit"}, "emptyDir")
            path.chmod(0o777)
            _give_group(path, self._group)
        elif kind == "configMap":
            _known(what, {"name"}, "configMap")
            _write(path, self.files[what["name"]], mode=0o644, group=self._group)
        elif kind == "secret":
            _known(what, {"secretName", "defaultMode"}, "secret")
            _write(path, self.files[what["secretName"]], mode=what["defaultMode"], group=self._group)
        else:
            raise NotCarriedOut(f"volume of kind {kind}")
        return path

    def container(self, name: str) -> Object:
        """Return one of its containers."""
        every = [*self.spec.get("initContainers", []), *self.spec["containers"]]
        return next(each for each in every if each["name"] == name)

    def options(self, container: Object) -> list[str]:
        """Return options, image and arguments of `podman run`."""
        _known(container, _CONTAINER, "container")
        pod, own = self.spec["securityContext"], container["securityContext"]
        known = {"runAsNonRoot", "runAsUser", "runAsGroup", "allowPrivilegeEscalation", "readOnlyRootFilesystem"}
        _known(own, known | {"capabilities", "seccompProfile"}, "securityContext")
        if own["seccompProfile"] != {"type": "RuntimeDefault"} or not own["runAsNonRoot"] or own["runAsUser"] == 0:
            raise NotCarriedOut("a container that is not restricted")
        limits = container["resources"]["limits"]
        memory = limits["memory"].replace("Mi", "m").replace("Gi", "g")
        words = [
            "--pull",
            "never",
            "--network",
            "host",
            "--no-healthcheck",
            "--memory",
            memory,
            "--memory-swap",
            memory,
        ]
        words += ["--user", f"{own['runAsUser']}:{own['runAsGroup']}", *self.more]
        for group in [pod["fsGroup"], *pod.get("supplementalGroups", [])]:
            words += ["--group-add", str(group)]
        words += [word for name in own["capabilities"]["drop"] for word in ("--cap-drop", name)]
        words += [] if own["allowPrivilegeEscalation"] else ["--security-opt", "no-new-privileges"]
        # podman has writable tmpfs of its own where a kubelet has none
        words += ["--read-only", "--read-only-tmpfs=false"] if own["readOnlyRootFilesystem"] else []
        words += ["--cpus", _processors(limits["cpu"])] if "cpu" in limits else []
        for variable in container.get("env", []):
            words += ["--env", f"{variable['name']}={variable['value']}"]
        for mount in sorted(container.get("volumeMounts", []), key=lambda each: str(each["mountPath"])):
            mode = ":ro" if mount.get("readOnly") else ""
            words += ["--volume", f"{self.volumes[mount['name']]}:{mount['mountPath']}{mode}"]
        command = list(container.get("command", []))
        words += ["--entrypoint", command[0]] if command else []
        return [*words, self.image, *command[1:], *container.get("args", [])]

    def finished(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run a container to its end."""
        words = ["podman", "run", "--rm", *self.options(self.container(name))]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    @contextmanager
    def running(self, name: str) -> Iterator[str]:
        """Run a container in the background; give podman's name of it."""
        own = f"deviceon-backup-{uuid.uuid4().hex[:8]}"
        words = ["podman", "run", "--detach", "--name", own, *self.options(self.container(name))]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        try:
            yield own
        except BaseException:
            subprocess.run(["podman", "logs", "--tail", "30", own], check=False)
            raise
        finally:
            subprocess.run(["podman", "rm", "--force", "--time", "0", own], check=False, stdout=subprocess.DEVNULL)

    def probe(self, running: str, probe: str, name: str) -> subprocess.CompletedProcess[str]:
        """Run the command of a container's probe in it, as a kubelet does."""
        command = self.container(name)[probe]["exec"]["command"]
        return subprocess.run(["podman", "exec", running, *command], capture_output=True, text=True, check=False)


def _known(given: Mapping[str, Any], known: set[str], what: str) -> None:
    if unknown := set(given) - known:
        raise NotCarriedOut(f"{what}: {', '.join(sorted(unknown))}")


def _give_group(directory: Path, group: int) -> None:
    """Do what `fsGroup` does: the volume's root belongs to the group, which may do everything in it."""
    os.chown(directory, -1, group)
    directory.chmod(directory.stat().st_mode & 0o7777 | 0o2770)


def _write(directory: Path, files: Mapping[str, str], *, mode: int, group: int) -> None:
    data = directory / "..2026_01_01"
    data.mkdir()
    for name, text in files.items():
        path = data / name
        path.write_text(text)
        os.chown(path, 0, group)
        path.chmod(mode)
        (directory / name).symlink_to(f"..data/{name}")
    (directory / "..data").symlink_to(data.name)


def _processors(quantity: str) -> str:
    return str(int(quantity[:-1]) / 1000) if quantity.endswith("m") else quantity


def fresh(directory: Path) -> Path:
    """Return an empty directory as a new volume is: of root, with what a file system of its own has."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o755)
    (directory / "lost+found").mkdir(mode=0o700)
    return directory
