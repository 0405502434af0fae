"""The JSON parts of an archive: header, key slots, manifest, footer.

Reading is strict: JSON as `strict_json` says, sizes, typed members. Header, key slots and footer have exactly the
members of version 1, less those that do not apply; only the manifest may have more than this reader knows, since
sources grow and what they add does not change how the bytes are read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from service.archive import names, zip64
from service.archive.chunk import MAX_RAW
from service.archive.strict_json import canonical_json, strict_loads
from service.errors import CorruptArchive, UnsupportedArchive

FORMAT: Final = "deviceon-backup"
VERSION: Final = 1
"""The version of the format that this code writes, and the newest that it reads."""
SUITE_NONE: Final = 0
SUITE_AES_256_GCM: Final = 1
MAX_PART_BYTES: Final = 64 * 1024
"""Bytes of header.json, keyslots.json and footer.json, at most."""
MAX_MANIFEST_BYTES: Final = 64 * 1024 * 1024
"""Raw bytes of the manifest, at most."""

_MAX_NUMBER: Final = 2**53 - 1  # beyond it, JSON numbers lose digits in most languages
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_ALTERED: Final = "The archive was damaged or altered. Use another archive."


def _read_time(value: Any) -> Any:
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise ValueError("a time is written YYYY-MM-DDTHH:MM:SSZ")
    return datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def _utc_seconds(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("a time must say its time zone")
    return value.astimezone(UTC).replace(microsecond=0)


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("text holds characters that cannot be shown")
    return value


_Bytes = bytes  # for classes that have a member called `bytes`
Count = Annotated[int, Field(strict=True, ge=0, le=_MAX_NUMBER)]
Line = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_printable)]
"""One line of text that is safe to show on a terminal."""
Digest = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
ArchiveId = Annotated[str, Field(pattern=r"\A[0-9a-f]{32}\z")]
SourceName = Annotated[str, Field(pattern=r"\A[a-z0-9-]{1,32}\z")]
Time = Annotated[
    datetime,
    BeforeValidator(_read_time),
    AfterValidator(_utc_seconds),
    # Not strftime: its %Y does not pad years before 1000 everywhere.
    PlainSerializer(lambda value: f"{value.replace(tzinfo=None).isoformat()}Z", when_used="json"),
]
"""An aware time; kept in UTC and whole seconds."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_bytes(self) -> bytes:
        """Return the part as canonical JSON. Raises ValueError when it is larger than a reader accepts."""
        data = canonical_json(self._members())
        if len(data) > self._limit():
            raise ValueError(f"{self._title()} would have {len(data)} bytes; {self._limit()} are allowed")
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the part. Raises CorruptArchive, and UnsupportedArchive for a newer format."""
        return cls._validate(cls._load(data))

    def _members(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @classmethod
    def _load(cls, data: bytes) -> dict[str, Any]:
        if len(data) > cls._limit():
            raise CorruptArchive(f"{cls._title()} is larger than {cls._limit()} bytes", hint=_ALTERED)
        value = strict_loads(data)
        if not isinstance(value, dict):
            raise CorruptArchive(f"{cls._title()} is not a JSON object", hint=_ALTERED)
        return value

    @classmethod
    def _validate(cls, value: Any) -> Self:
        try:
            return cls.model_validate(value)
        except ValidationError as exc:
            first = exc.errors()[0]
            place = ".".join(str(step)[:60] for step in first["loc"])
            raise CorruptArchive(
                f"{cls._title()} is not as this format writes it: {place} {first['msg']}".replace("  ", " "),
                hint=_ALTERED,
            ) from exc

    @classmethod
    def _limit(cls) -> int:
        return MAX_PART_BYTES

    @classmethod
    def _title(cls) -> str:
        return f"the archive's {cls.__name__.lower()}"


class _Plain(_Part):
    """A part whose members are plain values. One that does not apply (None) is absent from the JSON, never null."""

    def _members(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)

    @classmethod
    def _load(cls, data: bytes) -> dict[str, Any]:
        value = super()._load(data)
        if None in value.values():
            raise CorruptArchive(f"{cls._title()} has a member that is null", hint=_ALTERED)
        return value


class Header(_Plain):
    """header.json: what the archive claims to be, until a key slot opens and `commit` matches."""

    format: str = Field(default=FORMAT, pattern=rf"\A{FORMAT}\z")
    version: Annotated[int, Field(strict=True, ge=VERSION, le=VERSION)] = VERSION
    min_reader: Annotated[int, Field(strict=True, ge=VERSION, le=VERSION)] = VERSION
    """The oldest version of the format that a reader must know to read this archive."""
    suite: Annotated[int, Field(strict=True, ge=SUITE_NONE, le=SUITE_AES_256_GCM)]
    """1 when the archive is sealed, 0 when it is not."""
    archive_id: ArchiveId
    name: str
    """The name that the archive was published under."""
    created: Time
    seq: Count
    """Counts the backups of one installation; orders archives when clocks do not."""
    product: Line
    server_version: Line
    max_raw: Annotated[int, Field(strict=True, ge=1, le=MAX_RAW)]
    """No chunk holds more raw bytes than this."""
    commit: Digest | None = None
    sealing: Annotated[str, Field(pattern=r"\A[a-z0-9+-]{1,32}\z")]
    """`off`, or the kinds of key slots: `tpm`."""
    fingerprint: Line | None = None
    """Of the TPM that the archive was sealed by, for people."""
    notice: Line
    """One line for whoever finds the file."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if names.parse_archive_name(value) is None:
            raise ValueError("is not the name of an archive")
        return value

    @model_validator(mode="after")
    def _check_sealing(self) -> Self:
        sealed = self.sealing != "off"
        if (self.suite != SUITE_NONE) != sealed or (self.commit is not None) != sealed:
            raise ValueError("suite and commit belong to sealed archives: suite 1 with commit, or suite 0 without")
        if self.fingerprint is not None and not sealed:
            raise ValueError("fingerprint belongs to sealed archives")
        return self

    @property
    def sealed(self) -> bool:
        """Tell whether the chunks are encrypted."""
        return self.suite != SUITE_NONE

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the header. Raises UnsupportedArchive, before anything else is judged, for what is not version 1."""
        value = cls._load(data)
        _refuse_unsupported(value)
        return cls._validate(value)


def _refuse_unsupported(header: dict[str, Any]) -> None:
    if header.get("format") != FORMAT:
        raise UnsupportedArchive("this is not an archive of this service")
    version, reader, suite = (header.get(member) for member in ("version", "min_reader", "suite"))
    # `type(...) is`, since True is an int to isinstance.
    if type(version) is not int or type(reader) is not int or type(suite) is not int:
        raise CorruptArchive("the archive's header lacks its version, min_reader or suite", hint=_ALTERED)
    needed = max(version, reader)
    if needed > VERSION or suite not in (SUITE_NONE, SUITE_AES_256_GCM):
        what = f"format version {version}" if needed > VERSION else f"cryptographic suite {suite}"
        raise UnsupportedArchive(
            f"the archive has {what}; it needs a reader for format {needed} or newer that knows it, "
            f"and this one knows format {VERSION} with suites {SUITE_NONE} and {SUITE_AES_256_GCM}",
            hint="Use the release of deviceon-backup that wrote the archive, or a newer one.",
        )


class KeySlots(_Part):
    """keyslots.json: the data key, wrapped once for each recipient."""

    slots: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=64)]

    @field_validator("slots")
    @classmethod
    def _check_slots(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for slot in value:
            kind = slot.get("type")
            if not isinstance(kind, str) or not re.fullmatch(r"[a-z0-9-]{1,32}", kind):
                raise ValueError("every slot needs a type")
        return value

    @classmethod
    def _title(cls) -> str:
        return "the archive's list of key slots"


class _Open(_Part):
    """What may have members that this reader does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ManifestStream(_Open):
    """One stream: what it is, where it came from, and what it must be when it is read again."""

    id: Annotated[int, Field(strict=True, ge=0, lt=names.MANIFEST_STREAM)]
    source: SourceName
    kind: Annotated[str, Field(pattern=r"\A[a-z][a-z0-9_.-]{0,63}\z")]
    labels: dict[str, str]
    chunks: Annotated[int, Field(strict=True, ge=1, le=zip64.MAX_ENTRIES)]
    bytes: Count
    sha256: Digest
    details: dict[str, Any]


