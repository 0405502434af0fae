"""The same with the project's own client, service/client.py: python3 backup_with_client.py [SOCKET]."""

import asyncio
import contextlib
import sys
import uuid

from service.client import Client, ConnectionLost, NoAnswer, RemoteError

PATH = sys.argv[1] if len(sys.argv) > 1 else "/run/deviceon-backup/service.sock"
ENDED = {"succeeded", "partial", "failed", "cancelled", "interrupted"}


async def backup():
    """Start one backup, whatever happens to the connection, and return its job when it has ended."""
    key = str(uuid.uuid4())  # the same for each try: however often it is asked, there is one job
    seen = boot = job = None
    while True:
        try:
            async with Client.unix(PATH) as client, contextlib.aclosing(client.events(since=seen)) as events:
                async for event in events:
                    if event["type"] == "subscribed":
                        missed = event["data"]["gap"] or boot not in (None, event["boot_id"])
                        boot = event["boot_id"]
                        if seen is None or event["data"]["gap"]:
                            seen = event["seq"]
                        if job is None:
                            job = await client.call("backup.start", idempotency_key=key)
                            print(f"job {job['id']}")
                        if missed:  # events are lost, or the service was started anew
                            job = await client.call("job.get", id=job["id"])
                            if job["state"] in ENDED:
                                return job
                        continue
                    if event["seq"] is not None:
                        seen = event["seq"]
                    if event["job_id"] != job["id"]:
                        continue
                    if event["type"] == "progress":
                        print(f"{event['data']['stage']}: {event['data']['raw_bytes']} bytes", file=sys.stderr)
                        continue
                    print(event["type"])
                    if event["data"].get("state") in ENDED:
                        return event["data"]
        except (ConnectionLost, NoAnswer) as error:
            print(f"connection lost ({error})", file=sys.stderr)
            print(f"connecting again, for what came after event {seen}")
            await asyncio.sleep(1)


async def main():
    """Tell how the service stands, change a setting, see an error, make a backup."""
    async with Client.unix(PATH) as client:
        info = await client.call("system.info")
        print(f"{info['product']}, backup service {info['version']}: {info['not_ready'] or 'ready'}")
        found = await client.call("settings.get")
        if "retention" in found["fixed"]:
            print("retention is fixed by the configuration file")
        else:
            changed = await client.call(
                "settings.update", retention={"keep_last": 14}, idempotency_key=str(uuid.uuid4())
            )
            print(f"archives that are kept: {changed['settings']['retention']['keep_last']}")
        try:
            await client.call("job.get", id="0000000000000000")
        except RemoteError as error:
            print(f"refused: {error.code}: {error}")
    job = await backup()
    if job["state"] != "succeeded":
        print(f"{job['state']}: {job['error']['code']}: {job['error']['message']} {job['error']['hint']}")
        return 1
    print(f"succeeded: {job['result']['name']}")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
