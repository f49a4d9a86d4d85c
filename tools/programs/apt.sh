# image: deb:trixie
# Over the guest's network from the archive that the image is from.
set -e
apt-get update
apt-get install -y --no-install-recommends jq locales hello < /dev/null
[ "$(hello)" = "Hello, world!" ]
echo '{"a": [1, 2, {"b": "c"}]}' | jq -c .a[2].b | sed 's/^/CHECK jq /'
dpkg --audit; apt-get check
apt-get remove -y --purge hello; ! command -v hello
dpkg --verify | sed 's/^/CHECK verify /'
