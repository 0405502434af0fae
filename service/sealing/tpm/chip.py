"""An open TPM: what one operation uses, and the retries around it. Runs in the gate's thread only."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

os.environ.setdefault("TSS2_LOG", "all+NONE")  # else the C library writes to stderr by itself; read when it is loaded

from tpm2_pytss import (  # type: ignore[import-untyped]
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2_CAP,
    TPM2_SE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_SESSION,
    TPMT_SYM_DEF,
    TSS2_Exception,
)

from service.errors import SealError
from service.sealing.tpm import faults
from service.sealing.tpm.device import Endpoint
from service.sealing.tpm.faults import Lockout

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds; doubled from try to try
CONNECTION_TRIES = 3
PATIENT_TRIES = 4  # with all slots taken for so long, what sits in a TPM without resource manager is left over

ENCRYPTED = TPMA_SESSION.DECRYPT | TPMA_SESSION.ENCRYPT | TPMA_SESSION.CONTINUESESSION
"""What a session is that hides the first parameter of a command and of its answer."""

_PERMANENT = 0x200  # TPM_PT_PERMANENT, the first of the variable properties (Part 2, 6.13)

TRANSIENT_FIRST, LOADED_SESSION_FIRST = 0x80000000, 0x02000000


class Chip:
    """One ESAPI context. Whatever is made through it is flushed from the TPM when the operation ends."""

    def __init__(self, esapi: ESAPI, *, owner_auth: bytes | None) -> None:
        self.esapi = esapi
        self._owner_auth = owner_auth
        self._made: dict[Any, int] = {}  # with the TPM's own handles: a broken context cannot tell them

    def keep(self, handle: Any) -> Any:
        """Note a transient object or session so that it does not stay in the TPM; returns it."""
        self._made[handle] = int(self.esapi.tr_get_tpm_handle(handle))
        return handle

    def flush(self, handle: Any) -> None:
        """Free one slot of the TPM now."""
        self.esapi.flush_context(handle)
        del self._made[handle]

    def release(self, handle: Any) -> None:
        """Free one slot early. One that does not go now is freed with the rest, unless the connection is broken."""
        try:
            self.flush(handle)
        except TSS2_Exception as error:
            if faults.is_connection(error.rc):
                raise  # the library cannot use this context any more

    def flush_all(self) -> list[int]:
        """Free every slot; returns the TPM's handles of those that could not be freed.

        Errors are passed over: the operation has its result or its own error already.
        """
        stuck = []
        while self._made:
            handle, number = self._made.popitem()
            for _ in range(3):
                with contextlib.suppress(TSS2_Exception):
                    self.esapi.flush_context(handle)
                    break
            else:
                stuck.append(number)
        return stuck

    def flush_numbers(self, handles: Iterable[int]) -> None:
        """Flush objects and sessions of an earlier context by their handles in the TPM."""
        for handle in handles:
            try:
                self.esapi.flush_context(self.esapi.tr_from_tpmpublic(handle))
            except TSS2_Exception as error:
                if faults.is_connection(error.rc):
                    raise  # the library cannot use this context any more

    def open_persistent(self, handle: int) -> tuple[Any, bytes] | None:
        """Return an object at a persistent handle and its marshalled public area; None if there is none."""
        try:
            found = self.esapi.tr_from_tpmpublic(handle)
        except TSS2_Exception as error:
            if faults.tpm_code(error.rc) == faults.HANDLE:
                return None
            raise
        public, _, _ = self.esapi.read_public(found)
        return found, bytes(public.marshal())

    def own_name(self, handle: Any) -> bytes:
        """Return the name that the library keeps for a handle: it has checked it against the key that it salts to."""
        return bytes(self.esapi.tr_get_name(handle))

    def create_primary(self, hierarchy: Any, template: TPM2B_PUBLIC) -> tuple[Any, bytes]:
        """Derive the key that `template` names from a hierarchy's seed; returns it and its public area."""
        if hierarchy == ESYS_TR.OWNER and self._owner_auth:
            self.esapi.tr_set_auth(ESYS_TR.OWNER, self._owner_auth)
            proof = self._start_session(ESYS_TR.NONE)  # an HMAC proves the password; as such it stays off the bus
        else:
            proof = ESYS_TR.PASSWORD
        try:
            handle, public, *_ = self.esapi.create_primary(
                TPM2B_SENSITIVE_CREATE(), in_public=template, primary_handle=hierarchy, session1=proof
            )
            self.keep(handle)
        finally:
            if proof != ESYS_TR.PASSWORD:
                self.flush(proof)
        return handle, bytes(public.marshal())

    def encrypted_session(self, key: Any) -> Any:
        """Start a session whose secret is encrypted to `key`: parameters travel encrypted, both ways.

        Only as safe as the key: whoever calls this has compared its name with one that was trusted before.
        """
        session = self._start_session(key)
        self.esapi.trsess_set_attributes(session, ENCRYPTED)
        return session

    def policy_session(self, key: Any) -> Any:
        """Start a session that shows that a policy is kept, with its secret encrypted to `key` like the other's."""
        session = self._start_session(key, TPM2_SE.POLICY)
        self.esapi.trsess_set_attributes(session, ENCRYPTED)
        return session

    def properties(self, first: int, count: int) -> dict[int, int]:
        """Return fixed or variable properties of the TPM (Part 2, 6.13) by their numbers."""
        _, data = self.esapi.get_capability(TPM2_CAP.TPM_PROPERTIES, first, count)
        return {int(item.property): int(item.value) for item in data.data.tpmProperties}

    def lockout(self) -> Lockout:
        """Return how the TPM stands with wrong passwords."""
        state = self.properties(_PERMANENT, 20)
        return Lockout(
            active=bool(state.get(_PERMANENT, 0) & 1 << 9),
            failures=state.get(0x20E),
            max_failures=state.get(0x20F),
            interval_seconds=state.get(0x210),
            recovery_seconds=state.get(0x211),
        )

    def handles(self, first: int) -> list[int]:
        """Return the handles in use from `first` on, of its kind."""
        _, data = self.esapi.get_capability(TPM2_CAP.HANDLES, first, 64)
        return [int(handle) for handle in data.data.handles]

    def flush_leftovers(self) -> None:
        """Flush objects and sessions that other processes left in a TPM that has no resource manager."""
        for first in (TRANSIENT_FIRST, LOADED_SESSION_FIRST):
            self.flush_numbers(self.handles(first))

    def _start_session(self, key: Any, kind: Any = TPM2_SE.HMAC) -> Any:
        return self.keep(
            self.esapi.start_auth_session(
                tpm_key=key,
                bind=ESYS_TR.NONE,
                session_type=kind,
                symmetric=TPMT_SYM_DEF.parse("aes128cfb"),
                auth_hash=TPM2_ALG.SHA256,
            )
        )


