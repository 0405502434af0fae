"""What a TPM response code means: the one table from codes to errors (TPM 2.0 Library, Part 2, 6.6). Pure.

TpmUnavailable
 |- TpmTimeout          it did not answer in time; this process cannot use it any more
 |- TpmBusy             all its object or session slots are taken, or it keeps asking to be called again
 |- TpmFailed           it is in failure mode
 |- TpmDisabled         its storage hierarchy is switched off
 |- TpmOwnerPassword    its owner password is needed and was not given, or is wrong
 `- TpmLockout          too many wrong passwords: it wants to be left alone for a while
SealError
 `- TpmPolicy           a key's policy is not satisfied
"""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import SealError, TpmUnavailable

# Format zero: the whole number is the code.
INITIALIZE, FAILURE, DISABLED, PCR_CHANGED = 0x100, 0x101, 0x120, 0x128
UPGRADE, AUTH_UNAVAILABLE, REBOOT = 0x12D, 0x12F, 0x130
COMMAND_CODE = 0x143
CONTEXT_GAP, OBJECT_MEMORY, SESSION_MEMORY, MEMORY, SESSION_HANDLES, OBJECT_HANDLES = range(0x901, 0x907)
YIELDED, CANCELED, TESTING = 0x908, 0x909, 0x90A
NV_RATE, LOCKOUT, RETRY, NV_UNAVAILABLE = 0x920, 0x921, 0x922, 0x923
# Format one: without the bits that say which handle, parameter or session is meant.
HIERARCHY, HANDLE, AUTH_FAIL, POLICY_FAIL, INTEGRITY, BAD_AUTH = 0x085, 0x08B, 0x08E, 0x09D, 0x09F, 0x0A2

NO_ROOM = frozenset(range(CONTEXT_GAP, OBJECT_HANDLES + 1))
AGAIN = frozenset({RETRY, YIELDED, CANCELED, TESTING, NV_RATE, NV_UNAVAILABLE}) | NO_ROOM
"""Codes after which everything is begun anew, with pauses of 0.1 to 5 seconds, for half of the gate's deadline."""

_TPM_LAYERS = frozenset({0, 0xC})  # the TPM itself, and its codes passed on by a resource manager
_ESAPI_LAYER, _TCTI_LAYER = 0x7, 0xA
_BAD_RESPONSES = frozenset({0x11, 0x12, 0x16, 0x18, 0x1A, 0x1B})  # malformed, or with a wrong session HMAC


class TpmTimeout(TpmUnavailable):
    """The TPM did not answer in time. A thread of this process hangs in it, so only a restart helps."""

    code = "TPM_TIMEOUT"
    transient = False


class TpmBusy(TpmUnavailable):
    """The TPM has no free slot, or kept answering 'try again'."""

    code = "TPM_BUSY"


class TpmFailed(TpmUnavailable):
    """The TPM is in failure mode."""

    code = "TPM_FAILED"
    transient = False


class TpmDisabled(TpmUnavailable):
    """The TPM's storage hierarchy is switched off in the firmware's settings."""

    code = "TPM_DISABLED"
    transient = False


class TpmOwnerPassword(TpmUnavailable):
    """The key that seals has to be derived, which needs the TPM's owner password."""

    code = "TPM_OWNER_PASSWORD"
    transient = False


class TpmLockout(TpmUnavailable):
    """The TPM counts wrong passwords and refuses for a while."""

    code = "TPM_LOCKOUT"


class TpmPolicy(SealError):
    """The TPM's policy for a key is not satisfied. No key of this service depends on the platform's state."""

    code = "TPM_POLICY"


