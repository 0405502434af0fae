"""What a CronJob's runs remember: with a claim what a service remembers, with ephemeral state nothing but the target.

Each run is the program that the rendered pod starts, put together on the configuration of its ConfigMap; only the paths
are of this machine, and the clock is set, since two archives cannot have one minute.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.software_tpm import SoftwareTpm
from service.app import opened
from service.cli.commander import JOBS
from service.config import ConfigFile
from service.progress import Progress
from service.rpc.peers import Peer
from tests.helm import chart
from tests.service_parts import Clock


@dataclass(slots=True)
class Server:
    """A server of `servers`, as the chart renders it, run on this machine."""

    root: Path
    tpm: SoftwareTpm
    ephemeral: bool
    settings: dict[str, Any] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)

    def document(self) -> dict[str, Any]:
        own = {"target": {"url": "file:///backups"}, "sealing": {"recovery": "none"}} | self.settings
        values = {
            "mode": "cronJob",
            "config": {"server": {"version": "5.3.12"}, "sources": [{"type": "tree", "path": "/server/etc"}]},
            "archives": {"enabled": True},
            "tpm": {"resource": "squat.ai/tpm", "groups": [113]},
            "nodeSelector": {"kubernetes.io/hostname": "plant-1"},
            "servers": [{"name": "one", "config": own, "state": {"ephemeral": self.ephemeral}}],
        }
        objects = chart.objects(chart.render(values))
        [job] = [one for one in objects if one["kind"] == "CronJob"]
        assert chart.pods([job])["CronJob/backup-deviceon-backup-one"]["spec"]["containers"][0]["args"] == ["backup"]
        [config] = [one for one in objects if one["metadata"]["name"] == "backup-deviceon-backup-one" and "data" in one]
        return dict(yaml.safe_load(config["data"]["config.yaml"]))

    async def run(self) -> None:
        """Do what a pod does: with the claim's state, or with a new directory."""
        self.clock.go(days=1)
        state = self.root / "state"
        if self.ephemeral:
            shutil.rmtree(state, ignore_errors=True)
        document = self.document()
        document["state_dir"] = str(state)
        document["target"]["url"] = document["target"]["url"].replace("/backups", str(self.root / "archives"))
        document["sources"][0]["path"] = str(self.root / "etc")
        document["sealing"]["tcti"] = self.tpm.tcti
        async with opened(ConfigFile.model_validate(document), clock=self.clock) as app:
            job = await app.jobs.run_now(JOBS["backup.start"], {}, Progress())
            assert job.state == "succeeded", job.error
            self.listed = (await app.api.call("archive.list", {}, Peer("a test", "admin")))["archives"]
            name = self.listed[0]["name"]
            self.inspected = await app.api.call("archive.inspect", {"archive": name}, Peer("a test", "admin"))

    listed: list[dict[str, Any]] = field(default_factory=list)
    inspected: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("etc", "archives"):
        (tmp_path / name).mkdir()
    (tmp_path / "etc/server.conf").write_text("port = 80\n")
    return tmp_path


async def test_with_a_claim_archives_stay_verified_and_retention_keeps_what_it_says(
    root: Path, software_tpm: SoftwareTpm
) -> None:
    server = Server(root, software_tpm, ephemeral=False, settings={"retention": {"keep_last": 2}})
    signers = []
    for _ in range(3):
        await server.run()
        signers.append(server.inspected["signer"])
    assert [each["evidence"] for each in server.listed] == ["verified", "verified"]
    assert len(list((root / "archives").glob("Backup_*.zip"))) == 2
    assert len(set(signers)) == 1
    assert (root / "state/tpm-pin.json").exists()


async def test_with_ephemeral_state_the_target_alone_remembers(root: Path, software_tpm: SoftwareTpm) -> None:
    server = Server(root, software_tpm, ephemeral=True)
    signers = []
    for _ in range(3):
        await server.run()
        signers.append(server.inspected["signer"])
    evidence = [each["evidence"] for each in server.listed]
    assert evidence == ["verified", "unknown", "unknown"]  # what was known is forgotten
    assert len(set(signers)) == 3  # each run makes itself a new signing key
    server.clock.go(days=-10)
    await server.run()
    assert server.listed[0]["name"] == min(each["name"] for each in server.listed)  # the order goes on, by the target


async def test_with_ephemeral_state_another_tpm_goes_unnoticed(root: Path, software_tpm: SoftwareTpm) -> None:
    server = Server(root, software_tpm, ephemeral=True)
    await server.run()
    with SoftwareTpm() as other:
        server.tpm = other
        await server.run()  # a service, or a claim, would have stopped with TPM_CHANGED
    assert len({each["fingerprint"] for each in server.listed}) == 2
