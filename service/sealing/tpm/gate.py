"""The only way to the TPM: one operation at a time, in a thread of its own, each bounded in time.

A context of the TPM library must not be used by two threads, and a call into a TPM that hangs cannot be ended. So each
operation waits behind the others in a lock, runs in a fresh daemon thread (so that a hung TPM cannot hold up the
interpreter's exit), opens its own context and leaves nothing behind in the TPM. When an operation outlives its deadline
the gate is poisoned: the thread is still inside the library, so nobody else may go there before a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from service.errors import TpmUnavailable
from service.sealing.tpm.device import Endpoint, endpoint
from service.sealing.tpm.faults import TpmTimeout

if TYPE_CHECKING:
    from service.sealing.tpm.chip import Chip

T = TypeVar("T")


class TpmGate:
    """A TPM, shared by the tasks of one event loop.

    `tcti` is a TCTI string of the TPM2 software stack (`device:/dev/tpmrm0`, `swtpm:path=...`), `owner_auth` the owner
    password where one is needed, `deadline` the seconds that one operation may take. Holds nothing open between
    operations and needs no closing.
    """

    def __init__(self, tcti: str, *, owner_auth: bytes | None = None, deadline: float = 60.0) -> None:
        self.endpoint: Endpoint = endpoint(tcti)
        self._owner_auth = owner_auth
        self._deadline = deadline
        self._lock = asyncio.Lock()
        self._poisoned = False

    def __repr__(self) -> str:
        return f"TpmGate({self.endpoint.tcti!r})"

    async def run(self, work: Callable[[Chip], T]) -> T:
        """Run `work` in the TPM thread and return its result.

        `work` may be called several times: when the TPM asks to be called again, everything is begun anew in a fresh
        context. Raises SealError; TpmTimeout after the deadline and from then on. When the calling task is cancelled
        the operation is still waited for (up to the deadline), so that no two are ever in the library.
        """
        async with self._lock:
            if self._poisoned:
                raise self._hung()
            loop = asyncio.get_running_loop()
            ended: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()

            def body() -> None:
                came = self._attempt(work)
                with contextlib.suppress(RuntimeError):  # nobody waits: the loop was closed while the TPM hung
                    loop.call_soon_threadsafe(ended.set_result, came)

            threading.Thread(target=body, name="tpm", daemon=True).start()
            await self._wait(ended)
            result, error = ended.result()
            if error is not None:
                raise error
            return result  # type: ignore[return-value]  # there is no error, so this is what `work` returned

    def _attempt(self, work: Callable[[Chip], T]) -> tuple[T | None, BaseException | None]:
        try:
            from service.sealing.tpm import chip  # noqa: PLC0415 - loads libtss2, needed only where there is a TPM

            return chip.operate(self.endpoint, work, owner_auth=self._owner_auth, budget=self._deadline / 2), None
        except ImportError as error:
            missing = TpmUnavailable(
                f"the TPM2 software stack cannot be loaded: {error}",
                hint="Install the Debian packages libtss2-esys-3.0.2-0, libtss2-tctildr0 and libtss2-tcti-device0.",
            )
            missing.__cause__ = error
            return None, missing
        except BaseException as error:  # it is raised again where somebody waits for it
            return None, error

    async def _wait(self, ended: asyncio.Future[tuple[T | None, BaseException | None]]) -> None:
        """Wait for the thread, also through a cancellation. Raises TpmTimeout, CancelledError."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._deadline
        cancelled: asyncio.CancelledError | None = None
        while not ended.done() and loop.time() < until:
            try:
                await asyncio.wait({ended}, timeout=until - loop.time())
            except asyncio.CancelledError as error:
                cancelled = error
        self._poisoned = not ended.done()
        if cancelled is not None:
            raise cancelled
        if self._poisoned:
            raise self._hung()

    def _hung(self) -> TpmTimeout:
        return TpmTimeout(
            f"the TPM at {self.endpoint.tcti} has not answered for {self._deadline:g} seconds; a call hangs in it",
            hint="Restart the service: this process cannot use the TPM any more. If it hangs again, switch the machine "
            "off and on.",
        )
