"""The chart's pods, run in the image: `python -m demo.cluster IMAGE`, as root, with podman.

No cluster is here. Helm renders the chart, and `demo.pod` does a kubelet's part: the same command, user, mounts, limits
and probes. In the place of a device plugin's TPM is swtpm's socket; PostgreSQL and the one who compares run outside.
The last line is `Restore successfully` (exit 0), or it says what differs or failed (exit 1).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

from demo import config_files, sample
from demo.__main__ import SUCCESS, Story, Unexpected, World, told_in_a_directory
from demo.compare import diff, fingerprint
from demo.container import give, peak, stopped
from demo.pod import Object, Pod, fresh
from demo.postgresql_server import PostgresqlServer
from demo.software_tpm import SoftwareTpm

CHART = Path(__file__).parents[1] / "helm/deviceon-backup"
UMBRELLA = Path(__file__).parents[1] / "examples/kubernetes/umbrella"
METRICS, PORTAL = 19847, 18480
PASSWORD = "postgresql"
_PROBES = 60


def values(server: PostgresqlServer) -> Object:
    """Return values for the chart, as docs/KUBERNETES.md has them but for TPM, target and this machine's ports."""
    return {
        "config": {
            "server": {"version": "5.3.12"},
            "sealing": {"tcti": "swtpm:path=/tpm/sock"},
            "target": {"url": "file:///backups"},
            "retention": {"keep_last": 7},
            "drill": {"allow": ["SPACE_UNKNOWN"]},
            "sources": [
                {
                    "type": "postgresql",
                    "host": server.host,
                    "port": server.port,
                    "password_file": f"/secrets/{PASSWORD}/password",
                },
                {"type": "tree", "path": "/deviceon/etc"},
                {"type": "sqlite", "path": "/deviceon/grafana/data/grafana.db"},
            ],
        },
        "archives": {"enabled": True},
        "secrets": [{"name": "deviceon-postgresql", "path": PASSWORD}, {"name": "portal", "path": "portal"}],
        "extraVolumes": [
            {"name": "deviceon", "persistentVolumeClaim": {"claimName": "deviceon"}},
            {"name": "tpm", "persistentVolumeClaim": {"claimName": "tpm"}},
        ],
        "extraVolumeMounts": [{"name": "deviceon", "mountPath": "/deviceon"}, {"name": "tpm", "mountPath": "/tpm"}],
        "resources": {"limits": {"cpu": "1"}},  # fewer than this machine has
        "metrics": {"enabled": True, "address": "127.0.0.1", "port": METRICS},
        "portal": {
            "enabled": True,
            "address": "127.0.0.1",
            "port": PORTAL,
            "config": {
                "origins": ["https://backup.example"],
                "access": {"token": {"admin_file": "/secrets/portal/admin"}},
            },
        },
    }


def as_cron_job(service: Object, *, ephemeral: bool) -> Object:
    """Return the same for a run without a service."""
    own: Object = {"name": "plant-1", "state": {"ephemeral": ephemeral}, "cronJob": {"jitterSeconds": 1}}
    config = service["config"] | {"sealing": service["config"]["sealing"] | {"recovery": "none"}}
    if ephemeral:
        config = {key: value for key, value in config.items() if key != "retention"}
    more = {"mode": "cronJob", "metrics": {}, "portal": {}, "servers": [own], "config": config}
    return service | more


class Cluster:
    """What is rendered, and the claims, ConfigMaps and Secrets that its pods use."""

    def __init__(self, directory: Path, image: str, files: Mapping[str, Mapping[str, str]], claims: Mapping[str, Path]):
        self._directory, self._image = directory, image
        self._secrets, self._claims = files, claims
        self._pods = 0

    def pod(self, kind: str, suffix: str, settings: Object, path: Path = CHART) -> Pod:
        """Render a chart and return one of its pods, with its volumes made."""
        with helm.Chart.load(path) as chart:
            chart.validate_schema(settings)
            rendered = chart.render(settings, name="backup", namespace="deviceon")
        documents = [yaml.safe_load_all(text) for name, text in rendered.items() if name.endswith(".yaml")]
        objects = [one for document in documents for one in document if one]
        files = {one["metadata"]["name"]: one["data"] for one in objects if one["kind"] == "ConfigMap"}
        found = next(one for one in objects if one["kind"] == kind and one["metadata"]["name"].endswith(suffix))
        ways = {"Pod": ("spec",), "Deployment": ("spec", "template", "spec"), "Job": ("spec", "template", "spec")}
        ways["CronJob"] = ("spec", "jobTemplate", "spec", "template", "spec")
        spec: Any = found
        for key in ways[kind]:
            spec = spec[key]
        self._pods += 1
        claims = {
            **self._claims,
            f"backup-{CHART.name}-plant-1-archives": self._claims[f"backup-{CHART.name}-archives"],
        }
        return Pod(spec, self._directory / f"pod-{self._pods}", {**files, **self._secrets}, claims, self._image)


