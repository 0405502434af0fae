"""Text search: dictionaries, configurations, templates, parsers, and columns of words."""

from __future__ import annotations

from tests.random_schemas.data_types import BUILTIN
from tests.random_schemas.world import Column, Table, World, kind, literal


@kind
def text_search(w: World) -> None:
    words, name, table, key, text, found = w.placed(), w.placed(), w.placed(), w.new(), w.new(), w.new()
    w.do(f"CREATE TEXT SEARCH DICTIONARY {words} (TEMPLATE = simple, STOPWORDS = 'english', ACCEPT = false)")
    w.do(f"CREATE TEXT SEARCH CONFIGURATION {name} (COPY = pg_catalog.{w.pick(('english', 'german', 'simple'))})")
    w.do(f"ALTER TEXT SEARCH CONFIGURATION {name} ALTER MAPPING FOR asciiword, hword WITH {words}, english_stem")
    w.do(f"ALTER TEXT SEARCH CONFIGURATION {name} DROP MAPPING FOR url")
    expression = f"to_tsvector({literal(name)}, {text})"
    w.do(
        f"CREATE TABLE {table} ({key} bigint PRIMARY KEY, {text} text, {found} tsvector"
        f" GENERATED ALWAYS AS ({expression}) STORED)"
    )
    w.do(
        f"INSERT INTO {table} VALUES (1, 'The fans of second devices are running slowly at http://a.b/c'), (2, "
        f"{w.text()})"
    )
    w.do(f"CREATE INDEX {w.new()} ON {table} USING gin ({found})")
    w.tables.append(Table(table, [Column(text, _TEXT)], key, 2))
    w.note("TEXT SEARCH CONFIGURATION", name)
    w.note("TEXT SEARCH DICTIONARY", words)


@kind
def text_search_parser(w: World) -> None:
    parser, template, configuration = w.placed(), w.placed(), w.placed()
    w.do(
        f"CREATE TEXT SEARCH PARSER {parser} (START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end,"
        " LEXTYPES = prsd_lextype, HEADLINE = prsd_headline)"
    )
    w.do(f"CREATE TEXT SEARCH TEMPLATE {template} (INIT = dsimple_init, LEXIZE = dsimple_lexize)")
    w.do(f"CREATE TEXT SEARCH CONFIGURATION {configuration} (PARSER = {parser})")
    w.do(f"CREATE TEXT SEARCH DICTIONARY {w.placed()} (TEMPLATE = {template})")
    w.note("TEXT SEARCH PARSER", parser)


_TEXT = next(its for its in BUILTIN if its.sql == "text")
