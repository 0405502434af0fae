#!/usr/bin/env python3
"""Read a DeviceOn backup archive without the service that made it.

This one file needs Python 3.9 or newer and something that decompresses zstd: Python 3.14, or one of the packages
backports.zstd and zstandard, or the program zstd. For sealed archives it needs the package cryptography (36 or newer)
and a key: a recovery key that the archive was sealed for (with the package pyrage or the program age), or the archive's
data key, 32 bytes. It is written from the text of the format (docs/ARCHIVE_FORMAT.md) and shares
no code with the service, so that each checks the other. Nothing that is not authentic is ever written under its
final name.
"""
# os.path and open are all that a short program needs:
# ruff: noqa: PTH103, PTH104, PTH108, PTH120, PTH123

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import importlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, BinaryIO, NamedTuple, NoReturn

EXAMPLES = """examples:
  open_archive.py list Backup_20250131_0200Z.zip
  open_archive.py list Backup_20250131_0200Z.zip --key-file data.key --json
  open_archive.py verify Backup_20250131_0200Z.zip --key-file data.key
  open_archive.py extract Backup_20250131_0200Z.zip restored --key-file data.key
  open_archive.py extract Backup_20250131_0200Z.zip restored --recovery-key key.txt --kind tree.tar
  open_archive.py extract Backup_20250131_0200Z.zip restored --recovery-passphrase-file passphrase.txt

key slots that were added later are in a file beside the archive, of its name with .keys at the end; it is used when it
is there. The data key by hand, when the archive has a key slot of type "age":
  unzip -p ARCHIVE keyslots.json | jq -r '.slots[] | select(.type == "age") | .file' | age -d -i key.txt > data.key

exit codes: 0 all is well; 1 the archive is refused (damaged, altered, cut off, of another format);
  2 wrong use of this program; 3 the key is missing or is not this archive's; 4 this machine lacks a program
  or package; 5 a file cannot be read or written
"""

LABEL = b"deviceon-backup/v1"
MANIFEST = 0xFFFFFFFF
MAX16, MAX32, MAX_NUMBER = 0xFFFF, 0xFFFFFFFF, 2**53 - 1
MAX_PART, MAX_MANIFEST, MAX_RAW, MAX_ENTRIES = 1 << 16, 1 << 26, 1 << 26, 1 << 22
EXTENSIONS = {
    "postgresql.globals": ".json",
    "postgresql.schema": ".dump",
    "postgresql.large_objects": ".dump",
    "postgresql.rows": ".copy",
    "postgresql.small_tables": "",  # a directory with one file a table
    "tree.tar": ".tar",
    "sqlite.file": ".sqlite",
}
# Patterns are for re.fullmatch: `$` lets a newline pass, and \d other scripts' digits.
HEX32, HEX64 = "[0-9a-f]{32}", "[0-9a-f]{64}"
TIME = "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"
ARCHIVE = r"Backup_([0-9]{8}_[0-9]{4})Z\.zip"
CHUNK = r"streams/([0-9a-f]{8})/([0-9a-f]{8})\.(zst|sealed)"

Members = dict[str, Any]
Check = Callable[[Any], bool]
Shape = dict[str, Check]
Engine = Callable[[Any, int], bytes]
"""Decompresses a frame, and stops after so many bytes."""


class Entry(NamedTuple):
    """One entry of the ZIP file. `data` is where its content starts, `record` its bytes in the directory."""

    name: str
    offset: int
    data: int
    size: int
    crc: int
    record: bytes


class Problem(Exception):
    """Something that ends the program: a sentence for people and an exit code."""

    exit_code = 1


class KeyProblem(Problem):
    """The key is missing or wrong."""

    exit_code = 3


class MissingSoftware(Problem):
    """This machine cannot do it."""

    exit_code = 4


class FileProblem(Problem):
    """A file cannot be read or written."""

    exit_code = 5


# ---------------------------------------------------------------------------------------------------------- JSON


def strict_json(data: bytes, what: str) -> Members:
    """Return the object that a JSON part is, or refuse it."""

    def unique(pairs: list[tuple[str, Any]]) -> Members:
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError("a member stands twice in one object")
        return dict(pairs)

    def refuse(text: str) -> NoReturn:
        raise ValueError(text + " is not a number")

    def integer(text: str) -> int:
        return int(text) if len(text) <= 20 else refuse("something so long")

    def real(text: str) -> float:
        number = float(text)
        return number if abs(number) < float("inf") else refuse("something so large")

    try:
        value = json.loads(
            str(data, "utf-8"), object_pairs_hook=unique, parse_constant=refuse, parse_int=integer, parse_float=real
        )
        check_depth(value, 32)
        json.dumps(value, ensure_ascii=False).encode()  # lone surrogates are no text
    except (ValueError, RecursionError) as error:
        raise Problem(f"{what} cannot be read: {str(error)[:120]}") from error
    if type(value) is not dict:
        raise Problem(f"{what} is not a JSON object")
    return value


def check_depth(value: Any, left: int) -> None:
    """Refuse what is nested more than `left` deep."""
    inner = value if type(value) is list else list(value.values()) if type(value) is dict else None
    if inner is None:
        return
    if left == 0:
        raise ValueError("nested too deeply")
    for part in inner:
        check_depth(part, left - 1)


def is_text(pattern: str) -> Check:
    """Make a check for text that a pattern describes whole."""
    return lambda value: type(value) is str and re.fullmatch(pattern, value) is not None


def is_number(low: int, high: int = MAX_NUMBER) -> Check:
    """Make a check for an integer in a range (True is none)."""
    return lambda value: type(value) is int and low <= value <= high


def is_line(value: Any) -> bool:
    """Tell whether a value is one line of text that can be shown."""
    return type(value) is str and 1 <= len(value) <= 500 and value.isprintable()


