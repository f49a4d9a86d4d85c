# image: deb:trixie/openssl
set -e
head -c 3000001 /dev/urandom > data
for cipher in aes-128-cbc aes-256-ctr aes-256-cbc chacha20 camellia-256-cbc; do
  openssl enc -$cipher -pbkdf2 -k word -in data -out sealed; openssl enc -d -$cipher -pbkdf2 -k word -in sealed | cmp - data
done
for algorithm in RSA:rsa_keygen_bits:2048 EC:ec_paramgen_curve:P-256 EC:ec_paramgen_curve:P-521 ED25519 ED448; do
  name=${algorithm%%:*}; option=${algorithm#*:}
  [ "$option" = "$algorithm" ] && option= || option="-pkeyopt $option"
  openssl genpkey -quiet -algorithm $name $option -out key; openssl pkey -in key -pubout -out public
  case $name in ED*) raw=-rawin ;; *) raw="-rawin -digest sha256" ;; esac
  head -c 1000 data > small
  openssl pkeyutl -sign $raw -inkey key -in small -out signed
  openssl pkeyutl -verify $raw -pubin -inkey public -in small -sigfile signed
  echo x >> small; ! openssl pkeyutl -verify $raw -pubin -inkey public -in small -sigfile signed 2> /dev/null
done
for digest in md5 sha1 sha256 sha512 sha3-256 blake2b512 sm3 ripemd160; do
  yes crumble | head -c 1000000 | openssl dgst -r -$digest | sed "s/^/CHECK $digest /"
done
openssl req -x509 -newkey rsa:2048 -nodes -keyout k -out c -subj /CN=crumble 2> /dev/null; openssl verify -CAfile c c
openssl speed -seconds 1 -bytes 16384 sha256 aes-128-gcm chacha20-poly1305 2>&1 | tail -n 4
openssl speed -seconds 1 ecdsap256 rsa2048 2>&1 | tail -n 5
