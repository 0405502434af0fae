"""Files out of an archive, on any machine; tables of one beside the live database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from service.cli.connection import ask_for_pin, config_for, reading_options, restoring_options, run_job_with
from service.cli.options import Shared, emit, json_option, shared_options
from service.cli.part import part_of, part_options
from service.cli.running import run
from service.terminal import counted, plain, reporting, size

_SHOWN = 1000  # tables of a list for people


@click.command()
@click.argument("archive")
@click.option("--to", metavar="DIR", type=click.Path(path_type=Path), help="The directory to make; it must be new.")
@click.option("--list", "list_only", is_flag=True, help="Show what is in the archive; write nothing.")
@part_options
@click.option(
    "--table",
    "tables",
    metavar="[DB:]SCHEMA.TABLE",
    multiple=True,
    help="Only this table, with the definitions of its database; * and ? match; may be repeated.",
)
@click.option(
    "--path",
    "paths",
    metavar="GLOB",
    multiple=True,
    help="Only these files and directories, as from / or below the source's directory; may be repeated.",
)
@reading_options
@shared_options
@json_option
@click.pass_obj
def extract(
    shared: Shared,
    /,
    archive: str,
    to: Path | None,
    list_only: bool,
    tables: Sequence[str],
    paths: Sequence[str],
    **options: Any,
) -> None:
    """Write what is in an archive into a new directory, as files. No server is needed, and only what is wanted is read.

    Directories come as they were, databases as schema.dump (for pg_restore), schema.sql and one file of COPY data for
    each table, roles as JSON and SQL, SQLite databases as they are.
    """
    from service.extract import contents  # noqa: PLC0415 - recipes load drivers and cryptography
    from service.extract import extract as recipe  # noqa: PLC0415
    from service.sources.extraction import Chosen  # noqa: PLC0415

    if (to is None) == (not list_only):
        raise click.UsageError("Give --to DIR, or --list.")
    select = part_of(options)
    config = ask_for_pin(shared, config_for(shared, archive, options), archive)
    if to is None:
        found = run(contents(config, archive, select=select))
        emit({"sources": found}) if shared.json else _show(found)
        return
    chosen = Chosen(tables=tuple(tables), paths=tuple(paths))
    with reporting(quiet=shared.quiet) as progress:
        done = run(recipe(config, archive, to, select=select, chosen=chosen, progress=progress))
    if shared.json:
        emit(asdict(done))
        return
    for warning in done.warnings:
        click.echo(f"warning: {plain(warning)}")
    click.echo(f"{plain(done.directory)}: {done.files} files, {size(done.bytes)}, of {plain(', '.join(done.sources))}")


@click.command("restore-table")
@click.argument("archive")
@click.argument("database")
@click.argument("tables", metavar="SCHEMA.TABLE...", nargs=-1, required=True)
@click.option("--into", metavar="NAME", required=True, help="The database to make on the same server.")
@click.option("--source", metavar="NAME", help="The source that has the database, when several have.")
@click.option("--allow", metavar="CODE", multiple=True, help="Go ahead in spite of this obstacle; may be repeated.")
@restoring_options
@shared_options
@json_option
@click.pass_obj
def restore_table(
    shared: Shared,
    /,
    archive: str,
    database: str,
    tables: Sequence[str],
    into: str,
    source: str | None,
    allow: Sequence[str],
    **options: Any,
) -> None:
    """Restore tables of an archived DATABASE into a new database, and say how their rows are copied back.

    Nothing that is live is touched. The new database has all definitions of the archived one, and the rows of these
    tables alone.
    """
    config = ask_for_pin(shared, config_for(shared, archive, options), archive)
    params = {"archive": archive, "database": database, "tables": list(tables), "into": into, "allow": list(allow)}
    done = run_job_with(
        config, shared, options, "restore.tables", **params, **({"source_name": source} if source else {})
    )
    if shared.json:
        emit(done)
        return
    for note in done["notes"]:
        click.echo(f"note: {plain(note)}")
    for table in done["tables"]:
        click.echo(plain(f"{table['schema']}.{table['table']}: {table['rows']} rows in {done['database']}"))
        click.echo(f"  to copy them back: {plain(table['copy_back'])}")
    click.echo(plain(f"drop database {done['database']} when you are done: backups may include it"))


def _show(found: Sequence[dict[str, Any]]) -> None:
    for source in found:
        where = f": {source['path']}, {source['files']} files" if "path" in source else ""
        click.echo(plain(f"source {source['name']} ({source['type']}){where}, {size(source['bytes'])}"))
        for database in source.get("databases", ()):
            tables = database["tables"]
            click.echo(plain(f"  database {database['name']}: {counted(len(tables), 'table')}"))
            for table in tables[:_SHOWN]:
                told = f"    {table['schema']}.{table['table']}: {table['rows']} rows, {size(table['bytes'])}"
                click.echo(plain(told))
            if len(tables) > _SHOWN:
                click.echo(f"    and {len(tables) - _SHOWN} more; --json shows all")
