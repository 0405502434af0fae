"""The demo's story, told by the Debian package on a machine that systemd has booted.

`python -m demo.packaged IMAGE DEB`: the machine is a container of IMAGE, a Debian with systemd and nothing of this
project, run by podman as root. The package is installed there; its unit runs behind the walls it has, and is started,
killed, hung up, restarted, called on through systemd's socket, updated, removed and purged. PostgreSQL, the TPM and the
one who compares run outside, as in `demo.container`. The last line is `Restore successfully` (exit 0), or it says what
differs or failed (exit 1).
"""

from __future__ import annotations

import argparse
import json
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path

from demo import config_files, sample
from demo.__main__ import SUCCESS, Story, Unexpected, World, told_in_a_directory
from demo.compare import diff, fingerprint
from demo.container import podman
from demo.postgresql_server import PostgresqlServer
from demo.software_tpm import SoftwareTpm

INSIDE = Path("/srv/demo")
WAIT_SECONDS = 60
UNIT = "deviceon-backup"
_BOOTED = (
    # What systemd needs for the walls around its services; nothing else of the host is lent.
    *("--systemd", "always", "--cgroupns", "private", "--network", "host", "--pull", "never"),
    *("--cap-add", "SYS_ADMIN,MKNOD,DAC_READ_SEARCH,SYS_PTRACE"),
    *("--security-opt", "seccomp=unconfined", "--security-opt", "unmask=ALL"),
)
_SERVER = """\
[Unit]
Description=What the hooks stop and start
[Service]
ExecStart=/usr/bin/sleep infinity
[Install]
WantedBy=multi-user.target
"""
_DROP_IN = """\
[Service]
ReadWritePaths={paths}
WatchdogSec=6
RestartSec=1
"""
_PORTAL = """\
listen: 127.0.0.1:{port}
access: {{token: {{read_file: /etc/deviceon-backup/portal-token}}}}
"""
_REFUSED = 3


class Machine:
    """The booted container."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.program = ("podman", "exec", name, UNIT)

    def run(self, *command: str) -> str:
        """Run a command there and return what it printed. Raises Unexpected."""
        return podman("exec", self.name, *command)

    def fails(self, *command: str) -> bool:
        """Tell whether a command there fails."""
        return subprocess.run(["podman", "exec", self.name, *command], capture_output=True, check=False).returncode != 0

    def write(self, path: str, content: str, mode: str = "644") -> None:
        """Write a file there."""
        command = ["podman", "exec", "-i", self.name, "install", "-D", "-m", mode, "/dev/stdin", path]
        subprocess.run(command, input=content, text=True, check=True)

    def property(self, name: str, unit: str = UNIT) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit)

    def call(self, *arguments: str) -> str:
        """Return what a command of the program says, as JSON."""
        return self.run(UNIT, *arguments, "--json")


@contextmanager
def booted(image: str, directory: Path, package: Path) -> Iterator[Machine]:
    """Boot a machine that sees `directory` as INSIDE and the package as /package.deb."""
    name = f"deviceon-backup-{uuid.uuid4().hex[:8]}"
    volumes = ("--volume", f"{directory}:{INSIDE}", "--volume", f"{package.resolve()}:/package.deb:ro")
    podman("run", "--detach", "--name", name, *_BOOTED, *volumes, image, "/sbin/init")
    machine = Machine(name)
    try:
        until(lambda: machine.run("sh", "-c", "systemctl is-system-running || true") == "running", "the machine is up")
        yield machine
    except BaseException:
        subprocess.run(["podman", "exec", name, "journalctl", "--no-pager", "-n", "60", "-u", UNIT], check=False)
        raise
    finally:
        podman("rm", "--force", "--time", "0", name)


def until(holds: Callable[[], bool], what: str) -> float:
    """Wait until something holds; return the seconds. Raises Unexpected when that takes too long."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > WAIT_SECONDS:
            raise Unexpected(f"within {WAIT_SECONDS} s it did not come about that {what}")
        time.sleep(0.1)
    return time.monotonic() - began


def require(holds: bool, what: str) -> None:
    """Raise Unexpected unless something holds."""
    if not holds:
        raise Unexpected(f"it does not hold that {what}")


