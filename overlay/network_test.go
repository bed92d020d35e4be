package overlay

import (
	"maps"
	"strings"
	"testing"
)

func TestPlain(t *testing.T) {
	for _, tt := range []struct{ has, want map[string]string }{
		{nil, nil},
		{map[string]string{"mtu": "1400"}, map[string]string{"mtu": "1400"}},
		{map[string]string{"com.docker.network.driver.mtu": "1400", "com.docker.network.bridge.enable_icc": "false"}, map[string]string{"mtu": "1400", "icc": "false"}},
		{map[string]string{"com.docker.network.driver.mtu": "1400", "mtu": "1300"}, map[string]string{"mtu": "1300"}},
		{map[string]string{"com.docker.network.bridge.icy": "1"}, map[string]string{"com.docker.network.bridge.icy": "1"}},
	} {
		if got := Plain(tt.has); !maps.Equal(got, tt.want) {
			t.Errorf("%v is %v, want %v", tt.has, got, tt.want)
		}
	}
}

func TestDriversTakeOptions(t *testing.T) {
	for _, tt := range []struct {
		driver, option, value string
		says                  string // "": it is taken
	}{
		{DriverOverlay, "mtu", "1400", ""},
		{DriverOverlay, "icc", "false", "the overlay driver has mtu"},
		{DriverBridge, "mtu", "1400", ""},
		{DriverBridge, "mtu", "100", "1280 to"},
		{DriverBridge, "icc", "false", ""},
		{DriverBridge, "icc", "no", "neither true nor false"},
		{DriverBridge, "parent", "eth0", "has mtu and icc"},
		{DriverHost, "mtu", "1400", "a name and labels alone"},
		{DriverNone, "icc", "true", "a name and labels alone"},
		{"macvlan", "parent", "eth0", "use -d overlay, bridge, host or none"},
	} {
		s := NetworkSpec{Name: "net", Driver: tt.driver, Options: map[string]string{tt.option: tt.value}}
		s.IPv4 = !s.Bare()
		if err := s.Validate(); (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s with %s=%s: %v, want %q", tt.driver, tt.option, tt.value, err, tt.says)
		}
	}
}
