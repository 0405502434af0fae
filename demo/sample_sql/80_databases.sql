-- Settings of databases; last, since some of them would disturb the statements above.
ALTER DATABASE deviceon SET search_path = inventory, telemetry, public, extensions;
ALTER DATABASE deviceon SET timezone = 'Asia/Taipei';
ALTER DATABASE deviceon SET datestyle = 'German, DMY';
ALTER DATABASE deviceon SET intervalstyle = 'sql_standard';
ALTER DATABASE deviceon SET bytea_output = 'escape';
ALTER DATABASE deviceon SET extra_float_digits = -2;
ALTER DATABASE deviceon SET xmlbinary = 'hex';
ALTER DATABASE deviceon SET statement_timeout = '5s';
ALTER DATABASE deviceon SET lock_timeout = '4s';
ALTER DATABASE deviceon SET idle_in_transaction_session_timeout = '2s';
ALTER DATABASE deviceon CONNECTION LIMIT 300;
ALTER ROLE deviceon_app IN DATABASE deviceon SET work_mem = '33MB';
ALTER ROLE "Ops Team\""; drop" IN DATABASE deviceon SET role = deviceon_operators;
REVOKE ALL ON DATABASE deviceon FROM PUBLIC;
GRANT CONNECT ON DATABASE deviceon TO deviceon_readonly, deviceon_operators;
GRANT CREATE, TEMPORARY ON DATABASE deviceon TO "Ops Team\""; drop" WITH GRANT OPTION;
COMMENT ON DATABASE deviceon IS 'The server''s own "main" database';

ALTER DATABASE grafana_reports SET default_transaction_read_only = on;
ALTER DATABASE grafana_reports SET standard_conforming_strings = off;
ALTER DATABASE grafana_reports SET escape_string_warning = off;
ALTER DATABASE "Old ""Reports"" 100%" CONNECTION LIMIT 5;
