"""Setting up sealing once, with a person there: which TPM is trusted, and who opens archives when it is gone.

    begin    looks at the TPM and makes a recovery key or takes a recipient; gives a challenge for each recipient
    finish   takes the answers, which only somebody who has the recovery key can give; pins the TPM, keeps the choice

Nothing is changed before `finish`. What was generated is held in memory until then and told once; the private half of a
recovery key never reaches a disk here. An answer is the word that a challenge hides, which `age -d` brings out on
whatever machine has the key, or the recovery key itself.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from service.blocking import run_in_thread
from service.config import ConfigFile
from service.errors import ConfigError, JobRefused, SealError, TpmChanged
from service.keys import look_at_tpm, pin_tpm, signer, try_tpm
from service.recovery import recovery_key
from service.recovery_choice import ChosenRecovery, RecoveryChoice, recovery_choice, save_choice
from service.recovery_kit import Kit
from service.secret import remember

Kind = Literal["none", "recipients", "identity", "passphrase"]
"""`identity` and `passphrase` are generated here; `recipients` are somebody's own."""

LIFE: Final = timedelta(minutes=30)
"""So long may somebody take to answer."""


class NotProven(SealError):
    """An answer shows that the recovery key would not open archives."""

    code = "SEAL_RECOVERY_NOT_PROVEN"


@dataclass(frozen=True, slots=True)
class TpmSeen:
    """A TPM, for people."""

    fingerprint: str
    manufacturer: str
    firmware: str
    kind: str
    srk_name: str
    ek_name: str | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How sealing is set up. `tpm` is the pinned one, `seen` the one that is there, `problem` why that is not known."""

    sealing: str
    tpm: TpmSeen | None
    seen: TpmSeen | None
    problem: str | None
    recovery: RecoveryChoice


@dataclass(frozen=True, slots=True)
class Challenge:
    """A word for one recipient: whoever has the recovery key can read it."""

    recipient: str
    file: str
    """An armored age file: `age -d -i key.txt` prints the word."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What `finish` waits for. `secret` is the new recovery key, told once; nobody can tell it again."""

    token: str
    kind: Kind
    tpm: TpmSeen
    challenges: list[Challenge]
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Session:
    begun: Begun
    pin: Any
    until: datetime
    chosen: ChosenRecovery
    fixed: bool
    words: list[str] = field(repr=False)


class Provisioning:
    """One provisioning at a time; a new `begin` ends the one before."""

    def __init__(self) -> None:
        self._session: _Session | None = None

    async def begin(
        self, config: ConfigFile, kind: Kind, recipients: Sequence[str], *, new_tpm: bool, now: datetime
    ) -> Begun:
        """Look at the TPM and prepare the choice. Raises ConfigError when it cannot be made here, TpmChanged when
        another TPM than the pinned one is there and nobody said that it is a new one, SealError.
        """
        if config.sealing.mode == "off":
            raise ConfigError("sealing is off, so there is no TPM to set up", hint="Set sealing.mode: tpm.")
        fixed = _fits_what_is_fixed(recovery_choice_or_none(config), kind, recipients)
        pinned, seen = await look_at_tpm(config)
        if pinned is not None and pinned.srk_name != seen.srk_name and not new_tpm:
            raise TpmChanged(
                f"this service trusts {pinned.fingerprint}, and the TPM here is {seen.fingerprint}",
                hint="Give --new-tpm when the TPM was replaced or cleared on purpose; then `key rewrap` lets it open"
                " the archives of before. If it was not, find out who changed it.",
            )
        secret, chosen = await run_in_thread(_made, kind, recipients)
        words = [remember(_word()) for _ in chosen.recipients]
        challenges = [
            await run_in_thread(_challenge, whom, word) for whom, word in zip(chosen.recipients, words, strict=True)
        ]
        begun = Begun(secrets.token_hex(16), kind, _seen(seen), challenges, secret)
        self._session = _Session(replace(begun, secret=None), seen, now + LIFE, chosen, fixed, words)
        return begun

    async def finish(
        self,
        config: ConfigFile,
        token: str,
        answers: Sequence[str],
        *,
        server: str,
        targets: Sequence[str],
        now: datetime,
    ) -> Kit:
        """Check the answers, then pin the TPM, make its signing key and remember the choice; return the recovery kit.

        Raises NotProven, after which it can be tried again, JobRefused for a token of no provisioning, SealError.
        """
        session = self._session
        if session is None or not hmac.compare_digest(session.begun.token, token) or session.until < now:
            raise JobRefused("this provisioning was not begun, or long ago", hint="Begin it again.")
        if len(answers) != len(session.words):
            raise NotProven(
                f"{len(session.words)} recovery keys have to be proven, and {len(answers)} answers were given",
                hint="Answer each challenge, in its order.",
            )
        for challenge, word, answer in zip(session.begun.challenges, session.words, answers, strict=True):
            await _check(challenge, word, answer, session.chosen.protected)
        await try_tpm(config, session.pin)
        pin_tpm(config, session.pin)
        signs = await signer(config)
        if not session.fixed:
            save_choice(config.state_dir, session.chosen)
        self._session = None
        return Kit(
            server=server,
            created=now,
            tpm=session.begun.tpm.fingerprint,
            signer=signs.fingerprint if signs else None,
            recipients=session.chosen.recipients,
            passphrase=session.chosen.protected is not None,
            targets=targets,
        )


