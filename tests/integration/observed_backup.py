"""A process that makes one backup and is seen from outside as the service is: log, metrics, notifications, pings.

`python -m tests.integration.observed_backup FILE`; FILE is JSON with `config`, `notifications`, `dead_man` and `log`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.backup import backup
from service.config import Config
from service.config_monitoring import DeadManSettings, NotificationSettings
from service.config_sources import PostgresqlSettings
from service.failure import as_json
from service.job import Job
from service.log import configure, current_job
from service.metrics import Metrics
from service.notify import Notifier
from service.progress import Progress

log = logging.getLogger("service.observed_backup")


async def run(given: dict[str, Any]) -> None:
    config = Config.model_validate(given["config"], strict=False)
    notifications = NotificationSettings.model_validate(given["notifications"], strict=False)
    dead_man = DeadManSettings.model_validate(given["dead_man"], strict=False)
    metrics = Metrics()
    job = Job(id="j-1", kind="backup", origin="schedule", state="queued", created=datetime.now(UTC))
    current_job.set(job.id)
    async with Notifier(notifications, dead_man, server="edge-7") as notifier:
        job = job.but(state="running", started=datetime.now(UTC))
        metrics.job_started(job)
        notifier.job_started(job)
        try:
            result = await backup(config, progress=Progress(on_step=log.info))
            job = job.but(state="succeeded", result=asdict(result))
        except Exception as error:
            log.exception("the backup failed")
            job = job.but(state="failed", error=as_json(error))
        job = job.but(ended=datetime.now(UTC))
        metrics.job_ended(job)
        notifier.job_ended(job, None)
    careless(config)
    print(metrics.text().decode(), json.dumps(job.as_json()), repr(config), config.model_dump_json(), sep="\n")


def careless(config: Config) -> None:
    """Log what a library might: the password in a URL and in an exception."""
    for source in config.sources:
        if isinstance(source, PostgresqlSettings):
            url = f"postgresql://{source.user}:{source.password()}@{source.host}/postgres"
            logging.getLogger("careless").warning("connecting to %s", url)
            try:
                raise ValueError(url)  # noqa: TRY301
            except ValueError:
                logging.getLogger("careless").exception("it failed")


if __name__ == "__main__":
    settings = json.loads(Path(sys.argv[1]).read_text())
    configure(settings["log"], "debug")
    asyncio.run(run(settings))
