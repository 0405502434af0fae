"""What somebody gives as a recovery key: what is taken, what is refused, and that the socket carries it whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.config import ConfigFile
from service.errors import SealError
from service.recovery import ARMOR, BadRecoveryKey, RecoveryKey, is_recipient, recovery_key
from service.recovery_choice import NO_RECOVERY, ChosenRecovery, recovery_choice, save_choice, without_recovery
from service.sealing import age

PROTECTED = f"{ARMOR}\nYWdlLWVuY3J5cHRpb24\n-----END AGE ENCRYPTED FILE-----"
IDENTITY, RECIPIENT = age.generate()


@pytest.mark.parametrize(
    ("text", "passphrase", "words"),
    [
        (None, None, "none was given"),
        (None, "\n", "passphrase is empty"),
        (PROTECTED, None, "protected by a passphrase"),
        ("A" * (1 << 20), None, "too long"),
        pytest.param(RECIPIENT, None, "the public half", id="recipient"),
        ("a password", None, "it is no age identity"),
        ("# a comment\n", None, "it is no age identity"),
    ],
)
def test_what_opens_nothing_is_refused_with_what_to_give_instead(
    text: str | None, passphrase: str | None, words: str
) -> None:
    with pytest.raises(BadRecoveryKey, match=words) as caught:
        recovery_key(text, passphrase=passphrase)
    assert caught.value.hint.startswith("Give the") or caught.value.hint.startswith("Give an")


@pytest.mark.parametrize(
    ("text", "passphrase", "key"),
    [
        (f"# made by age-keygen\n{IDENTITY}\n", None, RecoveryKey(identities=(IDENTITY,))),
        (None, "six words\n", RecoveryKey(passphrase="six words")),
        (IDENTITY, "six words", RecoveryKey(identities=(IDENTITY,), passphrase="six words")),
        (f"\n{PROTECTED}\n", "six words", RecoveryKey(passphrase="six words", protected=PROTECTED)),
    ],
    ids=["identity", "passphrase", "both", "protected"],
)
def test_what_is_given_goes_over_the_socket_and_comes_out_the_same(
    text: str | None, passphrase: str | None, key: RecoveryKey
) -> None:
    given = recovery_key(text, passphrase=passphrase)
    assert given == key
    params = given.as_params()
    assert recovery_key(params.get("identity"), passphrase=params.get("passphrase")) == key


@pytest.mark.parametrize(
    "text",
    ["age1", RECIPIENT + "q", f"{RECIPIENT[:-1]}{'q' if RECIPIENT[-1] != 'q' else 'p'}"],
    ids=["too short", "too long", "one letter changed"],
)
def test_an_x25519_recipient_has_its_length_and_its_checksum(text: str) -> None:
    assert is_recipient(RECIPIENT)
    assert not is_recipient(text)


def test_letters_too_many_that_the_checksum_cannot_see_are_seen_by_the_length() -> None:
    """Of what ends with p, the checksum of Bech32 does not see how many q stand before it."""
    recipient = next(each for _ in range(10_000) if (each := age.generate()[1]).endswith("p"))
    assert is_recipient(recipient)
    assert not is_recipient(f"{recipient[:-1]}qp")


def configured(tmp_path: Path, sealing: dict[str, object]) -> ConfigFile:
    return ConfigFile.model_validate(
        {
            "server": {"product": "DeviceOn", "version": "5"},
            "sources": [{"type": "tree", "path": str(tmp_path)}],
            "sealing": sealing,
            "state_dir": str(tmp_path / "state"),
        }
    )


def test_as_long_as_nobody_has_chosen_the_warning_says_where_to(tmp_path: Path) -> None:
    config = configured(tmp_path, {})
    assert recovery_choice(config).warning == f"{NO_RECOVERY} (run `deviceon-backup provision` to choose)"
    assert without_recovery(config)
    save_choice(config.state_dir, ChosenRecovery())
    assert recovery_choice(config).warning == NO_RECOVERY
    save_choice(config.state_dir, ChosenRecovery(recipients=[RECIPIENT]))
    assert recovery_choice(config).warning is None
    assert not without_recovery(config)


def test_the_configuration_file_wins_over_what_was_chosen_also_when_it_says_none(tmp_path: Path) -> None:
    save_choice(tmp_path / "state", ChosenRecovery(recipients=[RECIPIENT]))
    assert recovery_choice(configured(tmp_path, {"recovery": "none"})).warning == NO_RECOVERY
    assert recovery_choice(configured(tmp_path, {"recovery": [RECIPIENT]})).fixed


def test_a_choice_that_cannot_be_read_is_told_as_no_recovery_and_one_that_cannot_be_written_is_an_error(
    tmp_path: Path,
) -> None:
    config = configured(tmp_path, {})
    save_choice(config.state_dir, ChosenRecovery(recipients=[RECIPIENT]))
    (config.state_dir / "recovery.json").write_text("{")
    assert without_recovery(config)
    assert not without_recovery(configured(tmp_path, {"mode": "off"}))
    (config.state_dir / "recovery.json").unlink()
    (config.state_dir / "recovery.json").mkdir()
    with pytest.raises(SealError, match="cannot be written"):
        save_choice(config.state_dir, ChosenRecovery())
