"""One operation with a TPM: what is tried again and how often, and that nothing of it stays in the TPM."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tpm2_pytss import (  # type: ignore[import-untyped]
    ESAPI,
    ESYS_TR,
    TPM2_ECC,
    TPM2B_PUBLIC,
    TPMA_SESSION,
    TSS2_Exception,
)

from demo.software_tpm import SoftwareTpm
from service.errors import TpmUnavailable
from service.sealing.tpm import chip, faults
from service.sealing.tpm.chip import LOADED_SESSION_FIRST, TRANSIENT_FIRST, Chip, operate
from service.sealing.tpm.device import Endpoint, endpoint
from service.sealing.tpm.endorsement import _template
from service.sealing.tpm.faults import TpmBusy, TpmFailed
from service.sealing.tpm.parents import default_template
from service.sealing.tpm.public_area import name_of
from tests.integration.tpm_wire import CREATE_PRIMARY, DROP, START_AUTH_SESSION, Plan, Tools, TpmClock, TpmWire, wired

FLUSH_CONTEXT, GET_CAPABILITY, READ_PUBLIC = 0x165, 0x17A, 0x173
BUDGET = 60.0


@pytest.fixture
def wire(software_tpm: SoftwareTpm) -> Iterator[TpmWire]:
    with wired(software_tpm) as wire:
        yield wire


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the contexts that are opened."""
    opened: list[str] = []

    def opening(tcti: str) -> ESAPI:
        opened.append(tcti)
        return ESAPI(tcti)

    monkeypatch.setattr(chip, "ESAPI", opening)
    return opened


def run(tcti: str, work: Callable[[Chip], Any], *, owner_auth: bytes | None = None, budget: float = BUDGET) -> Any:
    return operate(endpoint(tcti), work, owner_auth=owner_auth, budget=budget)


def handles(chip_: Chip) -> list[int]:
    return chip_.handles(TRANSIENT_FIRST) + chip_.handles(LOADED_SESSION_FIRST)


def loaded(tcti: str) -> list[int]:
    return operate(endpoint(tcti), handles, owner_auth=None, budget=BUDGET)


def ask(chip_: Chip) -> dict[int, int]:
    return chip_.properties(0x100, 1)


def key(chip_: Chip) -> Any:
    return chip_.create_primary(ESYS_TR.OWNER, default_template())[0]


def failing(wanted: int, failure: int, *, times: int = 10**9) -> Plan:
    """Fail the first `times` commands of one kind."""
    seen = 0

    def plan(_number: int, code: int) -> int | None:
        nonlocal seen
        seen += code == wanted
        return failure if code == wanted and seen <= times else None

    return plan


# What is tried again


def test_a_busy_tpm_is_asked_again_after_longer_and_longer_pauses(wire: TpmWire, tpm_clock: TpmClock) -> None:
    wire.plan = failing(GET_CAPABILITY, faults.NV_RATE, times=9)
    assert run(wire.tcti, ask)
    assert tpm_clock.slept == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])


def test_a_tpm_that_stays_busy_is_given_up_when_the_time_is_over(
    wire: TpmWire, tpm_clock: TpmClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chip, "FIRST_PAUSE", 0.5)
    wire.plan = failing(GET_CAPABILITY, faults.NV_RATE)
    with pytest.raises(TpmBusy, match="0x920"):
        run(wire.tcti, ask, budget=12.5)
    assert tpm_clock.slept == [0.5, 1.0, 2.0, 4.0, 5.0]


def test_a_broken_connection_is_made_three_times(wire: TpmWire, tpm_clock: TpmClock, contexts: list[str]) -> None:
    wire.plan = failing(GET_CAPABILITY, DROP)
    with pytest.raises(TpmUnavailable, match="does not answer"):
        run(wire.tcti, ask)
    assert len(contexts) == len(wire.commands) == 3
    assert tpm_clock.slept == [0.1, 0.2]


def test_what_the_tpm_refuses_is_asked_once(wire: TpmWire, tpm_clock: TpmClock, contexts: list[str]) -> None:
    wire.plan = failing(GET_CAPABILITY, faults.FAILURE)
    with pytest.raises(TpmFailed):
        run(wire.tcti, ask)
    assert len(contexts) == 1
    assert tpm_clock.slept == []


def test_a_tpm_that_is_not_there_is_told_at_once(tmp_path: Path, tpm_clock: TpmClock, contexts: list[str]) -> None:
    with pytest.raises(TpmUnavailable, match="there is no TPM at"):
        run(f"swtpm:path={tmp_path / 'none'}", ask)
    assert (contexts, tpm_clock.slept) == ([], [])


