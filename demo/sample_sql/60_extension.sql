-- An extension whose tables hold the users' own rows (pg_extension_config_dump): a dump must carry those, and only those.
CREATE SCHEMA sample_ext;
CREATE EXTENSION deviceon_sample_ext SCHEMA sample_ext;
INSERT INTO sample_ext.ext_settings (name, value) VALUES ('ours', 'it''s'), ('also ours', NULL);
INSERT INTO sample_ext.ext_rules (rule) VALUES ('user rule 1'), ('user rule 2');
