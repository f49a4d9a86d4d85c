# image: deb:trixie/gcc,libc6-dev,libsqlite3-dev,xz-utils
# limit: 1500
# expect: ^CHECK main \d+ [0-9a-f]+$
# SQLite's own speedtest1, from the archive's source package, which the image's packages do not have.
set -e
sed -i 's/^Types: deb$/Types: deb-src/' /etc/apt/sources.list.d/debian.sources
apt-get update
apt-get source --download-only sqlite3
tar -xJf sqlite3_*.orig.tar.xz --strip-components 2 --wildcards '*/test/speedtest1.c'
gcc -O2 -w -DSQLITE_ENABLE_RTREE speedtest1.c -o speedtest1 -lsqlite3
for set in main cte fp orm rtree; do
  ./speedtest1 --verify --size 10 --testset $set $set.db > log
  cat log
  sed -n "s/^Verification Hash: /CHECK $set /p" log
  sed -n "s/^ *TOTAL\.* */SUM $set /p" log
done