async def tell(story: Story, directory: Path, image: str, package: Path, scale: float) -> None:
    """Tell the story; raises Unexpected when it goes another way."""
    with ExitStack() as running:
        with story.step("Start PostgreSQL and a TPM outside, fill the server, and boot a machine"):
            server = running.enter_context(PostgresqlServer(directory / "postgresql"))
            tpm = running.enter_context(SoftwareTpm(directory / "tpm"))
            files = config_files.write(directory / "deviceon")
            await sample.create(server, scale=scale)
            grafana = config_files.GrafanaRunning(files.grafana)
            running.callback(grafana.close)
            grafana.annotate("a note that is only in the write-ahead log so far")
            (directory / "archives").mkdir()
            world = World(server, files, directory)
            before = await world.state()
            machine = running.enter_context(booted(image, directory, package))
            story.say(f"{len(before)} facts; {machine.run('systemctl', '--version').splitlines()[0]}")
        with story.step("Install the package"):
            _install(story, machine)
        with story.step("Configure it, and start it"):
            _configure(machine, server, tpm, files)
            took = _timed(lambda: machine.run("systemctl", "enable", "--quiet", "--now", UNIT))
            story.say(f"systemctl start returned, and commands are taken, after {took:.1f} s")
            machine.call("status")
            story.run("doctor", program=machine.program)
            _who_may_call(story, machine)
        archive = _back_up(story, machine)
        with story.step("Ask for a restore where the unit may write archives only, then let it write what it restores"):
            _wall(machine, f"{INSIDE}/archives")
            said = story.run("restore", "--yes", archive, program=machine.program, expect=_REFUSED)
            require("TREE_NOT_WRITABLE" in said and "SQLITE_NOT_WRITABLE" in said, "the refusal tells of the walls")
            _wall(machine, f"{INSIDE}/archives {INSIDE}/deviceon")
        with story.step("Disaster: drop the databases and roles, delete the configuration, damage Grafana's database"):
            grafana.close()
            await sample.destroy(server)
            config_files.destroy(files)
            lost = diff(before, await fingerprint(server, ("postgres",)))
            story.say(f"{len(lost)} of {len(before)} facts are lost or changed")
        with story.step("Restore behind the walls; the hooks stop and start a unit of systemd's"):
            began = machine.property("InvocationID", "deviceon")
            said = story.run("restore", "--yes", archive, program=machine.program)
            require(said.strip().splitlines()[-1] == SUCCESS, f"`restore` ends with {SUCCESS!r}")
            ended = machine.property("InvocationID", "deviceon")
            require(began != ended and not machine.fails("systemctl", "is-active", "deviceon"), "the hooks were run")
            story.run("commit", "--yes", program=machine.program)
        with story.step("Compare with what there was, by content"):
            differences = diff(before, await world.state())
            if differences:
                raise Unexpected("\n".join([f"{len(differences)} differences:", *differences[:25]]))
            story.say(f"All {len(before)} facts are as they were")
        _die_and_come_back(story, machine, directory / "archives")
        _be_called_on(story, machine)
        _update_and_remove(story, machine, directory / "archives")


def _timed(do: Callable[[], object]) -> float:
    began = time.monotonic()
    do()
    return time.monotonic() - began


def _install(story: Story, machine: Machine) -> None:
    machine.run("apt-get", "update", "-q")
    environment = ("env", "DEBIAN_FRONTEND=noninteractive")
    took = _timed(
        lambda: machine.run(
            *environment,
            *("apt-get", "install", "-q", "-y", "/package.deb", "postgresql-client", "libtss2-tcti-swtpm0"),
        )
    )
    story.say(f"{machine.run(UNIT, '--version')}, after {took:.0f} s with what it depends on")
    for unit in (f"{UNIT}.service", f"{UNIT}.socket", f"{UNIT}-portal.service"):
        require(machine.fails("systemctl", "is-active", unit), f"{unit} was not started")
        require(machine.fails("systemctl", "is-enabled", unit), f"{unit} was not enabled")
        machine.run("systemd-analyze", "verify", "--man=no", unit)
    require("deviceon-backup" in machine.run("id", "-nG", f"{UNIT}-portal"), "the portal's user is in the group")


