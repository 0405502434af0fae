"""The configuration: what is accepted, what is refused and in which words, and that no secret gets out."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from service import config_reference
from service.config import Config, ConfigFile, ServerSettings, TargetSettings, find, json_schema
from service.config_for_archive import Given, choose, choose_for_settling, require_version, with_given
from service.config_sources import PostgresqlSettings, SqliteSettings, TreeSettings
from service.errors import ConfigError
from service.settings import load

ROOT = Path(__file__).parents[2]
CANARY = "canary-Zx81-hunter2"

GOOD = """
server: {version: "5.3.12"}
target: {url: "file:///var/backups"}
sources:
  - type: tree
    path: /etc/deviceon
"""


def written(directory: Path, text: str) -> Path:
    path = directory / "config.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def refusal(directory: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(written(directory, text))
    assert caught.value.hint, "every refusal says what to do"
    return str(caught.value)


def with_sources(text: str) -> str:
    head = 'server: {version: "5"}\ntarget: {url: "file:///x"}\nsources:\n'
    return head + textwrap.indent(textwrap.dedent(text).strip("\n"), "  ") + "\n"


def test_the_smallest_configuration_gets_the_documented_defaults(tmp_path: Path) -> None:
    config = load(
        written(tmp_path, with_sources("- type: postgresql\n- {type: tree, path: /a}\n- {type: sqlite, path: /b}"))
    )
    assert config.state_dir == Path("/var/lib/deviceon-backup")
    assert (config.server.product, config.sealing.mode, config.sealing.tcti) == (
        "DeviceOn",
        "tpm",
        "device:/dev/tpmrm0",
    )
    assert (config.compression.level, config.compression.chunk_bytes) == (1, 4 << 20)
    postgresql, tree, sqlite = config.sources
    assert postgresql == PostgresqlSettings(
        name="postgresql", host="/var/run/postgresql", port=5432, user="postgres", include=["*"], exclude=[]
    )
    assert (postgresql.password(), postgresql.connections, postgresql.connect_timeout) == (None, None, 10)
    assert tree == TreeSettings(name="config", path=Path("/a"), exclude=[])
    assert sqlite == SqliteSettings(name="sqlite", path=Path("/b"))


EXAMPLES = sorted(set((ROOT / "examples").glob("*.yaml")) - {ROOT / "examples/portal.yaml"})  # that one is another file


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_good_configuration(path: Path) -> None:
    assert load(path).sources


def test_the_full_example_uses_every_key() -> None:
    document = yaml.safe_load((ROOT / "examples/full.yaml").read_text())
    alternatives = {"version", "version_file", "password_env", "passfile", "urls_env", "url_env"}
    alternatives |= {"weekdays", "day", "cron"}

    def compare(given: dict[str, Any], model: type[BaseModel]) -> None:
        assert set(model.model_fields) - set(given) <= alternatives, model.__name__

    def models_in(annotation: object) -> list[type[BaseModel]]:
        found = [part for part in (annotation, *get_args(annotation)) if isinstance(part, type)]
        return [part for part in found if issubclass(part, BaseModel)]

    def compare_deeply(given: Any, model: type[BaseModel]) -> None:
        if isinstance(given, list):
            return
        compare(given, model)
        for name, field in model.model_fields.items():
            for section in models_in(field.annotation):
                compare_deeply(given[name], section)

    compare_deeply(document, ConfigFile)
    kinds: dict[str, type[BaseModel]] = {
        "postgresql": PostgresqlSettings,
        "tree": TreeSettings,
        "sqlite": SqliteSettings,
    }
    for source in document["sources"]:
        compare(source, kinds[source["type"]])


def test_the_documentation_has_every_key_as_the_models_say() -> None:
    documented = (ROOT / "docs/CONFIGURATION.md").read_text()
    assert config_reference.markdown().strip() in documented, "run `deviceon-backup config reference` and paste it"


def test_every_key_has_a_description() -> None:
    schema = json_schema()
    for name, model in {"Config": schema, **schema["$defs"]}.items():
        for key, field in model["properties"].items():
            assert field.get("description"), f"{name}.{key}"


def test_the_schema_refuses_unknown_keys_and_a_source_without_type() -> None:
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert all(model["additionalProperties"] is False for model in schema["$defs"].values())
    assert all("type" in schema["$defs"][name]["required"] for name in ("PostgresqlSettings", "TreeSettings"))


REFUSED = {
    "unknown key with the near one": (
        "- type: postgresql\n  prot: 1",
        "line 5: sources[0].prot is not a known key; did you mean port?",
    ),
    "unknown key far from all": (
        "- type: sqlite\n  path: /x\n  zzz: 1",
        "sources[0].zzz is not a known key; known here: type, name, path",
    ),
    "key of another section": (
        "- type: sqlite\n  path: /x\n  tcti: a",
        "sources[0].tcti is not a known key; it belongs to sealing.tcti",
    ),
    "missing path": ("- type: tree", "line 4: sources[0].path is required"),
    "relative path": ("- {type: tree, path: etc}", "sources[0].path: must be an absolute path"),
    "path with dots": ("- {type: tree, path: /etc/../root}", "sources[0].path: must not contain '..'"),
    "unknown type": ("- type: mysql", "sources[0].type must be postgresql, tree or sqlite"),
    "no type": ("- path: /x", "sources[0].type is required"),
    "mongodb": ("- type: mongodb\n  host: x", "sources[0]: type mongodb is refused: MongoDB holds the sensor data"),
    "names twice": (
        "- type: postgresql\n- {type: tree, name: postgresql, path: /x}",
        "more than one is named postgresql",
    ),
    "default names twice": ("- {type: tree, path: /a}\n- {type: tree, path: /b}", "more than one is named config"),
    "name in capitals": ("- {type: tree, name: Config, path: /a}", "sources[0].name must match"),
    "port out of range": (
        "- {type: postgresql, port: 70000}",
        "sources[0].port: input should be less than or equal to 65535",
    ),
    "port as text": ('- {type: postgresql, port: "5432"}', "sources[0].port: input should be a valid integer"),
    "true as a number": ("- {type: postgresql, port: true}", "sources[0].port: input should be a valid integer"),
    "two passwords": ("- {type: postgresql, password_env: A, password_file: /b}", "only one of password_file"),
    "password written out": (f"- {{type: postgresql, password: {CANARY}}}", "passwords are not written here"),
    "include nothing": ("- {type: postgresql, include: []}", "sources[0].include"),
    "no sources": ("[]", "sources is empty"),
}


@pytest.mark.parametrize(("sources", "words"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_source_is_refused_in_plain_words(tmp_path: Path, sources: str, words: str) -> None:
    told = refusal(tmp_path, with_sources(sources))
    assert words in told
    assert CANARY not in told


BROKEN = {
    "a key twice": ("a: 1\nb: 2\na: 3\n", "line 3: has the key a a second time (first on line 1)"),
    "a nested key twice": ("server:\n  version: '1'\n  version: '2'\n", "line 3: has the key version a second time"),
    "an alias": ("a: &x 1\nb: *x\n", "anchors and aliases are not supported"),
    "a tag": ("a: !!python/name:os.system ''\n", "uses a YAML tag"),
    "a tag that PyYAML knows": ("a: !!binary aGk=\n", "uses a YAML tag"),
    "no YAML": ("server: [\n", "not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "not valid YAML"),
    "a list": ("- 1\n", "not a list of keys and values"),
    "nothing": ("# only a comment\n", "is empty"),
    "a key that is a list": ("[1, 2]: 3\n", "has a key that is not a word"),
    "deep nesting": ("a: " + "[" * 30 + "]" * 30 + "\n", "nested too deeply"),
    "endless nesting": ("a: " + "[" * 3_000 + "\n", "nested too deeply"),
}


@pytest.mark.parametrize(("text", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(tmp_path, text)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for content in (b"\xff\xfe\x00\xd8", b"a: \x00", b"a: \x81\n"):
        path.write_bytes(content)
        with pytest.raises(ConfigError):
            load(path)


def test_all_problems_are_told_at_once_in_the_order_of_the_lines(tmp_path: Path) -> None:
    told = refusal(tmp_path, "server: {version: 5.3}\ntarget: {url: x, ulr: y}\nsources:\n  - type: tree\n")
    assert "has 4 problems" in told
    assert [line.split(":")[0].strip() for line in told.splitlines()[1:]] == ["line 1", "line 2", "line 2", "line 4"]


def test_off_and_version_numbers_are_read_as_text_not_as_booleans_and_dates(tmp_path: Path) -> None:
    config = load(written(tmp_path, GOOD + "sealing: {mode: off}\n"))
    assert config.sealing.mode == "off"
    assert load(written(tmp_path, GOOD.replace('"5.3.12"', "2024-01-01"))).server.version == "2024-01-01"
    assert "server.version must be text; put it in quotes" in refusal(tmp_path, GOOD.replace('"5.3.12"', "5.3"))


@pytest.mark.parametrize(
    "server", ["{}", '{version: "1", version_file: /x}', '{version: ""}', "{version_command: []}", "{version_file: x}"]
)
def test_the_server_version_is_told_in_exactly_one_way(tmp_path: Path, server: str) -> None:
    assert "server" in refusal(tmp_path, GOOD.replace('{version: "5.3.12"}', server))


TARGETS = {
    "no URL": "{url: /var/backups}",
    "password in the URL": f"{{url: 'smb://user:{CANARY}@nas/backups'}}",
    "password in the options": f"{{url: 'smb://nas/x', storage_options: {{password: {CANARY}}}}}",
    "secret deep in the options": f"{{url: 's3://b/x', storage_options: {{client: {{secret_key: {CANARY}}}}}}}",
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_target_with_a_secret_in_it_is_refused_without_repeating_it(tmp_path: Path, target: str) -> None:
    told = refusal(tmp_path, GOOD.replace('{url: "file:///var/backups"}', target))
    assert "target" in told
    assert CANARY not in told


def test_secrets_of_a_target_come_from_files_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text(CANARY + "\n")
    monkeypatch.setenv("TARGET_TOKEN", CANARY)
    target = TargetSettings(
        url="s3://b/x",
        storage_options={
            "secret": {"file": str(tmp_path / "secret")},
            "nested": {"token": {"env": "TARGET_TOKEN"}},
            "n": 1,
        },
    )
    assert target.options() == {"secret": CANARY, "nested": {"token": CANARY}, "n": 1}
    assert CANARY not in repr(target) + target.model_dump_json()


def test_no_secret_shows_in_any_form_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "password"
    secret.write_text(CANARY + "\n")
    monkeypatch.setenv("PASSWORD_FOR_TEST", CANARY)
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"*:*:*:*:{CANARY}\n")
    passfile.chmod(0o600)
    places: list[dict[str, Any]] = [
        {"password_file": secret},
        {"password_env": "PASSWORD_FOR_TEST"},
        {"passfile": passfile},
    ]
    for place in places:
        settings = PostgresqlSettings(**place)
        assert settings.password() == CANARY
        config = Config(server=ServerSettings(version="1"), target=TargetSettings(url="file:///x"), sources=[settings])
        shown = [
            repr(config),
            str(config),
            f"{config.model_dump()}",
            config.model_dump_json(),
            json.dumps(json_schema()),
        ]
        assert CANARY not in "".join(shown)


def test_a_validation_error_does_not_quote_what_was_written() -> None:
    with pytest.raises(ValidationError) as caught:
        PostgresqlSettings.model_validate({"password": CANARY, "port": CANARY})
    assert CANARY not in str(caught.value) + repr(caught.value)


def test_one_line_end_is_not_part_of_a_password(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    for content, password in ((b" a b \n", " a b "), (b"a\r\n", "a"), (b"a\n\n", "a\n"), ("pä".encode(), "pä")):
        secret.write_bytes(content)
        assert PostgresqlSettings(password_file=secret).password() == password


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe", b"x" * 70_000])
def test_a_place_without_a_usable_secret_is_an_error_and_never_no_password(
    tmp_path: Path, content: bytes | None
) -> None:
    secret = tmp_path / "password"
    if content is not None:
        secret.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        PostgresqlSettings(password_file=secret).password()
    assert str(secret) in str(caught.value)


def test_an_unset_password_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    with pytest.raises(ConfigError, match="NOT_THERE"):
        PostgresqlSettings(password_env="NOT_THERE").password()


def test_the_passfile_is_read_as_libpq_does(tmp_path: Path) -> None:
    passfile = tmp_path / "pgpass"
    passfile.write_text(
        "# comment\n\nother:*:*:*:no\nlocalhost:5433:*:postgres:port\nlocalhost:*:*:postgres:socket\n"
        "host\\:6:*:*:*:a\\:b\\\\c\n10.0.0.1:*:elsewhere:*:no\n10.0.0.1:*:postgres:backup:last\n"
    )
    passfile.chmod(0o600)

    def password(**settings: Any) -> str | None:
        return PostgresqlSettings(passfile=passfile, **settings).password()

    assert password() == "socket"
    assert password(port=5433) == "port"
    assert password(host="host:6") == "a:b\\c"
    assert password(host="10.0.0.1", user="backup") == "last"
    with pytest.raises(ConfigError, match="no line for user nobody"):
        password(host="10.0.0.1", user="nobody")
    passfile.chmod(0o644)
    with pytest.raises(ConfigError, match="read by others"):
        password()


def test_the_file_is_found_by_argument_then_variable_then_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEVICEON_BACKUP_CONFIG", raising=False)
    assert find() == Path("/etc/deviceon-backup/config.yaml")
    monkeypatch.setenv("DEVICEON_BACKUP_CONFIG", "/from/variable")
    assert find() == Path("/from/variable")
    assert find("/from/argument") == Path("/from/argument")


def test_a_missing_file_says_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "none.yaml")
    assert "--config" in caught.value.hint


def test_without_a_file_an_archive_and_libpq_variables_are_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("service.config.DEFAULT_PATH", tmp_path / "none")
    environment = {"PGHOST": "db", "PGPORT": "6000", "PGUSER": "admin", "PGPASSWORD": CANARY}
    config = choose(
        None, "/mnt/a b/Backup_1.zip", Given(server_version="5", tcti="swtpm:", state_dir=tmp_path), environment
    )
    assert config.target.url == "file:///mnt/a b"
    assert (config.sealing.tcti, config.state_dir, config.server.version) == ("swtpm:", tmp_path, "5")
    assert config.sources == [PostgresqlSettings(host="db", port=6000, user="admin", password_env="PGPASSWORD")]
    said = Given(server_version="5", pg_host="x", pg_port=1, pg_user="u", pg_password_file=Path("/p"))
    config = choose(None, "s3://bucket/dir/Backup_1.zip", said, environment)
    assert config.target.url == "s3://bucket/dir"
    assert config.sources == [PostgresqlSettings(host="x", port=1, user="u", password_file=Path("/p"))]
    config = choose(None, "./b.zip", Given(), {"PGPASSFILE": "/home/x/.pgpass"})
    assert config.target.url == f"file://{Path.cwd()}"
    assert config.sources == [PostgresqlSettings(passfile=Path("/home/x/.pgpass"))]


def test_without_a_file_a_restore_must_be_told_the_installed_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("service.config.DEFAULT_PATH", tmp_path / "none")
    with pytest.raises(ConfigError) as caught:
        require_version(choose(None, "/a/b.zip", Given(), {}))
    assert "--server-version" in caught.value.hint
    require_version(choose(None, "/a/b.zip", Given(server_version="5"), {}))


def test_without_a_file_a_name_in_the_target_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("service.config.DEFAULT_PATH", tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        choose(None, "Backup_1.zip", Given(), {})
    assert choose_for_settling(None, Given(state_dir=tmp_path), {}).state_dir == tmp_path


@pytest.mark.parametrize(
    ("environment", "words"), [({"PGPORT": "x"}, "PGPORT"), ({"PGPORT": "99999"}, "port"), ({"PGHOST": "a\nb"}, "host")]
)
def test_wrong_variables_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str], words: str
) -> None:
    monkeypatch.setattr("service.config.DEFAULT_PATH", tmp_path / "none")
    with pytest.raises(ConfigError, match=words):
        choose(None, "/a/b.zip", Given(), environment)


def test_a_file_that_was_named_must_be_there_even_for_an_archive_by_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        choose(tmp_path / "none", "/a/b.zip", Given(), {})
    with pytest.raises(ConfigError, match="cannot read"):
        choose(None, "/a/b.zip", Given(), {"DEVICEON_BACKUP_CONFIG": str(tmp_path / "none")})


def test_options_win_over_the_file_and_variables_do_not(tmp_path: Path) -> None:
    path = written(tmp_path, with_sources("- {type: postgresql, host: h, password_env: P}") + "sealing: {mode: off}\n")
    environment = {"PGHOST": "other", "PGPASSWORD": "x"}
    said = Given(pg_port=7, pg_password_file=Path("/p"), tcti="t", server_version="9", state_dir=tmp_path)
    config = choose(path, "/a/b.zip", said, environment)
    assert config.sources == [PostgresqlSettings(host="h", port=7, password_file=Path("/p"))]
    assert (config.server.version, config.sealing.tcti, config.sealing.mode) == ("9", "t", "off")
    assert config.state_dir == tmp_path
    assert choose(path, "/a/b.zip", Given(), environment) == load(path)


def test_postgresql_options_are_refused_when_it_is_unclear_whom_they_mean(tmp_path: Path) -> None:
    config = load(written(tmp_path, GOOD))
    with pytest.raises(ConfigError, match="exactly one source"):
        with_given(config, Given(pg_host="x"))


def test_a_signature_cannot_be_demanded_where_nothing_is_signed(tmp_path: Path) -> None:
    sealing = "sealing: {mode: %s, require_signature: true}\n"
    assert "without sealing nothing is signed" in refusal(tmp_path, GOOD + sealing % '"off"')
    assert load(written(tmp_path, GOOD + sealing % "tpm")).sealing.require_signature
