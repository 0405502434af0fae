"""The demo's story, told by the service in its container image: `python -m demo.container IMAGE`, as root, with podman.

The container is as docs/CONTAINER.md describes it: user 10001, a root file system that is read only, no capabilities,
256 MiB of memory, state and socket in volumes, the TPM by its socket. PostgreSQL, its data and the one who compares run
outside. The last line is `Restore successfully` (exit 0), or it says what differs or failed (exit 1).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from demo import config_files, sample
from demo.__main__ import SUCCESS, Story, Unexpected, World, told_in_a_directory
from demo.compare import diff, fingerprint
from demo.postgresql_server import PostgresqlServer
from demo.software_tpm import SoftwareTpm
from service.client import Client, ConnectionLost

USER = 10001
MEMORY = "256m"
START_SECONDS, STOP_SECONDS = 60, 40
HARDENED = (
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "host"),
    *("--memory", MEMORY, "--memory-swap", MEMORY, "--pids-limit", "256", "--tmpfs", "/tmp:size=64m"),
    *("--pull", "never"),
)
_ONCE = ("run", "--rm", "--no-healthcheck", *HARDENED)
_REFUSED_BY_SEAL = 5
_INSIDE = Path("/deviceon")


class Volumes:
    """What a container gets: configuration, state, socket, TPM, archives and the server's files, all its user's."""

    def __init__(self, directory: Path, name: str, tpm: SoftwareTpm) -> None:
        self._mounts = {
            directory / f"{name}-etc": "/etc/deviceon-backup:ro",
            directory / f"{name}-state": "/var/lib/deviceon-backup",
            directory / f"{name}-run": "/run/deviceon-backup",
            directory / "archives": "/backups",
            directory / "deviceon": str(_INSIDE),
            tpm.directory: "/run/swtpm",
        }
        self._files = directory / "deviceon"
        self.etc, self.run = directory / f"{name}-etc", directory / f"{name}-run"
        for path in self._mounts:
            path.mkdir(exist_ok=True, mode=0o750)
            path.chmod(0o750)

    def fill(self, server: PostgresqlServer, files: config_files.ServerFiles) -> None:
        """Write the configuration, and give everything to the container's user."""
        source = server.source_settings(password_file="/etc/deviceon-backup/postgresql-password")
        del source["client_dir"]  # the image's own
        content = {
            "server": {"product": "DeviceOn", "version": "5.3.12"},
            "target": {"url": "file:///backups"},
            "retention": {"keep_last": 7},
            "sealing": {"mode": "tpm", "tcti": "swtpm:path=/run/swtpm/sock"},
            "sources": [
                source,
                {"type": "tree", "name": "config", "path": self._inside(files.config)},
                {"type": "sqlite", "name": "grafana", "path": self._inside(files.grafana)},
            ],
        }
        (self.etc / "config.yaml").write_text(json.dumps(content, indent=2))
        secret = self.etc / "postgresql-password"
        secret.touch(mode=0o600)
        secret.write_text(server.password)
        for path in self._mounts:
            give(path)

    def _inside(self, path: Path) -> str:
        return str(_INSIDE / path.relative_to(self._files))

    def options(self) -> list[str]:
        """Return the options of `podman run`."""
        return [word for path, inside in self._mounts.items() for word in ("--volume", f"{path}:{inside}")]


def give(*directories: Path) -> None:
    """Give directories, with all that is in them, to the container's user."""
    subprocess.run(["chown", "--no-dereference", "--recursive", f"{USER}:{USER}", *directories], check=True)


def podman(*arguments: str) -> str:
    """Run podman and return what it printed. Raises Unexpected."""
    result = subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise Unexpected(f"podman {' '.join(arguments[:3])} failed: {result.stdout} {result.stderr}")
    return result.stdout.strip()


def peak(name: str) -> str:
    """Return the most memory that the service in a container has had."""
    script = "for file in /proc/[0-9]*/status; do grep -q deviceon $file && grep VmHWM $file; done; true"
    return " ".join(podman("exec", name, "sh", "-c", script).split()[1:])


def stopped(name: str, seconds: int) -> float:
    """Stop a container, which has so many seconds to end with code 0; return how many it took. Raises Unexpected."""
    began = time.monotonic()
    podman("stop", "--time", str(seconds), name)
    took = time.monotonic() - began
    ended = podman("inspect", "--format", "{{.State.ExitCode}} {{.State.OOMKilled}}", name)
    if ended != "0 false":
        raise Unexpected(f"after SIGTERM, exit code and whether memory ran out: {ended}")
    return took


@contextmanager
def service(image: str, volumes: Volumes) -> Iterator[str]:
    """Run the service in a container, and give the container's name."""
    name = f"deviceon-backup-{uuid.uuid4().hex[:8]}"
    # Without a timer, which would need systemd: the health check is asked for by hand.
    podman("run", "--detach", "--name", name, "--health-interval", "disable", *HARDENED, *volumes.options(), image)
    try:
        yield name
    except BaseException:
        subprocess.run(["podman", "logs", "--tail", "30", name], check=False)
        raise
    finally:
        podman("rm", "--force", "--time", "0", name)


async def answering(socket: Path) -> str:
    """Wait until the service answers on its socket, from outside, and return its version. Raises Unexpected."""
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            async with Client.unix(socket) as client:
                return str((await client.call("system.info"))["version"])
        except (ConnectionLost, OSError) as problem:
            if time.monotonic() > until:
                raise Unexpected(f"the service does not answer on {socket}: {problem}") from None
            await asyncio.sleep(0.02)


