package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/overlay"
)

// What is understood is valid, and says the same when it is written out; what is not is one line
// that is the user's fault.
func FuzzPublish(f *testing.F) {
	for _, s := range []string{
		"80", "8080:80", "8080:80/udp", "80-82", "8080-8082:80-82/TCP", "192.0.2.1:8080:80", "192.0.2.1::80", "[fd00::1]:8080:80", "[fd00::1]::80",
		"", ":", "::", ":::", "[", "[]", "[]:", "[]:80", "[::]:80:80", "[fe80::1%eth0]:1:2", "[::ffff:1.2.3.4]:1:2", "0:1", "1:0", "65536", "1-65535:1-65535", "9-1", "-", "1-", "1:2/", "1:2/tcp/udp", "+1:2", "1_0:2", "1:2\n3",
		"target=80", "published=8080,target=80,protocol=udp,mode=host,host_ip=fd00::1", "published=1-2,target=3-4", "target=", "=", ",", "target=1,target=2", "mode=local", "Target = 80 , Mode = ingress", "target=1,x\n=2",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		checkPublish(t, s, parseServicePublish, overlay.PublishIngress, overlay.PublishLocal)
		checkPublish(t, s, parseWorkloadPublish, "")
	})
}

func checkPublish(t *testing.T, s string, parse func(option, s string) ([]overlay.Publish, error), modes ...overlay.PublishMode) {
	all, err := parse("--publish", s)
	if err != nil {
		checkRefusal(t, s, err)
		return
	}
	if len(all) == 0 {
		t.Fatalf("%q is nothing", s)
	}
	for i, p := range all {
		if p.Target != all[0].Target+uint16(i) || p.Proto != all[0].Proto || p.Mode != all[0].Mode || p.Addr != all[0].Addr || (p.Port == 0) != (all[0].Port == 0) {
			t.Fatalf("%q is %+v", s, all)
		}
		if p.Port != 0 {
			again, err := parse("--publish", p.String())
			if err != nil || len(again) != 1 || again[0].String() != p.String() {
				t.Fatalf("%q is %v, and that is %v, %v", s, p, again, err)
			}
		}
		if p.Mode == overlay.PublishIngress {
			p.Addr = netip.Addr{} // is refused with the mode, which is known when all flags are
		}
		if err := overlay.ValidatePublish([]overlay.Publish{p}, modes...); err != nil {
			t.Fatalf("%q is %+v: %v", s, p, err)
		}
	}
}

func checkRefusal(t *testing.T, s string, err error) {
	if overlay.KindOf(err) != overlay.Invalid || strings.ContainsAny(err.Error(), "\n\r") || len(err.Error()) > 300+6*len(s) {
		t.Fatalf("%q: %q", s, err)
	}
}

func FuzzServicePort(f *testing.F) {
	for _, s := range []string{"80", "80:8080", "web:80", "web:80:8080/udp", "80/UDP", "", ":", "a:", ":80", "80:", "a:b:c", "1:2:3", "a:1:2:3", "0", "65536", "web-1.x:1", "\n:1", "1a:2", "ä:80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseServicePort("--port", s)
		if err != nil {
			checkRefusal(t, s, err)
			return
		}
		spec := overlay.ServiceSpec{Name: "a", Mode: overlay.ModeVIP, Ports: []overlay.ServicePort{p}}
		if err := spec.Validate(); err != nil {
			t.Fatalf("%q is %+v: %v", s, p, err)
		}
		if again, err := parseServicePort("--port", p.String()); err != nil || again != p {
			t.Fatalf("%q is %v, and that is %v, %v", s, p, again, err)
		}
		if again, err := parseServicePort("--port", portRow(p).String()); err != nil || again != p {
			t.Fatalf("%q is shown as %v, and that is %v, %v", s, portRow(p), again, err)
		}
	})
}

func FuzzProtoPorts(f *testing.F) {
	for _, s := range []string{"80", "80/udp", "80-82/tcp", "1-65535", "82-80", "0", "", "-", "80:80", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		all, err := parseProtoPorts("--port-rm", s)
		if err != nil {
			checkRefusal(t, s, err)
			return
		}
		if len(all) == 0 {
			t.Fatalf("%q is nothing", s)
		}
		for i, p := range all {
			if p.Port == 0 || p.Port != all[0].Port+uint16(i) || p.Proto != "tcp" && p.Proto != "udp" {
				t.Fatalf("%q is %+v", s, all)
			}
		}
	})
}
