"""The configuration: one YAML file, checked in full before anything is done.

    server, sealing, compression, state_dir, sources, restore, reset, service see docs/CONFIGURATION.md
    enabled, target, schedule, retention                               the System Backup settings

The System Backup settings may be left out of the file: they can then be changed while the service runs, and live in
its state (`service.settings`). One that the file gives is fixed.

Unknown keys are refused. Secrets are never written here: a file (`*_file`) or an environment variable (`*_env`) is
named, and read at the moment the secret is needed, so that no repr, dump or traceback can show one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, PrivateAttr, model_validator

from service.config_drill import DrillSettings
from service.config_file import read_settings
from service.config_monitoring import DeadManSettings, HttpSettings, LogSettings, NotificationSettings
from service.config_restore import ResetSettings, RestoreSettings
from service.config_sources import AnySource, SourceSettings, TreeSettings
from service.config_types import AbsolutePath, Person, Recipient, Settings, SignerFingerprint, Word
from service.errors import ConfigError
from service.object_lock import with_lock
from service.opening import NOTHING, Opening
from service.retention import RetentionSettings
from service.schedule import ScheduleSettings
from service.secret import SECRET_WORD, is_place_of_secret, read_secret

PATH_VARIABLE = "DEVICEON_BACKUP_CONFIG"
DEFAULT_PATH = Path("/etc/deviceon-backup/config.yaml")


class ServerSettings(Settings):
    """The server this service runs beside. An archive is restored only to the version it was made from."""

    product: Word = "DeviceOn"
    """Name of the product, noted in each archive."""
    version: Word | None = None
    """The installed version, such as "5.3.12" (in quotes). Give exactly one of the three `version` keys."""
    version_file: AbsolutePath | None = None
    """A text file whose first line is the installed version."""
    version_command: Annotated[list[Word], Field(min_length=1)] | None = None
    """A program and its arguments, run without a shell (at most 10 seconds) and without this service's environment but
    for PATH and a few more; its first output line is the version."""

    @model_validator(mode="after")
    def _one_way_to_tell(self) -> Self:
        given = [name for name in ("version", "version_file", "version_command") if getattr(self, name) is not None]
        if len(given) != 1:
            told = f"{' and '.join(given)} are given" if given else "none is given"
            raise ValueError(f"give exactly one of version, version_file and version_command; {told}")
        return self


class TargetSettings(Settings):
    """Where archives are kept."""

    url: Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://[^\x00-\x1f\x7f]*$")]
    """An fsspec URL, such as file:///var/backups/deviceon. Never with a password in it."""
    storage_options: dict[str, Any] = {}
    """Options of the target's driver. A secret is written as {file: /path} or {env: NAME}."""

    @model_validator(mode="after")
    def _no_secret_in_sight(self) -> Self:
        authority = self.url.split("://", 1)[1].split("/", 1)[0]
        if ":" in authority.rpartition("@")[0]:
            raise ValueError("url must not contain a password; name it in storage_options as {file: ...} or {env: ...}")
        _refuse_plain_secrets(self.storage_options, "storage_options")
        return self

    def options(self) -> dict[str, Any]:
        """Return `storage_options` with each {file: ...} and {env: ...} replaced by its secret. Raises ConfigError."""
        return {key: _resolved(value, key) for key, value in self.storage_options.items()}


def _refuse_plain_secrets(options: Mapping[str, Any], path: str) -> None:
    for key, value in options.items():
        here = f"{path}.{key}"
        if is_place_of_secret(value):
            continue
        if isinstance(value, list):
            _refuse_plain_secrets({f"{key}[{at}]": item for at, item in enumerate(value)}, path)
        elif isinstance(value, Mapping):
            _refuse_plain_secrets(value, here)
        elif isinstance(value, str | int | float) and not isinstance(value, bool) and SECRET_WORD.search(key):
            raise ValueError(f"{here} looks like a secret; write it as {{file: /path}} or {{env: NAME}}")


def _resolved(value: Any, key: str) -> Any:
    if is_place_of_secret(value):
        file = value.get("file")
        return read_secret(f"storage option {key}", file=Path(file) if file else None, env=value.get("env"))
    if isinstance(value, Mapping):
        return {inner: _resolved(item, f"{key}.{inner}") for inner, item in value.items()}
    return value


