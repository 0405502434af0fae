"""What `provision` asks and tells, and `prepare-firmware-update` after it; tests/integration/test_provisioning.py has
a TPM.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.sealing import age
from tests.laid_out_service import START, LaidOut, Refusal, Turns, ended

TPM = {
    "fingerprint": "ab12",
    "manufacturer": "IBM",
    "firmware": "1.2",
    "kind": "software",
    "srk_name": "00",
    "ek_name": None,
}
UNDECIDED: dict[str, Any] = {"recipients": [], "protected": None, "decided": False, "fixed": False}
STANDING: dict[str, Any] = {"sealing": "tpm", "tpm": None, "seen": None, "problem": None, "recovery": UNDECIDED}
BEGUN: dict[str, Any] = {"token": "0" * 32, "kind": "none", "tpm": TPM, "challenges": [], "secret": None}
KIT: dict[str, Any] = {
    "server": "h",
    "created": START,
    "tpm": "ab12",
    "signer": None,
    "recipients": [],
    "passphrase": False,
    "targets": [],
}
DONE: dict[str, Any] = {"kit": KIT, "text": "Archives are sealed from now on.", "html": "<p>"}
NOTHING_SET: dict[str, Any] = {"settings": {}, "fixed": [], "copies": []}
A_TARGET = NOTHING_SET | {"settings": {"target": {"url": "file:///a"}}}


@pytest.fixture
def provisioned(service: LaidOut) -> LaidOut:
    """Lay out a whole conversation, on a machine without a target."""
    service.answers |= {
        "provision.status": STANDING,
        "provision.begin": BEGUN,
        "provision.finish": DONE,
        "settings.get": NOTHING_SET,
        "baseline.get": None,
    }
    return service


def begun_with(service: LaidOut) -> tuple[str, list[str]]:
    (params,) = (params for method, params in service.asked if method == "provision.begin")
    return params["recovery"], params["recipients"]


@pytest.mark.parametrize(
    ("standing", "told"),
    [
        (STANDING, ["trusted TPM  none yet", "recovery     not chosen yet"]),
        (
            STANDING | {"tpm": TPM, "recovery": UNDECIDED | {"decided": True}},
            ["trusted TPM  ab12", "recovery     none"],
        ),
        (
            STANDING
            | {"tpm": TPM, "seen": TPM | {"fingerprint": "cd34"}, "problem": "it is another", "recovery": UNDECIDED}
            | {"recovery": UNDECIDED | {"decided": True, "recipients": ["age1a", "age1b"]}},
            [
                "trusted TPM  ab12",
                "TPM here     cd34",
                "made by      IBM, firmware 1.2",
                "kind         software",
                "problem      it is another",
                "recovery     age1a",
                "recovery     age1b",
            ],
        ),
    ],
)
def test_how_sealing_is_set_up_is_shown_and_nothing_changed(
    provisioned: LaidOut, standing: dict[str, Any], told: list[str]
) -> None:
    provisioned.answers["provision.status"] = standing
    assert provisioned.good("provision", "--show").splitlines() == told
    assert json.loads(provisioned.good("provision", "--show", "--json")) == standing
    assert not [method for method, _ in provisioned.asked if method == "provision.begin"]


def test_nobody_decides_by_silence_who_opens_archives(provisioned: LaidOut) -> None:
    result = provisioned.run("provision")
    assert result.exit_code == 2
    assert "error: nobody said who opens archives when this TPM is gone" in result.stderr
    assert "provision.begin" not in dict(provisioned.asked)


@pytest.mark.parametrize(("recipients", "kind"), [([], "none"), (["age1a"], "recipients")])
def test_what_the_configuration_file_fixes_is_not_asked_for(
    provisioned: LaidOut, recipients: list[str], kind: str
) -> None:
    fixed = UNDECIDED | {"fixed": True, "recipients": recipients}
    provisioned.answers["provision.status"] = STANDING | {"recovery": fixed}
    provisioned.good("provision")
    assert begun_with(provisioned) == (kind, recipients)


def test_somebody_is_asked_until_the_choice_is_one(provisioned: LaidOut, somebody: None) -> None:
    _, recipient = age.generate()
    result = provisioned.run("provision", typed=f"perhaps\n{recipient[:-1]}\n{recipient}\n")
    assert result.exit_code == 0, result.output
    assert "perhaps: it is none of these." in result.stderr
    assert f"{recipient[:-1]}: its checksum is wrong: it was mistyped or cut off." in result.stderr
    assert begun_with(provisioned) == ("recipients", [recipient])


def test_without_a_target_the_baseline_is_left_for_later(provisioned: LaidOut) -> None:
    result = provisioned.run("provision", "--recovery", "none")
    assert "No target is set yet; take the baseline when there is one" in result.stderr
    assert result.stdout.endswith("\nArchives are sealed from now on.\n")


def test_the_first_baseline_is_taken_at_once_and_told(provisioned: LaidOut) -> None:
    provisioned.answers |= {"settings.get": A_TARGET, "baseline.take": ended({"name": "A.zip"})}
    told = provisioned.good("provision", "--recovery", "none")
    assert told.endswith("\nA.zip is the baseline, and held for ever\n")
    given = json.loads(provisioned.good("provision", "--recovery", "none", "--json"))
    assert given == {"kit": KIT, "baseline": "A.zip"}


def test_no_baseline_is_taken_where_none_is_wanted(provisioned: LaidOut) -> None:
    provisioned.answers["settings.get"] = A_TARGET
    provisioned.good("provision", "--recovery", "none", "--no-baseline")
    assert "baseline.take" not in dict(provisioned.asked)


def test_a_new_recovery_key_is_followed_by_how_older_archives_get_it(provisioned: LaidOut) -> None:
    provisioned.answers["provision.finish"] = DONE | {"kit": KIT | {"recipients": ["age1a", "age1b"]}}
    told = provisioned.good("provision", "--recovery", "age1a", "--recovery", "age1b").splitlines()[-1]
    assert told.endswith(": deviceon-backup key add --all --recipient age1a --recipient age1b")


def test_a_generated_key_is_noted_by_somebody_or_in_a_kit_and_else_refused(
    provisioned: LaidOut, tmp_path: Path
) -> None:
    challenge = {"recipient": "age1a", "file": "x"}
    provisioned.answers["provision.begin"] = BEGUN | {"kind": "identity", "secret": "S-1", "challenges": [challenge]}
    refused = provisioned.run("provision", "--recovery", "identity")
    assert (refused.exit_code, "nobody is there to note the recovery key" in refused.stderr) == (2, True)
    kit = tmp_path / "kit.txt"
    provisioned.good("provision", "--recovery", "identity", "--kit", str(kit), "--kit-secret")
    assert "S-1" in kit.read_text()
    assert kit.stat().st_mode & 0o777 == 0o600
    assert provisioned.asked[-2][1].get("answers") == ["S-1"]


def test_a_kit_that_is_there_already_is_not_written_over(provisioned: LaidOut, tmp_path: Path) -> None:
    kit = tmp_path / "kit.html"
    kit.write_text("of before")
    result = provisioned.run("provision", "--recovery", "none", "--kit", str(kit))
    assert (result.exit_code, kit.read_text()) == (2, "of before")
    nowhere = provisioned.run("provision", "--recovery", "none", "--kit", str(tmp_path / "none/kit.html"))
    assert (nowhere.exit_code, "cannot be written: No such file" in nowhere.stderr) == (2, True)
    provisioned.good("provision", "--recovery", "none", "--kit", str(tmp_path / "new.html"))
    assert (tmp_path / "new.html").read_text().lower().startswith("<!doctype html>")


def test_ones_own_recipient_is_proven_by_its_key_or_by_the_word_that_it_brings_out(
    provisioned: LaidOut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity, recipient = age.generate()
    challenge = {"recipient": recipient, "file": age.encrypt(b"word-7", recipient)}
    provisioned.answers["provision.begin"] = BEGUN | {"kind": "recipients", "challenges": [challenge]}
    nobody = provisioned.run("provision", "--recovery", recipient)
    assert "nobody is there to prove that the recovery key opens archives" in nobody.stderr
    file = tmp_path / "key.txt"
    file.write_text(identity)
    provisioned.good("provision", "--recovery", recipient, "--recovery-key", str(file))
    monkeypatch.setattr("service.cli.options.Shared.interactive", property(lambda _: True))
    not_it = Refusal("SEAL_RECOVERY_NOT_PROVEN", "the word is another")
    provisioned.answers["provision.finish"] = Turns([not_it, DONE])
    result = provisioned.run("provision", "--recovery", recipient, typed="wrong\n word-8 \n")
    assert result.exit_code == 0, result.output
    assert "That is not it: the word is another. Ctrl-C gives up, and nothing is changed." in result.stderr
    answered = [params["answers"] for method, params in provisioned.asked if method == "provision.finish"]
    assert answered == [["word-7"], ["wrong"], ["word-8"]]


def test_before_a_firmware_update_the_recovery_key_is_proven_and_the_way_after_it_told(service: LaidOut) -> None:
    identity, _ = age.generate()
    proven = [{"target": "t", "archive": "A", "signer": "ab12"}, {"target": "u", "archive": "B", "signer": None}]
    told = service.good("prepare-firmware-update", typed=identity, key_prove=proven).splitlines()
    assert service.asked[-1] == ("key.prove", {"target": None, "recovery": {"identity": identity}})
    assert told[:2] == [
        "A in t opens with the recovery key, signed by ab12",
        "B in u opens with the recovery key, not signed",
    ]
    assert "deviceon-backup key rewrap --all --recovery-key FILE --apply" in told[-1]
    assert json.loads(service.good("prepare-firmware-update", "--json", typed=identity)) == {"proven": proven}
