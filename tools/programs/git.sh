# image: deb:trixie/git
set -e
export HOME=/tmp GIT_AUTHOR_DATE="2025-01-01T00:00:00Z" GIT_COMMITTER_DATE="2025-01-01T00:00:00Z"
git config --global user.name a; git config --global user.email a@b; git config --global init.defaultBranch main
git init -q a; cd a
for n in $(seq 60); do
  mkdir -p d$((n % 7)); seq $((n * 37)) > d$((n % 7))/f$((n % 20)); git add -A; git commit -qm "change $n"
done
git checkout -qb side HEAD~20; seq 5 > side; git add side; git commit -qm side; git checkout -q main
git merge -q -m merge side
git gc -q --aggressive; git fsck --full --strict
git clone -q --bare . ../b.git; git clone -q ../b.git ../c; cd ../c
git bisect start HEAD HEAD~40 > /dev/null
git bisect run sh -c 'test ! -e d3/f3 || [ $(wc -l < d3/f3) -lt 1500 ]' > /dev/null || true
git bisect reset > /dev/null 2>&1; git archive HEAD | sha256sum | sed 's/^/CHECK archive /'
echo "CHECK head $(git rev-parse HEAD) $(git rev-list --count HEAD)"
git log -p | sha256sum | sed 's/^/CHECK log /'
for i in 1 2 3 4; do git clone -q ../b.git ../p$i & jobs="$jobs $!"; done
for job in $jobs; do wait $job; done
git -C ../p4 fsck --full; git -C ../p4 diff --stat HEAD~10 | tail -n 1 | sed 's/^/CHECK/'
