"""One step of age in a process of its own, which `service.sealing.age` runs; it imports nothing of the service.

pyrage lets no other thread run while it works. Trying a passphrase takes seconds, and the plugin of a hardware key as
long as somebody takes to touch it, or for ever: in the service's own process nothing else would go on meanwhile. What
is secret goes through a pipe.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from typing import Any

import pyrage  # type: ignore[import-untyped]

TIMINGS, PAUSE_SECONDS = 8, 0.25


class _Silent:
    """Answers a plugin: nobody is there. A key that wants a PIN typed is used with `age -d` instead."""

    def display_message(self, message: str) -> None:
        """Pass over a message, such as a wish to be touched."""

    def confirm(self, message: str, yes_string: str, no_string: str | None) -> bool | None:
        """Confirm nothing."""
        return None

    def request_public_string(self, description: str) -> str | None:
        """Give nothing."""
        return None

    def request_passphrase(self, description: str) -> str | None:
        """Give nothing."""
        return None


def plugin_identity(text: str) -> Any:
    """Return who opens with a plugin; looks whether it is there. Raises pyrage's own exceptions."""
    identity = pyrage.plugin.Identity.from_str(text)
    return pyrage.plugin.IdentityPluginV1(identity.plugin(), [identity], _Silent())


def plugin_recipient(text: str) -> Any:
    """Return who is encrypted to with a plugin; looks whether it is there. Raises pyrage's own exceptions."""
    recipient = pyrage.plugin.Recipient.from_str(text)
    return pyrage.plugin.RecipientPluginV1(recipient.plugin(), [recipient], [], _Silent())


def _step(asked: dict[str, Any]) -> bytes:
    data = base64.b64decode(asked["data"])
    if asked["what"] == "passphrase":
        return _by_passphrase(data, asked["passphrase"])
    if asked["what"] == "protect":
        return bytes(pyrage.passphrase.encrypt(data, asked["passphrase"], armored=True))
    if asked["what"] == "encrypt":
        return bytes(pyrage.encrypt(data, [plugin_recipient(asked["recipient"])], armored=True))
    native, plugin = pyrage.x25519.Identity.from_str, plugin_identity
    whom = [native(text) if text.startswith("AGE-SECRET-KEY-1") else plugin(text) for text in asked["identities"]]
    return bytes(pyrage.decrypt(data, whom))


def _by_passphrase(data: bytes, passphrase: str) -> bytes:
    """Decrypt; when that takes too much work, only after some looks at how fast this machine is.

    age times a thousandth of a second each time, which something else may have had.
    """
    for _ in range(TIMINGS - 1):
        try:
            return bytes(pyrage.passphrase.decrypt(data, passphrase))
        except pyrage.DecryptError as error:
            if "xcessive" not in str(error):
                raise
        time.sleep(PAUSE_SECONDS)
    return bytes(pyrage.passphrase.decrypt(data, passphrase))


def _main() -> None:
    try:
        answer = {"done": base64.b64encode(_step(json.load(sys.stdin))).decode()}
    except (pyrage.DecryptError, pyrage.EncryptError) as error:
        answer = {"refused": str(error)}
    except Exception as error:  # the plugin's own words, in an exception without a class of its own
        answer = {"failed": str(error)}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    _main()
