# image: deb:trixie/golang-go,gcc,libc6-dev
# memory: 2g
# limit: 3000
# The compiler, written in Go, compiles programs and runs them: goroutines, a collector, preemption by signals.
set -e
export HOME=/tmp GOFLAGS=-mod=mod GOTOOLCHAIN=local
mkdir p; cd p; go mod init p 2> /dev/null
cat > main.go <<'G'
package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"regexp"
	"sort"
	"sync"
)

type node struct{ left, right *node }

func tree(depth int) *node {
	if depth == 0 {
		return &node{}
	}
	return &node{tree(depth - 1), tree(depth - 1)}
}
func (n *node) count() int {
	if n.left == nil {
		return 1
	}
	return 1 + n.left.count() + n.right.count()
}
func main() {
	var wait sync.WaitGroup
	results := make(chan int, 16)
	for i := 0; i < 16; i++ {
		wait.Add(1)
		go func(i int) { defer wait.Done(); results <- tree(10+i%4).count() }(i)
	}
	wait.Wait()
	close(results)
	total := 0
	for count := range results {
		total += count
	}
	fmt.Println("CHECK trees", total)
	f := big.NewInt(1)
	for i := int64(1); i < 500; i++ {
		f.Mul(f, big.NewInt(i))
	}
	fmt.Printf("CHECK factorial %x\n", sha256.Sum256([]byte(f.String())))
	words := []string{}
	for i := 0; i < 20000; i++ {
		words = append(words, fmt.Sprintf("%x", i*2654435761%65536))
	}
	sort.Strings(words)
	text, _ := json.Marshal(words)
	fmt.Printf("CHECK json %x\n", sha256.Sum256(regexp.MustCompile("[a-c]+").ReplaceAll(text, []byte("-"))))
	sum := 0.0
	for i := 1; i < 300000; i++ {
		sum += math.Sin(float64(i)) * math.Exp(-float64(i)/1e5)
	}
	fmt.Printf("CHECK float %.6f\n", sum)
	var ping, pong = make(chan int), make(chan int)
	go func() {
		for i := range ping {
			pong <- i + 1
		}
		close(pong)
	}()
	n := 0
	for i := 0; i < 50000; i++ {
		ping <- n
		n = <-pong
	}
	close(ping)
	fmt.Println("CHECK channels", n)
}
G
go build -o main . && ./main
