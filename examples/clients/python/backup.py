"""Change a setting, start a backup and watch it to its end: python3 backup.py [SOCKET]. Standard library only."""

import json
import socket
import sys
import time
import uuid

PATH = sys.argv[1] if len(sys.argv) > 1 else "/run/deviceon-backup/service.sock"
ENDED = {"succeeded", "partial", "failed", "cancelled", "interrupted"}


class Refused(Exception):
    """The service's own answer. Decide by `code`; show message and `hint` to people."""

    def __init__(self, data):
        super().__init__(data["message"])
        self.code, self.hint, self.transient = data["code"], data["hint"], data["transient"]


class Service:
    """One connection. Raises OSError when it is lost: connect again then."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._number, self._early = 0, []
        try:
            self._socket.settimeout(60)  # a call that is not answered by then is a lost one
            self._socket.connect(path)
            self._lines = self._socket.makefile("rb")
        except OSError:
            self._socket.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._lines.close()
        self._socket.close()

    def call(self, method, **params):
        """Return the result of a method."""
        self._number += 1
        request = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            message = self._read()
            if message.get("method") == "event":
                self._early.append(message["params"])  # events come between answers, too
            elif message["id"] == self._number and "error" in message:
                raise Refused(message["error"]["data"])
            elif message["id"] == self._number:
                return message["result"]

    def events(self):
        """Yield events as they come, after `events.subscribe`."""
        self._socket.settimeout(None)  # there may be none for days
        while True:
            while self._early:
                yield self._early.pop(0)
            message = self._read()
            if message.get("method") == "event":
                yield message["params"]

    def _read(self):
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the service closed the connection")
        message = json.loads(line)
        if "error" in message and message["id"] is None:  # the answer to no request: no event comes any more
            raise ConnectionError(message["error"]["message"])
        return message


def backup():
    """Start one backup, whatever happens to the connection, and return its job when it has ended."""
    key = str(uuid.uuid4())  # the same for each try: however often it is asked, there is one job
    seen = boot = job = None
    while True:
        try:
            with Service(PATH) as service:
                told = service.call("events.subscribe", since=seen)
                missed = told["gap"] or boot not in (None, told["boot_id"])
                boot = told["boot_id"]
                if seen is None or told["gap"]:
                    seen = told["seq"]
                if job is None:
                    job = service.call("backup.start", idempotency_key=key)
                    print(f"job {job['id']}")
                if missed:  # events are lost, or the service was started anew
                    job = service.call("job.get", id=job["id"])
                    if job["state"] in ENDED:
                        return job
                for event in service.events():
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
        except OSError as error:
            print(f"connection lost ({error})", file=sys.stderr)
            print(f"connecting again, for what came after event {seen}")
            time.sleep(1)


def main():
    """Tell how the service stands, change a setting, see an error, make a backup."""
    with Service(PATH) as service:
        info = service.call("system.info")
        print(f"{info['product']}, backup service {info['version']}: {info['not_ready'] or 'ready'}")
        found = service.call("settings.get")
        if "retention" in found["fixed"]:
            print("retention is fixed by the configuration file")
        else:
            changed = service.call("settings.update", retention={"keep_last": 14}, idempotency_key=str(uuid.uuid4()))
            print(f"archives that are kept: {changed['settings']['retention']['keep_last']}")
        try:
            service.call("job.get", id="0000000000000000")
        except Refused as error:
            print(f"refused: {error.code}: {error}")
    job = backup()
    if job["state"] != "succeeded":
        print(f"{job['state']}: {job['error']['code']}: {job['error']['message']} {job['error']['hint']}")
        return 1
    print(f"succeeded: {job['result']['name']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
