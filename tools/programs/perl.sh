# image: deb:trixie/perl
perl -MDigest::SHA=sha256_hex -MMath::BigInt -MList::Util=sum,shuffle -MStorable=dclone -MEncode -e '
  my %h; $h{"k$_"} = $_ * $_ for 1 .. 100000;
  print "CHECK hash ", sum(values %h), "\n";
  my $f = Math::BigInt->new(300)->bfac; print "CHECK factorial ", sha256_hex("$f"), "\n";
  my $text = join " ", map { sprintf "%x", $_ * 48271 % 2147483647 } 1 .. 50000;
  (my $copy = $text) =~ s/([a-f]+)(\d+)/$2$1/g; print "CHECK regex ", sha256_hex($copy), "\n";
  print "CHECK sort ", sha256_hex(join ",", sort { $a cmp $b } split / /, $text), "\n";
  my $pi = 0; $pi += (-1) ** $_ / (2 * $_ + 1) for 0 .. 500000; printf "CHECK float %.12f\n", 4 * $pi;
  print "CHECK pack ", sha256_hex(pack "d>f<q>", 1.1, 2.5, -3), "\n";
  print "CHECK utf8 ", length(encode("UTF-8", "\x{263a}" x 1000)), "\n";
  my @kids; for my $n (1 .. 20) { pipe my $r, my $w; my $pid = fork; if (!$pid) { print $w $n ** 3; close $w; exit $n }
    close $w; push @kids, [$pid, $r] }
  my ($total, $codes) = (0, 0); for (@kids) { my $r = $_->[1]; $total += <$r>; waitpid $_->[0], 0; $codes += $? >> 8 }
  print "CHECK fork $total $codes\n"; $SIG{ALRM} = sub { print "CHECK alarm\n" }; alarm 1; sleep 5;
  local $SIG{USR1} = sub { $got++ }; kill USR1 => $$ for 1 .. 100; print "CHECK signals $got\n";
'
