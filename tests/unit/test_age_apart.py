"""The step of age in a process of its own: what it does, what it says, and what becomes of one that ends otherwise."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyrage  # type: ignore[import-untyped]
import pytest

from service.errors import DamagedSlot, SealError
from service.recovery import BadRecoveryKey, RecoveryKey, recovery_key
from service.sealing import age, age_apart
from tests.cheap_passphrase import armored, protect
from tests.hardware_key import PLUGIN, bech32

KEY = bytes(range(32))
RECIPIENT, IDENTITY = bech32("age1test", bytes(8)), bech32("age-plugin-test-", bytes(8)).upper()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the hardware key's program, where it is found."""
    path = tmp_path / "age-plugin-test"
    path.write_text(PLUGIN)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return path


def answered(monkeypatch: pytest.MonkeyPatch, what: str, data: bytes, **given: Any) -> dict[str, str]:
    """Have the step done here, as its process does it."""
    said = io.StringIO()
    asked = {"what": what, "data": base64.b64encode(data).decode(), **given}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asked)))
    monkeypatch.setattr(sys, "stdout", said)
    age_apart._main()
    monkeypatch.undo()
    return dict(json.loads(said.getvalue()))


def test_a_passphrase_opens_its_file_and_a_wrong_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    file = protect(KEY, "right").encode()
    done = answered(monkeypatch, "passphrase", file, passphrase="right")
    assert done == {"done": base64.b64encode(KEY).decode()}
    assert answered(monkeypatch, "passphrase", file, passphrase="wrong").keys() == {"refused"}


