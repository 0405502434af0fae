"""PostgreSQL's own regression suite, run for what it leaves behind: a database with every kind of object there is.

The suite's SQL comes from Debian's source package of the installed major version (24 MB), the headers to compile its C
functions with from `postgresql-server-dev`. Both are downloaded, not installed, and kept in `build/` of this working
copy. Its files are run one after the other, a group of the schedule at a time; their errors are meant, and not looked
at: the database is whatever they leave.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demo.postgresql_server import PostgresqlFailed, PostgresqlServer

DATABASE = "regression"
SETTINGS: dict[str, str | int] = {"max_prepared_transactions": 10, "max_connections": 100}
"""What the suite asks of its server."""

_CACHE = Path(__file__).parent.parent / "build" / "regression-suite"
_AT_ONCE = 4
_APT_SOURCES = """Types: deb-src
URIs: http://deb.debian.org/debian
Suites: {suite}
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


class NoSuite(RuntimeError):
    """The suite cannot be had or built; the message ends with what the failing program said."""


_DEFINING = """
    test_setup create_function_c create_misc create_operator create_procedure create_table create_type
    create_schema create_index create_view create_aggregate create_function_sql create_cast constraints inherit
    typed_table updatable_views create_am matview replica_identity rowsecurity object_address identity generated
    create_table_like alter_generic alter_operator collate rules foreign_data domain enum rangetypes sequence
    rowtypes largeobject alter_table hash_part reloptions partition_info compression event_trigger fast_default
"""
DEFINING = frozenset(_DEFINING.split())
"""The files that leave most of the odd objects behind, and take a fifth of the time."""


def regression_database(server: PostgresqlServer, *, only: Collection[str] | None = None) -> str:
    """Make the database and return its name; the server needs `SETTINGS`. All files take a minute."""
    suite = _suite(int(server.program_output("pg_config", "--version").split()[1].partition(".")[0]))
    with tempfile.TemporaryDirectory(prefix="regression-") as written:
        out = Path(written)
        (out / "results").mkdir()
        for directory in (out, out / "results"):
            directory.chmod(0o777)  # the server writes there
        libraries = suite / "lib"
        for library in ("autoinc.so", "refint.so"):
            link = libraries / library
            link.unlink(missing_ok=True)
            link.symlink_to(Path(server.program_output("pg_config", "--pkglibdir")) / library)
        server.run("createdb", ["-T", "template0", "--locale=C", DATABASE])
        server.run("psql", ["-qXd", DATABASE, "-c", _settings()])
        environment = {
            "PG_ABS_SRCDIR": str(suite / "regress"),
            "PG_ABS_BUILDDIR": written,
            "PG_LIBDIR": str(libraries),
            "PG_DLSUFFIX": ".so",
            "PGTZ": "PST8PDT",
            "PGDATESTYLE": "Postgres, MDY",
        }
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for group in _schedule(suite / "regress" / "parallel_schedule"):
                scripts = [suite / "regress/sql" / f"{test}.sql" for test in group if only is None or test in only]
                list(pool.map(lambda script: _run(server, script, environment), scripts))
    return DATABASE


def _settings() -> str:
    names = ("lc_messages", "lc_monetary", "lc_numeric", "lc_time")
    told = dict.fromkeys(names, "C") | {"bytea_output": "hex", "timezone_abbreviations": "Default"}
    return "; ".join(f"ALTER DATABASE {DATABASE} SET {name} TO '{value}'" for name, value in told.items())


def _schedule(path: Path) -> list[list[str]]:
    lines = [line.partition(":") for line in path.read_text().splitlines()]
    return [tests.split() for word, _, tests in lines if word == "test"]


def _run(server: PostgresqlServer, script: Path, environment: dict[str, str]) -> None:
    variables = ["-v", "HIDE_TABLEAM=on", "-v", "HIDE_TOAST_COMPRESSION=on"]
    command = [str(server.programs / "psql"), "-X", "-a", "-q", "-d", DATABASE, *variables, "-f", str(script)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    connection = {
        "PGHOST": server.host,
        "PGPORT": str(server.port),
        "PGUSER": server.user,
        "PGPASSWORD": server.password,
    }
    result = subprocess.run(
        command,
        env=inherited | connection | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
        timeout=600,
    )
    if result.returncode:
        raise PostgresqlFailed(f"{script.name}: psql ended with {result.returncode}: {result.stderr[-500:]!r}")


def _suite(major: int) -> Path:
    """Return a directory with `regress` (the suite) and `lib` (its C functions), both readable by the server."""
    suite = _CACHE / str(major)
    if (suite / "lib" / "regress.so").exists():
        return suite
    shutil.rmtree(suite, ignore_errors=True)
    _CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as name:
        work = Path(name)
        source = _unpacked_source(f"postgresql-{major}", work)
        headers = work / "headers"
        _do(["apt-get", "download", "-q", f"postgresql-server-dev-{major}"], work)
        _do(["dpkg-deb", "--extract", *map(str, work.glob("*.deb")), str(headers)], work)
        ready = work / "ready"
        (ready / "lib").mkdir(parents=True)
        shutil.move(source / "src/test/regress", ready / "regress")
        include = [f"-I{headers}/usr/include/postgresql/{major}/server", f"-I{headers}/usr/include/postgresql/internal"]
        library = str(ready / "lib/regress.so")
        _do(["gcc", "-O1", "-fPIC", "-shared", *include, "-o", library, str(ready / "regress/regress.c")], work)
        work.chmod(0o755)
        ready.rename(suite)
    return suite


def _unpacked_source(package: str, work: Path) -> Path:
    """Download a source package with lists of our own, so that the machine's configuration stays as it is."""
    suite = _do(["sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME"], work).strip()
    (work / "debian.sources").write_text(_APT_SOURCES.format(suite=suite))
    (work / "no-more-sources").mkdir()
    (work / "lists/partial").mkdir(parents=True)
    (work / "cache/archives/partial").mkdir(parents=True)
    options = [
        *("-o", f"Dir::Etc::sourcelist={work}/debian.sources", "-o", f"Dir::Etc::sourceparts={work}/no-more-sources"),
        *("-o", f"Dir::State::lists={work}/lists", "-o", f"Dir::Cache={work}/cache"),
    ]
    _do(["apt-get", *options, "-q", "update"], work)
    _do(["apt-get", *options, "-q", "source", "--download-only", package], work)
    (archive,) = work.glob("*.orig.tar.*")
    _do(["tar", "--extract", "--file", str(archive), "--wildcards", "*/src/test/regress"], work)
    (source,) = work.glob("postgresql-*/src")
    return source.parent


def _do(command: Sequence[str], directory: Path) -> str:
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if result.returncode:
        raise NoSuite(f"{' '.join(command[:3])} failed (is `apt-get update` needed?): {result.stderr.strip()[-1000:]}")
    return result.stdout
