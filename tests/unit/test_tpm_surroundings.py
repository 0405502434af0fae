"""Where the service runs, and the flag or field by which a TPM is let into it there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from service.sealing.tpm.surroundings import Surroundings, surroundings

NODE = Path("/dev/tpmrm0")


@pytest.mark.parametrize(
    ("files", "environment", "kind"),
    [
        ({}, {}, "machine"),
        ({"proc/1/cgroup": "0::/init.scope\n"}, {}, "machine"),
        ({".dockerenv": ""}, {}, "container"),
        ({"run/.containerenv": ""}, {}, "container"),
        ({}, {"container": "podman"}, "container"),
        *[
            ({"proc/1/cgroup": f"12:devices:/{engine}/0123\n"}, {}, "container")
            for engine in ("docker", "containerd", "libpod", "lxc", "crio")
        ],
        ({"proc/1/cgroup": "12:devices:/system.slice\n"}, {}, "machine"),
        ({"proc/1/cgroup": "1:name=systemd:/docke/container-getty/kubepod/libpo/lx/cri\n"}, {}, "machine"),
        ({"proc/1/cgroup": "0::/kubepods.slice/x\n", ".dockerenv": ""}, {}, "container"),
        ({"proc/1/cgroup": "0::/kubepods.slice/x\n"}, {}, "kubernetes"),
        ({".dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({"var/run/secrets/kubernetes.io/serviceaccount/token": ""}, {}, "kubernetes"),
    ],
)
def test_a_container_is_known_by_what_its_engine_leaves(
    tmp_path: Path, files: dict[str, str], environment: dict[str, str], kind: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert surroundings(tmp_path, environment).kind == kind


def test_the_folder_that_it_was_started_in_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "var/run/secrets/kubernetes.io").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert surroundings(environment={}) == surroundings(Path("/"), {})


def test_what_is_missing_is_told_as_the_flag_or_field_of_the_place() -> None:
    container, kubernetes, machine = (Surroundings(kind) for kind in ("container", "kubernetes", "machine"))
    assert container.let_in(NODE).startswith("Run the container with --device /dev/tpmrm0 ")
    assert "resources.limits" in kubernetes.let_in(NODE)
    assert "sealing.mode: off" in machine.let_in(NODE)
    who = {"user": "backup", "group": "tss"}
    assert "--group-add 112" in container.let_use(NODE, 112, **who)
    assert kubernetes.let_use(NODE, 112, **who).startswith("Give the pod securityContext.supplementalGroups: [112] ")
    assert "usermod -aG tss backup" in machine.let_use(NODE, 112, **who)
    assert "usermod" not in container.let_use(NODE, 112, **who)
    for number in (errno.EPERM, errno.ENXIO, errno.ENODEV, errno.EBUSY):
        for place in (container, kubernetes, machine):
            explained = place.explain_open(NODE, number)
            assert explained is not None
            assert all(explained)
    told = kubernetes.explain_open(NODE, errno.EPERM)
    assert told is not None
    assert "device cgroup" in told[0]
    assert "device plugin" in told[1]
    assert machine.explain_open(NODE, errno.ENOENT) is None
    for place in (container, kubernetes):
        forbidden = place.explain_open(NODE, errno.EPERM)
        assert forbidden is not None
        assert forbidden[1] == place.let_in(NODE)
    forbidden = machine.explain_open(NODE, errno.EPERM)
    assert forbidden is not None
    assert "cgroup" in forbidden[1]
    for number, words in (
        (errno.ENXIO, "no TPM behind"),
        (errno.ENODEV, "no TPM behind"),
        (errno.EBUSY, "another program"),
    ):
        explained = machine.explain_open(NODE, number)
        assert explained is not None
        assert words in explained[0]


def test_a_list_of_cgroups_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    assert surroundings(tmp_path, {}).kind == "machine"
    (tmp_path / "proc" / "1").mkdir(parents=True)
    (tmp_path / "proc" / "1" / "cgroup").write_bytes(b"docker\xff")
    assert surroundings(tmp_path, {}).kind == "machine"