class SealingSettings(Settings):
    """Whether archives are encrypted to this machine's TPM, and who else opens them."""

    mode: Literal["tpm", "off"] = "tpm"
    """`tpm`: an archive opens only on this TPM. `off`: archives are neither encrypted nor protected from changes."""
    tcti: Word = "device:/dev/tpmrm0"
    """How the TPM is reached; the kernel's resource manager unless there is a reason."""
    owner_auth_file: AbsolutePath | None = None
    """A file with the TPM's owner password, when it has one and no persistent storage key."""
    recovery: Literal["none"] | Annotated[list[Recipient], Field(min_length=1, max_length=16)] | None = None
    """Who can open archives without this TPM: a list of age recipients (`age1...`), or `none`. When left out,
    `deviceon-backup provision` asks."""
    trusted_signers: list[SignerFingerprint] = []
    """Fingerprints (`KEY ...`) of other TPMs' signing keys whose archives may be restored with a recovery key; those of
    this machine are always trusted."""
    require_signature: bool = False
    """Whether an archive proves its origin by the signature of a trusted TPM only, and not by opening on this one: who
    holds a recovery key can put other content behind a TPM's slot. A backup that cannot be signed fails then."""

    self_test: ScheduleSettings | None = ScheduleSettings(frequency="daily", at="05:00", jitter=60)
    """When the newest archive's key is opened as a restore would open it, so that a TPM that no longer does so is
    noticed; written as `schedule` is. Daily at 05:00 UTC when left out; null: never."""

    @model_validator(mode="after")
    def _signed_by_a_tpm(self) -> Self:
        if self.require_signature and self.mode == "off":
            raise ValueError("require_signature needs mode: tpm; without sealing nothing is signed")
        return self

    def owner_auth(self) -> bytes | None:
        """Read the TPM's owner password. Raises ConfigError."""
        text = read_secret("owner password of the TPM", file=self.owner_auth_file)
        return None if text is None else text.encode()


class CompressionSettings(Settings):
    """How chunks are compressed (zstd)."""

    level: Annotated[int, Field(ge=1, le=19)] | Literal["auto"] = 1
    """zstd level: 1 is fast, 19 is small and slow; `auto` measures some levels on the first chunks and takes the one
    that makes compressing and sending to a target of 100 MB/s quickest."""
    chunk_bytes: Annotated[int, Field(ge=1024, le=64 * 1024 * 1024)] = 4 * 1024 * 1024
    """Raw bytes of one chunk. The buffers of a backup take about this times (3 x connections + 3 x processors + 1)."""


class TlsSettings(Settings):
    """Commands over TCP: TLS 1.3, and every client shows a certificate."""

    listen: Annotated[str, Field(pattern=r"^[^\s/]+:[0-9]{1,5}$")]
    """Address and port, such as 127.0.0.1:8443."""
    certificate_file: AbsolutePath
    """This service's certificate (PEM), with those between it and its authority."""
    key_file: AbsolutePath
    """The private key of the certificate (PEM, without a passphrase)."""
    client_ca_file: AbsolutePath
    """The authority that signs clients' certificates (PEM)."""
    admins: list[Word] = []
    """Names in clients' certificates (SubjectAltName: DNS name, URI or e-mail address) that may do everything."""
    readers: list[Word] = []
    """Names that may look and not touch."""


class ServiceSettings(Settings):
    """`deviceon-backup serve`: where it takes commands, and how long it waits."""

    socket: AbsolutePath = Path("/run/deviceon-backup/service.sock")
    """The UNIX socket for commands; its directory is made (0750) when it is missing."""
    socket_group: Word | None = None
    """The group that may reach the socket; the service's own when left out. The role is decided by user."""
    admins: list[Person] = []
    """Users (names or numbers) that may do everything, beside root and the user that runs the service."""
    readers: list[Person] = []
    """Users that may look and not touch."""
    tls: TlsSettings | None = None
    """Commands over TCP too."""
    no_progress_timeout: Annotated[float, Field(ge=1, le=604_800)] = 1800.0
    """Seconds after which a job that moves no byte is given up."""
    quiet_timeout: Annotated[float, Field(ge=1, le=2_592_000)] = 43_200.0
    """The same for work inside PostgreSQL that moves no bytes here: building indexes, gathering statistics."""
    stop_timeout: Annotated[float, Field(ge=1, le=3600)] = 25.0
    """Seconds that a running job gets to undo what it began when the service is told to stop."""
    keep_history: Annotated[int, Field(ge=1, le=36_500)] = 400
    """Days after which jobs and their outcome are forgotten; archives are not concerned."""


