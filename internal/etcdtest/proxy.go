package etcdtest

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// Proxy stands between clients and one member, and can come between them. It is
// safe for concurrent use.
type Proxy struct {
	listener net.Listener
	target   string
	refusing atomic.Bool
	running  sync.WaitGroup

	mu    sync.Mutex
	links map[*link]bool
	gate  chan struct{} // closed when requests are let go; nil where they are not held
	held  []byte
	done  chan struct{} // closed by Close
}

// link is a connection of a client's and the one to the member that it is passed
// on to.
type link struct {
	client, member net.Conn
	losing         atomic.Bool // the next answer
	late           atomic.Bool // whether something was held
}

func (l *link) cut() {
	l.client.Close()
	l.member.Close()
}

// NewProxy returns a proxy for the member at the given address, on a port of the
// loopback interface.
func NewProxy(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: l, target: target, links: make(map[*link]bool), done: make(chan struct{})}
	p.running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.running.Go(func() { p.serve(conn) })
		}
	})
	return p, nil
}

// Address returns where clients connect to.
func (p *Proxy) Address() string { return p.listener.Addr().String() }

// Cut ends all connections.
func (p *Proxy) Cut() { p.each((*link).cut) }

// Refuse refuses connections that are made from now on, or accepts them again.
func (p *Proxy) Refuse(refuse bool) { p.refusing.Store(refuse) }

// LoseAnswers ends each connection when the member answers next on it, in place
// of that answer: what was asked is done, or not, and the client cannot know.
func (p *Proxy) LoseAnswers() { p.each(func(l *link) { l.losing.Store(true) }) }

// Hold keeps what clients send from the member, until release is called; also what a
// client has sent that has gone in the meantime. Requests then come late.
func (p *Proxy) Hold() (release func()) {
	gate := make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gate, p.held = gate, nil
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.gate = nil
		close(gate)
	})
}

// Holds reports whether something is held that has these bytes in it.
func (p *Proxy) Holds(what string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Contains(p.held, []byte(what))
}

// Close ends all connections and refuses new ones.
func (p *Proxy) Close() {
	p.mu.Lock()
	close(p.done)
	p.mu.Unlock()
	p.listener.Close()
	p.Cut()
	p.running.Wait()
}

func (p *Proxy) each(f func(*link)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		f(l)
	}
}

// serve passes on what comes and goes over the connection of a client, until
// either side ends.
func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	if p.refusing.Load() {
		return
	}
	member, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	l := &link{client: client, member: member}
	defer l.cut()
	if !p.add(l) {
		return
	}
	defer p.remove(l)
	p.running.Go(func() {
		defer l.cut()
		p.requests(l)
	})
	l.answers()
	if l.late.Load() {
		io.Copy(io.Discard, member) // the client has gone, and what it has asked is still to be done
	}
}

// requests passes on what the client sends.
func (p *Proxy) requests(l *link) {
	reads := make(chan []byte)
	go func() {
		defer close(reads)
		for {
			buffer := make([]byte, 32<<10)
			n, err := l.client.Read(buffer)
			if n > 0 {
				reads <- buffer[:n]
			}
			if err != nil {
				return
			}
		}
	}()
	defer func() {
		l.client.Close()
		for range reads { // until it has ended
		}
	}()
	sent := reads // nil when the client has gone
	var held []byte
	var gate chan struct{} // what held waits for
	write := func(b []byte) bool {
		_, err := l.member.Write(b)
		return err == nil
	}
	for gone := false; !gone || gate != nil; {
		select {
		case b, ok := <-sent:
			switch {
			case !ok:
				sent, gone = nil, true
				if gate == nil && !l.late.Load() {
					return
				}
			case gate == nil && p.holding() == nil:
				if !write(b) {
					return
				}
			default:
				if gate == nil {
					gate = p.holding()
				}
				l.late.Store(true)
				held = append(held, b...)
				p.holds(b)
			}
		case <-gate:
			if !write(held) {
				return
			}
			held, gate = nil, nil
		case <-p.done:
			return
		}
	}
	<-p.done // or the member would see that the client has gone
}

// holding returns what has to be waited for before something is passed on, nil where
// nothing has.
func (p *Proxy) holding() chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gate
}

// holds takes note of what is held.
func (p *Proxy) holds(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = append(p.held, b...)
}

func (p *Proxy) add(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.links[l] = true
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *Proxy) remove(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l)
}

// answers passes on what the member sends, one HTTP/2 frame at a time: 3 bytes of
// length, one of type, 5 of others, and the payload. Answers are in frames of the
// types DATA and HEADERS, the others keep the connection going.
func (l *link) answers() {
	const data, headers = 0, 1
	var head [9]byte
	for {
		if _, err := io.ReadFull(l.member, head[:]); err != nil {
			return
		}
		if kind := head[3]; (kind == data || kind == headers) && l.losing.Load() {
			return
		}
		if _, err := l.client.Write(head[:]); err != nil {
			return
		}
		length := binary.BigEndian.Uint32(head[:4]) >> 8
		if _, err := io.CopyN(l.client, l.member, int64(length)); err != nil {
			return
		}
	}
}
