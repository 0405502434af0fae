-- Indexes, foreign keys, code, views, rights: what a dump brings back after the rows.
SET LOCAL maintenance_work_mem = '256MB';

ALTER TABLE inventory.devices ADD PRIMARY KEY (id);
CREATE UNIQUE INDEX devices_uid ON inventory.devices (uid);
CREATE INDEX devices_settings ON inventory.devices USING gin (settings jsonb_path_ops);
CREATE INDEX devices_tags ON inventory.devices USING gin (tags) WITH (fastupdate = off);
CREATE INDEX devices_offline ON inventory.devices (lower(name) text_pattern_ops DESC NULLS LAST) INCLUDE (state) WHERE state = 'offline';
CREATE INDEX devices_address ON inventory.devices USING gist (address inet_ops);
ALTER TABLE inventory.devices CLUSTER ON devices_uid;
ALTER TABLE inventory.devices REPLICA IDENTITY USING INDEX devices_uid;
ALTER TABLE inventory.groups ADD FOREIGN KEY (parent_id) REFERENCES inventory.groups ON DELETE RESTRICT;
CREATE INDEX groups_path ON inventory.groups USING gist (path);
ALTER TABLE inventory.group_members ADD PRIMARY KEY (group_id, device_id);
ALTER TABLE inventory.group_members ADD FOREIGN KEY (group_id) REFERENCES inventory.groups ON DELETE CASCADE;
ALTER TABLE inventory.group_members ADD FOREIGN KEY (device_id) REFERENCES inventory.devices DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE inventory.group_members REPLICA IDENTITY FULL;
ALTER TABLE security.users ADD FOREIGN KEY (group_id) REFERENCES inventory.groups;
ALTER TABLE security.audit_log ADD PRIMARY KEY (id);
ALTER TABLE security.audit_log ADD FOREIGN KEY (user_id) REFERENCES security.users;
ALTER TABLE telemetry.events ADD PRIMARY KEY (at, id, severity);
CREATE INDEX events_device ON telemetry.events (device_id, at DESC);
CREATE INDEX events_at ON telemetry.events USING brin (at) WITH (pages_per_range = 32);
-- An index of the whole that one partition lacks so far: it stays invalid.
CREATE INDEX events_kind ON ONLY telemetry.events (kind) WHERE severity > 3;
ALTER TABLE telemetry.readings ADD PRIMARY KEY (device_id, sensor);
ALTER TABLE telemetry.readings ADD FOREIGN KEY (device_id) REFERENCES inventory.devices;
ALTER TABLE telemetry.alarms ADD UNIQUE (region, id);
CREATE STATISTICS telemetry.events_kinds (ndistinct, dependencies, mcv) ON kind, severity FROM telemetry.events;
CREATE STATISTICS inventory.names (mcv) ON lower(name), (settings ->> 'model') FROM inventory.devices;
COMMENT ON STATISTICS inventory.names IS 'Names and models go together';
ALTER STATISTICS inventory.names SET STATISTICS 200;
ALTER TABLE inventory.devices ALTER COLUMN name SET STATISTICS 500, ALTER COLUMN state SET (n_distinct = 6);
COMMENT ON INDEX inventory.devices_uid IS 'one';
COMMENT ON CONSTRAINT serial_number_form ON DOMAIN inventory.serial_number IS 'two letters';

-- Code
CREATE FUNCTION inventory.touch() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    -- A restore that fires this changes what it restores.
    NEW.revision := NEW.revision + 1;
    RETURN NEW;
END $body$;
CREATE FUNCTION inventory.refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'refused: %', TG_NAME; END$$;
CREATE FUNCTION inventory.odd_quotes(IN a text DEFAULT E'\\''$$', OUT b text, OUT c int) LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = '' SET work_mem = '8MB' AS $_$
DECLARE
    x text := $q$ it's "quoted" $q$ || E'\n\\' || '$$';
BEGIN
    b := a || x; c := length(b);
END $_$;
CREATE FUNCTION inventory.online(since interval = '1 day') RETURNS TABLE (id int, name text) STABLE ROWS 50 COST 7 PARALLEL SAFE
    BEGIN ATOMIC SELECT devices.id, devices.name FROM inventory.devices WHERE devices.state = 'online'; END;
CREATE PROCEDURE security.forget(before timestamptz, INOUT removed bigint DEFAULT 0) LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM security.audit_log WHERE at < before;
    GET DIAGNOSTICS removed = ROW_COUNT;
END $$;
CREATE AGGREGATE edge.product(double precision) (SFUNC = float8mul, STYPE = double precision, INITCOND = '1', PARALLEL = safe);
CREATE AGGREGATE edge.middle(ORDER BY anyelement) (SFUNC = ordered_set_transition, STYPE = internal, FINALFUNC = mode_final, FINALFUNC_EXTRA);
CREATE FUNCTION edge.near(inventory.geo_position, inventory.geo_position) RETURNS boolean LANGUAGE sql IMMUTABLE
    RETURN abs(($1).latitude - ($2).latitude) < 0.01;