@pytest.mark.parametrize(("unlucky", "said"), [(0, "done"), (7, "done"), (8, "refused")])
def test_a_moment_in_which_others_had_the_processor_makes_no_machine_too_slow(
    monkeypatch: pytest.MonkeyPatch, unlucky: int, said: str
) -> None:
    file, decrypt, timings = protect(KEY, "right").encode(), pyrage.passphrase.decrypt, iter(range(unlucky))

    def timed(data: bytes, passphrase: str) -> bytes:
        for _ in timings:
            raise pyrage.DecryptError("Excessive work parameter for passphrase")
        return bytes(decrypt(data, passphrase))

    monkeypatch.setattr(age_apart, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(pyrage.passphrase, "decrypt", timed)
    assert answered(monkeypatch, "passphrase", file, passphrase="right").keys() == {said}


def test_identities_open_their_file_and_others_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    identity, recipient = age.generate()
    file = age.encrypt(KEY, recipient).encode()
    done = answered(monkeypatch, "decrypt", file, identities=[age.generate()[0], identity])
    assert done == {"done": base64.b64encode(KEY).decode()}
    assert answered(monkeypatch, "decrypt", file, identities=[age.generate()[0]]).keys() == {"refused"}


def test_what_is_protected_opens_with_its_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    made = base64.b64decode(answered(monkeypatch, "protect", b"an identity", passphrase="a")["done"]).decode()
    assert made.startswith("-----BEGIN AGE ENCRYPTED FILE-----\n")
    assert [kind for kind, *_ in age.stanzas(made)] == ["scrypt"]
    again = answered(monkeypatch, "passphrase", made.encode(), passphrase="a")
    assert base64.b64decode(again["done"]) == b"an identity"


def test_what_is_no_identity_is_told_in_the_librarys_words(monkeypatch: pytest.MonkeyPatch) -> None:
    file = age.encrypt(KEY, age.generate()[1]).encode()
    for text in ("AGE-PLUGIN-TEST-1Q", "AGE-SECRET-KEY-1Q"):
        assert answered(monkeypatch, "decrypt", file, identities=[text]).keys() == {"failed"}


def test_a_plugins_words_are_told_and_its_key_opens(monkeypatch: pytest.MonkeyPatch, plugin: Path) -> None:
    path = os.environ["PATH"]
    made = base64.b64decode(answered(monkeypatch, "encrypt", KEY, recipient=RECIPIENT)["done"]).decode()
    assert made.startswith("-----BEGIN AGE ENCRYPTED FILE-----\n")
    monkeypatch.setenv("PATH", path)
    done = answered(monkeypatch, "decrypt", made.encode(), identities=[IDENTITY])
    assert done == {"done": base64.b64encode(KEY).decode()}
    plugin.unlink()
    told = answered(monkeypatch, "encrypt", KEY, recipient=RECIPIENT)
    assert "age-plugin-test" in told["refused"] + told.get("failed", "")


ASKING = """#!/usr/bin/env python3
# A plugin that asks whatever one may ask, and tells what it was answered.
import base64, sys

def read():
    kind = sys.stdin.readline().rstrip("\\n").split(" ")[1:]
    body = ""
    while True:
        line = sys.stdin.readline().rstrip("\\n")
        body += line
        if len(line) < 64:
            return kind, body

while read()[0] != ["done"]:
    pass
answers = []
for kind in (["msg"], ["confirm", "eWVz", "bm8"], ["confirm", "eWVz"], ["request-public"], ["request-secret"]):
    sys.stdout.write("-> " + " ".join(kind) + "\\nYQ\\n")
    sys.stdout.flush()
    answers.append(kind[0] + "=" + " ".join(read()[0]))
body = base64.b64encode(", ".join(answers).encode()).decode().rstrip("=")
lines = [body[at : at + 64] for at in range(0, len(body) + 1, 64)]
sys.stdout.write("-> error internal\\n" + "\\n".join(lines) + "\\n")
sys.stdout.flush()
read()
sys.stdout.write("-> done\\n\\n")
sys.stdout.flush()
"""


def test_a_plugin_that_asks_gets_no_answer(monkeypatch: pytest.MonkeyPatch, plugin: Path) -> None:
    plugin.write_text(ASKING)
    told = answered(monkeypatch, "encrypt", KEY, recipient=RECIPIENT)
    words = "".join(str(each) for each in told.values())
    assert "msg=ok, confirm=fail, confirm=fail, request-public=fail, request-secret=fail" in words


# What the service makes of it


def test_a_plugin_that_is_not_there_is_told_before_a_key_is_asked_for(plugin: Path) -> None:
    age.AgeIdentity(RecoveryKey(identities=(IDENTITY,)))
    plugin.unlink()
    with pytest.raises(age.PluginFailed, match="plugin test cannot be started") as caught:
        age.AgeIdentity(RecoveryKey(identities=(IDENTITY,)))
    assert "age-plugin-test" in caught.value.hint
    with pytest.raises(age.PluginFailed, match="cannot be sealed for") as caught:
        age.encrypt(KEY, RECIPIENT)
    assert "age-plugin-test" in caught.value.hint
    with pytest.raises(BadRecoveryKey):
        age.AgeIdentity(RecoveryKey(identities=(IDENTITY[:-1] + "Q",)))


@pytest.mark.usefixtures("plugin")
async def test_a_hardware_key_among_others_opens_with_its_plugin() -> None:
    slot = dict(await age.AgeRecipient(RECIPIENT).wrap(KEY, b""))
    native, recipient = age.generate()
    both = age.AgeIdentity(recovery_key(f"{native}\n{IDENTITY}"))
    assert await both.unwrap(slot, b"") == KEY
    assert await both.unwrap(dict(await age.AgeRecipient(recipient).wrap(KEY, b"")), b"") == KEY
    with pytest.raises(age.WrongRecoveryKey):
        await age.AgeIdentity(recovery_key(native)).unwrap(slot, b"")


ANSWER = 'write("file-key", kind[1], body=turned(body))'


@pytest.mark.parametrize(
    "broken",
    [
        "#!/bin/sh\nexit 1\n",
        "#!/bin/sh\nsleep 0.2\nexit 1\n",
        "#!/bin/sh\necho '-> nonsense'\necho\n",
        PLUGIN.replace(ANSWER, 'write("error", "internal", body=b"touch me")'),
        PLUGIN.replace(ANSWER, 'write("error", "stanza", kind[1], "0", body=b"touch me")'),
    ],
    ids=["ends", "ends later", "nonsense", "says no", "says no to the file"],
)
async def test_a_plugin_that_does_not_do_its_part_is_not_told_as_a_damaged_archive(plugin: Path, broken: str) -> None:
    assert ANSWER in PLUGIN
    slot = dict(await age.AgeRecipient(RECIPIENT).wrap(KEY, b""))
    identity = age.AgeIdentity(RecoveryKey(identities=(IDENTITY,)))
    plugin.write_text(broken)
    with pytest.raises(age.PluginFailed):
        await identity.unwrap(slot, b"")


@pytest.mark.usefixtures("plugin")
async def test_a_damaged_archive_is_not_told_as_a_plugin_that_failed() -> None:
    file = age.encrypt(KEY, RECIPIENT)
    content = base64.b64decode("".join(file.splitlines()[1:-1]))
    identity = age.AgeIdentity(RecoveryKey(identities=(IDENTITY,)))
    for at in (content.index(b"-> test") + 8, content.index(b"\n--- ") + 8, len(content) - 1):
        altered = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        with pytest.raises(DamagedSlot):
            await identity.unwrap({"type": "age", "file": armored(altered)}, b"")
    with pytest.raises(age.WrongRecoveryKey):
        await identity.unwrap({"type": "age", "file": age.encrypt(KEY, age.generate()[1])}, b"")
    with pytest.raises(DamagedSlot):
        await identity.unwrap({"type": "age", "file": file.replace("\n", "\r", 1)}, b"")


def test_a_plugin_that_ends_seals_nothing(plugin: Path) -> None:
    for broken in ("#!/bin/sh\nexit 1\n", "#!/bin/sh\nsleep 0.2\nexit 1\n", "#!/nonexistent\n"):
        plugin.write_text(broken)
        with pytest.raises(age.PluginFailed, match="cannot be sealed for"):
            age.encrypt(KEY, RECIPIENT)


@pytest.mark.parametrize("stanzas", [0, 2])
async def test_a_plugin_that_makes_no_stanza_or_two_makes_no_slot(plugin: Path, stanzas: int) -> None:
    once = 'write("recipient-stanza", "0", "test", body=turned(body))'
    assert once in PLUGIN
    plugin.write_text(PLUGIN.replace(once, "; ".join([once] * stanzas) or "pass"))
    with pytest.raises(SealError):
        await age.AgeRecipient(RECIPIENT).wrap(KEY, b"")


def answering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """Have another process in the place of the step's."""
    other = tmp_path / "other.py"
    other.write_text(script)
    monkeypatch.setattr(age_apart, "__file__", str(other))


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("import os; os.kill(os.getpid(), 9)", "ended with -9"),
        ("raise SystemExit(3)", "ended with 3"),
        ("print('no JSON')", "ended with 0"),
        ('print(\'{"failed": "its words"}\')', "its words"),
        ('print(\'{"refused": "its words"}\')', "its words"),
        ("print('{}')", "could not be protected"),
    ],
)
def test_a_step_whose_process_ends_otherwise_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, told: str
) -> None:
    answering(monkeypatch, tmp_path, script)
    with pytest.raises(SealError, match="could not be protected") as caught:
        age.protect("AGE-SECRET-KEY-1", "a")
    assert told in str(caught.value)