async def tell(story: Story, directory: Path, image: str, scale: float) -> None:
    """Tell the story; raises Unexpected when it goes another way."""
    with ExitStack() as running:
        with story.step("Look at the image"):
            _look(story, image)
        with story.step("Start PostgreSQL and a TPM outside of any container, and fill the server"):
            server = running.enter_context(PostgresqlServer(directory / "postgresql"))
            tpm = running.enter_context(SoftwareTpm(directory / "tpm"))
            files = config_files.write(directory / "deviceon")
            await sample.create(server, scale=scale)
            grafana = config_files.GrafanaRunning(files.grafana)
            running.callback(grafana.close)
            grafana.annotate("a note that is only in the write-ahead log so far")
            volumes = Volumes(directory, "service", tpm)
            volumes.fill(server, files)
            world = World(server, files, directory)
            before = await world.state()
            story.say(f"{len(before)} facts")
        with story.step(f"Start the service: user {USER}, nothing writable but volumes, no capability, {MEMORY}"):
            began = time.monotonic()
            name = running.enter_context(service(image, volumes))
            version = await answering(volumes.run / "service.sock")
            story.say(f"version {version} answers on the shared socket after {time.monotonic() - began:.2f} s")
            podman("healthcheck", "run", name)
            story.say("its health check passes")
        inside = ("podman", "exec", name, "deviceon-backup")
        archive = _back_up(story, inside)
        with story.step("Disaster: drop the databases and roles, delete the configuration, damage Grafana's database"):
            grafana.close()
            await sample.destroy(server)
            config_files.destroy(files)
            give(directory / "deviceon")
            lost = diff(before, await fingerprint(server, ("postgres",)))
            story.say(f"{len(lost)} of {len(before)} facts are lost or changed")
        with story.step("Try the archive in a container with another TPM, in one command and without a service"):
            other = running.enter_context(SoftwareTpm(directory / "other-tpm"))
            elsewhere = Volumes(directory, "elsewhere", other)
            elsewhere.fill(server, files)
            once = ("podman", *_ONCE, *elsewhere.options(), image)
            story.run("restore", "--yes", archive, program=once, expect=_REFUSED_BY_SEAL)
        with story.step("Restore, and keep what was restored"):
            said = story.run("restore", "--yes", archive, program=inside)
            if said.strip().splitlines()[-1] != SUCCESS:
                raise Unexpected(f"`restore` did not end with {SUCCESS!r}")
            story.run("commit", "--yes", program=inside)
        with story.step("Compare with what there was, by content"):
            differences = diff(before, await world.state())
            if differences:
                raise Unexpected("\n".join([f"{len(differences)} differences:", *differences[:25]]))
            story.say(f"All {len(before)} facts are as they were")
        with story.step("Stop the service by SIGTERM while it makes a backup"):
            await _stop(story, name, volumes.run / "service.sock")
            left = [path.name for path in (directory / "archives").iterdir() if not path.name.startswith("Backup_")]
            if left:
                raise Unexpected(f"something unfinished is left in the target: {left}")
            story.say("the target holds archives and nothing else")


def _look(story: Story, image: str) -> None:
    size = int(podman("image", "inspect", "--format", "{{.Size}}", image))
    story.say(
        f"{size / 1e6:.0f} MB; entry point {podman('image', 'inspect', '--format', '{{.Config.Entrypoint}}', image)}"
    )
    script = (
        "touch /found 2>/dev/null && echo /found; for name in gcc cc c++ ld pip pip3 git; do command -v $name; done; "
        "find / -xdev -type f -perm /6000; "
        "find / -xdev '(' -name pip -o -name '*.whl' -o -name .cache -o -path '/var/lib/apt/lists/*' ')'; true"
    )
    asked = (*_ONCE, "--entrypoint", "/bin/sh")
    found = podman(*asked, "--user", "0", image, "-c", script)
    user = podman(*asked, image, "-c", "id -u")
    if found or user != str(USER):
        raise Unexpected(f"the image runs as user {user!r}, or holds what it should not: {found}")
    story.say(f"it runs as {USER}, and holds no compiler, no pip, no cache and no set-user-ID program")


def _back_up(story: Story, inside: tuple[str, ...]) -> str:
    with story.step("Ask whether everything is in order, back up, and check every byte of the archive"):
        story.run("doctor", program=inside)
        story.run("backup", program=inside)
        listed = json.loads(podman(*inside[1:], "list", "--json"))
        archive = str(listed["archives"][-1]["name"])
        story.run("verify", archive, program=inside)
    return archive


async def _stop(story: Story, name: str, socket: Path) -> None:
    script = "sh -c 'sleep 0.1 & exit'; sleep 1; grep -ls '^State:.Z' /proc/[0-9]*/status; true"
    if zombies := podman("exec", name, "sh", "-c", script):
        raise Unexpected(f"dead processes are left: {zombies}")
    story.say(f"the service's memory at its peak: {peak(name)}")
    async with Client.unix(socket) as client:
        job = await client.call("backup.start")
        until = time.monotonic() + START_SECONDS
        while job["state"] != "running" and time.monotonic() < until:
            await asyncio.sleep(0.01)
            job = await client.call("job.get", id=job["id"])
    if job["state"] != "running":
        raise Unexpected(f"the backup that is to be interrupted is {job['state']}")
    story.say(f"exit code 0 after {stopped(name, STOP_SECONDS):.1f} s")


def main() -> int:
    """Parse the command line, tell the story, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo.container", description=__doc__)
    parser.add_argument("image")
    parser.add_argument("--scale", type=float, default=0.02, help="1 is about 2.5 GB")
    arguments = parser.parse_args()
    return told_in_a_directory(
        "deviceon-image-", lambda story, directory: tell(story, directory, arguments.image, arguments.scale)
    )


if __name__ == "__main__":
    sys.exit(main())
