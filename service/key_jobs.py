"""The job that changes key slots of archives: added for recipients or this TPM, or removed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from service.config import Config
from service.errors import ServiceError
from service.jobs import Partial, Result
from service.key_slots import add_slots, remove_slots
from service.ledger import Ledger
from service.progress import Progress


class KeysNotChanged(ServiceError):
    """The key slots of some archives could not be changed."""

    code = "SEAL_KEYS_NOT_CHANGED"


async def change_keys(config: Config, params: dict[str, Any], progress: Progress, *, ledger: Ledger) -> Result:
    """Do what a job's parameters say; the result tells what became of each archive. Raises Partial when some failed."""
    one = config.at(params["target"]) if params.get("target") else config
    name = params.get("archive")
    if "whom" in params:
        done = await remove_slots(one, name, whom=params["whom"], ledger=ledger, progress=progress)
    else:
        done = await add_slots(
            one,
            name,
            recipients=params.get("recipients", ()),
            tpm=params.get("tpm", False),
            allow=frozenset(params.get("allow", ())),
            apply=params.get("apply", True),
            ledger=ledger,
            progress=progress,
        )
    result = asdict(done)
    if failed := done.failed:
        first = failed[0].error or {}
        error = KeysNotChanged(
            f"{len(failed)} of {len(done.changes)} archives were not changed; {failed[0].archive}: {first['message']}",
            hint=str(first["hint"]),
        )
        raise Partial(result, error)
    return result
