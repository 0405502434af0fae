"""A hardware key for tests: a plugin of age's, and the texts that name its keys."""

from __future__ import annotations

PLUGIN = """#!/usr/bin/env python3
# A hardware key's plugin (C2SP age-plugin.md), which "encrypts" a file key by turning its bits around.
import base64, sys

def b64(data):
    return base64.b64encode(data).decode().rstrip("=")

def unb64(text):
    return base64.b64decode(text + "=" * (-len(text) % 4))

def turned(data):
    return bytes(byte ^ 0x5A for byte in data)

def read():
    kind = sys.stdin.readline().rstrip("\\n").split(" ")[1:]
    body = ""
    while True:
        line = sys.stdin.readline().rstrip("\\n")
        body += line
        if len(line) < 64:
            return kind, unb64(body)

def write(*kind, body=b""):
    text = b64(body)
    lines = [text[at : at + 64] for at in range(0, len(text) + 1, 64)]
    sys.stdout.write("-> " + " ".join(kind) + "\\n" + "\\n".join(lines) + "\\n")
    sys.stdout.flush()
    if kind[0] != "done":
        read()

messages = []
while not messages or messages[-1][0] != ["done"]:
    messages.append(read())
for kind, body in messages:
    if kind[0] == "wrap-file-key":
        write("recipient-stanza", "0", "test", body=turned(body))
    if kind[0] == "recipient-stanza" and kind[2] == "test":
        write("file-key", kind[1], body=turned(body))
write("done")
"""


def bech32(prefix: str, data: bytes) -> str:
    """BIP 173, written once more."""
    charset = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    number, bits = int.from_bytes(data, "big"), len(data) * 8
    padded = number << (-bits % 5)
    values = [padded >> shift & 31 for shift in range((bits + 4) // 5 * 5 - 5, -1, -5)]
    check = 1
    for value in [*(ord(c) >> 5 for c in prefix), 0, *(ord(c) & 31 for c in prefix), *values, 0, 0, 0, 0, 0, 0]:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> bit & 1 else 0
    ending = [(check ^ 1) >> shift & 31 for shift in range(25, -1, -5)]
    return f"{prefix}1" + "".join(charset[value] for value in [*values, *ending])
