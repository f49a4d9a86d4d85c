# image: deb:trixie/nodejs
node -e '
const crypto=require("crypto");
function fib(n){return n<2?n:fib(n-1)+fib(n-2)}
console.log("CHECK fib",fib(27));
let s=0;for(let i=0;i<3e6;i++)s=(s*31+i)%1000003;console.log("CHECK loop",s);
let a=new Float64Array(100000);for(let r=0;r<20;r++)for(let i=0;i<a.length;i++)a[i]=Math.sin(i+r)+a[i]/2;console.log("CHECK float",a.reduce((x,y)=>x+y,0).toFixed(9));
console.log("CHECK sha",crypto.createHash("sha256").update(Buffer.alloc(1<<20,7)).digest("hex"));
let m=new Map();for(let i=0;i<200000;i++)m.set("k"+i,i);let t=0;for(const [k,v] of m)t+=v;console.log("CHECK map",t);
console.log("CHECK re","a1b22c333".replace(/\d+/g,x=>x.length));
console.log("CHECK json",JSON.stringify(JSON.parse(JSON.stringify([...Array(1000).keys()]))).length);
const {Worker}=require("worker_threads");let n=0;for(let i=0;i<4;i++){new Worker("require(\"worker_threads\").parentPort.postMessage([...Array(1e5).keys()].map(x=>x*x%97).reduce((a,b)=>a+b))",{eval:true}).on("message",v=>{n+=v;if(++c==4)console.log("CHECK workers",n)})}let c=0;
const w=new WebAssembly.Module(new Uint8Array([0,97,115,109,1,0,0,0,1,6,1,96,1,127,1,127,3,2,1,0,7,5,1,1,102,0,0,10,9,1,7,0,32,0,32,0,108,11]));console.log("CHECK wasm",new WebAssembly.Instance(w).exports.f(12));
'
