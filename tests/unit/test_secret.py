"""Secrets that were read are taken out of text, however they are quoted in it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import secret
from service.catalog import locate
from service.config import Config, SealingSettings, TargetSettings
from service.config_monitoring import DeadManSettings, NotificationSettings
from service.config_sources import PostgresqlSettings
from service.errors import ConfigError
from service.secret import MAX_REMEMBERED, read_secret, redact, remember, remember_password_in, safe_environment
from storage_backends import StorageError

AWKWARD = "pä ss/w\"o'rd\\%&=+$.*:🔑"


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    secret._remembered.clear()
    yield
    secret._remembered.clear()


FORMS = {
    "as it is": AWKWARD,
    "URL-quoted": quote(AWKWARD, safe=""),
    "URL-quoted but for slashes": quote(AWKWARD),
    "URL-quoted in lower case": quote(AWKWARD, safe="").lower(),
    "URL-quoted as yarl does": quote(AWKWARD, safe="!$&'()*+,;=:@/"),
    "as a form's field": quote_plus(AWKWARD),
    "in JSON": json.dumps(AWKWARD)[1:-1],
    "in JSON that is not ASCII": json.dumps(AWKWARD, ensure_ascii=False)[1:-1],
    "in JSON in JSON": json.dumps(json.dumps(AWKWARD))[3:-3],
    "as repr": repr(AWKWARD)[1:-1],
    "as repr of bytes": repr(AWKWARD.encode())[2:-1],
    "in libpq's password file": AWKWARD.replace("\\", "\\\\").replace(":", "\\:"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_secret_is_redacted_in_every_form_it_is_written_in(form: str) -> None:
    remember(AWKWARD)
    assert redact(f"before<{form}>after") == "before<***>after"


@given(value=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=4, max_size=40))
def test_no_quoting_saves_any_secret_from_being_redacted(value: str) -> None:
    remember(value)
    if len(value.splitlines()) > 1:
        return
    for form in (value, quote(value, safe=""), quote_plus(value), json.dumps(value)[1:-1], repr(value.encode())[2:-1]):
        assert form not in redact(f"<{form}>") or form in "<***>"


def test_each_line_of_a_private_key_is_a_secret() -> None:
    remember("-----BEGIN KEY-----\n  QmFzZTY0Cg\r\nAB\n-----END KEY-----\n")
    assert redact("xQmFzZTY0Cgx AB") == "x***x AB", "a piece of two characters is not one"
    assert redact('{"key": "-----BEGIN KEY-----\\n"}') == '{"key": "***\\n"}'


def test_the_end_of_a_secret_does_not_stay_behind_another_that_overlaps_it() -> None:
    for value in ("abcdef", "defghi", "abcdefgh", "efgh"):
        remember(value)
    assert redact("1abcdefghi2") == "1***2"
    assert redact("abcdefxefgh") == "***x***"


def test_short_values_are_no_secrets_and_other_text_stays_as_it_is() -> None:
    for value in ("", "a", "abc", "\n\n"):
        remember(value)
    remember("p.ss")
    assert redact("abc a pass \\\\ % \n") == "abc a pass \\\\ % \n"


def test_the_last_of_many_secrets_are_remembered_and_reading_one_again_keeps_it() -> None:
    for number in range(MAX_REMEMBERED):
        remember(f"secret-{number:04}")
    remember("secret-0000")
    remember("one more")
    assert redact("secret-0000 secret-0001 secret-0002 one more") == "*** secret-0001 *** ***"


def test_long_runs_of_backslashes_take_no_time() -> None:
    remember("\\:x:\\ \\" * 3)
    assert redact("\\" * 100_000 + "end").endswith("end")


def test_threads_may_remember_and_redact_at_once() -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for each in range(200):
                value = remember(f"secret-{number}-{each:04}")
                assert value not in redact(f"<{value}>")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def written(directory: Path, text: str) -> Path:
    file = directory / "secret"
    file.write_text(text)
    file.chmod(0o600)
    return file


def test_whatever_is_read_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "canary-of-env")
    assert read_secret("x", file=written(tmp_path, "canary-of-file\n")) == "canary-of-file"
    assert read_secret("x", env="CANARY") == "canary-of-env"
    assert redact("canary-of-file canary-of-env") == "*** ***"


def test_every_setting_that_names_a_secret_lets_it_be_redacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "canary-Zx81")
    file = written(tmp_path, "*:*:*:*:canary\\:Zx82")
    assert PostgresqlSettings(passfile=file).password() == "canary:Zx82"
    assert PostgresqlSettings(password_env="CANARY").password() == "canary-Zx81"
    assert redact("canary-Zx81 canary:Zx82 canary\\:Zx82") == "*** *** ***"
    file = written(tmp_path, "canary-Zx83")
    options = {"key": {"file": str(file)}, "client": {"proxy": {"env": "CANARY"}}}
    assert TargetSettings(url="s3://x", storage_options=options).options()["key"] == "canary-Zx83"
    assert SealingSettings(owner_auth_file=written(tmp_path, "canary-Zx84")).owner_auth() == b"canary-Zx84"
    urls = "# the pager\njson://me:canary-Zx85@host/canary-Zx86\n\n  mailtos://me:p%40ss@host  \n"
    assert len(NotificationSettings(urls_file=written(tmp_path, urls)).urls()) == 2
    monkeypatch.setenv("CANARY", "https://hc-ping.com/canary-Zx87")
    assert DeadManSettings(url_env="CANARY").url() == "https://hc-ping.com/canary-Zx87"
    for number in (83, 84, 85):
        assert redact(f"canary-Zx{number}") == "***"
    assert redact("p@ss p%40ss") == "*** ***"
    assert redact("json://me:canary-Zx85@host/canary-Zx86") == "***"
    assert redact("https://hc-ping.com/canary-Zx87/fail") == "***/fail"


async def test_the_password_in_the_url_of_an_archive_is_redacted(tmp_path: Path) -> None:
    config = Config.model_validate(
        {"server": {"version": "5"}, "target": {"url": f"file://{tmp_path}"}, "sources": []}, strict=False
    )
    with pytest.raises(StorageError):
        async with locate(config, "gopher://me:canary-Zx88@host/x/Backup_20200101_0000Z.zip"):
            pass
    assert redact("canary-Zx88") == "***"


def test_the_password_of_a_url_is_the_part_between_its_user_and_its_host() -> None:
    for url in ("https://host:8080/a:b@c", "https://host", "no url", "//x", "https://[::1", "https://user@host"):
        remember_password_in(url)
    assert not secret._remembered
    remember_password_in("smb://me:canary@Zx89@host/share")
    assert redact("canary@Zx89") == "***"


def test_children_get_no_variable_that_was_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "canary-Zx81")
    monkeypatch.setenv("https_proxy", "http://proxy")
    monkeypatch.delenv("PATH")
    environment = safe_environment("https_proxy", "NOT_SET_AT_ALL")
    assert environment["https_proxy"] == "http://proxy"
    assert environment["PATH"]
    assert not {"CANARY", "NOT_SET_AT_ALL"} & set(environment)


@pytest.mark.parametrize(
    ("urls", "words"),
    [("# none\n", "has no notification URL"), ("json://host\ncanary-Zx81\n", "URL 2 is not a URL")],
)
def test_what_is_no_notification_url_is_told_without_repeating_it(tmp_path: Path, urls: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        NotificationSettings(urls_file=written(tmp_path, urls)).urls()
    assert "canary" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "https://", "hc-ping.com/canary", "http://a b"])
def test_the_dead_mans_url_is_of_http(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="does not hold the URL") as caught:
        DeadManSettings(url_file=written(tmp_path, url)).url()
    assert "canary" not in str(caught.value)
