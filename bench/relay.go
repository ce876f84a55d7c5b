// The relay that a Go programmer writes first: one goroutine per direction, io.Copy, half-close.
// On Linux, io.Copy between two TCP connections splices.
package main

import (
	"io"
	"log"
	"net"
	"os"
)

func pump(to, from *net.TCPConn, done chan<- struct{}) {
	io.Copy(to, from)
	to.CloseWrite()
	done <- struct{}{}
}

func session(client *net.TCPConn, target string) {
	defer client.Close()
	dialed, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	upstream := dialed.(*net.TCPConn)
	defer upstream.Close()
	done := make(chan struct{}, 2)
	go pump(upstream, client, done)
	pump(client, upstream, done)
	<-done
	<-done
}

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go session(client.(*net.TCPConn), os.Args[2])
	}
}
