package kernel

import (
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzAnswers: whatever a payload holds, reading it ends and stays inside.
func FuzzAnswers(f *testing.F) {
	m := request(unix.RTM_NEWLINK, 0, ifinfo(3, unix.IFF_UP, 0)).str(unix.IFLA_IFNAME, "br0").u32(unix.IFLA_MTU, 1450)
	m.nest(unix.IFLA_LINKINFO, func() { bridgeInfo(m) })
	f.Add(m.b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		parseLink(b)
		parseElement(b)
	})
}

func TestParseLink(t *testing.T) {
	m := request(unix.RTM_NEWLINK, 0, ifinfo(3, unix.IFF_UP, 0)).str(unix.IFLA_IFNAME, "br0").u32(unix.IFLA_MTU, 1450).str(unix.IFLA_IFALIAS, "heddle:n1")
	m.nest(unix.IFLA_LINKINFO, func() { bridgeInfo(m) })
	l := parseLink(m.b)
	if l.name != "br0" || l.index != 3 || !l.up || l.mtu != 1450 || l.kind != "bridge" || l.owner() != "n1" {
		t.Errorf("%+v", l)
	}
}
