-- A second, older database: another encoding, and settings that break careless restores (it is read-only by default).
CREATE TABLE reports (id serial PRIMARY KEY, title text NOT NULL UNIQUE, body text, made timestamp);
INSERT INTO reports (title, body, made) SELECT 'Monatsbericht ' || n, 'Größe: ' || n || ' µm, 20 °C ÿ', timestamp '2025-01-01' + n * interval '1 day'
FROM generate_series(1, 200) AS n;
CREATE VIEW latest AS SELECT title FROM reports ORDER BY made DESC LIMIT 10;
ALTER TABLE reports OWNER TO deviceon_app;
GRANT SELECT ON latest TO deviceon_readonly;
SELECT lo_from_bytea(600001, convert_to('same number, other database', 'UTF8'));
