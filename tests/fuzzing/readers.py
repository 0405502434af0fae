"""Every reader of bytes that somebody else may have written: seeds that it takes, and the errors that it may raise."""

from __future__ import annotations

import asyncio
import json
import random
import struct
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service import config, strict_yaml
from service.api import params
from service.archive import chunk, names, zip64
from service.archive.parts import Footer, Header, KeySlots, Manifest
from service.errors import (
    ArchiveError,
    ConfigError,
    CorruptArchive,
    DamagedSlot,
    NotAuthentic,
    RestoreError,
    SealError,
)
from service.journal import journals
from service.pipeline.signature import signer_of
from service.rpc import codec
from service.sealing.age import AgeIdentity, check_work, stanzas
from service.sealing.age import parse_slot as parse_age_slot
from service.sealing.tpm import public_area
from service.sealing.tpm.pin import load_pin
from service.sealing.tpm.restore_pin import load_restore_pin
from service.sealing.tpm.slot import parse_slot as parse_tpm_slot
from service.sources.postgresql.load import Cut
from service.sources.tar_reader import TarReader
from service.sources.tar_stream import END, HeaderWriter, Kind, Member, padding
from service.strict_json import strict_loads
from tests.fuzzing import mutate
from tests.vectors.small import STREAMS, draft, make_header, make_manifest

Mutate = Callable[[bytes, random.Random, Sequence[bytes]], bytes]
VECTORS = Path(__file__).parents[1] / "vectors"
EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True, slots=True)
class Reader:
    """`read` takes any bytes and returns, or raises one of `errors`; everything else is a failure.

    It is fed mutants of `seeds`, which it takes without an error. Some are slow: they get a `share` of the mutants.
    """

    name: str
    read: Callable[[bytes], object]
    seeds: Sequence[bytes]
    errors: tuple[type[Exception], ...]
    mutate: Mutate = mutate.of_bytes
    share: float = 1.0
    others: Sequence[bytes] = field(default=())


_DIRECTORY = Path(tempfile.mkdtemp(prefix="fuzzing-", dir="/dev/shm"))


def _of_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Return a reader of a file's content."""
    path = _DIRECTORY / name
    path.parent.mkdir(parents=True, exist_ok=True)

    def of_content(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return of_content


def _catalogue(data: bytes) -> object:
    tail = data[-zip64.TAIL_BYTES :]
    location = zip64.locate_directory(tail, file_size=len(data))
    entries = zip64.parse_directory(data[location.offset : location.offset + location.size], location)
    for entry in entries:
        names.parse_stream_entry(entry.name)
        zip64.check_entry(data[entry.offset : entry.end], entry)
    return zip64.last_entry(tail, location)


def _frame(data: bytes) -> object:
    return chunk.decompress(data, max_raw=1 << 16)


def _tar(data: bytes) -> object:
    """Read in one piece and in small ones: what comes out may not depend on it."""
    found: list[list[object]] = []
    for at_once in (len(data) or 1, 512, 77):
        reader, told = TarReader(), list[object]()
        try:
            for at in range(0, len(data), at_once):
                told += [piece.member for piece in reader.feed(data[at : at + at_once]) if piece.member]
            reader.finish()
        except ArchiveError as error:
            told = [type(error)]
        found.append(told)
    assert found[0] == found[1] == found[2], "pieces of another size are read otherwise"
    if found[0] == [CorruptArchive]:
        raise CorruptArchive("by all three")
    return found


def _tar_seed() -> bytes:
    writer = HeaderWriter()
    members = [
        Member("", Kind.DIRECTORY, 0o755, 0, 0, "root", "root", 1_600_000_000_000_000_001),
        Member("a" * 120 + "/ü", Kind.FILE, 0o4755, 70_000, 3_000_000, "", "grüppe", -5, 700),
        Member("dir/b", Kind.FILE, 0o644, 0, 0, "root", "root", 1_700_000_000_123_456_789, 5),
        Member("dir/c", Kind.SYMLINK, 0o777, 0, 0, "root", "root", 1_700_000_000_000_000_000, 0, "../b"),
        Member("dir/x", Kind.FILE, 0o600, 1, 1, "root", "root", 0, 3, xattrs=(("user.a=b%", b"\0\1"),)),
    ]
    return b"".join(writer.header(one) + b"x" * one.size + padding(one.size) for one in members) + END


def _small_tables(data: bytes) -> object:
    """The first bytes tell the sizes of tables, the next one how the stream comes in pieces, the rest is the stream."""
    if len(data) < 10:
        return None
    *sizes, piece = struct.unpack(">4HB", data[:9])
    stream = data[9:]

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(stream), piece + 1):
            yield stream[at : at + piece + 1]

    async def cut() -> list[bytes]:
        cutting = Cut(pieces())
        found = [b"".join([part async for part in cutting.take(size)]) for size in sizes]
        assert b"".join(found) == stream[: sum(sizes)]
        assert await cutting.ended() == (len(stream) == sum(sizes))
        return found

    return asyncio.run(cut())


