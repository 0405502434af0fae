"""The published vectors of key slots and signatures, read by the service, the stand-alone reader, age and openssl."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key

from service.archive.parts import Manifest
from service.errors import CorruptArchive, NotAuthentic, SealError
from service.pipeline.signature import signer_of
from service.pipeline.unpack import ArchiveReader
from service.recovery import RecoveryKey, recovery_key
from service.sealing import age
from service.sealing.signature import signed_bytes
from service.sealing.slots import try_slots
from storage_backends import open_target
from tests.cheap_passphrase import protect
from tests.hardware_key import PLUGIN, bech32
from tests.recipes import eventually
from tests.vectors.second_reader import PATH, open_archive
from tests.vectors.small import DATA_KEY, STREAMS

VECTORS = Path(__file__).parents[1] / "vectors"
SLOTS: dict[str, Any] = json.loads((VECTORS / "slots.json").read_text())
SIGNATURE: dict[str, Any] = json.loads((VECTORS / "signature.json").read_text())
KEYS = {"identity": recovery_key(SLOTS["identity"]), "passphrase": recovery_key(passphrase=SLOTS["passphrase"])}


async def test_no_more_than_eight_passphrase_slots_are_tried_by_either() -> None:
    good = {"type": "age", "file": protect("0" * 32, "right")}
    for number, opens in ((7, True), (8, False)):
        slots = [{"type": "age", "file": protect("0" * 32, f"another {each}")} for each in range(number)] + [good]
        found = list(open_archive.Recovery(None, "right").data_keys(slots))
        assert found == [b"0" * 32] * opens
        identity = age.AgeIdentity(recovery_key(passphrase="right"))
        attempt = await try_slots(slots, [identity], b"", belongs=bool)
        assert attempt.data_key == (b"0" * 32 if opens else None)


@pytest.mark.parametrize("number", range(len(SLOTS["slots"])))
@pytest.mark.parametrize("kind", KEYS)
async def test_a_slot_opens_with_the_key_it_is_for_and_no_other(number: int, kind: str) -> None:
    vector = SLOTS["slots"][number]
    slot, identity = vector["slot"], age.AgeIdentity(KEYS[kind])
    second = open_archive.Recovery(
        SLOTS["identity"] if kind == "identity" else None, SLOTS["passphrase"] if kind == "passphrase" else None
    )
    # A file for an identity that a passphrase protects opens with either.
    if vector["opens_with"] == kind or (
        (vector["opens_with"], kind) == ("passphrase", "identity") and "identity" in slot
    ):
        assert (await identity.unwrap(slot, b"")).hex() == SLOTS["data_key"]
        assert [key.hex() for key in second.data_keys([slot])] == [SLOTS["data_key"]]
    else:
        with pytest.raises(SealError):
            await identity.unwrap(slot, b"")
        assert list(second.data_keys([slot])) == []


def test_age_opens_the_vector(tmp_path: Path) -> None:
    (tmp_path / "key.txt").write_text(SLOTS["identity"])
    command = ["age", "-d", "-i", str(tmp_path / "key.txt")]
    opened = subprocess.run(command, input=SLOTS["slots"][0]["slot"]["file"].encode(), capture_output=True, check=True)
    assert opened.stdout.hex() == SLOTS["data_key"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "Backup_20250131_0200Z.zip"
    shutil.copy(VECTORS / "signed.zip", path)
    return path


def given(kind: str, directory: Path) -> list[str]:
    path = directory / kind
    path.write_text(SLOTS[kind] + "\n")
    return ["--recovery-key" if kind == "identity" else "--recovery-passphrase-file", str(path)]


def run(*arguments: str, python: tuple[str, ...] = (sys.executable,), **more: Any) -> subprocess.CompletedProcess[str]:
    command = [*python, str(PATH), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **more)


@pytest.mark.parametrize("kind", KEYS)
async def test_a_whole_archive_opens_in_spite_of_slots_that_do_not(archive: Path, tmp_path: Path, kind: str) -> None:
    async with open_target(f"file://{archive.parent}") as target:
        reader = await ArchiveReader.open(target, archive.name, [age.AgeIdentity(KEYS[kind])])
    assert reader.signer == SIGNATURE["signer"]
    done = run("verify", str(archive), "--json", *given(kind, tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["signer"] == SIGNATURE["signer"]


def test_the_stand_alone_reader_uses_the_program_age_where_pyrage_is_not(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "hidden" / "pyrage").mkdir(parents=True)
    (tmp_path / "hidden" / "pyrage" / "__init__.py").write_text("raise ImportError('not here')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "hidden")}
    done = run("extract", str(archive), str(tmp_path / "out"), *given("identity", tmp_path), env=environment)
    assert done.returncode == 0, done.stderr
    extracted = sorted(path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != "manifest.json")
    assert extracted == sorted(b"".join(chunks) for chunks in STREAMS.values())
    nothing = run("list", str(archive), *given("passphrase", tmp_path), env=environment)
    assert nothing.returncode == 4
    assert "pyrage" in nothing.stderr
    nothing = run("list", str(archive), *given("identity", tmp_path), env=environment | {"PATH": "/nonexistent"})
    assert nothing.returncode == 4


def test_the_stand_alone_reader_finds_the_slots_beside_the_archive(archive: Path, tmp_path: Path) -> None:
    identity, recipient = age.generate()
    (tmp_path / "new.txt").write_text(identity)
    options = ["--recovery-key", str(tmp_path / "new.txt")]
    assert run("verify", str(archive), *options).returncode == 3
    slot = {"type": "age", "file": age.encrypt(DATA_KEY, recipient), "recipient": recipient}
    Path(f"{archive}.keys").write_text(json.dumps({"slots": [slot]}))
    assert run("verify", str(archive), *options).returncode == 0
    Path(f"{archive}.keys").write_text("{")
    assert run("verify", str(archive), *options).returncode == 3
    assert run("verify", str(archive), *given("identity", tmp_path)).returncode == 0


def test_the_signature_is_over_the_bytes_that_the_page_says(tmp_path: Path) -> None:
    header, unsigned = SIGNATURE["header"].encode(), SIGNATURE["manifest_without_signature"].encode()
    members = json.loads(unsigned) | {"signature": {name: SIGNATURE[name] for name in ("public_key", "value")}}
    content = Manifest.model_validate(members).to_bytes()
    assert signer_of(content, Manifest.from_bytes(content), header) == SIGNATURE["signer"]
    assert open_archive.check_signature(members, header) == SIGNATURE["signer"]
    # and openssl, which knows nothing of either
    (tmp_path / "key.der").write_bytes(bytes.fromhex(SIGNATURE["public_key"]))
    (tmp_path / "signature").write_bytes(bytes.fromhex(SIGNATURE["value"]))
    message = hashlib.sha256(header).digest() + unsigned
    (tmp_path / "message").write_bytes(signed_bytes("archive", message))
    key = ["-verify", "key.der", "-keyform", "DER", "-signature", "signature"]
    command = ["openssl", "dgst", "-sha256", *key, "message"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("change", ["header", "manifest", "value", "public_key", "null", "short"])
def test_a_signature_that_is_not_the_archives_is_refused_by_both(change: str) -> None:
    header = SIGNATURE["header"].encode() + (b" " if change == "header" else b"")
    members = json.loads(SIGNATURE["manifest_without_signature"])
    signature: Any = {name: SIGNATURE[name] for name in ("public_key", "value")}
    if change == "manifest":
        members["warnings"] = []
    elif change in ("value", "public_key"):
        last = signature[change][-2:]
        signature[change] = signature[change][:-2] + ("00" if last != "00" else "01")
    signature = {"null": None, "short": signature | {"value": "00"}}.get(change, signature)
    content = json.dumps(members | {"signature": signature}).encode()
    with pytest.raises((NotAuthentic, CorruptArchive)):
        signer_of(content, Manifest.from_bytes(content), header)
    with pytest.raises(open_archive.Problem):
        open_archive.check_signature(open_archive.read_manifest(content), header)


def test_a_signers_key_that_is_spelled_otherwise_is_refused_by_both() -> None:
    """The same key with a hybrid point: as long, and OpenSSL takes it, but its fingerprint would be another one."""
    usual, unsigned = SIGNATURE["public_key"], json.loads(SIGNATURE["manifest_without_signature"])
    spelled = usual[:52] + ("07" if int(usual[-1], 16) % 2 else "06") + usual[54:]
    assert usual[52:54] == "04"
    load_der_public_key(bytes.fromhex(spelled))
    content = json.dumps(unsigned | {"signature": {"public_key": spelled, "value": SIGNATURE["value"]}}).encode()
    header = SIGNATURE["header"].encode()
    with pytest.raises(NotAuthentic, match="usual form"):
        signer_of(content, Manifest.from_bytes(content), header)
    with pytest.raises(open_archive.Problem, match="of another kind"):
        open_archive.check_signature(open_archive.read_manifest(content), header)


async def test_a_hardware_keys_plugin_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "age-plugin-test"
    plugin.write_text(PLUGIN)
    plugin.chmod(0o755)
    recipient, identity = bech32("age1test", bytes(8)), bech32("age-plugin-test-", bytes(8)).upper()
    with pytest.raises(SealError, match="sealed for") as caught:
        await age.AgeRecipient(recipient).wrap(DATA_KEY, b"")
    assert "age-plugin-test" in caught.value.hint
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    slot = await age.AgeRecipient(recipient).wrap(DATA_KEY, b"")
    assert await age.AgeIdentity(RecoveryKey(identities=(identity,))).unwrap(slot, b"") == DATA_KEY
    (tmp_path / "key.txt").write_text(identity)
    command = ["age", "-d", "-i", str(tmp_path / "key.txt")]
    opened = subprocess.run(command, input=slot["file"].encode(), capture_output=True, check=False)
    assert opened.stdout == DATA_KEY, opened.stderr


async def test_nothing_waits_for_a_plugin_that_hangs_or_a_passphrase_that_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "age-plugin-test"
    plugin.write_text("#!/bin/sh\necho $$ > $(dirname $0)/pid\nexec sleep 600\n")
    plugin.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(age, "_PLUGIN_SECONDS", 2.0)
    recipient, identity = bech32("age1test", bytes(8)), bech32("age-plugin-test-", bytes(8)).upper()
    native, public = age.generate()
    slot = await age.AgeRecipient(public).wrap(DATA_KEY, b"")
    protected = {"type": "age", "file": age.protect(native, "a passphrase")}  # of the library's own work factor
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)

    ticking = asyncio.create_task(tick())
    with pytest.raises(age.PluginFailed, match="no answer"):
        await age.AgeRecipient(recipient).wrap(DATA_KEY, b"")
    hung = int((tmp_path / "pid").read_text())
    await eventually(lambda: not Path(f"/proc/{hung}").exists() or "Z" in Path(f"/proc/{hung}/stat").read_text())
    with pytest.raises(age.PluginFailed, match="no answer"):
        await age.AgeIdentity(RecoveryKey(identities=(identity,))).unwrap(slot, b"")
    with pytest.raises(SealError, match="holds no data key"):
        await age.AgeIdentity(recovery_key(passphrase="a passphrase")).unwrap(protected, b"")
    ticking.cancel()
    assert longest < 1
