"""Provisioning: the TPM is pinned, an explicit choice of recovery is proven and remembered, and no secret stays."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.software_tpm import SoftwareTpm
from service.catalog import verify
from service.cli import provisioning
from service.client import ConnectionLost, NoAnswer, RemoteError
from service.errors import ConfigError, JobRefused, SealError, TpmChanged
from service.ledger import NoLedger
from service.progress import Progress
from service.provisioning import NotProven, Provisioning, standing
from service.recovery import recovery_key
from service.recovery_choice import NO_RECOVERY, recovery_choice
from service.recovery_kit import page, text
from service.rpc.codec import RpcError
from service.sealing import age
from tests.at_terminal import Terminal
from tests.integration.test_recovery_keys import NO_TPM, elsewhere, place
from tests.service_parts import ADMIN, START, Place

FACTS: dict[str, Any] = {"server": "DeviceOn on test", "targets": ["file:///archives"], "now": START}
PROGRAM = [sys.executable, "-m", "service.cli"]


@pytest.fixture
def here(software_tpm: SoftwareTpm, tmp_path: Path) -> Place:
    return place(tmp_path / "here", software_tpm.tcti)


@pytest.fixture
def other_tpm() -> Iterator[SoftwareTpm]:
    with SoftwareTpm() as tpm:
        yield tpm


def everything_below(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


@pytest.mark.parametrize("kind", ["identity", "passphrase"])
async def test_a_generated_key_is_told_once_typed_back_and_opens_what_is_made_afterwards(
    here: Place, tmp_path: Path, kind: Any
) -> None:
    provisioning = Provisioning()
    begun = await provisioning.begin(here.file, kind, [], new_tpm=False, now=START)
    assert begun.secret is not None
    assert begun.secret not in repr(begun)
    assert not here.state_dir.exists()
    with pytest.raises(NotProven):
        await provisioning.finish(here.file, begun.token, [age.generate_passphrase()], **FACTS)
    assert not here.state_dir.exists()
    kit = await provisioning.finish(here.file, begun.token, [begun.secret], **FACTS)
    assert kit.tpm == begun.tpm.fingerprint
    assert kit.signer is not None
    assert begun.secret not in text(kit) + page(kit)
    assert begun.secret in text(kit, begun.secret)
    assert begun.secret.encode() not in everything_below(here.state_dir)
    name = await here.backup(NoLedger())
    key = recovery_key(begun.secret) if kind == "identity" else recovery_key(passphrase=begun.secret)
    await verify(elsewhere(here, tmp_path / "there", NO_TPM, key), name, progress=Progress())
    assert recovery_choice(here.file).warning is None


async def test_the_private_half_of_ones_own_recipient_is_needed_nowhere_near(here: Place, tmp_path: Path) -> None:
    identity, recipient = age.generate()
    provisioning = Provisioning()
    begun = await provisioning.begin(here.file, "recipients", [recipient], new_tpm=False, now=START)
    assert begun.secret is None
    (tmp_path / "key.txt").write_text(identity)
    (tmp_path / "challenge.age").write_text(begun.challenges[0].file)
    word = subprocess.check_output(
        ["age", "-d", "-i", str(tmp_path / "key.txt"), str(tmp_path / "challenge.age")], text=True
    )
    kit = await provisioning.finish(here.file, begun.token, [word], **FACTS)
    assert list(kit.recipients) == [recipient]
    assert recovery_choice(here.file).recipients == (recipient,)
    with pytest.raises(JobRefused):
        await provisioning.finish(here.file, begun.token, [word], **FACTS)


async def test_nobody_goes_on_without_a_proof_in_time(here: Place) -> None:
    _, recipient = age.generate()
    provisioning = Provisioning()
    begun = await provisioning.begin(here.file, "recipients", [recipient], new_tpm=False, now=START)
    for answers in ([], ["0000-0000-0000"], [age.generate()[0]], ["x", "y"]):
        with pytest.raises(NotProven):
            await provisioning.finish(here.file, begun.token, answers, **FACTS)
    with pytest.raises(JobRefused):
        await provisioning.finish(here.file, "0" * 32, ["x"], **FACTS)
    with pytest.raises(JobRefused):
        await provisioning.finish(here.file, begun.token, ["x"], **FACTS | {"now": START + timedelta(hours=1)})
    assert not here.state_dir.exists()


async def test_no_recovery_is_a_choice_that_is_warned_of_for_ever(here: Place) -> None:
    provisioning = Provisioning()
    assert "provision" in (recovery_choice(here.file).warning or "")
    begun = await provisioning.begin(here.file, "none", [], new_tpm=False, now=START)
    kit = await provisioning.finish(here.file, begun.token, [], **FACTS)
    assert "loss of all backups" in text(kit)
    assert recovery_choice(here.file).warning == NO_RECOVERY
    async with here.app() as app:
        info = await app.api.call("system.info", {}, ADMIN)
        assert info["recovery"]["warning"] == NO_RECOVERY
        assert info["recovery"]["decided"]


async def test_another_tpm_is_trusted_only_when_somebody_says_so(
    here: Place, other_tpm: SoftwareTpm, software_tpm: SoftwareTpm
) -> None:
    provisioning = Provisioning()
    begun = await provisioning.begin(here.file, "none", [], new_tpm=False, now=START)
    await provisioning.finish(here.file, begun.token, [], **FACTS)
    here.settings["sealing"] = {"mode": "tpm", "tcti": other_tpm.tcti}
    stands = await standing(here.file)
    assert stands.tpm
    assert stands.seen
    assert stands.tpm.fingerprint != stands.seen.fingerprint
    with pytest.raises(TpmChanged, match="this service trusts"):
        await provisioning.begin(here.file, "none", [], new_tpm=False, now=START)
    with pytest.raises(SealError):
        await here.backup(NoLedger())
    begun = await provisioning.begin(here.file, "none", [], new_tpm=True, now=START)
    await provisioning.finish(here.file, begun.token, [], **FACTS)
    await here.backup(NoLedger())


async def test_what_the_file_fixes_is_not_chosen_otherwise(here: Place) -> None:
    _, recipient = age.generate()
    here.settings["sealing"] = here.settings["sealing"] | {"recovery": [recipient]}
    with pytest.raises(ConfigError, match="fixes"):
        await Provisioning().begin(here.file, "none", [], new_tpm=False, now=START)
    begun = await Provisioning().begin(here.file, "recipients", [recipient], new_tpm=False, now=START)
    assert [challenge.recipient for challenge in begun.challenges] == [recipient]
    with pytest.raises(ConfigError):
        await Provisioning().begin(here.file, "recipients", [], new_tpm=False, now=START)


async def test_the_socket_tells_the_generated_key_once_and_remembers_nothing_of_it(here: Place) -> None:
    async with here.app() as app:
        begun = await app.api.call("provision.begin", {"recovery": "identity"}, ADMIN)
        wrong = {"token": begun["token"], "answers": ["AGE-SECRET-KEY-1WRONG"]}
        with pytest.raises(RpcError) as caught:
            await app.api.call("provision.finish", wrong, ADMIN)
        assert caught.value.reason == "SEAL_RECOVERY_NOT_PROVEN"
        right = {"token": begun["token"], "answers": [begun["secret"]], "idempotency_key": "one"}
        done = await app.api.call("provision.finish", right, ADMIN)
        assert begun["secret"] not in json.dumps(done)
        assert await app.api.call("provision.finish", right, ADMIN) == done
        told = await app.api.call("provision.status", {}, ADMIN)
        assert told["tpm"]["fingerprint"] == done["kit"]["tpm"]
        assert begun["secret"] not in json.dumps(await app.api.call("events.list", {}, ADMIN))
    assert begun["secret"].encode() not in everything_below(here.state_dir)


async def test_a_recovery_key_over_the_socket_is_used_and_kept_nowhere(
    here: Place, other_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    identity, recipient = age.generate()
    here.settings["sealing"] = here.settings["sealing"] | {"recovery": [recipient]}
    name = await here.backup(NoLedger())
    there = place(tmp_path / "there", other_tpm.tcti)
    there.settings["target"] = {"url": f"file://{here.target}"}
    async with there.app() as app:
        given = {"archive": name, "recovery": {"identity": identity}}
        plan = await app.api.call("restore.plan", given, ADMIN)
        assert [each["code"] for each in plan["obstacles"]] == ["ORIGIN_NOT_PROVEN"]
        inspected = await app.api.call("archive.inspect", given, ADMIN)
        assert inspected["closed"] is None
        assert not inspected["origin_proven"]
        with pytest.raises(RpcError) as caught:
            await app.api.call("archive.inspect", {"archive": name, "recovery": {"passphrase": "x"}}, ADMIN)
        assert caught.value.reason == "SEAL_RECOVERY_KEY"
        (proof,) = await app.api.call("key.prove", {"recovery": {"identity": identity}}, ADMIN)
        assert proof["archive"] == name
        job = await app.api.call("archive.verify", given | {"idempotency_key": "k"}, ADMIN)
        told = json.dumps([job, await app.api.call("job.get", {"id": job["id"]}, ADMIN)])
        assert identity not in told
        assert app.jobs.opening(job["id"]).recovery is not None
        ended = await app.jobs.run_now("verify", {"archive": name}, Progress(), opening=app.jobs.opening(job["id"]))
        assert ended.result
        assert not ended.result["origin_proven"]
        (entry,) = (await app.api.call("archive.list", {}, ADMIN))["archives"]
        assert entry["evidence"] == "unknown"  # what anybody can have made counts for nothing
    assert identity.encode() not in everything_below(there.state_dir)


class _Wellformed(HTMLParser):
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}, tag


def configured(here: Place) -> list[str]:
    path = here.root / "config.yaml"
    path.write_text(yaml.safe_dump(here.document))
    return [*PROGRAM, "--config", str(path)]


def test_somebody_at_a_terminal_is_asked_shown_the_key_once_and_has_to_type_it(here: Place, tmp_path: Path) -> None:
    terminal = Terminal([*configured(here), "provision", "--kit", str(tmp_path / "kit.html")], os.environ)
    terminal.answer("Choice", "passphrase\r")
    terminal.answer("Note it down", "")
    shown = next(line.strip() for line in terminal.shown.splitlines() if line.strip().count("-") == 4)
    terminal.answer("then type it", f"{shown.upper()}\r")
    code, stdout = terminal.finish()
    assert code == 0, terminal.shown
    assert "is the baseline" in stdout
    kit = (tmp_path / "kit.html").read_text()
    _Wellformed().feed(kit)
    assert shown not in kit + stdout
    assert (tmp_path / "kit.html").stat().st_mode & 0o777 == 0o600


def test_what_was_mistyped_is_asked_again_and_ctrl_c_ends_each_question(here: Place) -> None:
    terminal = Terminal([*configured(here), "provision", "--no-baseline"], os.environ)
    terminal.answer("Choice", "identiy\r")
    terminal.answer("identiy: it is none of these", "")
    terminal.answer("Choice", "passphrase\r")
    terminal.answer("then type it", "not that\r")
    terminal.answer("Once more", "\x03")
    terminal.press_until_it_ends("\x03")
    assert terminal.finish()[0] == 130, terminal.shown
    terminal = Terminal([*configured(here), "provision", "--no-baseline"], os.environ)
    terminal.answer("Choice", "\x03")
    terminal.press_until_it_ends("\x03")
    assert terminal.finish()[0] == 130, terminal.shown
    assert not recovery_choice(here.file).decided


def ran(command: list[str], *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *arguments], input=typed, capture_output=True, text=True, check=False)


def test_a_script_proves_its_recipient_with_the_key_file_and_restores_elsewhere(
    here: Place, other_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    identity, recipient = age.generate()
    (tmp_path / "key.txt").write_text(f"# created: today\n{identity}\n")
    command = configured(here)
    assert ran(command, "provision", "--json").returncode == 2
    proven = ("--recovery", recipient, "--recovery-key", str(tmp_path / "key.txt"))
    done = ran(command, "provision", "--json", *proven)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    name = told["baseline"]
    there = place(tmp_path / "there", other_tpm.tcti)
    there.settings["target"] = {"url": f"file://{here.target}"}
    command = configured(there)
    key = ("--recovery-key", "-")
    for more, code in (((), 3), (("--signer", told["kit"]["signer"]), 0)):
        shown = ran(command, "restore", "--plan", *key, *more, name, typed=identity)
        assert shown.returncode == code, shown.stdout + shown.stderr
    for more, warned in (((), True), (("--signer", told["kit"]["signer"]), False)):
        to = str(tmp_path / f"extracted {len(more)}")
        extracted = ran(command, "extract", "--json", "--to", to, *key, *more, name, typed=identity)
        assert extracted.returncode == 0, extracted.stderr
        assert any("Nothing proves" in warning for warning in json.loads(extracted.stdout)["warnings"]) == warned
    prepared = ran(command, "prepare-firmware-update", *key, typed=identity)
    assert prepared.returncode == 0, prepared.stderr
    assert "key rewrap" in prepared.stdout
    rewrap = ("key", "rewrap", "--all", "--allow", "ORIGIN_NOT_PROVEN", *key)
    applied = ran(command, *rewrap, "--apply", typed=identity)
    assert applied.returncode == 0, applied.stderr
    listed = ran(command, "key", "list", "--json")
    slots = json.loads(listed.stdout)["archives"][0]["slots"]
    assert [(slot["type"], slot["place"]) for slot in slots][2:] == [("tpm2", "beside")]


async def test_the_service_goes_on_while_a_passphrase_is_made(here: Place) -> None:
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)

    ticking = asyncio.create_task(tick())
    started = time.monotonic()
    begun = await Provisioning().begin(here.file, "passphrase", [], new_tpm=False, now=START)
    await asyncio.sleep(0.05)
    ticking.cancel()
    assert begun.secret
    assert longest < (time.monotonic() - started) / 2


@pytest.mark.parametrize(
    ("problem", "kept"),
    [
        (NotProven("the answer is wrong"), False),
        (RemoteError("refused", {"code": "JOB_REFUSED"}), False),
        (RemoteError("it has a fault", {"code": "INTERNAL_ERROR"}), True),
        (ConnectionLost("the service went away"), True),
        (NoAnswer("no answer came"), True),
        (KeyboardInterrupt(), True),
    ],
)
def test_a_generated_key_is_kept_unless_provisioning_was_surely_refused(
    problem: BaseException, kept: bool, tmp_path: Path
) -> None:
    kit = tmp_path / "kit.txt"
    with pytest.raises(type(problem)), provisioning._noted_first(kit, "the secret"):
        raise problem
    assert kit.exists() == kept


def test_a_kit_is_written_into_no_file_that_somebody_else_has_prepared(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.touch(0o644)
    (tmp_path / ".kit.txt.part").symlink_to(theirs)
    facts = dict.fromkeys(("server", "tpm", "signer")) | {"created": START.isoformat(), "passphrase": False}
    facts |= {"server": "a server", "tpm": "a TPM", "recipients": [], "targets": []}
    provisioning._write_kit(tmp_path / "kit.txt", facts, "the secret")
    assert theirs.read_text() == ""
    assert "the secret" in (tmp_path / "kit.txt").read_text()
    assert (tmp_path / "kit.txt").stat().st_mode & 0o777 == 0o600
