package dist

// #include <stdlib.h>
// #include "conquer.h"
import "C"

import (
	"errors"
	"time"
	"unsafe"
)

// Store is a connection to the key-value store of a run's processes. It serves one call at a time.
type Store struct {
	prefix string
	c      *C.cq_store
}

// OpenStore connects to the store at host:port and waits up to timeout for it. With serve, this
// process runs the store; port 0 then means any free port.
func OpenStore(host string, port int, serve bool, timeout time.Duration) (*Store, error) {
	name := C.CString(host)
	defer C.free(unsafe.Pointer(name))
	server := C.int(0)
	if serve {
		server = 1
	}
	var c *C.cq_store
	if C.cq_store_open(name, C.int(port), server, C.double(timeout.Seconds()), &c) != 0 {
		return nil, lastError()
	}
	return &Store{c: c}, nil
}

func lastError() error { return errors.New(oneLine(C.GoString(C.cq_last_error()))) }

// Port returns the port that the store listens on.
func (s *Store) Port() int { return int(C.cq_store_port(s.c)) }

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