async def standing(config: ConfigFile) -> Standing:
    """Tell how sealing is set up. A TPM that cannot be asked is a `problem`, not an error."""
    if config.sealing.mode == "off":
        return Standing("off", None, None, None, RecoveryChoice())
    choice = recovery_choice_or_none(config)
    try:
        pinned, seen = await look_at_tpm(config)
    except SealError as error:
        return Standing("tpm", None, None, str(error), choice)
    return Standing("tpm", None if pinned is None else _seen(pinned), _seen(seen), None, choice)


def recovery_choice_or_none(config: ConfigFile) -> RecoveryChoice:
    """Return the recovery keys in force; as undecided when what was chosen cannot be read, for that is to be mended."""
    try:
        return recovery_choice(config)
    except SealError:
        return RecoveryChoice()


def _fits_what_is_fixed(choice: RecoveryChoice, kind: Kind, recipients: Sequence[str]) -> bool:
    """Tell whether the configuration file makes the choice. Raises ConfigError when another one is asked for."""
    if not choice.fixed:
        return False
    same = kind == "none" if not choice.recipients else kind == "recipients" and set(recipients) == {*choice.recipients}
    if not same:
        told = ", ".join(choice.recipients) or "none"
        raise ConfigError(
            f"the configuration file fixes sealing.recovery: {told}",
            hint="Choose the same here, or take sealing.recovery out of the file.",
        )
    return True


def _made(kind: Kind, recipients: Sequence[str]) -> tuple[str | None, ChosenRecovery]:
    if (kind == "recipients") != bool(recipients):
        raise ConfigError(
            "recipients belong to the choice `recipients`, and only to that", hint="Name them, or choose another."
        )
    if kind in ("none", "recipients"):
        return None, ChosenRecovery(recipients=list(dict.fromkeys(recipients)))
    from service.sealing import age  # noqa: PLC0415 - a library that most commands do not need

    identity, recipient = age.generate()
    if kind == "identity":
        return identity, ChosenRecovery(recipients=[recipient])
    passphrase = age.generate_passphrase()
    return passphrase, ChosenRecovery(recipients=[recipient], protected=age.protect(identity, passphrase))


def _word() -> str:
    return "-".join(secrets.token_hex(2) for _ in range(3))


def _challenge(recipient: str, word: str) -> Challenge:
    from service.sealing import age  # noqa: PLC0415 - a library that most commands do not need

    return Challenge(recipient, age.encrypt(f"{word}\n".encode(), recipient))


async def _check(challenge: Challenge, word: str, answer: str, protected: str | None) -> None:
    """Raise NotProven unless the answer is the challenge's word, or the recovery key that opens it."""
    answer = answer.strip()
    if hmac.compare_digest(answer.lower().encode(), word.encode()):
        return
    from service.sealing import age  # noqa: PLC0415 - a library that most commands do not need

    try:
        by_identity = answer.startswith("AGE-") or protected is None
        key = recovery_key(answer) if by_identity else recovery_key(protected, passphrase=answer)
        found = await run_in_thread(age.AgeIdentity(key).opened, challenge.file)
    except SealError as error:
        raise NotProven(
            f"the recovery key of {challenge.recipient} is not proven: {error}",
            hint="Type it as it was shown, or decrypt the challenge with `age -d` and give the word in it.",
        ) from error
    if found.decode(errors="replace").strip() != word:
        raise NotProven("the challenge was exchanged", hint="Begin again.")


def _seen(pin: Any) -> TpmSeen:
    return TpmSeen(
        pin.fingerprint,
        pin.manufacturer,
        pin.firmware,
        pin.kind,
        pin.srk_name.hex(),
        pin.ek_name.hex() if pin.ek_name else None,
    )
