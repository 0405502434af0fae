"""Mutants for every reader: only errors that are meant, in little time and memory; and two readers that judge alike.

A mutant that breaks a reader is left in `build/scoreboard/findings`; once it is mended it goes to `tests/corpus`, where
it is tried in every run.
"""

from __future__ import annotations

import hashlib
import random
import resource
import subprocess
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from service.archive.names import archive_name
from service.errors import ServiceError
from service.pipeline.unpack import ArchiveReader
from service.progress import Progress
from storage_backends.local import LocalBackend
from tests.fuzzing import archives
from tests.fuzzing.readers import READERS, Reader
from tests.pipeline_archives import contents
from tests.scoreboard import counted
from tests.sizes import SEED, size
from tests.vectors.small import CREATED, KnownKey

MUTANTS = size("MUTANTS", 2000)
ARCHIVE_MUTANTS = size("ARCHIVE_MUTANTS", 600)
SLOWEST = 2.0
"""Seconds of the processor that one mutant may take: what else the machine does counts for nothing."""
MOST_MIB = 200
CORPUS = Path(__file__).parents[1] / "corpus"
FINDINGS = Path(__file__).parents[2] / "build" / "scoreboard" / "findings"
FOREIGN = (["unzip", "-Z1"], ["bsdtar", "-tf"], ["7z", "l", "-slt", "-ba"])

Count = Callable[[str, object], None]


def corpus(name: str) -> list[bytes]:
    """Return what is kept of mutants that broke a reader once."""
    return [path.read_bytes() for path in sorted((CORPUS / name.replace(" ", "-")).glob("*"))]


def left(name: str, data: bytes) -> Path:
    """Leave a mutant that broke a reader where somebody finds it."""
    path = FINDINGS / name.replace(" ", "-") / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def try_one(reader: Reader, data: bytes) -> bool:
    """Read one mutant; tell whether it was taken."""
    began = time.process_time()
    try:
        reader.read(data)
    except reader.errors:
        return False
    except Exception as error:
        raise AssertionError(f"{reader.name} raises {error!r} for {left(reader.name, data)}") from error
    else:
        return True
    finally:
        taken = time.process_time() - began
        assert taken < SLOWEST, f"{reader.name} takes {taken:.1f} s for {left(reader.name, data)}"


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name.replace(" ", "-"))
def test_no_mutant_breaks_a_reader(reader: Reader, record_property: Count) -> None:
    for seed in reader.seeds:
        assert try_one(reader, seed), "a seed that is refused leads nowhere"
    before, dice, said = memory(), random.Random(SEED ^ zlib.crc32(reader.name.encode())), Counter[str]()
    for kept in corpus(reader.name):
        try_one(reader, kept)
    pool = list(reader.seeds)
    for _ in range(max(1, round(MUTANTS * reader.share))):
        data = reader.mutate(dice.choice(pool), dice, pool)
        taken = try_one(reader, data)
        said["taken" if taken else "refused"] += 1
        if taken and len(pool) < 50:
            pool.append(data)  # what is still taken leads further
    assert memory() - before < MOST_MIB
    assert said["refused"], "no mutant was odd enough to be refused"
    record_property("counted", counted(said.total(), "", said, seed=SEED))


@pytest.mark.timeout(7200)
async def test_whole_archives_that_pass_every_checksum_are_judged_alike_by_both_readers(
    tmp_path: Path, record_property: Count
) -> None:
    before, dice, said = memory(), random.Random(SEED), Counter[str]()
    name = archive_name(CREATED)
    target = LocalBackend(tmp_path)
    for number in range(-len(corpus("archive")), ARCHIVE_MUTANTS):
        data = archives.mutant(dice) if number >= 0 else corpus("archive")[number]
        began = time.process_time()
        try:
            ours, theirs = archives.first(data), archives.second(data)
        except Exception as error:
            raise AssertionError(f"{error!r} for {left('archive', data)}") from error
        assert time.process_time() - began < SLOWEST, left("archive", data)
        assert ours.streams == theirs.streams, f"{ours.why!r} and {theirs.why!r}: {left('archive', data)}"
        if number % 3 == 0 or ours.streams is not None:
            (tmp_path / name).write_bytes(data)
            assert await service_takes(target, name) == (ours.streams is not None), left("archive", data)
            said["refused_by_the_service_too"] += ours.streams is None
        if ours.streams is None:
            said["refused_by_both_readers"] += 1
            continue
        said["taken_by_all"] += 1
        assert archives.zipfile_lists_the_same(data), left("archive", data)
        if said["taken_by_all"] % 40 == 1:
            assert foreign_readers_agree(tmp_path / name), left("archive", data)
            said["listed_by_foreign_readers"] += 1
    assert memory() - before < MOST_MIB
    assert said["taken_by_all"] > ARCHIVE_MUTANTS / 100 and said["refused_by_both_readers"] > ARCHIVE_MUTANTS / 10
    tried = said["taken_by_all"] + said["refused_by_both_readers"]
    record_property("counted", counted(tried, "", said, seed=SEED))


async def service_takes(target: LocalBackend, name: str) -> bool:
    """Tell whether the service's pipeline reads and verifies what is in the target; both say the same."""
    try:
        reader = await ArchiveReader.open(target, name, [KnownKey()])
    except ServiceError:
        return False
    found = []
    for work in (lambda: contents(reader), lambda: reader.verify(Progress())):
        try:
            await work()
            found.append(True)
        except ServiceError:
            found.append(False)
    assert found[0] or not found[1], "what verifies can be read"
    return all(found)


def foreign_readers_agree(path: Path) -> bool:
    """Tell whether three other programs list the same entries."""
    told = set()
    for command in FOREIGN:
        lines = subprocess.run([*command, path], capture_output=True, text=True, check=True).stdout.splitlines()
        if command[0] == "7z":
            lines = [line.removeprefix("Path = ") for line in lines if line.startswith("Path = ")]
        told.add(tuple(lines))
    return len(told) == 1


def test_the_mutants_are_the_same_for_the_same_seed() -> None:
    reader = READERS[0]
    made = [
        [reader.mutate(reader.seeds[0], dice, reader.seeds) for _ in range(20)]
        + [archives.mutant(dice) for _ in range(5)]
        for dice in (random.Random(5), random.Random(5))
    ]
    assert made[0] == made[1]
