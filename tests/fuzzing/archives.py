"""Mutants of whole archives that get past the checksums: keys, MAC, digests and directory are made to fit again.

So what refuses one is a rule of the format and not a checksum, and both readers have to know the rule.
"""

from __future__ import annotations

import io
import json
import random
import zipfile
from dataclasses import dataclass

from service.archive import names, zip64
from service.archive.parts import Footer
from service.errors import ServiceError
from service.sealing.suite import ArchiveKeys
from tests.fuzzing import mutate
from tests.vectors.second_reader import open_archive, read_second
from tests.vectors.small import ARCHIVE_ID, DATA_KEY, STREAMS, Draft, container, draft, make_header, make_manifest, read


def mutant(dice: random.Random) -> bytes:
    """Return a file that may be an archive."""
    sealed = dice.random() < 0.6
    made = _draft(sealed, dice)
    for _ in range(dice.choice((0, 1, 1, 2))):
        _change_entries(made, dice)
    data = _finished(made, dice)
    if dice.random() < 0.25:
        data = _change_container(data, dice)
    return data


def _draft(sealed: bool, dice: random.Random) -> Draft:
    """Return a draft whose header or manifest is another, sealed with the right key all the same."""
    header = make_header(sealed=sealed).to_bytes()
    manifest = make_manifest(STREAMS).to_bytes()
    roll = dice.random()
    if roll < 0.3:
        header = mutate.of_json(header, dice)
    elif roll < 0.6:
        manifest = mutate.of_json(manifest, dice)
    streams = {number: list(chunks) for number, chunks in STREAMS.items()}
    if dice.random() < 0.1:
        number = dice.choice(list(streams))
        streams[number] = [mutate.of_bytes(raw, dice) for raw in streams[number]]
    return draft(sealed=sealed, header=header, manifest=manifest, streams=streams)


def _change_entries(made: Draft, dice: random.Random) -> None:
    entries = made.entries
    at = dice.randrange(len(entries))
    name, content = entries[at]
    match dice.randrange(7):
        case 0:
            entries[at] = (name, mutate.of_bytes(content, dice))
        case 1:
            entries[at] = (mutate.of_bytes(name.encode(), dice).decode("latin-1")[:60000], content)
        case 2:
            del entries[at]
        case 3:
            entries.insert(dice.randrange(len(entries) + 1), entries[at])
        case 4:
            other = dice.randrange(len(entries))
            entries[at], entries[other] = entries[other], entries[at]
        case 5:
            if names.parse_stream_entry(name) is None:
                entries[at] = (name, mutate.of_json(content, dice))
            else:  # a chunk under another number, or of another stream
                entries[at] = (
                    names.stream_entry(dice.choice((1, 2, 7, 8)), dice.randrange(3), sealed=bool(made.keys)),
                    content,
                )
        case 6:
            entries.insert(
                at, (dice.choice(("extra", "keyslots.json", "header.json", "footer.json", "streams/")), b"{}")
            )


def _finished(made: Draft, dice: random.Random) -> bytes:
    roll = dice.random()
    try:
        if roll < 0.15:
            change = {dice.choice(list(Footer.model_fields)): dice.choice(mutate.ODD_VALUES)}
            return made.finish(**change)
        if roll < 0.25:  # a footer with other members, with the right MAC
            whole = made.finish()
            return _with_footer(made, mutate.of_json(_footer_of(whole), dice), dice)
        return made.finish()
    except (ValueError, UnicodeError, ServiceError):  # the writer does not take it
        return container([(name if name.isascii() else "x", content) for name, content in made.entries])


def _footer_of(whole: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(whole)) as file:
        return file.read(names.FOOTER)


def _with_footer(made: Draft, footer: bytes, dice: random.Random) -> bytes:
    if made.keys is not None and dice.random() < 0.7:
        try:
            members = json.loads(footer)
            members.pop("mac", None)
            text = json.dumps(members, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
            keys = ArchiveKeys(DATA_KEY, archive_id=ARCHIVE_ID, header=made.header)
            members["mac"] = keys.footer_mac(text).hex()
            footer = json.dumps(members, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
        except (ValueError, AttributeError, TypeError, RecursionError):
            pass
    return container([*made.entries, (names.FOOTER, footer)])


def _change_container(data: bytes, dice: random.Random) -> bytes:
    """Change bytes of the local headers, the directory or its end; or put something before, between or behind."""
    roll = dice.random()
    if roll < 0.5:
        start = max(0, len(data) - dice.choice((22, 98, 800)))
        return data[:start] + mutate.of_bytes(data[start:], dice)
    if roll < 0.8:
        at = max(0, data.find(b"PK\x03\x04", dice.randrange(len(data))))
        return data[:at] + mutate.of_bytes(data[at : at + 50], dice) + data[at + 50 :]
    if roll < 0.9:
        return dice.choice((b"\0", b"#!/bin/sh\n", data)) + data
    return data + dice.choice((b"\0", b"PK\x05\x06" + bytes(18), data[-22:]))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reader made of a file: the bytes of each stream, or None when it refused it."""

    streams: dict[int, bytes] | None
    why: str = ""


def first(data: bytes) -> Verdict:
    """Read with the service's own code."""
    try:
        return Verdict({number: b"".join(chunks) for number, chunks in read(data, DATA_KEY).items()})
    except ServiceError as error:
        return Verdict(None, str(error))


def second(data: bytes) -> Verdict:
    """Read with the stand-alone reader."""
    try:
        return Verdict(read_second(data, DATA_KEY))
    except open_archive.Problem as error:
        return Verdict(None, str(error))


def zipfile_lists_the_same(data: bytes) -> bool:
    """Tell whether Python's zipfile sees the entries that the service sees in a file that it takes."""
    location = zip64.locate_directory(data[-zip64.TAIL_BYTES :], file_size=len(data))
    ours = [
        entry.name for entry in zip64.parse_directory(data[location.offset : location.offset + location.size], location)
    ]
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return file.namelist() == ours and file.testzip() is None
