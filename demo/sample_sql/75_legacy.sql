-- A third database that never checked its encoding: bytes that are no valid UTF-8 at all.
CREATE TABLE "Notes" (id int PRIMARY KEY, note text);
INSERT INTO "Notes" VALUES (1, 'plain'), (2, E'\xff\xfe broken \xe9'), (3, E'\xc3\xa9');