def test_only_a_broken_connection_is_looked_into(wire: TpmWire, tpm_clock: TpmClock) -> None:
    class Explained(Endpoint):
        def after_failure(self) -> TpmUnavailable:
            return TpmUnavailable("a look at it", hint="Do not disturb.")

    where = Explained(wire.tcti, endpoint(wire.tcti).path, is_socket=True)
    for failure, told in ((faults.FAILURE, "in failure mode"), (DROP, "a look at it")):
        wire.plan = failing(GET_CAPABILITY, failure)
        with pytest.raises(TpmUnavailable, match=told):
            operate(where, ask, owner_auth=None, budget=BUDGET)


# What others left


@pytest.mark.usefixtures("tpm_clock")
@pytest.mark.parametrize(
    ("failure", "times", "managed", "cleared"),
    [
        (faults.OBJECT_MEMORY, 4, False, True),
        (faults.SESSION_MEMORY, 4, False, True),
        (faults.OBJECT_MEMORY, 3, False, False),
        (faults.OBJECT_MEMORY, 6, True, False),
        (faults.NV_RATE, 6, False, False),
    ],
)
def test_a_tpm_that_stays_full_is_cleared_where_nobody_manages_it(
    software_tpm: SoftwareTpm, wire: TpmWire, failure: int, times: int, managed: bool, cleared: bool
) -> None:
    with ESAPI(software_tpm.tcti) as esapi:
        others = Chip(esapi, owner_auth=None)
        others.encrypted_session(key(others))
        key(others)
    assert loaded(software_tpm.tcti) == [TRANSIENT_FIRST, TRANSIENT_FIRST + 1, LOADED_SESSION_FIRST]
    tcti = wire.tcti
    if managed:
        path = software_tpm.directory / "tpmrm0"
        path.symlink_to("wire")
        path.with_name("tpmrm0.ctrl").symlink_to("wire.ctrl")
        tcti = f"swtpm:path={path}"
    wire.plan = failing(READ_PUBLIC, failure, times=times)
    assert run(tcti, lambda chip_: chip_.open_persistent(0x81000001)) is None
    assert len(loaded(software_tpm.tcti)) == (0 if cleared else 3)


# What was made


@pytest.mark.usefixtures("tpm_clock")
def test_what_a_broken_connection_keeps_is_flushed_by_the_next(
    software_tpm: SoftwareTpm, wire: TpmWire, contexts: list[str]
) -> None:
    def work(chip_: Chip) -> None:
        chip_.encrypted_session(key(chip_))
        ask(chip_)

    for times in (1, 2):
        wire.plan = failing(GET_CAPABILITY, DROP, times=times)
        run(wire.tcti, work)
        assert len(contexts) == wire.commands.count(GET_CAPABILITY) == times + 1
        assert loaded(software_tpm.tcti) == []
        wire.commands.clear()
        contexts.clear()
    wire.plan = failing(GET_CAPABILITY, DROP)
    with pytest.raises(TpmUnavailable):
        run(wire.tcti, work)
    assert loaded(software_tpm.tcti) == []


def test_what_does_not_go_is_flushed_three_times_and_once_more_by_another_context(
    software_tpm: SoftwareTpm, wire: TpmWire, contexts: list[str]
) -> None:
    for times, flushes, opened in ((2, 3, 1), (3, 4, 2), (10, 4, 2)):
        wire.plan = failing(FLUSH_CONTEXT, faults.FAILURE, times=times)
        run(wire.tcti, key)
        assert (wire.commands.count(FLUSH_CONTEXT), len(contexts)) == (flushes, opened)
        assert len(loaded(software_tpm.tcti)) == (times > 3)
        wire.commands.clear()
        contexts.clear()


def test_a_slot_is_freed_once_and_early(software_tpm: SoftwareTpm, wire: TpmWire, contexts: list[str]) -> None:
    def work(chip_: Chip) -> None:
        for free in (chip_.flush, chip_.release):
            free(key(chip_))
            assert chip_.handles(TRANSIENT_FIRST) == []

    run(wire.tcti, work)
    assert (wire.commands.count(FLUSH_CONTEXT), len(contexts)) == (2, 1)
    assert loaded(software_tpm.tcti) == []


