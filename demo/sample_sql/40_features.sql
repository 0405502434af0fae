-- What makes restores go wrong: odd names, edge values, and the less usual objects. Small at any scale.
CREATE SCHEMA "Odd Names" AUTHORIZATION deviceon_owner;
CREATE SCHEMA edge;

-- Names
CREATE TABLE "Odd Names"."select" ("from" int, "WHERE" text, "it""s" text, "tab	bed" int, "%s" int, "$1" int, "a.b" int);
INSERT INTO "Odd Names"."select" SELECT n, 'x' || n, 'y', n, n, n, n FROM generate_series(1, 10) AS n;
CREATE TABLE "Odd Names"."Tab""le; --" (id int PRIMARY KEY, "new
line" text);
INSERT INTO "Odd Names"."Tab""le; --" VALUES (1, E'a\nb');
CREATE TABLE "Odd Names"."größe_表_😀" ("schlüssel" serial PRIMARY KEY, wert text);
INSERT INTO "Odd Names"."größe_表_😀" (wert) VALUES ('ß'), ('設備'), ('😀');
CREATE TABLE "Odd Names"."-t" (a int);
CREATE TABLE "Odd Names"."ev*nts?" (a int);
CREATE TABLE "Odd Names"." " (" " int);
CREATE TABLE "Odd Names"."back\slash" ("\." text);
INSERT INTO "Odd Names"."-t" VALUES (1);
INSERT INTO "Odd Names"."ev*nts?" VALUES (2);
INSERT INTO "Odd Names"." " VALUES (3);
INSERT INTO "Odd Names"."back\slash" VALUES (E'\\.'), (E'\\N'), (E'a\\.\nb');
CREATE TABLE "Odd Names".an_identifier_of_sixty_three_bytes_is_the_longest_there_can_be1 (
    a_column_of_sixty_three_bytes_is_the_longest_that_there_can_be1 int UNIQUE);
CREATE TABLE "Odd Names"."ünïcödé_of_sixty_three_bytes_which_end_with_a_two_byte_letter_é" (a int);
COMMENT ON TABLE "Odd Names"."Tab""le; --" IS E'Comment with ''quotes'', \\ and\r\nCRLF';

-- Shapes of tables
CREATE TABLE edge.empty (id int PRIMARY KEY, t text);
CREATE TABLE edge.no_columns ();
INSERT INTO edge.no_columns DEFAULT VALUES;
INSERT INTO edge.no_columns DEFAULT VALUES;
INSERT INTO edge.no_columns DEFAULT VALUES;
CREATE TABLE edge.only_generated (g int GENERATED ALWAYS AS (7) STORED);
INSERT INTO edge.only_generated DEFAULT VALUES;
INSERT INTO edge.only_generated DEFAULT VALUES;
CREATE TABLE edge.dropped_columns (gone1 int, a int NOT NULL, gone2 text, b text, gone3 int);
INSERT INTO edge.dropped_columns SELECT n, n, 'gone', 'kept ' || n, n FROM generate_series(1, 100) AS n;
ALTER TABLE edge.dropped_columns DROP gone1, DROP gone2, DROP gone3, ADD added int NOT NULL DEFAULT 5;
INSERT INTO edge.dropped_columns SELECT n, 'after ' || n, n FROM generate_series(1, 10) AS n;
DO $columns$
BEGIN
    EXECUTE 'CREATE TABLE edge.wide (' || (SELECT string_agg(format('c%s %s', n,
        (ARRAY['int', 'text', 'numeric', 'boolean', 'timestamptz'])[1 + n % 5]), ', ' ORDER BY n) FROM generate_series(1, 200) n) || ')';
    EXECUTE 'INSERT INTO edge.wide SELECT ' || (SELECT string_agg(
        (ARRAY['r * 10', '''t'' || r', 'r / 3.0', 'r % 2 = 0', 'timestamptz ''epoch'' + r * interval ''1 day'''])[1 + n % 5], ', ' ORDER BY n)
        FROM generate_series(1, 200) n) || ' FROM generate_series(1, 30) AS r';
END $columns$;
CREATE UNLOGGED TABLE edge.unlogged (id int PRIMARY KEY, note text);
INSERT INTO edge.unlogged SELECT n, 'cache ' || n FROM generate_series(1, 100) AS n;
CREATE TYPE edge.pair AS (a int, b text);
CREATE TABLE edge.typed OF edge.pair (a PRIMARY KEY, b WITH OPTIONS DEFAULT 'none');
INSERT INTO edge.typed VALUES (1, 'one');
CREATE ACCESS METHOD second_heap TYPE TABLE HANDLER heap_tableam_handler;
CREATE TABLE edge.other_access_method (a int) USING second_heap;
INSERT INTO edge.other_access_method VALUES (1), (2);

-- Values
CREATE TABLE edge.numbers (i2 smallint, i4 int, i8 bigint, f4 real, f8 double precision, n numeric, m money, x xid8);
INSERT INTO edge.numbers VALUES
    (-32768, -2147483648, -9223372036854775808, '-Infinity', '-Infinity', '-Infinity', '-92233720368547758.08', '0'),
    (32767, 2147483647, 9223372036854775807, 'Infinity', 'Infinity', 'Infinity', '92233720368547758.07', '18446744073709551615'),
    (0, 0, 0, '-0', '-0', 'NaN', 0, '1'), (NULL, NULL, NULL, 'NaN', 'NaN', NULL, NULL, NULL),
    (1, 1, 1, 1.1754944e-38, 2.2250738585072014e-308, 1e-1000, 1, '2'), (1, 1, 1, 0.1, 0.30000000000000004, 0.000, 1, '3'),
    (1, 1, 1, 3.4028235e38, 1.7976931348623157e308, 12345678901234567890123456789012345678901234567890.10, 1, '4');
CREATE TABLE edge.times (d date, t time, tz timetz, ts timestamp, tstz timestamptz, i interval);
INSERT INTO edge.times VALUES
    ('-infinity', '00:00', '00:00+15:59', '-infinity', '-infinity', '-178000000 years'),
    ('infinity', '24:00', '23:59:59.999999-12', 'infinity', 'infinity', '178000000 years'),
    ('4713-01-01 BC', '12:34:56.789012', '12:00+00', '4713-01-01 00:00:00 BC', '4713-11-24 00:00:00+00 BC', '1 mon -2 days +03:04:05.000006'),
    ('5874897-12-31', '00:00:00.000001', '00:00-00:30', '294276-12-31 23:59:59.999999', '294276-12-31 23:59:59.999999+00', '-1 years -2 mons +3 days'),
    ('2025-10-26', '02:30', '02:30+02', '2025-10-26 02:30', '2025-10-26 02:30+02', '0'), (NULL, NULL, NULL, NULL, NULL, NULL);
CREATE TABLE edge.texts (id int, t text, c char(8), v varchar(5), "char" "char", n name, b bytea);
INSERT INTO edge.texts VALUES
    (1, '', '', '', '', '', ''), (2, NULL, NULL, NULL, NULL, NULL, NULL), (3, E'\\N', 'ab  ', 'ab  ', 'x', 'name', E'\\x00'),
    (4, E'tab\tback\\slash\rCR\nLF\fFF\bBS\vVT', E'\\', E'\t', E'\\', '\\', '\x00ff0a0d5c00'),
    (5, E'\\.', ' ', ' ', ' ', ' ', decode(repeat('00', 3000), 'hex')), (6, '"",{}()', ',', '"', '"', '"', 'plain'),
    (7, E'\u0001\u007f\u0085\u00a0\u200b\ufeff\uffff', '設備', '😀', 'é'::text::"char", 'ü', '\xdeadbeef'),
    (8, 'NULL', 'null', 'NULL', 'N', 'NULL', 'NULL');
INSERT INTO edge.texts (id, t) SELECT 9, string_agg(md5(n::text), ' ') FROM generate_series(1, 160000) AS n; -- 5 MB, in TOAST
INSERT INTO edge.texts (id, t) VALUES (10, repeat('compresses well ', 400000));
CREATE TABLE edge.arrays (id int, a int[], t text[], nested text[][], bounds int[], pairs edge.pair[], states inventory.device_state[], b bytea[]);
INSERT INTO edge.arrays VALUES
    (1, '{}', '{}', '{}', '{}', '{}', '{}', '{}'), (2, '{1,NULL,3}', '{"",NULL,"NULL","a,b","c\"d","e\\f"}', '{{a,b},{c,NULL}}', '[0:2]={1,2,3}',
    ARRAY[ROW(1, 'x'), ROW(NULL, NULL), NULL]::edge.pair[], '{"it''s","\"quoted\"",new}', ARRAY['\x00', '\x5c', NULL]::bytea[]),
    (3, NULL, NULL, NULL, '[-1:0][2:3]={{1,2},{3,4}}', NULL, NULL, NULL);
CREATE TABLE edge.others (id int, r int4range, mr int4multirange, tr telemetry.temperature_multirange, j json, jb jsonb, jp jsonpath, x xml,
    u uuid, c cidr, m8 macaddr8, bits bit(5), vb varbit, v tsvector, q tsquery, p point, l line, s lseg, bx box, pa path, po polygon, ci circle,
    lsn pg_lsn, snap pg_snapshot, cls regclass, rol regrole, typ regtype, pro regprocedure, acl aclitem, o oid, ov oidvector, h extensions.hstore,
    ci_text citext, lt ltree, dom inventory.serial_number, comp inventory.geo_position, rec edge.pair);
INSERT INTO edge.others VALUES (1, '[1,)', '{[1,3),[7,9)}', '{(,1],[5,)}', '{"a" : 1,  "a": [ ]}', '{"b": 1e400, "a": "\u0041\\"}', '$.a[*] ? (@ > 1)', '<a>é</a>',
    '00000000-0000-0000-0000-000000000000', '::/0', '08:00:2b:ff:fe:01:02:03', B'10101', B'', 'a:1A fat:2 ''it''''s'':3', 'a & !b <-> c', '(1,-0)', '{1,2,3}',
    '[(0,0),(1,1)]', '(1,1),(0,0)', '[(0,0),(1,1)]', '((0,0),(1,1),(1,0))', '<(0,0),1>', '16/B374D848', '10:20:10,14,15', 'edge.empty', 'deviceon_app',
    'inventory.device_state', 'pg_catalog.lower(text)', 'deviceon_readonly=r/postgres', 4294967295, '1 2 3', '"a b"=>"c\"d", e=>NULL', 'CiText', 'a.b.c',
    'AD-00000001', ROW(NULL, 'NaN', ''), ROW(1, NULL));
INSERT INTO edge.others (id) VALUES (2);
INSERT INTO edge.others (id, r, cls, rol) VALUES (3, 'empty', '"Odd Names"."Tab""le; --"', '"Ops Team\""; drop"');

-- Sequences and identity
CREATE SEQUENCE edge.not_called;
SELECT setval('edge.not_called', 7, false);
CREATE SEQUENCE edge.countdown AS integer INCREMENT -5 MINVALUE -1000 MAXVALUE 100 START 100 CYCLE;
SELECT nextval('edge.countdown'), nextval('edge.countdown');
CREATE SEQUENCE edge.untouched AS smallint START 30 CACHE 7;
CREATE SEQUENCE edge."Shared by two" START 9223372036854775000;
CREATE TABLE edge.first_user (id bigint DEFAULT nextval('edge."Shared by two"'), a int GENERATED ALWAYS AS IDENTITY (INCREMENT -1));
CREATE TABLE edge.second_user (id bigint DEFAULT nextval('edge."Shared by two"'), a int GENERATED BY DEFAULT AS IDENTITY (START 5));
INSERT INTO edge.first_user SELECT FROM generate_series(1, 3);
INSERT INTO edge.second_user (a) VALUES (DEFAULT), (500), (DEFAULT);

-- Inheritance that is not partitioning
CREATE TABLE edge.vehicle (id serial PRIMARY KEY, wheels int DEFAULT 4 CHECK (wheels >= 0), name text);
CREATE TABLE edge.truck (load numeric, CHECK (load > 0)) INHERITS (edge.vehicle);
CREATE TABLE edge.boat (draught numeric, wheels int DEFAULT 0) INHERITS (edge.vehicle);
CREATE TABLE edge.amphibian (wheels int DEFAULT 3) INHERITS (edge.truck, edge.boat);
-- Columns in the parent's order: pg_dump puts inherited ones first, so another order would not come back.
CREATE TABLE edge.adopted (id int NOT NULL DEFAULT 1, wheels int CONSTRAINT vehicle_wheels_check CHECK (wheels >= 0), name text, extra int);
ALTER TABLE edge.adopted INHERIT edge.vehicle;
INSERT INTO edge.vehicle (name) VALUES ('car');
INSERT INTO edge.truck (name, load) VALUES ('truck', 7.5);
INSERT INTO edge.boat (name, draught) VALUES ('boat', 1.2);
INSERT INTO edge.amphibian (name, load, draught) VALUES ('duck', 2, 0.5);
INSERT INTO edge.adopted VALUES (99, 3, 'adopted', 1);

-- Constraints
CREATE FUNCTION edge.is_even(value int) RETURNS boolean LANGUAGE sql IMMUTABLE STRICT SET search_path = edge, pg_temp AS 'SELECT value % 2 = 0';
CREATE TABLE edge.checked (a int CHECK (edge.is_even(a)), b int);
INSERT INTO edge.checked VALUES (2, -1), (4, 1), (NULL, NULL);
ALTER TABLE edge.checked ADD CONSTRAINT b_positive CHECK (b > 0) NOT VALID;
ALTER TABLE edge.checked ADD CONSTRAINT not_inherited CHECK (b IS DISTINCT FROM 77) NO INHERIT;
CREATE TABLE edge.egg (id int PRIMARY KEY, hen int);
CREATE TABLE edge.hen (id int PRIMARY KEY, egg int UNIQUE DEFERRABLE INITIALLY DEFERRED);
INSERT INTO edge.egg SELECT n, 11 - n FROM generate_series(1, 10) AS n;
INSERT INTO edge.hen SELECT n, 11 - n FROM generate_series(1, 10) AS n;
ALTER TABLE edge.egg ADD FOREIGN KEY (hen) REFERENCES edge.hen DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE edge.hen ADD FOREIGN KEY (egg) REFERENCES edge.egg ON DELETE SET NULL ON UPDATE CASCADE DEFERRABLE;
CREATE TABLE edge.orphans (id int PRIMARY KEY, egg int);
INSERT INTO edge.orphans VALUES (1, 1), (2, 999);
ALTER TABLE edge.orphans ADD CONSTRAINT hopeful FOREIGN KEY (egg) REFERENCES edge.egg NOT VALID;
CREATE TABLE edge.composite_key (a int, b int, c int UNIQUE NULLS NOT DISTINCT, PRIMARY KEY (a, b) INCLUDE (c));
CREATE TABLE edge.composite_reference (a int, b int, FOREIGN KEY (a, b) REFERENCES edge.composite_key ON DELETE SET NULL (b));
INSERT INTO edge.composite_key VALUES (1, 1, NULL);
INSERT INTO edge.composite_reference VALUES (1, 1), (NULL, 5);

-- Large objects: without rows that point to them, with an owner, rights and a comment; sparse, empty, over one page
SELECT lo_from_bytea(600001, '\x00010203ff'), lo_create(600002), lo_create(600003), lo_from_bytea(600004, decode(repeat('ab', 100000), 'hex'));
SELECT lo_put(600003, 3000000, '\xcafe');
ALTER LARGE OBJECT 600001 OWNER TO deviceon_app;
GRANT SELECT ON LARGE OBJECT 600001 TO deviceon_readonly;
GRANT SELECT, UPDATE ON LARGE OBJECT 600004 TO deviceon_operators WITH GRANT OPTION;
COMMENT ON LARGE OBJECT 600001 IS 'It''s a "large" object';

-- What extensions and text search bring
CREATE COLLATION edge.plain (LOCALE = 'C');
CREATE COLLATION edge.numeric_order (PROVIDER = icu, LOCALE = 'en-u-kn-true', DETERMINISTIC = false);
CREATE TABLE edge.collated (a text COLLATE edge.plain, b text COLLATE edge.numeric_order PRIMARY KEY);
INSERT INTO edge.collated VALUES ('a', 'x10'), ('B', 'x9');
CREATE TEXT SEARCH DICTIONARY edge.plain_words (TEMPLATE = simple, STOPWORDS = 'english', ACCEPT = false);
CREATE TEXT SEARCH CONFIGURATION edge.messages (COPY = pg_catalog.english);
ALTER TEXT SEARCH CONFIGURATION edge.messages ALTER MAPPING FOR asciiword WITH edge.plain_words, english_stem;
CREATE TABLE edge.searched (body text, words tsvector GENERATED ALWAYS AS (to_tsvector('edge.messages', body)) STORED);
INSERT INTO edge.searched VALUES ('The fan of the second device is running too slowly');
CREATE INDEX ON edge.searched USING gin (words);
CREATE CONVERSION edge.latin FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE INDEX ON edge.texts USING gin (left(t, 1000) extensions.gin_trgm_ops);
CREATE SERVER loopback TYPE 'test' VERSION '1' FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', dbname 'it''s "far"');
CREATE USER MAPPING FOR deviceon_app SERVER loopback OPTIONS (user 'remote', password 'fdw''s \ secret');
CREATE FOREIGN TABLE edge.elsewhere (id int OPTIONS (column_name 'Id'), t text) SERVER loopback OPTIONS (table_name 'never reached');
GRANT USAGE ON FOREIGN SERVER loopback TO deviceon_operators;