async def tell(story: Story, directory: Path, image: str, scale: float) -> None:
    """Tell the story; raises Unexpected when it goes another way."""
    with ExitStack() as running:
        with story.step("Start PostgreSQL and a TPM outside of any pod, and make volumes"):
            server = running.enter_context(PostgresqlServer(directory / "postgresql"))
            running.enter_context(SoftwareTpm(directory / "tpm"))
            files = config_files.write(directory / "deviceon")
            await sample.create(server, scale=scale)
            give(directory / "deviceon", directory / "tpm")
            names = [f"backup-{CHART.name}-{what}" for what in ("state", "archives", "plant-1-state")]
            claims = {name: fresh(directory / name) for name in names}
            claims |= {"deviceon": directory / "deviceon", "tpm": directory / "tpm"}
            claims["sidecar-state"] = fresh(directory / "sidecar-state")
            secrets = {"deviceon-postgresql": {"password": server.password}, "portal": {"admin": "a" * 40}}
            cluster = Cluster(directory, image, secrets, claims)
            world = World(server, files, directory)
            before = await world.state()
        settings = values(server)
        with story.step("Run the hook that checks the configuration, also a wrong one"):
            _checked(story, cluster, settings)
        with story.step("Run the Deployment's pod, and ask its probes"):
            pod = cluster.pod("Deployment", CHART.name, settings)
            name = running.enter_context(pod.running("deviceon-backup"))
            _probed(story, pod, name)
            portal = running.enter_context(pod.running("deviceon-backup-portal"))
            _portal(story)
        inside = ("podman", "exec", name, "deviceon-backup")
        with story.step("Do as the notes say: doctor, provision, backup, drill"):
            story.run("doctor", program=inside)
            story.run("provision", "--recovery", "none", "--no-baseline", program=inside)
            story.run("backup", program=inside)
            story.run("drill", program=inside)
        with story.step("Run `helm test` beside it"):
            _ended(story, cluster.pod("Pod", "-doctor", settings), "deviceon-backup")
        with story.step("Disaster, restore, commit, and compare by content"):
            await sample.destroy(server)
            config_files.destroy(files)
            give(directory / "deviceon")
            archive = next(path.name for path in claims[names[1]].iterdir() if path.name.startswith("Backup_"))
            said = story.run("restore", "--yes", archive, program=inside)
            if said.strip().splitlines()[-1] != SUCCESS:
                raise Unexpected(f"`restore` did not end with {SUCCESS!r}")
            story.run("commit", "--yes", program=inside)
            if differences := diff(before, await world.state()):
                raise Unexpected("\n".join([f"{len(differences)} differences:", *differences[:25]]))
            story.say(f"All {len(before)} facts are as they were")
        with story.step("End the pod as a kubelet does"):
            story.say(f"the portal's memory at its peak: {peak(portal)}")
            _stopped(story, name, pod)
        with story.step("Run the sidecar of a server's pod as another user, and reach it from the server's container"):
            _beside(story, cluster)
        for ephemeral in (False, True):
            what = "ephemeral state" if ephemeral else "a claim"
            with story.step(f"Run the CronJob's pod with {what}: jitter, then a backup without a service"):
                cron = cluster.pod("CronJob", "-plant-1", as_cron_job(settings, ephemeral=ephemeral))
                began = time.monotonic()
                _ended(story, cron, "jitter")
                story.say(f"waited for {time.monotonic() - began:.1f} s, of 1 at most, and the start of a container")
                _ended(story, cron, "deviceon-backup")
        if not (claims[names[2]] / "tpm-pin.json").exists():
            raise Unexpected("the CronJob with a claim has not remembered its TPM")
        story.say(
            f"{len(await fingerprint(server, ('postgres',)))} facts of the server, {_count(claims[names[1]])} archives"
        )


def _count(archives: Path) -> int:
    return len(list(archives.glob("Backup_*.zip")))


def _ended(story: Story, pod: Pod, container: str, expect: int = 0) -> None:
    result = pod.finished(container)
    for line in (result.stdout + result.stderr).strip().splitlines()[-4:]:
        story.say(line)
    if result.returncode != expect:
        raise Unexpected(f"{container} ended with {result.returncode}: {result.stdout} {result.stderr}")


