"""What `doctor` says of the TPM and of the keys that hang on it."""

from __future__ import annotations

from typing import Any

from service.config import Config
from service.errors import SealError
from service.finding import Finding
from service.keys import signer
from service.recovery_choice import recovery_choice
from service.restore_pin import pin_status


async def tpm_findings(config: Config) -> list[Finding]:
    """Return what was found, the cause of all others first. Raises SealError when a file of the keys is damaged."""
    from service.sealing import tpm  # noqa: PLC0415 - a heavy library
    from service.sealing.tpm.signing import KEY_FILE  # noqa: PLC0415

    gate = tpm.TpmGate(config.sealing.tcti, owner_auth=config.sealing.owner_auth())
    pin = tpm.load_pin(config.state_dir / "tpm-pin.json")
    facts = await tpm.describe(gate, pin)
    answered = "manufacturer" in facts
    findings = [_first(facts)]
    if answered:
        findings += [*_device(facts), _counters(facts), *_state(facts)]
        findings.append(_pinned(pin))
    if facts["problem"] is None:
        findings += await _restore_pin(config)
        findings += await _signing_key(config) if (config.state_dir / KEY_FILE).exists() else []
    return [*findings, _recovery(config)]


def _first(facts: dict[str, Any]) -> Finding:
    if facts["problem"] is not None:
        return Finding("TPM", False, str(facts["problem"]), str(facts["hint"]) or "Look at the TPM in the firmware.")
    told = f"{facts['fingerprint']}, {facts['kind']}, {facts['manufacturer']} firmware {facts['firmware']}"
    where = "derived" if facts["parent"] == "derived" else f"at {facts['parent']}"
    return Finding(
        "TPM", True, f"{told}; storage key {where}; sealed and opened a key in {facts['seal_and_unseal_ms']} ms"
    )


def _device(facts: dict[str, Any]) -> list[Finding]:
    findings = []
    if facts["node"]:
        findings.append(Finding("TPM device", True, str(facts["node"])))
    if not facts["resource_manager"] and str(facts["tcti"]).startswith("device:"):
        findings.append(
            Finding("TPM resource manager", None, "one program at a time can use this device", "Use /dev/tpmrm0.")
        )
    if facts["kind"] == "virtual":
        findings.append(
            Finding("TPM kind", None, "a virtual TPM is a file of the hypervisor: whoever copies it can open archives")
        )
    return findings


def _counters(facts: dict[str, Any]) -> Finding:
    """Wrong passwords, of all programs together."""
    state, name = facts["lockout"], "TPM lockout"
    forgiven = f"one is forgiven in {state['interval_seconds']} s"
    told = f"{state['failures']} of {state['max_failures']} wrong passwords, {forgiven}"
    if state["active"]:
        remedy = "Wait, with the machine on and without any further try, or use the TPM's lockout password: "
        return Finding(name, None, f"LOCKED: {told}; no restore PIN is taken", f"{remedy}tpm2_dictionarylockout -c.")
    return Finding(name, True, told)


def _state(facts: dict[str, Any]) -> list[Finding]:
    findings = []
    if not facts["storage_hierarchy_enabled"]:
        remedy = "Switch on the TPM's storage (owner) hierarchy in the firmware's settings."
        findings.append(Finding("TPM hierarchy", False, "the storage hierarchy is switched off", remedy))
    if facts["free_object_slots"] is not None and facts["free_object_slots"] < 3:
        remedy = "Use tcti: device:/dev/tpmrm0 (the kernel then manages the slots), or restart what holds the TPM."
        told = f"{facts['free_object_slots']} slots for objects are free; 3 are needed"
        findings.append(Finding("TPM slots", None, told, remedy))
    if facts.get("parent_counts_tries"):
        findings.append(
            Finding(
                "TPM storage key",
                None,
                f"the key at {facts['parent']} counts wrong passwords (no noDA): in lockout, backups stop",
                "Make a persistent key with noDA, or let the service derive one (sealing.owner_auth_file); then "
                "`deviceon-backup provision --new-tpm`.",
            )
        )
    if facts["owner_password_set"]:
        persistent = ", ".join(facts["persistent_storage_keys"]) or "none"
        findings.append(Finding("TPM owner password", True, f"set; persistent storage keys: {persistent}"))
    return findings


def _pinned(pin: Any) -> Finding:
    if pin is None:
        return Finding("TPM pin", None, "no TPM is pinned yet; `provision` or the first backup pins this one")
    return Finding("TPM pin", True, f"{pin.fingerprint} is the one that is trusted")


async def _restore_pin(config: Config) -> list[Finding]:
    status = await pin_status(config)
    if status.problem is not None:
        return [Finding("restore PIN", False, status.problem, status.hint)]
    if not status.is_set or status.since is None:
        return []
    left = "" if status.tries_left is None else f"; {status.tries_left} wrong tries are left"
    return [Finding("restore PIN", True, f"set since {status.since:%Y-%m-%d}{left}")]


async def _signing_key(config: Config) -> list[Finding]:
    try:
        signs = await signer(config)
        if signs is None:
            return []
        await signs.sign("doctor", b"")
    except SealError as error:
        return [Finding("signing key", False, str(error), error.hint)]
    return [Finding("signing key", True, signs.fingerprint)]


def _recovery(config: Config) -> Finding:
    choice = recovery_choice(config)
    if choice.warning is None:
        return Finding(
            "recovery key", True, f"new archives open without this TPM, too; recovery keys: {len(choice.recipients)}"
        )
    return Finding("recovery key", None, choice.warning, "`deviceon-backup provision` makes one and has it proven.")
