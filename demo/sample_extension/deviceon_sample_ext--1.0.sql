CREATE TABLE @extschema@.ext_settings (name text PRIMARY KEY, value text);
INSERT INTO @extschema@.ext_settings VALUES ('preset', 'shipped');
SELECT pg_catalog.pg_extension_config_dump('ext_settings', $$WHERE name <> 'preset'$$);
CREATE TABLE @extschema@.ext_rules (id serial PRIMARY KEY, rule text);
SELECT pg_catalog.pg_extension_config_dump('ext_rules', '');
SELECT pg_catalog.pg_extension_config_dump('ext_rules_id_seq', '');
CREATE TABLE @extschema@.ext_not_dumped (a int);
INSERT INTO @extschema@.ext_not_dumped VALUES (1);
