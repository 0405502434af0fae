-- Roles of the whole server. Verifiers are put in by sample.py: they are made from known passwords.
CREATE ROLE deviceon_owner NOLOGIN;
CREATE ROLE deviceon_readonly NOLOGIN;
CREATE ROLE deviceon_operators NOLOGIN CREATEDB;
CREATE ROLE deviceon_app LOGIN CONNECTION LIMIT 50;
CREATE ROLE deviceon_legacy LOGIN NOINHERIT VALID UNTIL '2031-01-01 00:00:00+00';
CREATE ROLE deviceon_expired LOGIN VALID UNTIL '-infinity' CONNECTION LIMIT 0;
CREATE ROLE deviceon_replica LOGIN REPLICATION BYPASSRLS;
CREATE ROLE "Ops Team\""; drop" LOGIN CREATEROLE;
CREATE ROLE "rôle-ü" NOLOGIN;

GRANT deviceon_owner TO deviceon_app;
GRANT deviceon_readonly TO deviceon_operators;
GRANT deviceon_readonly, deviceon_operators TO "Ops Team\""; drop" WITH ADMIN OPTION;
GRANT deviceon_readonly TO "rôle-ü" GRANTED BY "Ops Team\""; drop";
GRANT pg_monitor, pg_read_all_stats TO deviceon_operators;

ALTER ROLE deviceon_app SET search_path = inventory, "Odd Names", public;
ALTER ROLE deviceon_app SET application_name = 'it''s "DeviceOn"; \ ';
ALTER ROLE deviceon_readonly SET default_transaction_read_only = on;
ALTER ROLE "Ops Team\""; drop" SET "deviceon.note" = 'line one
line two, with = and ''quotes''';
ALTER ROLE ALL SET log_min_duration_statement = '10s';
GRANT SET ON PARAMETER log_min_duration_statement TO deviceon_operators WITH GRANT OPTION;
GRANT ALTER SYSTEM, SET ON PARAMETER work_mem TO deviceon_app;

COMMENT ON ROLE deviceon_app IS 'The server process itself; it''s the owner of everything';
COMMENT ON ROLE "Ops Team\""; drop" IS E'Odd name on purpose\n\\.';
