"""Level `auto` takes the level that is quickest on the data at hand, and only after having tried."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

from service.archive.chunk import compress, decompress
from service.pipeline.level import CANDIDATES, TRIAL_BYTES, TRIALS, Compressor

NOISE = os.urandom(TRIAL_BYTES)


def test_a_given_level_is_the_one_that_is_used() -> None:
    raw = b"".join(b"device %d reported\n" % (n * n) for n in range(20_000))
    assert Compressor(9).compress(raw) == compress(raw, level=9) != compress(raw, level=1)
    assert Compressor(9).level == 9


def test_auto_stays_at_the_lowest_level_when_a_higher_one_gains_nothing() -> None:
    compressor = Compressor("auto", clock=lambda: 0.0)  # no level costs anything, so only size counts
    for _ in range(TRIALS):
        assert decompress(compressor.compress(NOISE), max_raw=TRIAL_BYTES) == NOISE
    assert compressor.level == CANDIDATES[0]


def device_states() -> bytes:
    return b"".join(
        b'{"device": %d, "state": "online", "value": %d}\n' % (n % 997, n * n % 9973) for n in range(40_000)
    )


def test_auto_takes_a_higher_level_when_sending_less_is_worth_it() -> None:
    compressor = Compressor("auto", clock=lambda: 0.0)
    raw = device_states()
    frames = [compressor.compress(raw) for _ in range(TRIALS + 1)]
    smallest = min(CANDIDATES, key=lambda candidate: len(compress(raw, level=candidate)))
    assert compressor.level == smallest != CANDIDATES[0]
    assert {decompress(frame, max_raw=len(raw)) for frame in frames} == {raw}
    assert len(frames[-1]) == len(compress(raw, level=smallest))


def test_auto_does_not_take_a_level_that_costs_more_time_than_it_saves() -> None:
    ticks = itertools.count()
    compressor = Compressor("auto", clock=lambda: next(ticks) ** 2 / 100)  # each try takes longer than the one before
    for _ in range(TRIALS):
        compressor.compress(device_states())
    assert compressor.level == CANDIDATES[0]


def test_auto_decides_after_a_few_full_chunks_and_small_ones_do_not_count() -> None:
    compressor = Compressor("auto")
    for _ in range(50):
        compressor.compress(NOISE[:-1])
    assert compressor._trials == 0
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(compressor.compress, [NOISE] * (TRIALS - 1)))
        assert compressor._chosen is None
        list(pool.map(compressor.compress, [NOISE] * 4))
    assert compressor._chosen is not None
