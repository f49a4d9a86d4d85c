# image: deb:trixie/sqlite3
# Tables, indices, text search, trees, windows, savepoints, with the same answers
# from memory, from a file, and from a write-ahead log.
set -e
cat > work.sql <<'S'
CREATE TABLE z1(a INTEGER, b INTEGER, c TEXT);
CREATE TABLE z2(a INTEGER PRIMARY KEY, b INTEGER, c TEXT) WITHOUT ROWID;
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 60000)
  INSERT INTO z1 SELECT i, (i * 7919) % 60013, printf('%x%s', i * 40503, hex(i)) FROM n;
INSERT INTO z2 SELECT a, b, c FROM z1 ORDER BY b;
COMMIT;
CREATE INDEX i1 ON z1(b); CREATE INDEX i2 ON z1(c, a); CREATE UNIQUE INDEX i3 ON z2(b, a);
SELECT count(*), sum(b), max(c) FROM z1 WHERE b BETWEEN 1000 AND 30000;
SELECT count(*) FROM z1 JOIN z2 ON z1.b = z2.a WHERE z2.c LIKE '%a3%';
UPDATE z1 SET b = b + a WHERE a % 3 = 0; UPDATE z2 SET c = upper(c) || b WHERE a % 5 = 0;
DELETE FROM z1 WHERE b % 7 = 0; DELETE FROM z2 WHERE a BETWEEN 100 AND 5000;
SELECT sum(r * a) % 1000003 FROM (SELECT a, rank() OVER (PARTITION BY b % 100 ORDER BY c) AS r FROM z1);
SAVEPOINT s; DELETE FROM z1; ROLLBACK TO s; RELEASE s;
CREATE VIRTUAL TABLE f USING fts5(t);
INSERT INTO f SELECT printf('word%d other%d %s', a % 97, a % 31, c) FROM z1 WHERE a < 20000;
SELECT count(*) FROM f WHERE f MATCH 'word13 AND other7';
CREATE VIRTUAL TABLE r USING rtree(id, x0, x1, y0, y1);
INSERT INTO r SELECT a, b % 1000, b % 1000 + 5, a % 1000, a % 1000 + 5 FROM z1 WHERE a < 20000;
SELECT count(*) FROM r WHERE x0 > 100 AND x1 < 400 AND y0 > 200 AND y1 < 700;
SELECT sum(length(j)) FROM (SELECT json_group_array(json_object('a', a, 'c', c)) AS j FROM z1 GROUP BY b % 50);
WITH RECURSIVE x(cx) AS (VALUES(-2.0) UNION ALL SELECT cx+0.05 FROM x WHERE cx < 1.2),
  y(cy) AS (VALUES(-1.0) UNION ALL SELECT cy+0.1 FROM y WHERE cy < 1.0),
  m(i, cx, cy, x, y) AS (SELECT 0, cx, cy, 0.0, 0.0 FROM x, y
    UNION ALL SELECT i+1, cx, cy, x*x-y*y+cx, 2.0*x*y+cy FROM m WHERE x*x+y*y < 4.0 AND i < 28)
  SELECT count(*), round(sum(x), 3) FROM m;
DROP INDEX i2; VACUUM; ANALYZE; REINDEX;
PRAGMA integrity_check;
INSERT INTO f(f) VALUES('integrity-check');
SELECT count(*), sum(b), total(length(c)) FROM (SELECT * FROM z1 UNION ALL SELECT * FROM z2);
S
sqlite3 :memory: < work.sql > memory.out
sqlite3 plain.db < work.sql > plain.out
{ echo "PRAGMA journal_mode=wal;"; cat work.sql; } | sqlite3 wal.db | tail -n +2 > wal.out
cmp memory.out plain.out && cmp memory.out wal.out
grep -qx ok memory.out
# Several writers at once.
sqlite3 many.db "PRAGMA journal_mode=wal; CREATE TABLE t(w, i)" > /dev/null
for w in 1 2 3 4; do
  { echo ".timeout 60000"; i=0; while [ $i -lt 150 ]; do echo "INSERT INTO t VALUES($w, $i);"; i=$((i + 1)); done; } |
    sqlite3 many.db & jobs="$jobs $!"
done
for job in $jobs; do wait $job; done
[ "$(sqlite3 many.db 'SELECT count(*), sum(i) FROM t; PRAGMA integrity_check' | tr '\n' ' ')" = "600|44700 ok " ]
sed 's/^/CHECK /' memory.out
echo "SUM $(wc -l < memory.out) answers each from memory, file and log; 4 writers"