def is_time(value: Any) -> bool:
    """Tell whether a value is a UTC time that the calendar has."""
    if not is_text(TIME)(value):
        return False
    try:
        datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return False
    return True


def is_archive_name(value: Any) -> bool:
    """Tell whether a value is the name of an archive, with a time that the calendar has."""
    match = re.fullmatch(ARCHIVE, value) if type(value) is str else None
    try:
        return match is not None and bool(datetime.strptime(match.group(1), "%Y%m%d_%H%M"))
    except ValueError:
        return False


def is_list_of(check: Check) -> Check:
    """Make a check for lists."""
    return lambda value: type(value) is list and all(map(check, value))


def is_object(value: Any) -> bool:
    """Tell whether a value is a JSON object."""
    return type(value) is dict


def is_texts(value: Any) -> bool:
    """Tell whether a value is an object of texts."""
    return type(value) is dict and all(type(text) is str for text in value.values())


def is_slot(value: Any) -> bool:
    """Tell whether a value is a key slot of whatever type."""
    return type(value) is dict and is_text("[a-z0-9-]{1,32}")(value.get("type"))


def check_members(
    value: Members, what: str, members: Shape, *, optional: Shape | None = None, others: bool = False
) -> None:
    """Refuse an object that lacks a member, has a wrong one, or one of which the format knows nothing."""
    known = dict(members, **(optional or {}))
    for name in members:
        if name not in value:
            raise Problem(f"{what} lacks {name}")
    for name in value:
        if name in known and not known[name](value[name]):
            raise Problem(f"{what} has a wrong {name}")
        if name not in known and not others:
            raise Problem(f"{what} has a member that the format does not know")


HEADER_MEMBERS = {
    "format": is_text("deviceon-backup"),
    "version": is_number(1, 1),
    "min_reader": is_number(1, 1),
    "suite": is_number(0, 1),
    "archive_id": is_text(HEX32),
    "name": is_archive_name,
    "created": is_time,
    "seq": is_number(0),
    "product": is_line,
    "server_version": is_line,
    "max_raw": is_number(1, MAX_RAW),
    "sealing": is_text("[a-z0-9+-]{1,32}"),
    "notice": is_line,
}
HEADER_OPTIONAL = {"commit": is_text(HEX64), "fingerprint": is_line}
FOOTER_MEMBERS = {
    "archive_id": is_text(HEX32),
    "entries": is_number(0),
    "bytes": is_number(0),
    "raw_bytes": is_number(0),
    "started": is_time,
    "finished": is_time,
    "directory_sha256": is_text(HEX64),
}
MANIFEST_MEMBERS = {
    "archive_id": is_text(HEX32),
    "started": is_time,
    "finished": is_time,
    "tool": lambda value: is_texts(value) and "name" in value and "version" in value,
    "sources": is_list_of(is_object),
    "streams": is_list_of(is_object),
    "excluded": is_list_of(is_object),
    "warnings": is_list_of(is_text(r"(?s:.*)")),
}
SOURCE_MEMBERS = {
    "name": is_text("[a-z0-9-]{1,32}"),
    "type": is_text("[a-z][a-z0-9_-]{0,31}"),
    "facts": is_object,
}
SIGNATURE_MEMBERS = {
    "public_key": is_text("(?:[0-9a-f]{2}){91}"),
    "value": is_text("(?:[0-9a-f]{2}){8,72}"),
}
STREAM_MEMBERS = {
    "id": is_number(0, MANIFEST - 1),
    "source": is_text("[a-z0-9-]{1,32}"),
    "kind": is_text("[a-z][a-z0-9_.-]{0,63}"),
    "labels": is_texts,
    "chunks": is_number(1, MAX_ENTRIES),
    "bytes": is_number(0),
    "sha256": is_text(HEX64),
    "details": is_object,
}


def read_header(data: bytes) -> Members:
    """Return header.json. What another version would change is judged first."""
    header = strict_json(data, "header.json")
    if header.get("format") != "deviceon-backup":
        raise Problem("this is not a DeviceOn backup archive")
    version, reader, suite = (header.get(name, "") for name in ("version", "min_reader", "suite"))
    if not all(type(number) is int for number in (version, reader, suite)):
        raise Problem("header.json lacks its version, min_reader or suite")
    if max(version, reader) > 1:
        raise Problem(
            f"this archive has format version {version}; it needs a reader for format {max(version, reader)} or newer, "
            "and this one knows version 1: use the open_archive.py of the release that wrote it"
        )
    if suite not in {0, 1}:
        raise Problem(f"this archive uses cryptographic suite {suite}; this reader knows suite 1: use a newer one")
    check_members(header, "header.json", HEADER_MEMBERS, optional=HEADER_OPTIONAL)
    sealed = header["sealing"] != "off"
    if (suite == 1) != sealed or ("commit" in header) != sealed or ("fingerprint" in header and not sealed):
        raise Problem("header.json contradicts itself about sealing")
    return header


def read_manifest(data: bytes) -> Members:
    """Return the manifest; it may have members that this reader does not know."""
    manifest = strict_json(data, "the manifest")
    check_members(manifest, "the manifest", MANIFEST_MEMBERS, optional={"signature": is_object}, others=True)
    for source in manifest["sources"]:
        check_members(source, "a source in the manifest", SOURCE_MEMBERS, others=True)
    for stream in manifest["streams"]:
        check_members(stream, "a stream in the manifest", STREAM_MEMBERS, others=True)
    sources = {source["name"] for source in manifest["sources"]}
    ids = {stream["id"] for stream in manifest["streams"]}
    if len(sources) != len(manifest["sources"]) or len(ids) != len(manifest["streams"]):
        raise Problem("the manifest lists something twice")
    if any(stream["source"] not in sources for stream in manifest["streams"]):
        raise Problem("the manifest has a stream of a source that it does not list")
    return manifest