class ManifestSource(_Open):
    """One source as it was configured, with what it told of itself."""

    name: SourceName
    type: Annotated[str, Field(pattern=r"\A[a-z][a-z0-9_-]{0,31}\z")]
    facts: dict[str, Any]


class ManifestSignature(_Open):
    """Who made the archive: a public key (SubjectPublicKeyInfo of P-256) and its ECDSA signature, both DER in hex."""

    public_key: Annotated[str, Field(pattern=r"\A(?:[0-9a-f]{2}){91}\z")]
    value: Annotated[str, Field(pattern=r"\A(?:[0-9a-f]{2}){8,72}\z")]


class Manifest(_Open):
    """The manifest: everything an archive holds."""

    archive_id: ArchiveId
    started: Time
    finished: Time
    tool: dict[str, str]
    """`name` and `version` of the program that wrote the archive."""
    sources: list[ManifestSource]
    streams: list[ManifestStream]
    excluded: list[dict[str, Any]]
    """What was left out on purpose: `source`, `path`, `reason`."""
    warnings: list[str]
    signature: ManifestSignature | None = None
    """Absent when nobody has signed."""

    def _members(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"signature"} if self.signature is None else None)

    @field_validator("signature")
    @classmethod
    def _check_signature(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("is absent when there is none, never null")
        return value

    @field_validator("tool")
    @classmethod
    def _check_tool(cls, value: dict[str, str]) -> dict[str, str]:
        if not {"name", "version"} <= value.keys():
            raise ValueError("tool needs name and version")
        return value

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        sources = [source.name for source in self.sources]
        if len(set(sources)) != len(sources) or len({stream.id for stream in self.streams}) != len(self.streams):
            raise ValueError("a source or a stream is listed twice")
        if not {stream.source for stream in self.streams} <= set(sources):
            raise ValueError("a stream belongs to a source that is not listed")
        return self

    @classmethod
    def _limit(cls) -> int:
        return MAX_MANIFEST_BYTES


class Footer(_Plain):
    """footer.json: the totals, and a seal over the directory."""

    archive_id: ArchiveId
    entries: Count
    """Entries before footer.json."""
    bytes: Count
    """Bytes of the file before footer.json's local header."""
    raw_bytes: Count
    """Raw bytes of all streams together, without the manifest."""
    started: Time
    finished: Time
    directory_sha256: Digest
    """Over the directory records of all entries before footer.json."""
    mac: Digest | None = None
    """Over `without_mac()`; None when sealing is off."""

    def without_mac(self) -> _Bytes:
        """Return what `mac` is made over: the canonical JSON of all other members."""
        return self.model_copy(update={"mac": None}).to_bytes()

    @classmethod
    def from_bytes(cls, data: _Bytes) -> Self:
        """Read the footer; it must be canonical JSON, so that its MAC covers each of its bytes."""
        footer = super().from_bytes(data)
        if footer.to_bytes() != data:
            raise CorruptArchive("the archive's footer is not written the one way it must be", hint=_ALTERED)
        return footer


def check_footer(footer: Footer, *, header: Header, entries: Sequence[zip64.Entry]) -> None:
    """Raise CorruptArchive unless header, directory and footer are of one archive. `mac` is checked elsewhere."""
    sealed = len(entries) > 1 and entries[1].name == names.KEYSLOTS
    agreed = (
        footer.archive_id == header.archive_id,
        footer.entries == len(entries) - 1,
        footer.bytes == entries[-1].offset,
        footer.directory_sha256 == zip64.directory_digest(entries[:-1]),
        header.sealed == sealed == (footer.mac is not None),
    )
    if not all(agreed):
        raise CorruptArchive("the archive's header, directory and footer do not belong together", hint=_ALTERED)


def check_manifest(manifest: Manifest, *, footer: Footer, entries: Sequence[zip64.Entry]) -> None:
    """Raise CorruptArchive unless the manifest lists exactly the streams that the directory has, chunk for chunk."""
    stored = Counter(parsed[0] for entry in entries if (parsed := names.parse_stream_entry(entry.name)))
    del stored[names.MANIFEST_STREAM]
    agreed = (
        manifest.archive_id == footer.archive_id,
        stored == {stream.id: stream.chunks for stream in manifest.streams},
        footer.raw_bytes == sum(stream.bytes for stream in manifest.streams),
    )
    if not all(agreed):
        raise CorruptArchive("the archive's manifest does not match what the archive holds", hint=_ALTERED)