@pytest.mark.usefixtures("plugin")
async def test_a_hardware_key_whose_step_ends_otherwise_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slot = dict(await age.AgeRecipient(RECIPIENT).wrap(KEY, b""))
    identity = age.AgeIdentity(RecoveryKey(identities=(IDENTITY,)))
    answering(monkeypatch, tmp_path, "raise SystemExit(3)")
    with pytest.raises(age.PluginFailed, match="ended with 3"):
        await identity.unwrap(slot, b"")
    with pytest.raises(age.PluginFailed, match="ended with 3"):
        await age.AgeRecipient(RECIPIENT).wrap(KEY, b"")
    for words in age._DAMAGE:
        answering(monkeypatch, tmp_path, f"import json; print(json.dumps({{'refused': {words!r}}}))")
        with pytest.raises(DamagedSlot):
            await identity.unwrap(slot, b"")


async def test_an_identity_that_was_protected_opens_with_its_passphrase() -> None:
    native, recipient = age.generate()
    kept = age.protect(native, "a passphrase")
    key = recovery_key(kept, passphrase="a passphrase")
    assert await age.AgeIdentity(key).unwrap(dict(await age.AgeRecipient(recipient).wrap(KEY, b"")), b"") == KEY


async def test_a_passphrase_that_could_not_be_tried_is_not_called_a_wrong_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answering(monkeypatch, tmp_path, "raise SystemExit(3)")
    monkeypatch.setattr(age, "_LITTLE_WORK", 1)
    slot = {"type": "age", "file": protect(KEY, "right")}
    with pytest.raises(age.WrongRecoveryKey, match="could not be tried"):
        await age.AgeIdentity(recovery_key(passphrase="right")).unwrap(slot, b"")
    monkeypatch.undo()
    monkeypatch.setattr(age, "_LITTLE_WORK", 1)
    assert await age.AgeIdentity(recovery_key(passphrase="right")).unwrap(slot, b"") == KEY
    with pytest.raises(age.WrongRecoveryKey, match="is not the one"):
        await age.AgeIdentity(recovery_key(passphrase="wrong")).unwrap(slot, b"")


def test_a_step_that_hangs_is_ended_with_all_that_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = (
        "import os, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(600)\n"
    )
    answering(monkeypatch, tmp_path, script)
    with pytest.raises(age._Failed, match="no answer came in 1 s"):
        age._apart("protect", b"", 1.0, passphrase="a")
    for pid in (tmp_path / "pids").read_text().split():
        until = time.monotonic() + 5
        while is_alive(pid) and time.monotonic() < until:
            time.sleep(0.01)
        assert not is_alive(pid)


def is_alive(pid: str) -> bool:
    """Tell whether a process is at work: one that ended may wait for somebody to ask how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_step_that_is_broken_off_is_ended_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pid = f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
    answering(monkeypatch, tmp_path, pid + "time.sleep(600)")

    def interrupt() -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    class Interrupted(Exception):
        pass

    def handle(*_: object) -> None:
        raise Interrupted

    former = signal.signal(signal.SIGUSR1, handle)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(Interrupted):
            age._apart("protect", b"", 60.0, passphrase="a")
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert not is_alive((tmp_path / "pid").read_text())