@dataclass(frozen=True, slots=True)
class Lockout:
    """How a TPM stands with wrong passwords; None is what it does not say. Times in seconds in which it has power."""

    active: bool
    failures: int | None
    """Wrong tries that are not forgiven yet."""
    max_failures: int | None
    """So many lock it."""
    interval_seconds: int | None
    """One wrong try is forgiven in this time, when no other follows."""
    recovery_seconds: int | None
    """After a wrong lockout password (which this service never gives), that password is refused for so long."""

    @property
    def tries_left(self) -> int | None:
        """Return how many wrong tries the TPM takes before it locks."""
        if self.active:
            return 0
        if self.failures is None or self.max_failures is None:
            return None
        return max(self.max_failures - self.failures, 0)

    @property
    def wait_seconds(self) -> int | None:
        """Return after how long one try more is allowed, counted from the last wrong one."""
        return self.interval_seconds or None


def duration(seconds: int | None) -> str:
    """Say how long a time is."""
    if seconds is None:
        return "a time that it does not tell"
    if seconds < 120:
        return f"{seconds} seconds"
    if seconds < 2 * 3600:
        return f"{(seconds + 59) // 60} minutes"
    return f"{(seconds + 3599) // 3600} hours"


def lockout(state: Lockout | None) -> TpmLockout:
    """Return the error for a TPM that is locked."""
    wait = duration(state.wait_seconds if state else None)
    return TpmLockout(
        f"the TPM is in lockout after too many wrong passwords or PINs; one try is allowed again after {wait}",
        hint=f"Wait for {wait} with the machine switched on and without any further try: a wrong one begins that time "
        "anew. Backups, and archives without a restore PIN, are not concerned.",
    )


def unanswered_try(seen: str) -> TpmUnavailable:
    """Return the error for a PIN whose outcome nobody knows: it is not tried again by itself."""
    return TpmUnavailable(
        f"the connection to the TPM broke while the PIN was tried ({seen})",
        hint="Try again; if the PIN was wrong, that try has counted.",
    )


def tpm_code(rc: int) -> int:
    """Return the TPM's own code without handle, parameter or session number; 0 if it comes from another layer."""
    if rc >> 16 not in _TPM_LAYERS:
        return 0
    rc &= 0xFFF
    return rc & 0x0BF if rc & 0x080 else rc


def is_connection(rc: int) -> bool:
    """Tell whether the way to the TPM failed rather than the TPM."""
    return rc >> 16 == _TCTI_LAYER


def is_refusal(rc: int) -> bool:
    """Tell whether the TPM understood and said no for good: neither a fault on the way nor a wish to be asked later."""
    return rc >> 16 in _TPM_LAYERS and tpm_code(rc) not in AGAIN | {FAILURE}


def blames_input(rc: int) -> bool:
    """Tell whether the TPM finds fault with a parameter or with its authorisation, not with a handle or itself."""
    return rc >> 16 in _TPM_LAYERS and bool(rc & 0x080) and bool(rc & 0x840)


@dataclass(frozen=True, slots=True)
class Rule:
    """What some codes mean wherever no caller expects them."""

    codes: tuple[int, ...]
    names: str
    """As the TPM's specification names them, without TPM_RC_."""
    kind: type[SealError]
    message: str
    hint: str

    @property
    def again(self) -> bool:
        """Tell whether the operation is tried again."""
        return self.codes[0] in AGAIN


