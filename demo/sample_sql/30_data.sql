-- Rows made from hash functions of a counter and the seed (sample.seed): the same at each run, and made by the server.
SELECT setseed(0);

INSERT INTO inventory.groups (id, parent_id, path, name, attributes)
SELECT n, nullif(n / 8, 0), text2ltree(CASE WHEN n < 8 THEN 'g' || n ELSE 'g' || n / 8 || '.g' || n END),
       'Group ' || n, extensions.hstore(ARRAY['floor', 'owner'], ARRAY[(n % 40)::text, CASE WHEN n % 3 > 0 THEN 'o''' || n END])
FROM generate_series(1, greatest(20, current_setting('sample.devices')::int / 100)) AS n;

INSERT INTO inventory.devices (uid, serial, name, state, address, hardware, position, tags, thresholds, price, settings,
                               registered_at, warranty, revision)
SELECT md5('device' || n || current_setting('sample.seed'))::uuid,
       (ARRAY['AD','UN','MI','AR'])[1 + (h & 3)] || '-' || lpad((n % 100000000)::text, 8, '0'),
       'device-' || n || CASE WHEN n % 50 = 0 THEN ' Prüfstand "' || (h & 255) || '"' ELSE '' END,
       (ARRAY['new','online','offline','in repair','"quoted"','it''s'])[1 + ((h >> 3) & 4095) % 6]::inventory.device_state,
       inet '10.0.0.0' + ((h >> 2) & 16777215),
       CASE WHEN n % 7 > 0 THEN substr(md5(n::text || 'mac'), 1, 12)::macaddr END,
       CASE WHEN n % 5 > 0 THEN ROW(((h >> 5) & 65535) / 728.0 - 45, ((h >> 9) & 65535) / 364.0 - 90,
            'Hall ' || (h & 63) || ', "North"')::inventory.geo_position END,
       CASE WHEN n % 4 = 0 THEN '{}'::text[] ELSE ARRAY['rack-' || (h & 127), 'line,' || (h & 15), NULL, 'a "b"'] END,
       telemetry.temperature_range(-20 - (h & 7), 60 + (h & 31), '[]'),
       ((h >> 4) & 1048575)::numeric / 1000,
       jsonb_build_object(
           'model', 'UNO-' || (2000 + ((h >> 7) & 255)),
           'agent', jsonb_build_object('version', format('%s.%s.%s', 4 + (h & 1), (h >> 2) & 7, (h >> 5) & 63),
                                       'interval', 5 * (1 + (h & 15)), 'proxy', NULL),
           'network', jsonb_build_array(jsonb_build_object('name', 'eth0', 'mtu', 1500, 'speed', 1000),
                                        jsonb_build_object('name', 'eth1', 'mtu', 9000, 'up', (h & 1) = 0)),
           'disks', jsonb_build_array(jsonb_build_object('serial', md5(h::text), 'gb', 64 << (h & 3)::int, 'health', h & 127),
                                      jsonb_build_object('serial', md5((h + 1)::text), 'gb', 512, 'health', (h >> 8) & 127)),
           'watchdog', jsonb_build_object('enabled', true, 'seconds', 30 + (h & 31), 'action', 'reboot'),
           'description', 'Industrial computer in hall ' || (h & 63) || ', maintained by team ' || (h & 7) || E'\n\u00e4\u8a2d\u5099'),
       timestamptz '2022-01-01 00:00+00' + ((h >> 6) & 134217727) * interval '1 second',
       daterange(date '2022-01-01' + (h & 1023)::int, CASE WHEN n % 9 > 0 THEN date '2027-01-01' + (h & 1023)::int END),
       n % 100
FROM (SELECT n, hashint8extended(n, current_setting('sample.seed')::bigint) & 9223372036854775807 AS h
      FROM generate_series(1, current_setting('sample.devices')::bigint) AS n) AS made;

INSERT INTO inventory.group_members
SELECT 1 + (n % (SELECT count(*) FROM inventory.groups))::int, n, date '2024-01-01' + (n % 700)::int
FROM generate_series(1, current_setting('sample.devices')::int) AS n;

INSERT INTO security.users (login, password, settings, group_id)
SELECT 'user' || n || '@example.com', 'sha256:' || encode(sha256(convert_to('secret' || n, 'UTF8')), 'hex'),
       xmlparse(CONTENT '<settings lang="de"><a>' || n || '</a></settings>'), 1 + n % 20
FROM generate_series(1, greatest(20, current_setting('sample.devices')::int / 200)) AS n;

INSERT INTO security.policies (name, rule, active)
SELECT 'policy ' || n / 3, jsonb_build_object('limit', n, 'actions', ARRAY['mail', 'sms']),
       tstzrange(timestamptz '2025-01-01 00:00+00' + n % 3 * interval '30 days',
                 CASE n % 3 WHEN 2 THEN 'infinity' ELSE timestamptz '2025-01-01 00:00+00' + (n % 3 + 1) * interval '30 days' END)
FROM generate_series(0, greatest(20, current_setting('sample.devices')::int / 1000)) AS n;

-- Firmware images: bytes that do not compress, made of SHA-256 blocks. Their manuals are large objects.
INSERT INTO inventory.firmware (model, version, image, manual)
SELECT 'UNO-' || (2000 + n), ARRAY[1, n % 10, n], string_agg(sha256(int8send(n * 1000000 + block)), '' ORDER BY block),
       lo_from_bytea((700000 + n)::oid, convert_to(repeat('Manual of UNO-' || (2000 + n) || E', page\n', 2000), 'UTF8'))
FROM generate_series(1, current_setting('sample.firmware')::bigint) AS n,
     generate_series(1, current_setting('sample.firmware_blocks')::bigint) AS block
GROUP BY n ORDER BY n;

INSERT INTO telemetry.readings
SELECT 1 + (n / 4) % current_setting('sample.devices')::int,
       (ARRAY['cpu', 'disk', 'fan', 'board'])[1 + n % 4], (hashint4(n::int) & 65535)::numeric / 100, CASE n % 4 WHEN 2 THEN 'rpm' ELSE '°C' END
FROM generate_series(1, current_setting('sample.devices')::bigint * 4) AS n;

INSERT INTO telemetry.state_changes
SELECT 1 + n % current_setting('sample.devices')::int,
       (enum_range(NULL::inventory.device_state))[1 + (hashint4(n::int) & 65535) % 6],
       timestamptz '2025-06-01 00:00+00' + n * interval '13 seconds'
FROM generate_series(1, current_setting('sample.devices')::bigint) AS n;

INSERT INTO telemetry.alarms
SELECT n, (ARRAY['EMEA', 'Middle "East"', 'APAC', 'LATAM', 'North' || E'\u2028' || 'America'])[1 + n % 5], date '2025-01-01' + (n % 400)::int,
       CASE WHEN n % 3 > 0 THEN date '2025-01-02' + (n % 400)::int END, repeat('!', (n % 7)::int)
FROM generate_series(1, greatest(50, current_setting('sample.devices')::bigint / 4)) AS n;

INSERT INTO telemetry.events SELECT -n, 1 + n % 10, timestamptz '2020-01-01 00:00+00' + n * interval '1 day', 3, 'old', NULL, 'NaN', NULL
FROM generate_series(1, 50) AS n;
INSERT INTO telemetry.events SELECT -1000 - n, 1 + n % 10, timestamptz '2030-01-01 00:00+00' + n * interval '1 day', 0, 'future', 'clock wrong', '-0', '[]'
FROM generate_series(1, 50) AS n;