# ---------------------------------------------------------------------------------------------------------- zstd


def frame_size(frame: bytes | memoryview) -> int:
    """Return the raw size that a zstd frame claims; refuse what is not one whole frame as the format wants it.

    RFC 8878, section 3.1.1: magic, descriptor, window, dictionary id, content size, blocks, checksum.
    """
    if len(frame) < 6 or bytes(frame[:4]) != b"\x28\xb5\x2f\xfd":
        raise Problem("a chunk is not a zstd frame")
    descriptor, position = frame[4], 5
    single = descriptor >> 5 & 1
    width = (single, 2, 4, 8)[descriptor >> 6]
    if not descriptor & 4 or descriptor & 0x1B or width == 0:
        raise Problem("a chunk's zstd frame lacks its checksum or size, or needs a dictionary")
    if not single:
        if (8 + (frame[position] & 7)) << (frame[position] >> 3) + 7 > MAX_RAW:  # the window, in bytes
            raise Problem("a chunk's zstd frame wants too much memory")
        position += 1
    size = int.from_bytes(frame[position : position + width], "little") + (256 if width == 2 else 0)
    position += width
    last = 0
    while not last:
        block = int.from_bytes(frame[position : position + 3], "little")
        last, kind, length = block & 1, block >> 1 & 3, block >> 3
        position += 3 + (1 if kind == 1 else length)
        if kind == 3 or position > len(frame):
            raise Problem("a chunk's zstd frame is damaged")
    if position + 4 != len(frame):
        raise Problem("a chunk is not exactly one zstd frame")
    return size


def find_decompressor() -> Engine:
    """Return a function (frame, most bytes) -> raw bytes, from whatever this machine has."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        return lambda frame, most: module.ZstdDecompressor().decompress(frame, most)
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError:
        program = shutil.which("zstd")
        if program is None:
            raise MissingSoftware(
                "nothing here decompresses zstd: install the program zstd (apt-get install zstd), "
                "or run: python3 -m pip install backports.zstd"
            ) from None
        return lambda frame, most: run_zstd(program, frame, most)
    return lambda frame, most: zstandard.ZstdDecompressor().stream_reader(bytes(frame)).read(most)


def run_zstd(program: str, frame: bytes | memoryview, most: int) -> bytes:
    """Decompress with the program; it is ended as soon as it writes more than it may."""
    command = [program, "-d", "-q", "-c", "--memory=128MB"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        source, sink = process.stdin, process.stdout
        assert source is not None
        assert sink is not None

        def feed() -> None:
            try:
                with source:
                    source.write(frame)
            except OSError:
                pass  # it ended early; its exit code says so

        feeder = threading.Thread(target=feed)
        feeder.start()
        raw = sink.read(most)
        if len(raw) == most:
            process.kill()
        feeder.join()
        sink.close()
    if process.returncode != 0:
        raise ValueError("zstd refuses it")
    return raw


def decompress(engine: Engine, frame: bytes | memoryview, max_raw: int) -> bytes:
    """Return the raw bytes of a chunk's body."""
    size = frame_size(frame)
    if size > max_raw:
        raise Problem("a chunk claims to be larger than the archive's header allows")
    try:
        raw = engine(frame, size + 1)
    except MemoryError:
        raise
    except Exception as error:  # each engine has errors of its own, and all mean the same
        raise Problem("a chunk cannot be decompressed") from error
    if len(raw) != size:
        raise Problem("a chunk does not hold as many bytes as it claims")
    return raw


# ---------------------------------------------------------------------------------------------------------- keys