@contextlib.contextmanager
def open_chip(tcti: str, *, owner_auth: bytes | None, stuck: list[int]) -> Iterator[Chip]:
    """Open a context, flush everything that was made in it, close it. Raises TSS2_Exception.

    `stuck` carries what a broken connection kept from being flushed on to the next context.
    """
    with ESAPI(tcti) as esapi:
        chip = Chip(esapi, owner_auth=owner_auth)
        chip.flush_numbers(stuck)
        stuck.clear()
        try:
            yield chip
        finally:
            stuck += chip.flush_all()


def operate(where: Endpoint, work: Callable[[Chip], T], *, owner_auth: bytes | None, budget: float) -> T:
    """Run `work` with an open TPM, again when the TPM asks for that, for about `budget` seconds. Raises SealError."""
    stuck: list[int] = []
    try:
        return _retried(where, work, owner_auth=owner_auth, until=time.monotonic() + budget, stuck=stuck)
    finally:
        if stuck:
            with contextlib.suppress(TSS2_Exception), open_chip(where.tcti, owner_auth=None, stuck=stuck):
                pass


def _retried(
    where: Endpoint, work: Callable[[Chip], T], *, owner_auth: bytes | None, until: float, stuck: list[int]
) -> T:
    pause = FIRST_PAUSE
    tries = 0
    while True:
        tries += 1
        if obstacle := where.obstacle():
            raise obstacle
        try:
            with open_chip(where.tcti, owner_auth=owner_auth, stuck=stuck) as chip:
                return work(chip)
        except TSS2_Exception as error:
            if not _worth_another_try(error, tries) or time.monotonic() + pause > until:
                raise _explained(error, where) from error
            if tries >= PATIENT_TRIES and not where.has_resource_manager:
                _flush_leftovers(where, error)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _worth_another_try(error: TSS2_Exception, tries: int) -> bool:
    if faults.is_connection(error.rc):
        return tries < CONNECTION_TRIES
    return faults.tpm_code(error.rc) in faults.AGAIN


def _explained(error: TSS2_Exception, where: Endpoint) -> SealError:
    if faults.is_connection(error.rc) and (obstacle := where.after_failure()):
        return obstacle
    return faults.explain(error.rc, str(error), tcti=where.tcti)


def _flush_leftovers(where: Endpoint, error: TSS2_Exception) -> None:
    if faults.tpm_code(error.rc) in faults.NO_ROOM:
        with contextlib.suppress(TSS2_Exception), open_chip(where.tcti, owner_auth=None, stuck=[]) as chip:
            chip.flush_leftovers()