def _configure(machine: Machine, server: PostgresqlServer, tpm: SoftwareTpm, files: config_files.ServerFiles) -> None:
    def inside(path: Path) -> str:
        return str(INSIDE / path.relative_to(files.config.parents[1]))

    source = server.source_settings(password_file="/etc/deviceon-backup/postgresql-password")
    del source["client_dir"]  # the machine's own
    content = {
        "server": {"product": "DeviceOn", "version": "5.3.12"},
        "target": {"url": f"file://{INSIDE}/archives"},
        "retention": {"keep_last": 7},
        "sealing": {"mode": "tpm", "tcti": f"swtpm:path={inside(tpm.socket)}"},
        "sources": [
            source,
            {"type": "tree", "name": "config", "path": inside(files.config)},
            {"type": "sqlite", "name": "grafana", "path": inside(files.grafana)},
        ],
        "restore": {
            "hooks": {word: {"command": ["/usr/bin/systemctl", word, "deviceon"]} for word in ("stop", "start")},
        },
        "service": {"readers": [f"{UNIT}-portal"]},
    }
    machine.write("/etc/deviceon-backup/portal.yaml", _PORTAL.format(port=_free_port()))
    machine.write("/etc/deviceon-backup/portal-token", secrets.token_hex(32), "600")
    machine.run("chown", f"{UNIT}-portal:", "/etc/deviceon-backup/portal-token")
    machine.run("systemd-tmpfiles", "--create", f"{UNIT}.conf")
    machine.write("/etc/deviceon-backup/config.yaml", json.dumps(content, indent=2), "600")
    machine.write("/etc/deviceon-backup/postgresql-password", server.password, "600")
    machine.write("/etc/systemd/system/deviceon.service", _SERVER)
    _wall(machine, f"{INSIDE}/archives {INSIDE}/deviceon")
    machine.run("systemctl", "start", "deviceon")


def _wall(machine: Machine, paths: str) -> None:
    """Let the service write in these directories beside its own."""
    machine.write(f"/etc/systemd/system/{UNIT}.service.d/demo.conf", _DROP_IN.format(paths=paths))
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "try-restart", UNIT)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _who_may_call(story: Story, machine: Machine) -> None:
    call = (UNIT, "--socket", "/run/deviceon-backup/service.sock", "status")
    machine.run("runuser", "-u", f"{UNIT}-portal", "--", *call)
    require(machine.fails("runuser", "-u", "nobody", "--", *call), "nobody else may call")
    story.say("the portal's user may look, nobody else may")
    portal = f"{UNIT}-portal.service"
    machine.run("systemctl", "start", portal)
    [_, where] = machine.run("grep", "^listen:", "/etc/deviceon-backup/portal.yaml").split()

    def page() -> bool:
        asked = urllib.request.Request(f"http://{where}/", headers={"Host": where})
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                return bool(answer.status == HTTPStatus.OK)
        except OSError:
            return False

    took = until(page, "the portal shows a page")
    require(machine.property("User", portal) == f"{UNIT}-portal", "the portal is no root")
    story.say(f"the portal, behind walls of its own, shows its first page after {took:.1f} s")


def _back_up(story: Story, machine: Machine) -> str:
    with story.step("Back up, and check every byte of the archive"):
        story.run("backup", program=machine.program)
        archive = str(json.loads(machine.call("list"))["archives"][-1]["name"])
        story.run("verify", archive, program=machine.program)
    return archive


def _begin_backup(machine: Machine) -> None:
    call = '{"jsonrpc":"2.0","id":1,"method":"backup.start"}'
    program = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/{UNIT}/service.sock'); "
    machine.run(f"/opt/{UNIT}/bin/python", "-c", f"{program}s.sendall(b'{call}\\n'); print(s.recv(65536))")
    until(lambda: (json.loads(machine.call("status"))["active"] or {}).get("state") == "running", "a backup runs")