class Keys:
    """The keys of a sealed archive (suite 1)."""

    def __init__(self, data_key: bytes, archive_id: bytes, header: bytes) -> None:
        """Derive them; `header` is the exact bytes of header.json."""
        try:
            aead = importlib.import_module("cryptography.hazmat.primitives.ciphers.aead")
            self._invalid = importlib.import_module("cryptography.exceptions").InvalidTag
        except ImportError:
            raise MissingSoftware(
                "this archive is sealed and the Python package cryptography is missing: install it "
                "(apt-get install python3-cryptography, or python3 -m pip install cryptography)"
            ) from None
        self._aesgcm = aead.AESGCM
        self._archive_id = archive_id
        self._prk = hmac.new(archive_id, data_key, "sha256").digest()
        self._hh = hashlib.sha256(header).digest()
        self._streams: dict[int, tuple[Any, bytes]] = {}

    def _expand(self, info: bytes, length: int) -> bytes:
        blocks = block = b""
        for counter in range(1, -(-length // 32) + 1):
            block = hmac.new(self._prk, block + info + bytes([counter]), "sha256").digest()
            blocks += block
        return blocks[:length]

    def commit(self) -> bytes:
        """Return the commitment to the data key."""
        return self._expand(LABEL + b"/commit" + struct.pack(">BH", 0, 1), 32)

    def footer_mac(self, message: bytes) -> bytes:
        """Return the MAC of the footer."""
        key = self._expand(LABEL + b"/footer" + struct.pack(">BH", 0, 1) + self._hh, 32)
        return hmac.new(key, message, "sha256").digest()

    def open(self, stream: int, index: int, last: bool, sealed: bytes | memoryview) -> bytes:
        """Return the body of a chunk, or refuse it."""
        if stream not in self._streams:
            keying = self._expand(LABEL + b"/stream" + struct.pack(">BHI", 0, 1, stream) + self._hh, 44)
            self._streams = {stream: (self._aesgcm(keying[:32]), keying[32:])}
        cipher, base = self._streams[stream]
        nonce = bytes(a ^ b for a, b in zip(base, bytes(7) + struct.pack(">IB", index, last)))  # noqa: B905
        aad = LABEL + b"/chunk" + bytes(1) + self._archive_id + struct.pack(">IIB", stream, index, last)
        try:
            body: bytes = cipher.decrypt(nonce, bytes(sealed), aad)
        except self._invalid:
            raise Problem(f"chunk {index} of stream {stream} is not what was sealed there") from None
        return body


def read_key(options: argparse.Namespace) -> bytes | None:
    """Return the data key that the command line gives, or None."""
    if options.key is not None:
        text = options.key.encode()
    elif options.key_file is not None:
        try:
            with open(options.key_file, "rb") as file:
                text = file.read(4096)
        except OSError as error:
            raise FileProblem(f"the key file cannot be read: {error}") from error
        if len(text) == 32:
            return text
    else:
        return None
    if re.fullmatch(b"[0-9a-fA-F]{64}", text.strip()) is None:
        raise KeyProblem("a data key is 32 bytes: a file of exactly those, or 64 hexadecimal digits")
    return bytes.fromhex(text.strip().decode())


# -------------------------------------------------------------------------------------------------- recovery keys

ARMOR = "-----BEGIN AGE ENCRYPTED FILE-----"
MOST_WORK = 20  # log2 of scrypt's N: 1 GiB of memory
MOST_TRIES = 8  # files that a passphrase is tried on: each takes seconds, and anybody can write slots
NO_AGE = (
    "opening an archive with a recovery key needs the Python package pyrage (python3 -m pip install pyrage) "
    "or the program age (apt-get install age)"
)


class Recovery:
    """A recovery key: an age identity file, a recovery passphrase, or both. Opens key slots of type "age"."""

    def __init__(self, identity: str | None, passphrase: str | None) -> None:
        """Take what was given; `identity` is the content of an identity file, also one that the passphrase protects."""
        self._identity = None if identity is None else identity.strip()
        self._passphrase = passphrase
        self._unlocked: dict[str, str] = {}
        self._tries = 0
        try:
            self._pyrage = importlib.import_module("pyrage")
        except ImportError:
            self._pyrage = None

    def data_keys(self, slots: list[Members]) -> Iterator[bytes]:
        """Yield the data key of each slot that opens; whether it is the archive's is for the caller to find out."""
        for slot in slots:
            if slot["type"] != "age" or type(slot.get("file")) is not str:
                continue
            data_key = self._open(slot)
            if data_key is not None and len(data_key) == 32:
                yield data_key

    def _open(self, slot: Members) -> bytes | None:
        if "scrypt" in stanza_types(slot["file"]):
            return self._by_passphrase(slot["file"])
        identities = self._identity
        if identities is None or identities.startswith(ARMOR):
            protected = identities or slot.get("identity")
            if type(protected) is not str or self._passphrase is None:
                return None
            if protected not in self._unlocked:
                self._unlocked[protected] = (self._by_passphrase(protected) or b"").decode("utf-8", "replace")
            identities = self._unlocked[protected]
        return self._by_identities(slot["file"], identities)

    def _by_identities(self, file: str, identities: str) -> bytes | None:
        lines = [line.strip() for line in identities.splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            return None
        if self._pyrage is None or not all(key.startswith("AGE-SECRET-KEY-1") for key in keys):
            return run_age(file, identities)  # plugins of hardware keys ask their questions at the terminal
        try:
            opened = [self._pyrage.x25519.Identity.from_str(key) for key in keys]
            return bytes(self._pyrage.decrypt(file.encode(), opened))
        except self._pyrage.IdentityError:
            raise KeyProblem("the recovery key is damaged or incomplete") from None
        except self._pyrage.DecryptError:
            return None

    def _by_passphrase(self, file: str) -> bytes | None:
        if self._passphrase is None or scrypt_work(file) > MOST_WORK or self._tries >= MOST_TRIES:
            return None
        self._tries += 1
        if self._pyrage is None:
            raise MissingSoftware(
                "a recovery passphrase needs the Python package pyrage (python3 -m pip install pyrage); with the "
                "program age alone, take the steps of docs/ARCHIVE_FORMAT.md by hand"
            )
        bare = re.sub(r"[\s-]+", "", self._passphrase).lower()
        generated = "-".join(bare[at : at + 4] for at in range(0, len(bare), 4))
        for passphrase in dict.fromkeys((generated, self._passphrase)):
            try:
                return bytes(self._pyrage.passphrase.decrypt(file.encode(), passphrase))
            except self._pyrage.DecryptError:
                continue
        return None


def run_age(file: str, identities: str) -> bytes | None:
    """Decrypt with the program age; the identities go through a pipe, and to no disk."""
    program = shutil.which("age")
    if program is None:
        raise MissingSoftware(NO_AGE)
    with tempfile.NamedTemporaryFile("w", suffix=".age") as slot:
        slot.write(file)
        slot.flush()
        done = subprocess.run(
            [program, "-d", "-i", "-", slot.name], input=identities.encode(), stdout=subprocess.PIPE, check=False
        )
    return done.stdout if done.returncode == 0 else None


def age_header(file: str) -> list[str]:
    """Return the lines of an armored age file's header; none when it is no such file."""
    if not file.startswith(ARMOR):
        return []  # whoever opens it would read another header: the one in front
    body = "".join(file.split(ARMOR, 1)[-1].split("-----END", 1)[0].split())
    try:
        lines = base64.b64decode(body, validate=True).split(b"\n---", 1)[0].decode("ascii").split("\n")
    except ValueError:
        return []
    return lines if lines[0] == "age-encryption.org/v1" else []


def stanza_types(file: str) -> set[str]:
    """Return the types of the recipients that an age file is encrypted for."""
    return {line.split(" ")[1] for line in age_header(file) if line.startswith("-> ")}


def scrypt_work(file: str) -> int:
    """Return the work factor of a passphrase's file: how much memory it takes to try one; too much for another file."""
    stanzas = [line for line in age_header(file) if line.startswith("-> ")]
    matches = [re.fullmatch(r"-> scrypt \S+ ([1-9][0-9]?)", stanza, re.ASCII) for stanza in stanzas]
    return max((int(match.group(1)) if match else MOST_WORK + 1 for match in matches), default=MOST_WORK + 1)


def read_recovery(options: argparse.Namespace) -> Recovery | None:
    """Return the recovery key that the command line gives, or None."""
    if options.recovery_key is None and options.recovery_passphrase_file is None:
        return None
    texts = []
    for path in (options.recovery_key, options.recovery_passphrase_file):
        if path in (None, "-"):
            texts.append(sys.stdin.read(65536) if path else None)
            continue
        try:
            with open(path, encoding="utf-8") as file:
                texts.append(file.read(65536))
        except (OSError, UnicodeDecodeError) as error:
            raise FileProblem(f"the recovery key cannot be read: {error}") from error
    identity, passphrase = texts
    return Recovery(identity, passphrase.strip("\r\n") if passphrase else None)


def read_sidecar(path: str) -> list[Members]:
    """Return the key slots beside an archive; none when they cannot be used, since the archive's own may do."""
    try:
        with open(path + ".keys", "rb") as file:
            data = file.read(MAX_PART + 1)
        return read_slots(data) if len(data) <= MAX_PART else []
    except (OSError, Problem):
        return []


def read_slots(data: bytes) -> list[Members]:
    """Return the slots of a keyslots.json, or refuse it."""
    slots = strict_json(data, "keyslots.json")
    check_members(slots, "keyslots.json", {"slots": is_list_of(is_slot)})
    if not 1 <= len(slots["slots"]) <= 64:
        raise Problem("keyslots.json has no slots, or too many")
    return list(slots["slots"])


# ------------------------------------------------------------------------------------------------------ signature


def check_signature(manifest: Members, header: bytes) -> str | None:
    """Return the fingerprint of who has signed the archive, None when nobody has; refuse a wrong signature."""
    if "signature" not in manifest:
        return None
    check_members(manifest["signature"], "the signature", SIGNATURE_MEMBERS, others=True)
    public_key, value = (bytes.fromhex(manifest["signature"][name]) for name in ("public_key", "value"))
    unsigned = canonical({name: member for name, member in manifest.items() if name != "signature"})
    message = LABEL + b"/archive\0" + hashlib.sha256(header).digest() + unsigned
    try:
        serialization = importlib.import_module("cryptography.hazmat.primitives.serialization")
        elliptic = importlib.import_module("cryptography.hazmat.primitives.asymmetric.ec")
        hashes = importlib.import_module("cryptography.hazmat.primitives.hashes")
        invalid = importlib.import_module("cryptography.exceptions").InvalidSignature
    except ImportError:
        raise MissingSoftware("checking the archive's signature needs the Python package cryptography") from None
    try:
        key = serialization.load_der_public_key(public_key)
        if not isinstance(key, elliptic.EllipticCurvePublicKey) or not isinstance(key.curve, elliptic.SECP256R1):
            raise Problem("the archive's signature is of another kind than the format has")
        der, usual = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        if key.public_bytes(der, usual) != public_key:  # spelled otherwise, it would have another fingerprint
            raise Problem("the archive's signature is of another kind than the format has")
        key.verify(value, message, elliptic.ECDSA(hashes.SHA256()))
    except (invalid, ValueError):
        raise Problem("the archive's signature is wrong: it was altered after it was signed") from None
    digest = hashlib.sha256(LABEL + b"/signer-fingerprint" + public_key).digest()
    text = base64.b32encode(digest[:10]).decode()
    return "KEY " + "-".join(text[at : at + 4] for at in range(0, len(text), 4))


# ------------------------------------------------------------------------------------------------------- archive


class Archive:
    """One archive, opened: everything but the chunks is checked.

    `manifest` is None when the archive is sealed and no key was given.
    """

    def __init__(
        self,
        file: BinaryIO,
        data_key: bytes | None = None,
        recovery: Recovery | None = None,
        beside: Sequence[Members] = (),
    ) -> None:
        """Read and check it from a seekable binary file. `data_key` is 32 bytes; without it, `recovery` opens it.

        `beside` are key slots that were added later.
        """
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        self._engine: Engine | None = None
        self._judge_version()
        self.entries = self._read_directory()
        self._check_order()
        header_bytes = self._part(self.entries[0])
        self.header = read_header(header_bytes)
        self.sealed = self.header["suite"] == 1
        if self.sealed != (self.entries[1].name == "keyslots.json"):
            raise Problem("header and directory disagree about sealing")
        self.slots = read_slots(self._part(self.entries[1])) + list(beside) if self.sealed else []
        self._keys: Keys | None = None
        if self.sealed and data_key is not None:
            self._keys = self._unlock(data_key, header_bytes)
        elif self.sealed and recovery is not None:
            self._keys = self._recover(recovery, header_bytes)
        self.footer = self._read_footer()
        self.manifest: Members | None = None
        self.signer: str | None = None
        if self._keys or not self.sealed:
            self.manifest = self._read_manifest()
            self.signer = check_signature(self.manifest, header_bytes)

    def stream(self, stream: Members) -> Iterator[bytes]:
        """Yield the raw chunks of one stream of the manifest; compare length and SHA-256 before the end."""
        digest, length = hashlib.sha256(), 0
        for raw in self._chunks(stream["id"]):
            digest.update(raw)
            length += len(raw)
            yield raw
        if length != stream["bytes"] or digest.hexdigest() != stream["sha256"]:
            raise Problem(f"stream {stream['id']} is not what the manifest says")

    def verify(self) -> int:
        """Read everything once; return how many raw bytes there were."""
        return sum(len(raw) for stream in self.streams() for raw in self.stream(stream))

    def streams(self) -> list[Members]:
        """Return what the manifest tells of each stream."""
        if self.manifest is None:
            raise KeyProblem(
                "this archive is sealed: give a recovery key (--recovery-key) or its data key (--key-file)"
            )
        return list(self.manifest["streams"])

    def _at(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(length)
        if len(data) != length:
            raise Problem("the file became shorter while it was read")
        return data

    def _judge_version(self) -> None:
        """Judge the header of another format version first: nothing behind it needs to look as it does today."""
        head = self._at(0, min(self._size, MAX_PART + 64))
        if self._size < 4 or head[:4] != b"PK\x03\x04":
            raise Problem("this is not an archive: it does not begin like one")
        if head[30:41] == b"header.json" and len(head) >= 41:
            size = int.from_bytes(head[22:26], "little")
            content = head[41 : 41 + size]
            if len(content) == size and zlib.crc32(content) == int.from_bytes(head[14:18], "little"):
                read_header(content)

    def _read_directory(self) -> list[Entry]:
        """Return all entries; they fill the file from its beginning to the directory."""
        tail = self._at(max(0, self._size - 98), min(self._size, 98))
        if len(tail) < 22 or tail[-22:-18] != b"PK\x05\x06":
            raise Problem("the end of the archive is missing, or something follows it: it was cut off or altered")
        numbers = struct.unpack("<4H2IH", tail[-18:])
        count, size, offset = numbers[3], numbers[4], numbers[5]
        ending = 22
        if count == MAX16 or MAX32 in (size, offset):
            ending = 98
            count, size, offset = self._zip64_end(tail, count, size, offset)
        if numbers[:2] != (0, 0) or numbers[2] != numbers[3] or numbers[6] != 0:
            raise Problem("the end record is not as the format wants it")
        if not 3 <= count <= MAX_ENTRIES or offset + size + ending != self._size or size > count * 128:
            raise Problem("the end record does not fit the file")
        directory = self._at(offset, size)
        entries, position, expected = [], 0, 0
        for number in range(count):
            entry, position = self._record(directory, position)
            if number == 0 and entry.name != "header.json":
                raise Problem("this is a ZIP file, but no DeviceOn backup archive")
            if entry.offset != expected:
                raise Problem("the entries do not follow one another without a gap")
            expected = entry.data + entry.size
            entries.append(entry)
        if position != size or expected != offset:
            raise Problem("the directory does not fit the entries")
        return entries

    def _zip64_end(self, tail: bytes, short_count: int, short_size: int, short_offset: int) -> tuple[int, int, int]:
        if len(tail) < 98 or tail[:4] != b"PK\x06\x06" or tail[56:60] != b"PK\x06\x07":
            raise Problem("the ZIP64 end record is missing")
        length, made, needed, disk, start, here, count, size, offset = struct.unpack("<Q2H2I4Q", tail[4:56])
        locator = struct.unpack("<IQI", tail[60:76])
        agreed = (
            (length, made, needed, disk, start, here) == (44, 0x032D, 45, 0, 0, count),
            locator == (0, offset + size, 1),
            (short_count, short_size, short_offset) == (min(count, MAX16), min(size, MAX32), min(offset, MAX32)),
        )
        if not all(agreed):
            raise Problem("the ZIP64 end record is not as the format wants it")
        return count, size, offset

    @staticmethod
    def _record(directory: bytes, position: int) -> tuple[Entry, int]:
        """Return the entry of one directory record, and where the next record is."""
        fixed = directory[position : position + 46]
        if len(fixed) != 46 or fixed[:4] != b"PK\x01\x02":
            raise Problem("the directory is damaged")
        made, needed, *zeros, date, crc, packed, size, name_length, extra_length = struct.unpack("<6H3I2H", fixed[4:32])
        comment, disk, internal, mode, offset = struct.unpack("<3H2I", fixed[32:])
        position += 46
        name = directory[position : position + name_length].decode("ascii", "replace")
        position += name_length
        extra = directory[position : position + extra_length]
        if name not in {"header.json", "keyslots.json", "footer.json"} and re.fullmatch(CHUNK, name) is None:
            if offset == 0:
                raise Problem("this is a ZIP file, but no DeviceOn backup archive")
            raise Problem("the directory has an entry whose name the format does not know")
        if offset == MAX32:
            if len(extra) != 12 or extra[:4] != b"\x01\x00\x08\x00":
                raise Problem(f"the directory record of {name} is not as the format wants it")
            offset = int.from_bytes(extra[4:], "little")
        far = offset >= MAX32
        profile = (made, needed, *zeros, date, comment, disk, internal, mode, extra_length, packed)
        wanted = (0x032D, 45 if far else 10, 0, 0, 0, 0x21, 0, 0, 0, 0o100600 << 16, 12 if far else 0, size)
        if profile != wanted or size == MAX32:
            raise Problem(f"the directory record of {name} is not as the format wants it")
        record = fixed + name.encode() + extra
        data = offset + 30 + name_length
        return Entry(name, offset, data, size, crc, record), position + extra_length

    def _check_order(self) -> None:
        names = [entry.name for entry in self.entries]
        suffix, first = ("sealed", 2) if names[1] == "keyslots.json" else ("zst", 1)
        if names[0] != "header.json" or names[-1] != "footer.json":
            raise Problem("header or footer are missing")
        self._counts: dict[int, int] = {}
        for name in names[first:-1]:
            match = re.fullmatch(CHUNK, name)
            if match is None or match.group(3) != suffix:
                raise Problem(f"entry {name} is out of place")
            stream, index = int(match.group(1), 16), int(match.group(2), 16)
            if index != self._counts.get(stream, 0) or (MANIFEST in self._counts and stream != MANIFEST):
                raise Problem(f"entry {name} is out of place: chunks are missing, doubled or in a wrong order")
            self._counts[stream] = index + 1
        if MANIFEST not in self._counts:
            raise Problem("the manifest is missing")

    def _content(self, entry: Entry) -> memoryview:
        """Return what an entry holds, after its local header and CRC-32."""
        data = memoryview(self._at(entry.offset, entry.data - entry.offset + entry.size))
        size, crc = entry.size, entry.crc
        fields = (10, 0, 0, 0, 0x21, crc, size, size, len(entry.name), 0)
        header = b"PK\x03\x04" + struct.pack("<5H3I2H", *fields) + entry.name.encode()
        content = data[len(header) :]
        if data[: len(header)] != header:
            raise Problem(f"the local header of {entry.name} differs from the directory")
        if zlib.crc32(content) != crc:
            raise Problem(f"{entry.name} is damaged: its CRC-32 is wrong")
        return content

    def _part(self, entry: Entry) -> bytes:
        if entry.size > MAX_PART:
            raise Problem(f"{entry.name} is too large")
        return bytes(self._content(entry))

    def _recover(self, recovery: Recovery, header_bytes: bytes) -> Keys:
        for data_key in recovery.data_keys(self.slots):
            try:
                return self._unlock(data_key, header_bytes)
            except KeyProblem:
                continue  # anybody can write a slot with another key
        raise KeyProblem("this recovery key opens none of the archive's key slots")

    def _unlock(self, data_key: bytes, header_bytes: bytes) -> Keys:
        keys = Keys(data_key, bytes.fromhex(self.header["archive_id"]), header_bytes)
        if not hmac.compare_digest(keys.commit(), bytes.fromhex(self.header["commit"])):
            raise KeyProblem("this key is not the one the archive was made with, or its header was altered")
        return keys

    def _read_footer(self) -> Members:
        data = self._part(self.entries[-1])
        footer = strict_json(data, "footer.json")
        check_members(footer, "footer.json", FOOTER_MEMBERS, optional={"mac": is_text(HEX64)})
        mac = footer.get("mac")
        records = hashlib.sha256(b"".join(entry.record for entry in self.entries[:-1])).hexdigest()
        agreed = (
            canonical(footer) == data,
            footer["archive_id"] == self.header["archive_id"],
            footer["entries"] == len(self.entries) - 1,
            footer["bytes"] == self.entries[-1].offset,
            footer["directory_sha256"] == records,
            (mac is not None) == self.sealed,
        )
        if not all(agreed):
            raise Problem("header, directory and footer do not belong together")
        if self._keys is not None and mac is not None:
            message = canonical({name: value for name, value in footer.items() if name != "mac"})
            if not hmac.compare_digest(self._keys.footer_mac(message), bytes.fromhex(mac)):
                raise Problem("the footer is not what was sealed there")
        return footer

    def _read_manifest(self) -> Members:
        parts, length = [], 0
        for raw in self._chunks(MANIFEST):
            parts.append(raw)
            length += len(raw)
            if length > MAX_MANIFEST:
                raise Problem("the manifest is too large")
        manifest = read_manifest(b"".join(parts))
        counts = {stream["id"]: stream["chunks"] for stream in manifest["streams"]}
        agreed = (
            manifest["archive_id"] == self.header["archive_id"],
            counts == {stream: count for stream, count in self._counts.items() if stream != MANIFEST},
            self.footer["raw_bytes"] == sum(stream["bytes"] for stream in manifest["streams"]),
        )
        if not all(agreed):
            raise Problem("the manifest does not fit what the archive holds")
        return manifest

    def _chunks(self, stream: int) -> Iterator[bytes]:
        """Yield the raw bytes of each chunk of a stream, authenticated."""
        if self.sealed and self._keys is None:
            raise KeyProblem(
                "this archive is sealed: give a recovery key (--recovery-key) or its data key (--key-file)"
            )
        if self._engine is None:
            self._engine = find_decompressor()
        max_raw, count = self.header["max_raw"], self._counts[stream]
        most = max_raw + (max_raw >> 8) + 1024 + (16 if self.sealed else 0)
        prefix = f"streams/{stream:08x}/"
        chunks = (entry for entry in self.entries if entry.name.startswith(prefix))
        for index, entry in enumerate(chunks):
            if entry.size > most:
                raise Problem(f"{entry.name} is larger than a chunk can be")
            body: bytes | memoryview = self._content(entry)
            last = index == count - 1
            if self._keys is not None:
                body = self._keys.open(stream, index, last, body)
            raw = decompress(self._engine, body, max_raw)
            yield raw


def canonical(value: Members) -> bytes:
    """Return the canonical JSON of an object of plain members."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# ------------------------------------------------------------------------------------------------------ commands


def shown(text: object) -> str:
    """Make text from an archive safe for a terminal."""
    return "".join(char if char.isprintable() else "?" for char in str(text))


def command_list(archive: Archive, options: argparse.Namespace) -> None:
    """Tell what the archive holds."""
    if options.json:
        told: Members = {"header": archive.header, "footer": archive.footer, "manifest": archive.manifest}
        told["slots"] = [slot["type"] for slot in archive.slots]
        told["signer"] = archive.signer
        print(json.dumps(told, indent=2, sort_keys=True))
        return
    header = archive.header
    print(f"{header['name']}: {shown(header['product'])} {shown(header['server_version'])}, {header['created']}")
    kinds = ", ".join(slot["type"] for slot in archive.slots)
    print(f"  sealed, key slots: {kinds}" if archive.sealed else "  not sealed")
    if header.get("fingerprint"):
        print(f"  {shown(header['fingerprint'])}")
    if archive.signer is not None:
        print(f"  signed by {archive.signer}: compare that with the recovery kit")
    print(f"  {archive.footer['entries'] + 1} entries, {archive.footer['raw_bytes']} bytes when unpacked")
    if archive.manifest is None:
        print("  What is inside is sealed, and what stands above is not proven: give a key.")
        return
    print(f"{'ID':>6}  {'BYTES':>14}  KIND AND LABELS")
    for stream in archive.manifest["streams"]:
        labels = " ".join(f"{name}={value}" for name, value in sorted(stream["labels"].items()))
        print(f"{stream['id']:>6}  {stream['bytes']:>14}  {stream['kind']} {shown(labels)}")


def command_verify(archive: Archive, options: argparse.Namespace) -> None:
    """Read every byte and compare it with what the archive says of itself."""
    raw, name, count = archive.verify(), archive.header["name"], len(archive.streams())
    by = f"signed by {archive.signer}" if archive.signer else "not signed"
    proven = (
        f"all of it is authentic for this key, and {by}"
        if archive.sealed
        else "nothing is damaged (not sealed: authorship is not proven)"
    )
    if options.json:
        print(json.dumps({"name": name, "streams": count, "raw_bytes": raw, "ok": True, "signer": archive.signer}))
    else:
        print(f"{name}: {count} streams, {raw} bytes; {proven}")


def file_name(stream: Members) -> str:
    """Return a name for the file of a stream that is safe on every file system, and its own."""
    told = [value for _, value in sorted(stream["labels"].items())]
    safe = re.sub(r"[^A-Za-z0-9._=-]+", "_", "-".join([stream["kind"], *told]))
    return f"{stream['id']:06d}-{safe[:120]}{EXTENSIONS.get(stream['kind'], '.bin')}"


def command_extract(archive: Archive, options: argparse.Namespace) -> None:
    """Write streams to files."""
    streams = [
        stream
        for stream in archive.streams()
        if options.stream in (None, stream["id"]) and options.kind in (None, stream["kind"])
    ]
    if not streams and (options.stream is not None or options.kind is not None):
        raise Problem("the archive has no such stream: see what it has with `list`")
    os.makedirs(options.directory, mode=0o700, exist_ok=True)
    targets = {os.path.join(options.directory, file_name(stream)): stream for stream in streams}
    manifest = os.path.join(options.directory, "manifest.json")
    for path in [*targets, manifest]:
        if os.path.lexists(path):
            raise FileProblem(f"{path} exists already: extract into an empty directory")
    for path, stream in targets.items():
        if stream["kind"] == "postgresql.small_tables":
            write_tables(path, archive.stream(stream), stream)
        else:
            write_whole(path, archive.stream(stream))
        print(path)
    write_whole(manifest, [json.dumps(archive.manifest, indent=2, sort_keys=True).encode() + b"\n"])
    print(manifest)


def write_tables(directory: str, pieces: Iterable[bytes], stream: Members) -> None:
    """Write the tables of one stream to files of their own, once all of it is there and proven."""
    try:
        tables = [(told["schema"], told["table"], int(told["bytes"])) for told in stream["details"]["tables"]]
    except (KeyError, TypeError, ValueError):
        raise Problem(f"stream {stream['id']} does not say where its tables end") from None
    if sum(size for _, _, size in tables) != stream["bytes"] or any(size < 0 for _, _, size in tables):
        raise Problem(f"stream {stream['id']} does not say where its tables end")
    whole = directory + ".whole"
    write_whole(whole, pieces)
    os.makedirs(directory, mode=0o700)
    with open(whole, "rb") as file:
        for number, (schema, table, size) in enumerate(tables):
            name = re.sub(r"[^A-Za-z0-9._=-]+", "_", f"{schema}.{table}")[:120]
            write_whole(os.path.join(directory, f"{number:03d}-{name}.copy"), pieces_of(file, size))
    os.unlink(whole)


def pieces_of(file: BinaryIO, size: int) -> Iterable[bytes]:
    """Yield the next bytes of a file."""
    while size > 0:
        piece = file.read(min(size, 1 << 20))
        size -= len(piece)
        yield piece


def write_whole(path: str, pieces: Iterable[bytes]) -> None:
    """Write a file under a temporary name; give it its own name only when all of it is there and proven."""
    handle, temporary = tempfile.mkstemp(prefix=".unfinished-", dir=os.path.dirname(path) or ".")  # mode 0600
    try:
        with open(handle, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=shape)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("list", "tell what an archive holds"),
        ("verify", "read every byte of an archive and check it"),
        ("extract", "write the streams of an archive to files"),
    ):
        command = commands.add_parser(name, help=text, description=text, epilog=EXAMPLES, formatter_class=shape)
        command.add_argument("archive", metavar="ARCHIVE", help="the archive file")
        if name == "extract":
            command.add_argument("directory", metavar="DIR", help="where to write; made when it is missing")
            command.add_argument("--stream", type=int, metavar="ID", help="only the stream of this number")
            command.add_argument("--kind", metavar="K", help="only streams of this kind, like tree.tar")
        else:
            command.add_argument("--json", action="store_true", help="print JSON")
        key = command.add_mutually_exclusive_group()
        key.add_argument("--key-file", metavar="FILE", help="file with the data key: 32 bytes, or 64 hex digits")
        key.add_argument("--key", metavar="HEX", help="the data key itself; others can see it in the process list")
        key.add_argument("--recovery-key", metavar="FILE", help="an age identity file; - reads it from stdin")
        command.add_argument("--recovery-passphrase-file", metavar="FILE", help="file with the recovery passphrase")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    options = parse_arguments(arguments)
    run = {"list": command_list, "verify": command_verify, "extract": command_extract}[options.command]
    try:
        data_key = read_key(options)
        with open(options.archive, "rb") as file:
            run(Archive(file, data_key, read_recovery(options), read_sidecar(options.archive)), options)
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return problem.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return FileProblem.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