def _yaml(data: bytes) -> object:
    return strict_yaml.parse(data, name="x")


def _request(data: bytes) -> object:
    asked = codec.parse(data)
    found = []
    for model in _PARAMS:
        try:
            found.append(model.model_validate(asked.params))
        except ValidationError:
            continue
    return found


_PARAMS = [
    each for each in vars(params).values() if isinstance(each, type) and each.__module__ == params.__name__
    and hasattr(each, "model_validate")
]  # fmt: skip


def _journal(path: Path) -> object:
    return journals(path.parent.parent)


def _tpm_slot(data: bytes) -> object:
    return parse_tpm_slot(_object(data))


def _age_slot(data: bytes) -> object:
    slot = parse_age_slot(_object(data))
    if any(kind == "scrypt" for kind, *_ in stanzas(slot.file)):
        return check_work(slot.file)  # opening it takes a second or two
    return _AGE._open(slot)


class _Identities:
    """What `AgeIdentity` needs of a recovery key."""

    identities = (json.loads((VECTORS / "slots.json").read_text())["identity"],)
    protected = None
    passphrase = None


_AGE = AgeIdentity(_Identities())  # type: ignore[arg-type]


def _object(data: bytes) -> dict[str, Any]:
    value = strict_loads(data)
    if not isinstance(value, dict):
        raise ValueError("no object")  # noqa: TRY004 - as strict_loads does
    return value


def _public_area(data: bytes) -> object:
    found = []
    for look in (
        public_area.name_of,
        public_area.counts_tries,
        public_area.require_storage_parent,
        public_area.require_pin_object,
        public_area.require_sealed_object,
        public_area.signing_point,
        public_area.pin_policy,
    ):
        try:
            found.append(look(data))
        except public_area.BadPublicArea:
            continue
    if not found:
        raise public_area.BadPublicArea("to none of them")
    return found


def _signature(data: bytes) -> object:
    return signer_of(data, Manifest.from_bytes(data), _SIGNED_HEADER)


_PARTS = dict(draft(sealed=True).entries)
_SLOTS = json.loads((VECTORS / "slots.json").read_text())["slots"]
_SEEDS = Path(__file__).parent / "seeds"
_TPM_SLOTS = [(_SEEDS / name).read_bytes() for name in ("tpm-slot.json", "tpm-slot-with-pin.json")]
_AREAS = [bytes.fromhex(json.loads(slot)[area]) for slot in _TPM_SLOTS for area in ("srk_public", "public")]
_SIGNED = json.loads((VECTORS / "signature.json").read_text())
_SIGNED_HEADER = _SIGNED["header"].encode()
_SIGNED_MANIFEST = json.dumps(
    json.loads(_SIGNED["manifest_without_signature"])
    | {"signature": {"public_key": _SIGNED["public_key"], "value": _SIGNED["value"]}}
).encode()
_FOOTER = json.loads((VECTORS / "footer.json").read_text())["footer"].encode()
_JOURNAL = json.dumps(
    {
        "id": "0123abcd",
        "archive": "Backup_20250131_0200Z.zip",
        "started": "2025-01-31T02:00:07+00:00",
        "state": "staging",
        "participants": [{"name": "tree", "settings": {"type": "tree"}, "preserve": [], "record": {"id": "0123abcd"}}],
        "hooks_begun": False,
        "swapped": "",
    }
).encode()
_REQUESTS = [
    b'{"jsonrpc":"2.0","id":1,"method":"archive.list","params":{"limit":50}}\n',
    b'{"jsonrpc":"2.0","id":"a","method":"restore.start","params":{"archive":"Backup_20250131_0200Z.zip","allow":["X"]}}\n',
    b'{"jsonrpc":"2.0","id":9223372036854775807,"method":"settings.set","params":{"settings":{"enabled":true}}}\n',
]
_CONFIGURATIONS = [path.read_bytes() for path in sorted(EXAMPLES.glob("*.yaml")) if path.name != "portal.yaml"]