def _die_and_come_back(story: Story, machine: Machine, archives: Path) -> None:
    def nothing_is_left() -> None:
        machine.call("status")
        left = [path.name for path in archives.iterdir() if not path.name.startswith("Backup_")]
        require(not left, f"nothing unfinished is left in the target: {left}")

    def restarted(since: str) -> bool:
        return machine.property("MainPID") not in (since, "0") and machine.property("ActiveState") == "active"

    for what, how in (("Kill it", "KILL"), ("Hang it up", "STOP")):
        with story.step(f"{what} in the middle of a backup, and have systemd start it again"):
            _begin_backup(machine)
            process = machine.property("MainPID")
            machine.run("sh", "-c", f"kill -{how} {process}")
            took = until(lambda known=process: restarted(known), "it runs again")  # type: ignore[misc]
            machine.call("status")
            last = json.loads(machine.call("job", "list"))["jobs"]
            states = [job["state"] for job in last if job["kind"] == "backup"]
            require("interrupted" in states, f"the backup is known to be interrupted: {states}")
            story.say(f"it took {took:.1f} s; the job is known to be interrupted")
            until(lambda: json.loads(machine.call("status"))["active"] is None, "it is idle")
    with story.step("Restart it in the middle of a backup"):
        _begin_backup(machine)
        took = _timed(lambda: machine.run("systemctl", "restart", UNIT))
        require(machine.property("Result") == "success", "it ended well")
        until(lambda: json.loads(machine.call("status"))["active"] is None, "it is idle")
        nothing_is_left()
        story.say(f"it took {took:.1f} s, and the target holds archives and nothing else")


def _be_called_on(story: Story, machine: Machine) -> None:
    with story.step("Let systemd listen: a call starts the service, and waits while it starts anew"):
        machine.run("systemctl", "stop", f"{UNIT}-portal", UNIT)  # the portal would call at once
        machine.run("systemctl", "start", f"{UNIT}.socket")
        require(machine.property("ActiveState") == "inactive", "the service is not there")
        took = _timed(lambda: machine.call("status"))
        require(machine.property("ActiveState") == "active", "the call has started it")
        story.say(f"the first call was answered after {took:.1f} s")
        with subprocess.Popen(["podman", "exec", machine.name, "systemctl", "restart", UNIT]) as restart:
            for _ in range(5):
                machine.run(UNIT, "--socket", f"/run/{UNIT}/service.sock", "status")
            require(restart.wait(WAIT_SECONDS) == 0, "it was started anew")
        machine.run("systemctl", "stop", f"{UNIT}.socket", UNIT)
        machine.run("systemctl", "start", UNIT, f"{UNIT}-portal")


def _update_and_remove(story: Story, machine: Machine, archives: Path) -> None:
    with story.step("Update it, remove it, purge it"):
        conf = f"/etc/systemd/system/{UNIT}.service.d/paths.conf"
        machine.run("sh", "-c", f"echo '# mine' >>{conf}")
        machine.run("apt-get", "install", "-q", "-y", "--reinstall", "/package.deb")
        for unit in (UNIT, f"{UNIT}-portal"):
            require(not machine.fails("systemctl", "is-active", unit), f"{unit} runs again after an update")
        require(machine.fails("systemctl", "is-active", f"{UNIT}.socket"), "what did not run does not")
        require("# mine" in machine.run("cat", conf), "an update leaves the administrator's changes")
        machine.run("apt-get", "remove", "-q", "-y", UNIT)
        require(machine.fails("systemctl", "is-active", UNIT), "it is stopped when it is removed")
        require(machine.fails("test", "-e", f"/opt/{UNIT}"), f"nothing is left in /opt/{UNIT}")
        kept = len(list(archives.glob("Backup_*.zip")))
        machine.run("apt-get", "purge", "-q", "-y", UNIT)
        require(machine.fails("test", "-e", conf), "a purge removes what the package brought")
        machine.run("test", "-e", "/etc/deviceon-backup/config.yaml", "-a", "-e", "/var/lib/deviceon-backup/state.db")
        require(kept > 0 and len(list(archives.glob("Backup_*.zip"))) == kept, "all archives are left")
        story.say(f"configuration, state and {kept} archives are left")


def main() -> int:
    """Parse the command line, tell the story, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo.packaged", description=__doc__)
    parser.add_argument("image")
    parser.add_argument("package", type=Path)
    parser.add_argument("--scale", type=float, default=0.02, help="1 is about 2.5 GB")
    arguments = parser.parse_args()
    return told_in_a_directory(
        "deviceon-package-",
        lambda story, directory: tell(story, directory, arguments.image, arguments.package, arguments.scale),
    )


if __name__ == "__main__":
    sys.exit(main())