RULES: tuple[Rule, ...] = (
    Rule(
        (CONTEXT_GAP, OBJECT_MEMORY, SESSION_MEMORY, MEMORY, SESSION_HANDLES, OBJECT_HANDLES),
        "CONTEXT_GAP, OBJECT_MEMORY, SESSION_MEMORY, MEMORY, SESSION_HANDLES, OBJECT_HANDLES",
        TpmBusy,
        "all object or session slots of the TPM are taken by others",
        "Use tcti: device:/dev/tpmrm0 (the kernel then manages the slots), or restart what holds the TPM.",
    ),
    Rule(
        (YIELDED, CANCELED, TESTING, NV_RATE, RETRY, NV_UNAVAILABLE),
        "YIELDED, CANCELED, TESTING, NV_RATE, RETRY, NV_UNAVAILABLE",
        TpmBusy,
        "the TPM kept answering that it is busy",
        "Try again later. Look at `doctor` if it stays so.",
    ),
    Rule(
        (LOCKOUT,),
        "LOCKOUT",
        TpmLockout,
        "the TPM is in lockout after too many wrong passwords or PINs",
        "Wait for the interval that `doctor` shows, with the machine switched on and without any further try.",
    ),
    Rule(
        (BAD_AUTH, AUTH_FAIL),
        "BAD_AUTH, AUTH_FAIL",
        TpmOwnerPassword,
        "the TPM's owner password is set (or its storage key has one), and none or a wrong one was given",
        "Name a file with the owner password in sealing.owner_auth_file, or make a persistent storage root key once "
        "(tpm2_createprimary -C o, tpm2_evictcontrol -C o ... 0x81000001), which needs no password afterwards.",
    ),
    Rule(
        (HIERARCHY,),
        "HIERARCHY",
        TpmDisabled,
        "the TPM's storage hierarchy is switched off",
        "Switch on the TPM's storage (owner) hierarchy in the firmware's settings.",
    ),
    Rule(
        (DISABLED,),
        "DISABLED",
        TpmDisabled,
        "the TPM has this command switched off",
        "Switch the TPM on in the firmware's settings.",
    ),
    Rule(
        (FAILURE,),
        "FAILURE",
        TpmFailed,
        "the TPM is in failure mode",
        "Switch the machine off and on again. If it stays, the chip is broken.",
    ),
    Rule(
        (INITIALIZE, REBOOT),
        "INITIALIZE, REBOOT",
        TpmFailed,
        "the TPM waits to be started by the firmware",
        "Restart the machine; a software TPM has to be sent TPM2_Startup.",
    ),
    Rule(
        (UPGRADE,),
        "UPGRADE",
        TpmFailed,
        "the TPM is in the middle of a firmware update",
        "End the update, then restart the machine.",
    ),
    Rule(
        (COMMAND_CODE,),
        "COMMAND_CODE",
        TpmFailed,
        "the TPM does not know a command that every TPM 2.0 has",
        "Update the TPM's firmware, after `deviceon-backup prepare-firmware-update`.",
    ),
    Rule(
        (POLICY_FAIL, PCR_CHANGED),
        "POLICY_FAIL, PCR_CHANGED",
        TpmPolicy,
        "the TPM's policy for this key is not satisfied",
        "Use a recovery key.",
    ),
    Rule(
        (AUTH_UNAVAILABLE,),
        "AUTH_UNAVAILABLE",
        SealError,
        "the TPM wants another kind of session for this key",
        "This is a mistake of the service: report it.",
    ),
)
_RULE_OF = {code: rule for rule in RULES for code in rule.codes}


def explain(rc: int, text: str, *, tcti: str) -> SealError:
    """Return the error for a response code that no caller expected. `text` is the library's own wording."""
    seen = f"code 0x{rc:x}, {text}"
    if rule := _RULE_OF.get(tpm_code(rc)):
        return rule.kind(f"{rule.message} ({seen})", hint=rule.hint)
    if is_connection(rc):
        return TpmUnavailable(
            f"the TPM at {tcti} does not answer ({seen})",
            hint="Check that the TPM is switched on in the firmware's settings, and run `doctor`.",
        )
    if rc >> 16 == _ESAPI_LAYER and rc & 0xFFFF in _BAD_RESPONSES:
        return TpmUnavailable(
            f"the TPM's answer is malformed or fails its authentication ({seen})",
            hint="The TPM or the bus to it is faulty, or someone alters what it says. Have the hardware examined.",
        )
    return SealError(f"the TPM refused an operation ({seen})", hint="Run `doctor`, and report this code.")


def markdown() -> str:
    """Return the rules as a table; docs/TPM.md holds it."""
    lines = ["| Code | TPM_RC_ | Error | Tried again | Message | What to do |", "|---|---|---|---|---|---|"]
    for rule in RULES:
        codes = ", ".join(f"0x{code:03x}" for code in rule.codes)
        again = "yes" if rule.again else "no"
        lines.append(f"| {codes} | {rule.names} | `{rule.kind.code}` | {again} | {rule.message} | {rule.hint} |")
    return "\n".join(lines)
