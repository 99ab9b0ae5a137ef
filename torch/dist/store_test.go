package dist

import (
	"net"
	"syscall"
	"testing"
)

func TestListen_AtAnAddressOfThisMachineAlone(t *testing.T) {
	for host, want := range map[string]net.IP{
		"127.0.0.1": net.IPv4(127, 0, 0, 1),
		"localhost": net.IPv4(127, 0, 0, 1),
		"192.0.2.1": nil, // no machine has this address
		"some-name": nil,
	} {
		descriptor, port, err := listen(host, 0)
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		defer syscall.Close(descriptor)
		name, err := syscall.Getsockname(descriptor)
		var ip net.IP
		actual := 0
		switch at := name.(type) {
		case *syscall.SockaddrInet4:
			ip, actual = at.Addr[:], at.Port
		case *syscall.SockaddrInet6:
			ip, actual = at.Addr[:], at.Port
		}
		if want == nil && ip.IsUnspecified() {
			want = ip // all interfaces
		}
		if err != nil || !ip.Equal(want) || actual != port || port == 0 {
			t.Errorf("%s: %v, listens at %v, port %d of %d", host, err, ip, actual, port)
		}
		if host == "127.0.0.1" {
			if _, _, err := listen(host, port); err == nil {
				t.Error("a port is used twice")
			}
		}
	}
}