def _checked(story: Story, cluster: Cluster, settings: Object) -> None:
    _ended(story, cluster.pod("Job", "-config-check", settings), "deviceon-backup")
    # Helm's schema does not know that these two exclude each other; the service does.
    wrong = settings["config"] | {"server": {"version": "5.3.12", "version_file": "/deviceon/VERSION"}}
    _ended(story, cluster.pod("Job", "-config-check", settings | {"config": wrong}), "deviceon-backup", expect=2)


def _probed(story: Story, pod: Pod, name: str) -> None:
    began = time.monotonic()
    for _ in range(_PROBES):
        if pod.probe(name, "startupProbe", "deviceon-backup").returncode == 0:
            break
        time.sleep(0.2)
    else:
        raise Unexpected("the startup probe never passed")
    story.say(f"the startup probe passes after {time.monotonic() - began:.1f} s")
    if pod.probe(name, "livenessProbe", "deviceon-backup").returncode:
        raise Unexpected("the liveness probe does not pass")
    path = pod.container("deviceon-backup")["readinessProbe"]["httpGet"]["path"]
    for _ in range(_PROBES):
        if _status(f"http://127.0.0.1:{METRICS}{path}") == 200:
            break
        time.sleep(0.2)
    else:
        raise Unexpected("the readiness probe never passed")
    story.say("the liveness and the readiness probe pass")
    processors = "from service.processors import processors; print(processors())"
    python = ("podman", "exec", name, "/opt/deviceon-backup/bin/python", "-c", processors)
    limit = pod.container("deviceon-backup")["resources"]["limits"]["cpu"]
    seen = subprocess.run(python, capture_output=True, text=True, check=True).stdout.strip()
    story.say(f"it takes {seen} processors, the limit is {limit}")
    if int(seen) > int(limit):
        raise Unexpected("it takes more processors than its limit")


def _status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _beside(story: Story, cluster: Cluster) -> None:
    options = {"auto_mkdir": True, "region": None, "key": None, "secret": None}
    settings: Object = {
        "state": {"existingClaim": "sidecar-state"},
        "tpm": {"resource": "", "groups": []},
        "secrets": [],
        "metrics": {"enabled": False},
        "config": {
            "server": {"version": "5.3.12", "version_file": None},
            "sealing": {"mode": "off"},
            "target": {"url": "file:///opt/advantech/deviceon/backups", "storage_options": options},
            "sources": [{"type": "tree", "path": "/opt/advantech/deviceon/etc"}],
        },
    }
    with tempfile.TemporaryDirectory(prefix="deviceon-umbrella-") as directory:
        umbrella = Path(directory) / "umbrella"
        shutil.copytree(UMBRELLA, umbrella)
        shutil.copytree(CHART, umbrella / "charts" / CHART.name)
        pod = cluster.pod("Deployment", "backup", {CHART.name: settings}, umbrella)
    user = pod.container("deviceon-backup")["securityContext"]["runAsUser"]
    subprocess.run(["chown", "--recursive", f"{user}:{user}", pod.volumes["deviceon"]], check=True)
    with pod.running("deviceon-backup") as name:
        for _ in range(_PROBES):
            if pod.probe(name, "livenessProbe", "deviceon-backup").returncode == 0:
                break
            time.sleep(0.2)
        # The server's own container, with the image in the place of the server's.
        server = pod.container("deviceon")
        server["securityContext"] |= {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        server["securityContext"] |= {"runAsUser": user, "runAsGroup": user}
        socket = f"{server['volumeMounts'][1]['mountPath']}/deviceon-backup/service.sock"
        server["args"] = ["--socket", socket, "backup"]
        _ended(story, pod, "deviceon")
    give(pod.volumes["deviceon"])


def _portal(story: Story) -> None:
    for _ in range(_PROBES):
        said = {"Host": "backup.example", "Accept-Language": "zh-TW"}
        status = _status(f"http://127.0.0.1:{PORTAL}/login", **said)
        if status == 200:
            story.say("the portal beside it shows its login")
            return
        time.sleep(0.2)
    raise Unexpected(f"the portal answers {status}")


def _stopped(story: Story, name: str, pod: Pod) -> None:
    story.say(f"the service's memory at its peak: {peak(name)}")
    seconds = pod.spec["terminationGracePeriodSeconds"]
    story.say(f"exit code 0 after {stopped(name, seconds):.1f} s, of {seconds}")


def main() -> int:
    """Parse the command line, tell the story, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo.cluster", description=__doc__)
    parser.add_argument("image")
    parser.add_argument("--scale", type=float, default=0.02, help="1 is about 2.5 GB")
    arguments = parser.parse_args()
    return told_in_a_directory(
        "deviceon-pods-", lambda story, directory: tell(story, directory, arguments.image, arguments.scale)
    )


if __name__ == "__main__":
    sys.exit(main())
