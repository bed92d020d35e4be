package dns

import (
	"net/netip"
	"strconv"
	"strings"
)

// reversed is the address that a name below in-addr.arpa (RFC 1035, section 3.5) or ip6.arpa
// (RFC 3596, section 2.5) means, in lower case and without the last dot.
func reversed(name string) (netip.Addr, bool) {
	if digits, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		return reversed4(digits)
	}
	digits, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(digits) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		n := strings.IndexByte("0123456789abcdef", digits[2*i])
		if n < 0 || i < 31 && digits[2*i+1] != '.' {
			return netip.Addr{}, false
		}
		b[15-i/2] |= byte(n) << (i % 2 * 4)
	}
	return netip.AddrFrom16(b), true
}

func reversed4(digits string) (netip.Addr, bool) {
	parts := strings.Split(digits, ".")
	if len(parts) != 4 {
		return netip.Addr{}, false
	}
	var b [4]byte
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 8)
		if err != nil || len(p) > 1 && p[0] == '0' {
			return netip.Addr{}, false
		}
		b[3-i] = byte(n)
	}
	return netip.AddrFrom4(b), true
}
