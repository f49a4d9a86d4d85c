# image: deb:trixie/postgresql,postgresql-contrib
# user: me
# limit: 900
set -e
export HOME=/tmp PATH=$PATH:/usr/lib/postgresql/17/bin LC_ALL=C.UTF-8
initdb -D db -U me -k --no-sync > /dev/null
pg_ctl -D db -w -l log -o "-k /tmp -c listen_addresses=" start > /dev/null || { cat log; exit 1; }
export PGHOST=/tmp PGUSER=me PGDATABASE=postgres
pgbench -q -i -s 2 2> /dev/null
pgbench -n -c 4 -j 2 -t 200 2>&1 | sed -n 's/^number of failed/SUM number of failed/p;s/^tps/SUM tps/p'
psql -qAtX -v ON_ERROR_STOP=1 <<'S' | sed 's/^/CHECK /'
SELECT sum(abalance) = (SELECT sum(delta) FROM pgbench_history) FROM pgbench_accounts;
CREATE TABLE t AS SELECT i, (i * 7919) % 10007 AS b, md5(i::text) AS c, ARRAY[i, i % 7] AS a FROM generate_series(1, 50000) i;
CREATE INDEX ON t(b); CREATE INDEX ON t USING gin(a); CREATE INDEX ON t USING brin(i); CREATE INDEX ON t USING hash(c);
SELECT count(*), md5(string_agg(c, ',' ORDER BY b, i)) FROM t WHERE b < 5000;
SELECT count(*) FROM t WHERE a @> ARRAY[3];
SELECT sum(r) FROM (SELECT rank() OVER (PARTITION BY b % 10 ORDER BY c COLLATE "C") r FROM t) x;
SELECT round(sum(sqrt(i::numeric)), 10), sum(power(1.0000001::float8, i))::numeric(20, 6) FROM t;
SELECT count(*) FROM t WHERE to_tsvector('english', c) @@ to_tsquery('english', 'c4ca4238a0b923820dcc509a6f75849b');
BEGIN; DELETE FROM t WHERE i % 2 = 0; ROLLBACK; DELETE FROM t WHERE i % 3 = 0; VACUUM FULL t;
SELECT count(*), sum(b) FROM t;
CREATE EXTENSION amcheck;
SELECT count(bt_index_check(c.oid, true)) > 10 FROM pg_class c JOIN pg_am m ON m.oid = c.relam AND m.amname = 'btree';
S
# As after a power cut, then again in order.
pg_ctl -D db -m immediate stop > /dev/null
pg_ctl -D db -w -l log start -o "-k /tmp -c listen_addresses=" > /dev/null
psql -qAtX -c 'SELECT count(*), sum(b) FROM t' | sed 's/^/CHECK after /'
pg_ctl -D db stop > /dev/null
pg_checksums -D db --check | sed -n 's/^Bad checksums/CHECK bad checksums/p'
