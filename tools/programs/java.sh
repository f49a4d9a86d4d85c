# image: deb:trixie/openjdk-21-jdk-headless
set -e
PATH=$PATH:/usr/lib/jvm/java-21-openjdk-riscv64/bin
cat > T.java <<"J"
import java.util.*; import java.util.stream.*; import java.security.*; import java.util.concurrent.*;
public class T { 
 static int fib(int n){return n<2?n:fib(n-1)+fib(n-2);}
 public static void main(String[] a) throws Exception {
  System.out.println("fib "+fib(32));
  double[] d=new double[100000]; for(int r=0;r<50;r++) for(int i=0;i<d.length;i++) d[i]=Math.sqrt(i+r)+d[i]*0.5; 
  double s=0; for(double x:d)s+=x; System.out.printf("float %.6f%n",s);
  MessageDigest m=MessageDigest.getInstance("SHA-256"); byte[] b=new byte[1<<20]; Arrays.fill(b,(byte)7); byte[] h=null; for(int i=0;i<5;i++) h=m.digest(b);
  System.out.println("sha "+HexFormat.of().formatHex(h));
  System.out.println("stream "+IntStream.range(0,2000000).parallel().mapToLong(x->(long)x*x%97).sum());
  Map<String,Integer> t=new HashMap<>(); for(int i=0;i<300000;i++)t.merge("k"+(i%5000),i,Integer::sum); System.out.println("map "+t.values().stream().mapToLong(x->x).sum());
  ExecutorService e=Executors.newFixedThreadPool(8); List<Future<Long>> f=new ArrayList<>(); for(int k=0;k<16;k++){int q=k; f.add(e.submit(()->{long z=q; for(int i=0;i<500000;i++) z=z*6364136223846793005L+1442695040888963407L; return z;}));} long z=0; for(var x:f) z^=x.get(); e.shutdown(); System.out.println("threads "+z);
  int[] ia=new Random(5).ints(500000).toArray(); Arrays.sort(ia); boolean ok=true; for(int i=1;i<ia.length;i++) ok&=ia[i-1]<=ia[i]; System.out.println("sort "+ok);
  java.math.BigInteger bi=java.math.BigInteger.ONE; for(int i=1;i<2000;i++) bi=bi.multiply(java.math.BigInteger.valueOf(i)); System.out.println("big "+bi.mod(java.math.BigInteger.valueOf(1000000007L*998244353L))+" "+bi.bitLength());
  StringBuilder sb=new StringBuilder(); for(int i=0;i<100000;i++) sb.append((char)('a'+i%26)); System.out.println("str "+sb.toString().hashCode()+" "+sb.indexOf("zab"));
  long acc=0; for(int i=0;i<200;i++){ byte[][] g=new byte[1000][]; for(int j=0;j<1000;j++) g[j]=new byte[1000+j]; acc+=g[i][0]+g.length; } System.out.println("gc "+acc);
 }}
J
javac -d . T.java
java -cp . T > first
sed "s/^/CHECK /" first
# The collectors differ in the barriers that they compile into the code.
for mode in -XX:+UseSerialGC -XX:+UseParallelGC -XX:+UseG1GC -XX:+UseShenandoahGC -XX:+UseZGC -Xint; do
  java $mode -cp . T > out && cmp out first && echo "CHECK $mode"
done