class SystemBackup(Settings):
    """What the System Backup page sets. A key that the configuration file gives is fixed."""

    enabled: bool = True
    """Whether scheduled backups run."""
    target: TargetSettings | None = None
    """The place for archives."""
    schedule: ScheduleSettings | None = None
    """When backups run; never by themselves when left out."""
    retention: RetentionSettings | None = None
    """Which archives are kept; all of them when left out."""


SYSTEM_BACKUP = frozenset(SystemBackup.model_fields)


class ConfigFile(SystemBackup):
    """What the configuration file may say."""

    copies: list[TargetSettings] = []
    """Further targets, which get every archive at the same time; one that fails is made good later."""

    server: ServerSettings
    """The server and its version."""
    state_dir: AbsolutePath = Path("/var/lib/deviceon-backup")
    """Directory of this service's own state: the pinned TPM, the journal of restores, settings and history."""
    sealing: SealingSettings = SealingSettings()
    """Encryption of archives."""
    compression: CompressionSettings = CompressionSettings()
    """Compression of archives."""
    sources: list[AnySource]
    """What is backed up; each item has a `type`."""
    restore: RestoreSettings = RestoreSettings()
    """What a restore does around the exchange."""
    reset: ResetSettings = ResetSettings()
    """What a reset to the baseline leaves as it is."""
    drill: DrillSettings = DrillSettings()
    """Restores for practice."""
    service: ServiceSettings = ServiceSettings()
    """The long-running service."""
    http: HttpSettings = HttpSettings()
    """The service's status for monitoring."""
    log: LogSettings = LogSettings()
    """The service's log."""
    notifications: NotificationSettings | None = None
    """Messages to people when jobs end."""
    dead_man: DeadManSettings | None = None
    """A ping that stops when backups stop."""

    _read_from: Path | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        twice = [name for name, count in Counter(source.name for source in self.sources).items() if count > 1]
        if twice:
            raise ValueError(f"sources: more than one is named {', '.join(twice)}; give each its own name")
        return self

    @model_validator(mode="after")
    def _kept_in_a_tree(self) -> Self:
        trees = [f"{str(source.path).rstrip('/')}/" for source in self.sources if isinstance(source, TreeSettings)]
        for pattern in self.reset.keep:
            if pattern.startswith("/") and not any(pattern.startswith(tree) for tree in trees):
                raise ValueError(f"reset.keep: {pattern} lies in no tree of `sources`, so a reset never touches it")
        return self

    @property
    def read_from(self) -> Path | None:
        """Return the file that this was read from; None when it was made otherwise."""
        return self._read_from

    @property
    def fixed(self) -> frozenset[str]:
        """Return the System Backup settings that the file gives, which nobody can change while the service runs."""
        return SYSTEM_BACKUP & self.model_fields_set

    def system_backup(self, stored: SystemBackup) -> SystemBackup:
        """Return the System Backup settings in force: the file's, and for what it does not give, the stored ones."""
        values = {name: getattr(self if name in self.fixed else stored, name) for name in SYSTEM_BACKUP}
        return SystemBackup(**values)