CREATE OPERATOR edge.~~~ (FUNCTION = edge.near, LEFTARG = inventory.geo_position, RIGHTARG = inventory.geo_position, COMMUTATOR = OPERATOR(edge.~~~));
CREATE FUNCTION edge.position_text(inventory.geo_position) RETURNS text LANGUAGE sql IMMUTABLE RETURN ($1).label;
CREATE CAST (inventory.geo_position AS text) WITH FUNCTION edge.position_text AS ASSIGNMENT;
CREATE FUNCTION edge.compare_backwards(int, int) RETURNS int LANGUAGE sql IMMUTABLE STRICT RETURN btint4cmp($2, $1);
CREATE OPERATOR CLASS edge.backwards FOR TYPE int USING btree AS
    OPERATOR 1 >, OPERATOR 2 >=, OPERATOR 3 =, OPERATOR 4 <=, OPERATOR 5 <, FUNCTION 1 edge.compare_backwards(int, int);
CREATE INDEX dropped_backwards ON edge.dropped_columns (a edge.backwards);

CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON inventory.devices FOR EACH ROW EXECUTE FUNCTION inventory.touch();
CREATE TRIGGER "no truncate" BEFORE TRUNCATE ON inventory.devices FOR EACH STATEMENT EXECUTE FUNCTION inventory.refuse();
CREATE TRIGGER only_some BEFORE UPDATE OF price ON inventory.devices FOR EACH ROW WHEN (NEW.price < 0) EXECUTE FUNCTION inventory.refuse('a''b', '\');
CREATE TRIGGER disabled AFTER INSERT ON inventory.groups FOR EACH ROW EXECUTE FUNCTION inventory.refuse();
CREATE CONSTRAINT TRIGGER no_insert AFTER INSERT ON edge.collated DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION inventory.refuse();
CREATE TRIGGER no_insert AFTER INSERT ON telemetry.alarms FOR EACH ROW EXECUTE FUNCTION inventory.refuse();
CREATE TRIGGER replica AFTER INSERT ON edge.checked FOR EACH ROW EXECUTE FUNCTION inventory.refuse();
ALTER TABLE inventory.groups DISABLE TRIGGER disabled;
ALTER TABLE edge.collated ENABLE ALWAYS TRIGGER no_insert;
ALTER TABLE telemetry.alarms_apac DISABLE TRIGGER no_insert;
ALTER TABLE edge.checked ENABLE REPLICA TRIGGER replica;
COMMENT ON TRIGGER touch ON inventory.devices IS 'counts changes';

-- Row-level security: the second table binds its owner too
ALTER TABLE security.users ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_group ON security.users AS PERMISSIVE FOR SELECT TO deviceon_readonly, deviceon_operators USING (group_id < 5);
CREATE POLICY nobody ON security.users AS RESTRICTIVE FOR DELETE USING (false);
ALTER TABLE security.policies ENABLE ROW LEVEL SECURITY;
ALTER TABLE security.policies FORCE ROW LEVEL SECURITY;
CREATE POLICY "it's mine" ON security.policies USING (name = CURRENT_USER) WITH CHECK (name <> 'x');

-- Views
CREATE VIEW inventory.by_state AS SELECT state, count(*) AS devices FROM inventory.devices GROUP BY state;
CREATE VIEW security.visible_users WITH (security_barrier) AS SELECT id, login FROM security.users WHERE group_id < 10 WITH LOCAL CHECK OPTION;
CREATE VIEW inventory.as_caller WITH (security_invoker) AS SELECT * FROM inventory.devices WHERE state <> 'new';
CREATE VIEW edge.with_rules AS SELECT a, b FROM edge.typed;
CREATE RULE insert_it AS ON INSERT TO edge.with_rules DO INSTEAD INSERT INTO edge.typed VALUES (NEW.a, NEW.b) RETURNING a, b;
CREATE RULE skip_it AS ON DELETE TO edge.with_rules WHERE OLD.a > 100 DO INSTEAD NOTHING;
CREATE RULE quiet AS ON UPDATE TO edge.empty DO ALSO NOTIFY changed;
ALTER TABLE edge.with_rules ALTER a SET DEFAULT 12;
-- Grouped by the primary key alone: a dump has to make it twice.
CREATE VIEW inventory.group_sizes AS SELECT g.id, g.name, g.path, count(m.device_id) AS members
    FROM inventory.groups g LEFT JOIN inventory.group_members m ON m.group_id = g.id GROUP BY g.id;
CREATE RECURSIVE VIEW inventory.ancestors (id, ancestor) AS
    SELECT id, parent_id FROM inventory.groups UNION SELECT a.id, g.parent_id FROM ancestors a JOIN inventory.groups g ON g.id = a.ancestor;
COMMENT ON VIEW inventory.by_state IS 'For the dashboard';

CREATE MATERIALIZED VIEW telemetry.daily WITH (fillfactor = 80) AS
    SELECT date_trunc('day', at, 'UTC') AS day, device_id % 100 AS bucket, count(*) AS events, max(severity) AS worst, sum(id) AS ids
    FROM telemetry.events WHERE severity >= 3 GROUP BY 1, 2;
CREATE UNIQUE INDEX daily_day ON telemetry.daily (day, bucket);
ALTER MATERIALIZED VIEW telemetry.daily CLUSTER ON daily_day;
CREATE MATERIALIZED VIEW telemetry.a_monthly AS SELECT date_trunc('month', day, 'UTC') AS month, sum(events) AS events FROM telemetry.daily GROUP BY 1;
CREATE INDEX ON telemetry.a_monthly (month);
CREATE MATERIALIZED VIEW telemetry.never_filled AS SELECT * FROM inventory.by_state WITH NO DATA;
CREATE UNIQUE INDEX ON telemetry.never_filled (state);
COMMENT ON MATERIALIZED VIEW telemetry.daily IS 'Refreshed at night';

-- Publications
CREATE PUBLICATION some_rows FOR TABLE inventory.devices (id, uid, state) WHERE (uid IS NOT NULL), TABLE inventory.groups WITH (publish = 'insert, update');
CREATE PUBLICATION whole_schema FOR TABLES IN SCHEMA security;
CREATE PUBLICATION by_root FOR TABLE telemetry.readings WITH (publish_via_partition_root = true);

-- Owners and rights
DO $owners$
DECLARE
    relation regclass;
BEGIN
    FOR relation IN SELECT oid FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm') AND relnamespace::regnamespace::text
        IN ('inventory', 'telemetry', 'security') LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO deviceon_owner', relation);
    END LOOP;
END $owners$;
ALTER TABLE edge.typed OWNER TO "Ops Team\""; drop";
ALTER FUNCTION inventory.odd_quotes OWNER TO deviceon_app;
GRANT USAGE ON SCHEMA inventory, telemetry, security TO deviceon_readonly, deviceon_operators;
GRANT USAGE ON SCHEMA edge TO PUBLIC;
GRANT SELECT ON ALL TABLES IN SCHEMA telemetry TO deviceon_readonly;
GRANT SELECT (id, login, group_id), UPDATE (group_id) ON security.users TO deviceon_operators;
GRANT SELECT, INSERT ON inventory.devices TO deviceon_operators WITH GRANT OPTION;
SET LOCAL ROLE deviceon_operators;
GRANT SELECT ON inventory.devices TO deviceon_readonly, "rôle-ü";
RESET ROLE;
GRANT ALL ON inventory.groups TO PUBLIC;
REVOKE DELETE ON security.audit_log FROM deviceon_owner;
GRANT USAGE ON SEQUENCE edge.countdown TO deviceon_readonly;
REVOKE EXECUTE ON FUNCTION inventory.odd_quotes FROM PUBLIC;
GRANT EXECUTE ON PROCEDURE security.forget TO "Ops Team\""; drop";
REVOKE USAGE ON TYPE inventory.device_state FROM PUBLIC;
REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC;
GRANT USAGE ON LANGUAGE plpgsql TO deviceon_owner, deviceon_operators;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_waldir() TO deviceon_operators;
REVOKE SELECT ON pg_catalog.pg_stat_activity FROM PUBLIC;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE deviceon_owner IN SCHEMA inventory GRANT SELECT ON TABLES TO deviceon_readonly;
ALTER DEFAULT PRIVILEGES FOR ROLE deviceon_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
-- These two would give rights to every table that a restore makes, were they set first.
ALTER DEFAULT PRIVILEGES FOR ROLE postgres GRANT ALL ON TABLES TO "rôle-ü";
ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA edge GRANT USAGE ON SEQUENCES TO PUBLIC;

-- Watches changes of tables. Last of all, as it would note those above.
CREATE TABLE security.schema_changes (tag text, object text);
CREATE FUNCTION security.note_schema_change() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO security.schema_changes SELECT command_tag, object_identity FROM pg_event_trigger_ddl_commands();
END $$;
CREATE EVENT TRIGGER note_schema_change ON ddl_command_end WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE', 'DROP TABLE')
    EXECUTE FUNCTION security.note_schema_change();
CREATE EVENT TRIGGER switched_off ON sql_drop EXECUTE FUNCTION security.note_schema_change();
ALTER EVENT TRIGGER switched_off DISABLE;
COMMENT ON EVENT TRIGGER note_schema_change IS 'Who changed what';
CREATE TABLE security.one_change (noted text);
