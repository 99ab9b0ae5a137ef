package dist

// #include <stdlib.h>
// #include "conquer.h"
import "C"

import (
	"errors"
	"net"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Store is a connection to the key-value store of a run's processes. It serves one call at a time.
type Store struct {
	prefix string
	port   int
	c      *C.cq_store
}

// OpenStore connects to the store at host:port and waits up to timeout for it. With serve, this
// process runs the store; port 0 then means any free port. The store does not authenticate its
// clients. It listens at host alone if that is an IP address of this machine or localhost, else on
// all interfaces.
func OpenStore(host string, port int, serve bool, timeout time.Duration) (*Store, error) {
	name := C.CString(host)
	defer C.free(unsafe.Pointer(name))
	listener := -1
	if serve {
		var err error
		if listener, port, err = listen(host, port); err != nil {
			return nil, err
		}
	}
	var c *C.cq_store
	if C.cq_store_open(name, C.int(port), C.int(listener), C.double(timeout.Seconds()), &c) != 0 {
		return nil, lastError()
	}
	return &Store{port: port, c: c}, nil
}

// listen returns the descriptor of a new listening socket of the store, and its port.
func listen(host string, port int) (descriptor, actual int, err error) {
	at := strconv.Itoa(port)
	var l net.Listener
	switch {
	case host == "localhost":
		l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", at))
	case net.ParseIP(host) == nil: // other machines may know a name by another address
		l, err = net.Listen("tcp", ":"+at)
	default:
		l, err = net.Listen("tcp", net.JoinHostPort(host, at))
		if errors.Is(err, syscall.EADDRNOTAVAIL) { // of a gateway that forwards to this machine
			l, err = net.Listen("tcp", ":"+at)
		}
	}
	if err != nil {
		return -1, 0, err
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return -1, 0, err
	}
	defer f.Close()
	descriptor, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return descriptor, l.Addr().(*net.TCPAddr).Port, err
}

func lastError() error { return errors.New(oneLine(C.GoString(C.cq_last_error()))) }

// Port returns the port that the store listens on.
func (s *Store) Port() int { return s.port }

// Close ends the connection, and the store if this process runs it.
func (s *Store) Close() {
	if s != nil && s.c != nil {
		C.cq_store_close(s.c)
		s.c = nil
	}
}

func (s *Store) key(name string) *C.char { return C.CString(s.prefix + name) }

// Set writes a key.
func (s *Store) Set(name string, value []byte) error {
	key := s.key(name)
	defer C.free(unsafe.Pointer(key))
	if C.cq_store_set(
		s.c,
		key,
		unsafe.Pointer(unsafe.SliceData(value)),
		C.size_t(len(value)),
	) != 0 {
		return lastError()
	}
	return nil
}

// Get reads a key, waiting up to timeout for it to be written.
func (s *Store) Get(name string, timeout time.Duration) ([]byte, error) {
	key := s.key(name)
	defer C.free(unsafe.Pointer(key))
	var data unsafe.Pointer
	var bytes C.size_t
	if C.cq_store_get(s.c, key, C.double(timeout.Seconds()), &data, &bytes) != 0 {
		return nil, lastError()
	}
	defer C.free(data)
	return C.GoBytes(data, C.int(bytes)), nil
}

// Has reports whether a key was written.
func (s *Store) Has(name string) (bool, error) {
	key := s.key(name)
	defer C.free(unsafe.Pointer(key))
	var has C.int
	if C.cq_store_has(s.c, key, &has) != 0 {
		return false, lastError()
	}
	return has != 0, nil
}
