"""What somebody types so that an archive opens: it goes to the service with the one request, and is kept nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

PIN_CODES: Final = frozenset({"PIN_REQUIRED", "PIN_WRONG"})
KEY_CODES: Final = frozenset(
    {
        "SEAL_NO_IDENTITY",
        "SEAL_RECOVERY_KEY",
        "SEAL_RECOVERY_KEY_WRONG",
        "SEAL_SLOT_DAMAGED",
        "PIN_UNUSABLE",
        "TPM_BUSY",
        "TPM_CLEARED",
        "TPM_DISABLED",
        "TPM_FAILED",
        "TPM_LOCKOUT",
        "TPM_OWNER_PASSWORD",
        "TPM_POLICY",
        "TPM_TIMEOUT",
        "TPM_UNAVAILABLE",
        "TPM_WRONG",
    }
)


def given_secrets(form: Mapping[str, str]) -> dict[str, Any]:
    """Return the parameters `pin` and `recovery` of the socket's methods, as far as a form's fields were filled in."""
    given: dict[str, Any] = {}
    if pin := form.get("pin", ""):
        given["pin"] = pin
    told = {"identity": form.get("identity", "").strip(), "passphrase": form.get("passphrase", "")}
    recovery = {name: value for name, value in told.items() if value}
    if recovery:
        given["recovery"] = recovery
    return given


def asks_for(obstacles: Iterable[Mapping[str, Any]], given: Mapping[str, Any]) -> set[str]:
    """Return which fields a plan's page needs: `pin`, `recovery`, both or none.

    What was given once is asked for again, since it is not kept from one page to the next.
    """
    codes = {obstacle["code"] for obstacle in obstacles}
    asked = set(given)
    if codes & PIN_CODES:
        asked.add("pin")
    if codes & (KEY_CODES | PIN_CODES):
        asked.add("recovery")
    return asked