_DOCUMENTS = [json.dumps(strict_yaml.parse(one, name="x")[0]).encode() for one in _CONFIGURATIONS]
_FRAMES = [chunk.compress(raw, level=1) for raw in (b"", b"x" * 5000, bytes(range(256)) * 9)]
_ARCHIVES = [draft(sealed=True).finish(), draft(sealed=False).finish()]
_MANIFEST = make_manifest(STREAMS).to_bytes()
_AGE_SLOTS = [json.dumps(each["slot"]).encode() for each in _SLOTS if each["opens_with"] == "identity"]
_TABLES = struct.pack(">4HB", 3, 0, 5, 2, 1) + b"aaabbbbbcc"
_config, _config_json = _of_file("config.yaml", config.read), _of_file("config2.yaml", config.read)
_of_json = mutate.of_json

READERS = [
    Reader("catalogue", _catalogue, _ARCHIVES, (ArchiveError,)),
    Reader("header", Header.from_bytes, [make_header(sealed=True).to_bytes()], (ArchiveError,), _of_json),
    Reader("keyslots", KeySlots.from_bytes, [_PARTS[names.KEYSLOTS]], (ArchiveError,), _of_json),
    Reader("manifest", Manifest.from_bytes, [_MANIFEST, _SIGNED_MANIFEST], (ArchiveError,), _of_json),
    Reader("footer", Footer.from_bytes, [_FOOTER], (ArchiveError,), _of_json),
    Reader("frame", _frame, _FRAMES, (ArchiveError,)),
    Reader("signature", _signature, [_SIGNED_MANIFEST], (ArchiveError, NotAuthentic), _of_json),
    Reader("tpm slot", _tpm_slot, _TPM_SLOTS, (ValueError, DamagedSlot), _of_json),
    Reader("age slot", _age_slot, _AGE_SLOTS, (ValueError, SealError), _of_json, share=0.3),
    Reader("public area", _public_area, _AREAS, (ValueError,)),
    Reader("pinned tpm", _of_file("tpm.json", load_pin), [(_SEEDS / "tpm.json").read_bytes()], (SealError,), _of_json),
    Reader(
        "restore pin",
        _of_file("restore-pin.json", load_restore_pin),
        [(_SEEDS / "restore-pin.json").read_bytes()],
        (SealError,),
        _of_json,
    ),
    Reader("tar", _tar, [_tar_seed()], (ArchiveError,), share=0.5),
    Reader("small tables", _small_tables, [_TABLES], (RestoreError,), share=0.3),
    Reader("json", strict_loads, [_MANIFEST, b'{"a":[1,-2.5e3,"\\u00e9",null]}'], (ValueError,), _of_json),
    Reader("json line", _request, _REQUESTS, (codec.RpcError,), _of_json, share=0.5),
    Reader("yaml", _yaml, _CONFIGURATIONS, (ConfigError,), share=0.03),
    Reader("configuration", _config, _CONFIGURATIONS, (ConfigError,), share=0.03),
    Reader("configuration as JSON", _config_json, _DOCUMENTS, (ConfigError,), _of_json, share=0.03),
    Reader("journal", _of_file("state/restores/0123abcd.json", _journal), [_JOURNAL], (RestoreError,), _of_json, 0.3),
]
