"""What a TPM's response code means, from numbers alone; and how long a lockout is said to last."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import PinWrong, SealError, TpmUnavailable
from service.sealing.tpm import faults
from service.sealing.tpm.faults import (
    Lockout,
    TpmBusy,
    TpmDisabled,
    TpmFailed,
    TpmLockout,
    TpmOwnerPassword,
    TpmPolicy,
    TpmTimeout,
)
from service.sealing.tpm.sealed import wrong_pin

RM = 0xC0000  # the layer of a resource manager that passes on what the TPM says
ESAPI, TCTI = 0x70000, 0xA0000


def test_a_code_is_had_without_the_number_of_what_is_meant() -> None:
    """TPM 2.0 Library, Part 2, 6.6.2: bits 8 to 11 are the parameter, session or handle of a format-one code."""
    for layer in (0, RM):
        for code in (faults.INTEGRITY, faults.HANDLE, faults.BAD_AUTH, faults.AUTH_FAIL, faults.HIERARCHY):
            for number in range(0, 0x1000, 0x100):
                assert faults.tpm_code(layer | number | code | 0x40) == code
                assert faults.tpm_code(layer | number | code) == code
        for code in (faults.RETRY, faults.LOCKOUT, faults.OBJECT_MEMORY, faults.FAILURE, 0x101, 0x120):
            assert faults.tpm_code(layer | code) == code
    for other in (ESAPI, TCTI, 0x10000, 0xB0000, 0xD0000):
        assert faults.tpm_code(other | faults.RETRY) == 0
    assert faults.tpm_code(0) == 0


def test_the_codes_are_those_of_the_specification() -> None:
    """Part 2, table 16."""
    assert (faults.INITIALIZE, faults.FAILURE, faults.DISABLED, faults.PCR_CHANGED) == (0x100, 0x101, 0x120, 0x128)
    assert (faults.UPGRADE, faults.AUTH_UNAVAILABLE, faults.REBOOT, faults.COMMAND_CODE) == (0x12D, 0x12F, 0x130, 0x143)
    assert [faults.CONTEXT_GAP, faults.OBJECT_MEMORY, faults.SESSION_MEMORY, faults.MEMORY] == [
        0x901,
        0x902,
        0x903,
        0x904,
    ]
    assert (faults.SESSION_HANDLES, faults.OBJECT_HANDLES) == (0x905, 0x906)
    assert (faults.YIELDED, faults.CANCELED, faults.TESTING) == (0x908, 0x909, 0x90A)
    assert (faults.NV_RATE, faults.LOCKOUT, faults.RETRY, faults.NV_UNAVAILABLE) == (0x920, 0x921, 0x922, 0x923)
    assert (faults.HIERARCHY, faults.HANDLE, faults.AUTH_FAIL, faults.POLICY_FAIL) == (0x85, 0x8B, 0x8E, 0x9D)
    assert (faults.INTEGRITY, faults.BAD_AUTH) == (0x9F, 0xA2)


def test_a_tpm_is_asked_again_only_where_it_wants_to_be() -> None:
    assert {0x901, 0x902, 0x903, 0x904, 0x905, 0x906} == faults.NO_ROOM
    assert {0x908, 0x909, 0x90A, 0x920, 0x922, 0x923} | faults.NO_ROOM == faults.AGAIN


def test_each_rule_says_whether_it_is_tried_again_and_what_its_codes_are_called() -> None:
    assert {rule.names for rule in faults.RULES if rule.again} == {
        "CONTEXT_GAP, OBJECT_MEMORY, SESSION_MEMORY, MEMORY, SESSION_HANDLES, OBJECT_HANDLES",
        "YIELDED, CANCELED, TESTING, NV_RATE, RETRY, NV_UNAVAILABLE",
    }
    for rule in faults.RULES:
        assert rule.codes == tuple(getattr(faults, name) for name in rule.names.split(", "))


def test_a_refusal_is_of_the_tpm_and_for_good() -> None:
    for rc in (0x9A2, RM | 0x98E, 0x185, 0x143, 0x120, faults.LOCKOUT):
        assert faults.is_refusal(rc)
    for rc in (*faults.AGAIN, RM | faults.RETRY, faults.FAILURE, ESAPI | 0x12, TCTI | 0x0A, 0x90000):
        assert not faults.is_refusal(rc)


def test_a_broken_connection_is_one_of_the_transport() -> None:
    assert faults.is_connection(TCTI | 0x0A)
    for rc in (0, 0x0A, ESAPI | 0x0A, RM | 0x0A, 0x90000, 0xB0000):
        assert not faults.is_connection(rc)


def test_a_parameter_and_a_session_are_the_inputs_and_a_handle_is_not() -> None:
    """Part 2, 6.6.2: bit 6 is a parameter's, bit 11 a session's; a handle has neither."""
    for layer in (0, RM):
        for rc in (0x1DF, 0x2DF, 0x9A2, 0xFE2, 0x88E):
            assert faults.blames_input(layer | rc)
        for rc in (0x18B, 0x48B, 0x902, 0x921, 0x940, 0x941, 0x840, 0x101, 0x922):
            assert not faults.blames_input(layer | rc)
    for other in (ESAPI, TCTI, 0x10000):
        assert not faults.blames_input(other | 0x1DF)


@pytest.mark.parametrize(
    ("rc", "kind", "transient"),
    [
        (0x902, TpmBusy, True),
        (0x922, TpmBusy, True),
        (0x921, TpmLockout, True),
        (0x9A2, TpmOwnerPassword, False),
        (RM | 0x98E, TpmOwnerPassword, False),
        (0x185, TpmDisabled, False),
        (0x120, TpmDisabled, False),
        (0x101, TpmFailed, False),
        (0x100, TpmFailed, False),
        (0x130, TpmFailed, False),
        (0x12D, TpmFailed, False),
        (0x143, TpmFailed, False),
        (0x99D, TpmPolicy, False),
        (0x128, TpmPolicy, False),
        (0x12F, SealError, False),
        (0x1DF, SealError, False),
        (TCTI | 0x0A, TpmUnavailable, True),
        *[(ESAPI | code, TpmUnavailable, True) for code in (0x11, 0x12, 0x16, 0x18, 0x1A, 0x1B)],
        *[(ESAPI | code, SealError, False) for code in (0x10, 0x13, 0x17, 0x19, 0x1C)],
        (0x60012, SealError, False),
        (0, SealError, False),
    ],
)
def test_each_code_is_told_as_what_it_is(rc: int, kind: type[SealError], transient: bool) -> None:
    told = faults.explain(rc, "its words", tcti="device:/dev/tpm0")
    assert type(told) is kind
    assert told.transient is transient
    assert f"(code 0x{rc:x}, its words)" in str(told)
    assert told.hint


def test_the_errors_have_codes_of_their_own_and_a_hang_is_not_tried_again() -> None:
    kinds = (TpmTimeout, TpmBusy, TpmFailed, TpmDisabled, TpmOwnerPassword, TpmLockout, TpmPolicy)
    assert [kind.code for kind in kinds] == [
        "TPM_TIMEOUT",
        "TPM_BUSY",
        "TPM_FAILED",
        "TPM_DISABLED",
        "TPM_OWNER_PASSWORD",
        "TPM_LOCKOUT",
        "TPM_POLICY",
    ]
    assert TpmTimeout.transient is False
    assert type(faults.unanswered_try("broken")) is TpmUnavailable


def state(active: bool = False, failures: int | None = 1, most: int | None = 3, interval: int | None = 1000) -> Lockout:
    return Lockout(active, failures, most, interval, recovery_seconds=7)


@pytest.mark.parametrize(
    ("lockout", "left"),
    [
        (state(), 2),
        (state(failures=3), 0),
        (state(failures=4), 0),
        (state(active=True), 0),
        (state(active=True, failures=None), 0),
        (state(failures=None), None),
        (state(most=None), None),
    ],
)
def test_the_tries_that_are_left_are_told_where_the_tpm_says_them(lockout: Lockout, left: int | None) -> None:
    assert lockout.tries_left == left
    told = wrong_pin(lockout)
    assert isinstance(told, PinWrong)
    assert told.tries_left == left
    shown = {None: "is wrong", 0: "is locked now, for 17 minutes", 2: "2 tries are left"}[left]
    assert shown in str(told)


def test_one_try_is_told_as_one() -> None:
    assert "1 try is left" in str(wrong_pin(state(failures=2)))


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, "a time that it does not tell"),
        (1, "1 seconds"),
        (119, "119 seconds"),
        (120, "2 minutes"),
        (121, "3 minutes"),
        (180, "3 minutes"),
        (7199, "120 minutes"),
        (7200, "2 hours"),
        (7201, "3 hours"),
        (10800, "3 hours"),
    ],
)
def test_a_time_is_said_rounded_up(seconds: int | None, told: str) -> None:
    assert faults.duration(seconds) == told


def test_a_lockout_tells_how_long_to_wait() -> None:
    assert "after 17 minutes" in str(faults.lockout(state()))
    for unknown in (None, state(interval=None), state(interval=0)):
        assert "a time that it does not tell" in str(faults.lockout(unknown))
    assert state(interval=0).wait_seconds is None
    assert state().wait_seconds == 1000


def test_the_documentation_has_the_table_of_codes() -> None:
    text = (Path(__file__).parents[2] / "docs/TPM.md").read_text()
    assert f"\n{faults.markdown()}\n\n" in text, "paste what service.sealing.tpm.faults.markdown() returns"
    assert {code for rule in faults.RULES if rule.again for code in rule.codes} == faults.AGAIN
