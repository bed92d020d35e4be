//go:build linux

package oracle

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
)

// space is what iproute2 tells of a network namespace.
type space struct {
	NS    string
	Links []struct {
		Name   string `json:"ifname"`
		MAC    string `json:"address"`
		Master string
		Flags  []string
		Addrs  []struct {
			Local string
			Bits  int `json:"prefixlen"`
			Scope string
		} `json:"addr_info"`
	}
	FDB []struct {
		MAC                string
		Dev                string `json:"ifname"`
		Dst, Master, State string
	}
	Neighbors []struct {
		IP  string `json:"dst"`
		MAC string `json:"lladdr"`
	}
}

// readSpaces reads a host's namespaces of networks, by name, and those of endpoints, by path.
func readSpaces(ctx context.Context, h *lab.Host, endpoints []cluster.Endpoint) (map[string]space, error) {
	names, err := overlays(ctx, h)
	if err != nil {
		return nil, err
	}
	paths := map[string]string{}
	for _, n := range names {
		paths[n] = "/run/netns/" + n
	}
	for _, e := range endpoints {
		if paths[e.Namespace] = e.Namespace; e.Namespace == "" { // the host's own
			paths[e.Namespace] = "/proc/self/ns/net"
		}
	}
	script := ""
	for name, path := range paths {
		script += fmt.Sprintf(`nsenter --net=%s sh -c 'echo "{\"NS\":\"%s\",\"Links\":"; ip -j -d addr show; echo ",\"FDB\":"; bridge -j fdb show; `+
			`echo ",\"Neighbors\":"; ip -j neigh show nud permanent; echo "}"'`+"\n", path, name)
	}
	out, err := h.Output(ctx, "sh", "-c", script+"true")
	if err != nil {
		return nil, err
	}
	spaces := map[string]space{}
	for d := json.NewDecoder(strings.NewReader(out)); d.More(); {
		var s space
		if err := d.Decode(&s); err != nil {
			return nil, fmt.Errorf("%s: read what iproute2 prints: %w", h.Name(), err)
		}
		spaces[s.NS] = s
	}
	return spaces, nil
}

// has says whether a link there has an address.
func (s space) has(addr string) bool {
	for _, l := range s.Links {
		for _, a := range l.Addrs {
			if a.Local == addr {
				return true
			}
		}
	}
	return false
}

// by is the address that is reached by a port.
func (s space) by(port string) string {
	for _, f := range s.FDB {
		if f.Dev == port && f.Master != "" && f.State != "permanent" {
			return f.MAC
		}
	}
	return ""
}
