# image: deb:trixie/gcc,libc6-dev,libsqlite3-dev,dpkg-dev
# limit: 2400
# sqlite's own speed test, from its source package, against the archive's libsqlite3; its results are hashed.
set -e
sed -i 's/^Types: deb$/Types: deb-src/' /etc/apt/sources.list.d/*.sources
apt-get update
apt-get source --download-only sqlite3
tar -xf sqlite3_*.orig.tar.* --wildcards --strip-components 2 '*/test/speedtest1.c'
gcc -O1 -o speedtest1 speedtest1.c -lsqlite3
for way in "" "--journal wal" "--memdb"; do
  ./speedtest1 --verify --size 50 $way test.db > out; rm -f test.db*
  cat out
  grep '^Verification Hash' out | sed "s/^/CHECK ${way:-plain} /"
done
