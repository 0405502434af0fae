"""Databases that this project did not design: pgbench's, and every extension of postgresql-contrib at once."""

from __future__ import annotations

import asyncio

import asyncpg

from demo.postgresql_server import PostgresqlServer

PGBENCH = "pgbench_plain"
PGBENCH_PARTITIONED = "pgbench_partitioned"
CONTRIB = "contrib_extensions"
DATABASES = (PGBENCH, PGBENCH_PARTITIONED, CONTRIB)

# What the regression tests of these extensions, and their manual pages, do with them.
_USE = """
CREATE TABLE words (word citext PRIMARY KEY, soundex text GENERATED ALWAYS AS (soundex(word::text)) STORED);
INSERT INTO words VALUES ('Knuth'), ('Hilbert'), ('naïve');
CREATE TABLE cubes (c cube, s seg, e earth, i isbn, n issn13, u uuid DEFAULT uuid_nil(), l ltree, t lquery,
    q ltxtquery, k query_int);
INSERT INTO cubes VALUES ('(1,2),(3,4)', '1.5 .. 2.50', ll_to_earth(48.1, 11.6), '978-0-393-04002-9',
    '977-1436-452-00-8', DEFAULT, 'Top.Science', 'Top.*{0,2}.Astro%', 'Europe & Russia*@', '1&(2|3)');
CREATE INDEX ON cubes USING gist (c);
CREATE INDEX ON cubes USING gist (l);
CREATE TABLE numbers (a int, b int[], c text, h hstore);
INSERT INTO numbers SELECT n, ARRAY[n, n * 2], 'text ' || n, hstore('n', n::text) FROM generate_series(1, 500) AS n;
CREATE INDEX ON numbers USING bloom (a) WITH (length = 80, col1 = 2);
CREATE INDEX ON numbers USING gin (a, b);
CREATE INDEX ON numbers USING gist (b gist__intbig_ops, a);
CREATE INDEX ON numbers USING gin (c gin_trgm_ops);
CREATE INDEX ON numbers USING gist (h);
CREATE TABLE rasters (id int PRIMARY KEY, raster lo, changed timestamp, who text);
INSERT INTO rasters VALUES (1, lo_from_bytea(500001, '\\xc0ffee'), 'epoch', 'me');
CREATE TRIGGER raster BEFORE UPDATE OR DELETE ON rasters FOR EACH ROW EXECUTE FUNCTION lo_manage(raster);
CREATE TRIGGER changed BEFORE UPDATE ON rasters FOR EACH ROW EXECUTE FUNCTION moddatetime(changed);
CREATE TRIGGER who BEFORE INSERT OR UPDATE ON rasters FOR EACH ROW EXECUTE FUNCTION insert_username(who);
CREATE TRIGGER notes AFTER INSERT ON rasters FOR EACH ROW EXECUTE FUNCTION triggered_change_notification();
CREATE SEQUENCE next_id START -5 MINVALUE -5;
CREATE TABLE ids (id int, name text);
CREATE TRIGGER ids_nextid BEFORE INSERT OR UPDATE ON ids FOR EACH ROW EXECUTE FUNCTION autoinc(id, next_id);
INSERT INTO ids (name) VALUES ('first'), ('second');
CREATE TEXT SEARCH DICTIONARY short_ints (TEMPLATE = intdict_template, MAXLEN = 4);
CREATE TEXT SEARCH DICTIONARY synonyms (TEMPLATE = xsyn_template, KEEPORIG = false);
CREATE TEXT SEARCH CONFIGURATION plain (COPY = simple);
ALTER TEXT SEARCH CONFIGURATION plain ALTER MAPPING FOR hword, hword_part, word WITH unaccent, simple;
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE passwd (line text) SERVER files OPTIONS (filename '/nonexistent', format 'text');
CREATE SERVER other FOREIGN DATA WRAPPER dblink_fdw OPTIONS (host 'localhost', dbname 'other');
CREATE VIEW pivot AS SELECT * FROM crosstab('SELECT a, b[1], c FROM public.numbers ORDER BY 1', 'SELECT 1')
    AS ct(a int, one text);
CREATE VIEW statements AS SELECT userid, calls FROM pg_stat_statements;
"""


async def public_schemas(server: PostgresqlServer) -> tuple[str, ...]:
    """Make these databases and return their names; the server must not have them yet."""
    for database in DATABASES:
        await server.execute(f"CREATE DATABASE {database} TEMPLATE template0")
    await asyncio.to_thread(server.run, "pgbench", ["-q", "-i", "-s", "1", "--foreign-keys", "-d", PGBENCH])
    await asyncio.to_thread(
        server.run, "pgbench", ["-q", "-i", "-s", "1", "--partitions=5", "--partition-method=hash", PGBENCH_PARTITIONED]
    )
    for database in (PGBENCH, PGBENCH_PARTITIONED):
        await asyncio.to_thread(server.run, "pgbench", ["-n", "-t", "50", "-c", "2", database])
    connection = await server.connect(CONTRIB)
    try:
        await _create_extensions(connection)
        await connection.execute(_USE)
    finally:
        await connection.close()
    return DATABASES


async def _create_extensions(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Create every extension of the server's package; the sample's own is none of them."""
    names = await connection.fetch(
        "SELECT name FROM pg_available_extensions WHERE name !~ '^(plpgsql|deviceon_.*)$' ORDER BY name"
    )
    for row in names:
        await connection.execute(f'CREATE EXTENSION "{row["name"]}" CASCADE')