class Config(ConfigFile):
    """Everything that a job needs: the file's settings and the System Backup settings, with a target in any case."""

    target: TargetSettings
    _opening: Opening = PrivateAttr(default=NOTHING)

    @property
    def opening(self) -> Opening:
        """Return what somebody gave to open archives with; no setting, so no dump, repr or schema has it."""
        return self._opening

    def opened_with(self, opening: Opening) -> Self:
        """Return the configuration for somebody who gave this to open archives with."""
        copy = self.model_copy()
        copy._opening = opening
        return copy

    @property
    def targets(self) -> list[TargetSettings]:
        """Return the target and those that get a copy of each archive."""
        return [self.target, *self.copies]

    def target_at(self, url: str) -> TargetSettings | None:
        """Return the configured target with this URL; None when there is none."""
        return next((each for each in self.targets if each.url.rstrip("/") == url.rstrip("/")), None)

    def writing_options(self, target: TargetSettings) -> dict[str, Any]:
        """Return a target's options for writing archives: with the time of their lock. Raises ConfigError."""
        return with_lock(target.options(), self.retention, self.schedule)

    def at(self, url: str | None) -> Self:
        """Return the configuration with one of its targets alone; the first when `url` is None. Raises ConfigError."""
        target = self.target if url is None else self.target_at(url)
        if target is None:
            raise ConfigError(
                "this URL is none of the targets",
                hint=f"The targets are {', '.join(each.url for each in self.targets)}.",
            )
        return self.model_copy(update={"target": target, "copies": []})

    def each(self) -> list[Self]:
        """Return the configuration for each of its targets alone."""
        return [self.at(target.url) for target in self.targets]


def _same_place(target: TargetSettings) -> tuple[str, str]:
    """Return what two settings of one place have in common, however they write it: URL, and endpoint for S3."""
    protocol, _, rest = target.url.partition("://")
    protocol = {"local": "file", "s3a": "s3"}.get(protocol, protocol)
    if protocol == "smb":
        rest = rest.rpartition("@")[2].lower()
    path = "/".join(part for part in rest.split("/") if part)
    return f"{protocol}://{path}", str(target.storage_options.get("endpoint_url", ""))


def complete(file: ConfigFile, stored: SystemBackup) -> Config:
    """Return the configuration for jobs. Raises ConfigError when neither gives a target."""
    system_backup = file.system_backup(stored)
    if system_backup.target is None:
        raise ConfigError(
            "no target is set, so there is no place for archives",
            hint="Give `target` in the configuration file, or set it with `deviceon-backup settings set`.",
        )
    places = Counter(_same_place(target) for target in (system_backup.target, *file.copies))
    if twice := [place for place, count in places.items() if count > 1]:
        raise ConfigError(
            f"{twice[0][0]} is a target more than once", hint="Take it out of `copies`, or give another target."
        )
    values = {name: getattr(file, name) for name in ConfigFile.model_fields if name not in SYSTEM_BACKUP}
    config = Config(**values, **{name: getattr(system_backup, name) for name in SYSTEM_BACKUP})
    config._read_from = file.read_from
    return config


def require_consistent(file: ConfigFile, stored: SystemBackup) -> None:
    """Raise ConfigError when file and stored settings contradict each other; a target may still be missing."""
    system_backup = file.system_backup(stored)
    if system_backup.target is not None:
        for target in complete(file, stored).targets:
            with_lock(target.storage_options, system_backup.retention, system_backup.schedule)


def find(path: Path | str | None = None) -> Path:
    """Tell which file is the configuration: `path`, else $DEVICEON_BACKUP_CONFIG, else the one below /etc."""
    return Path(path or os.environ.get(PATH_VARIABLE) or DEFAULT_PATH)


def read(path: Path | str | None = None) -> ConfigFile:
    """Read and check the configuration file (`find` tells which). Raises ConfigError that names each line at fault."""
    file = find(path)
    config = read_settings(
        ConfigFile,
        file,
        what="the configuration",
        variable=PATH_VARIABLE,
        examples="examples/ has files to start from.",
        start="Start from one of the files in examples/.",
        explained="See docs/CONFIGURATION.md, or `deviceon-backup config schema`.",
    )
    config._read_from = file.absolute()
    if not config.sources:
        raise ConfigError(f"{file}: sources is empty, so nothing would be backed up", hint="Add at least one source.")
    return config


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the configuration file."""
    schema = ConfigFile.model_json_schema()
    for model in get_args(SourceSettings):
        schema["$defs"][model.__name__].setdefault("required", []).insert(0, "type")  # no file can do without it
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "deviceon-backup configuration"}
    return {**schema, **head}