def test_a_slot_that_is_not_free_early_is_free_at_the_end_unless_the_connection_broke(
    software_tpm: SoftwareTpm, wire: TpmWire
) -> None:
    wire.plan = failing(FLUSH_CONTEXT, faults.FAILURE, times=1)
    run(wire.tcti, lambda chip_: chip_.release(key(chip_)))
    assert wire.commands.count(FLUSH_CONTEXT) == 2
    assert loaded(software_tpm.tcti) == []

    def work(chip_: Chip) -> None:
        made = key(chip_)
        with pytest.raises(TSS2_Exception):
            chip_.release(made)

    wire.plan = failing(FLUSH_CONTEXT, DROP, times=1)
    run(wire.tcti, work)
    assert loaded(software_tpm.tcti) == []


def test_what_is_gone_already_is_passed_over_and_a_broken_connection_is_not(
    software_tpm: SoftwareTpm, wire: TpmWire
) -> None:
    def work(chip_: Chip) -> None:
        key(chip_)
        chip_.flush_numbers([TRANSIENT_FIRST + 1, TRANSIENT_FIRST])
        assert chip_.handles(TRANSIENT_FIRST) == []

    run(wire.tcti, work)
    wire.plan = failing(READ_PUBLIC, DROP)
    with pytest.raises(TpmUnavailable):
        run(wire.tcti, lambda chip_: chip_.flush_numbers([TRANSIENT_FIRST]), budget=0)
    wire.plan = failing(READ_PUBLIC, faults.FAILURE)
    with pytest.raises(TpmFailed):
        run(wire.tcti, lambda chip_: chip_.open_persistent(0x81000001))


# Sessions and passwords


def test_a_session_hides_what_travels_and_its_secret_is_for_the_key_only(
    software_tpm: SoftwareTpm, wire: TpmWire
) -> None:
    """TPM2_StartAuthSession (Part 3, 11.1): key, no bound entity, nonce, secret, kind, AES-128-CFB, SHA-256."""
    asked: list[bytes] = []

    def said(command: bytes, answer: bytes) -> bytes:
        if struct.unpack(">I", command[6:10])[0] == START_AUTH_SESSION:
            asked.append(command)
        return answer

    def work(chip_: Chip) -> None:
        made = key(chip_)
        for start in (chip_.encrypted_session, chip_.policy_session):
            session = start(made)
            attributes = chip_.esapi.trsess_get_attributes(session)
            assert attributes == TPMA_SESSION.DECRYPT | TPMA_SESSION.ENCRYPT | TPMA_SESSION.CONTINUESESSION

    wire.said = said
    run(wire.tcti, work)
    for command, kind in zip(asked, (0, 1), strict=True):
        assert struct.unpack(">II", command[10:18]) == (TRANSIENT_FIRST, 0x40000007)
        assert struct.unpack(">BHHHH", command[-9:]) == (kind, 0x0006, 128, 0x0043, 0x000B)
        nonce = struct.unpack(">H", command[18:20])[0]
        assert struct.unpack(">H", command[20 + nonce : 22 + nonce])[0] > 32


def test_the_owner_password_is_proven_for_the_owners_keys_only(
    software_tpm: SoftwareTpm, tools: Tools, wire: TpmWire
) -> None:
    def work(chip_: Chip, hierarchy: Any, template: Any) -> None:
        handle, public = chip_.create_primary(hierarchy, template)
        assert name_of(public) == chip_.own_name(handle)
        assert TPM2B_PUBLIC.unmarshal(public)[0].publicArea.parameters.eccDetail.curveID == TPM2_ECC.NIST_P256
        assert chip_.handles(LOADED_SESSION_FIRST) == []
        assert chip_.handles(TRANSIENT_FIRST) == [chip_.esapi.tr_get_tpm_handle(handle)]

    def sessions(hierarchy: Any, template: Any, owner_auth: bytes | None) -> int:
        wire.commands.clear()
        run(wire.tcti, lambda chip_: work(chip_, hierarchy, template), owner_auth=owner_auth)
        assert wire.commands.count(CREATE_PRIMARY) == 1
        assert loaded(software_tpm.tcti) == []
        return wire.commands.count(START_AUTH_SESSION)

    assert sessions(ESYS_TR.OWNER, default_template(), None) == 0
    tools("changeauth", "-c", "owner", "a password")
    assert sessions(ESYS_TR.OWNER, default_template(), b"a password") == 1
    assert sessions(ESYS_TR.ENDORSEMENT, _template(), b"a password") == 0
    assert b"a password" not in wire.seen


def test_the_library_is_told_to_be_silent() -> None:
    assert os.environ["TSS2_LOG"] == "all+NONE"
