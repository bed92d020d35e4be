package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-net/heddle/overlay"
)

// told4 is what a workload is told of a name.
func (w *world) told4(name string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.table.Asker(blue, netip.MustParseAddr("10.20.0.2"))
	if a == nil {
		return "it is a stranger"
	}
	ips, known := a.Addrs(name)
	slices.SortFunc(ips, netip.Addr.Compare)
	return fmt.Sprint(ips, known)
}

// A name is there when the attach returns, and gone when the detach does; what is lost has none.
func TestNamesFollowEndpoints(t *testing.T) {
	w := newWorld()
	w.size = 8
	a, _ := start(t, w)
	attach(t, a, "first")
	if _, err := a.Attach(t.Context(), overlay.AttachRequest{Name: "web", Network: "blue", Aliases: []string{"www"}}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"first": "[10.20.0.2 fd00:20::2] true", "web": "[10.20.0.3 fd00:20::3] true", "www": "[10.20.0.3 fd00:20::3] true", "nobody": "[] false"} {
		if got := w.told4(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if err := detach(t.Context(), a, "web", ""); err != nil {
		t.Fatal(err)
	}
	if got := w.told4("www"); got != "[] false" {
		t.Errorf("after its detach www is %s", got)
	}
}

// The sockets at which workloads ask are open when an attach returns.
func TestAnAttachWaitsForTheResolver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.following = 20 * time.Millisecond
		a, stop := start(t, w)
		defer stop()
		begin := time.Now()
		attach(t, a, "first")
		if took := time.Since(begin); took < w.following {
			t.Errorf("it has not waited: %s", took)
		}
	})
}

// A node that is drained has no names; its workloads may still ask.
func TestADrainedNodeHasNoNames(t *testing.T) {
	w := newWorld()
	a, _ := start(t, w)
	attach(t, a, "first")
	w.mu.Lock()
	f := *w.facts
	f.Revision++
	f.Nodes = map[overlay.NodeID]overlay.Node{self: {ID: self, Name: "ay", Availability: overlay.Drain}, other: f.Nodes[other]}
	w.facts = &f
	w.mu.Unlock()
	w.factsCh <- struct{}{}
	_, err := a.Resolve(t.Context(), overlay.ResolveRequest{Name: "first", Network: "blue"})
	for overlay.KindOf(err) != overlay.Unavailable || err == nil { // until the facts have arrived
		_, err = a.Resolve(t.Context(), overlay.ResolveRequest{Name: "first", Network: "blue"})
	}
	if got := w.told4("first"); got != "[] true" || !strings.Contains(err.Error(), "rotation") {
		t.Errorf("first is %s; %v", got, err)
	}
}

func TestResolve(t *testing.T) {
	w := newWorld()
	a, _ := start(t, w)
	attach(t, a, "web")
	for _, tc := range []struct {
		name, network string
		kind          overlay.Kind
		want          string
	}{
		{"web", "blue", "", "[10.20.0.2 fd00:20::2]"},
		{"WEB.blue.heddle.internal.", string(blue[:4]), "", "[10.20.0.2 fd00:20::2]"},
		{"nobody", "blue", overlay.NotFound, "there is no nobody in network blue"},
		{"web", "red", overlay.NotFound, "network red has had no workload on this node"},
		{"", "blue", overlay.Invalid, "is no name"},
		{"web", "", overlay.Invalid, "--network"},
	} {
		reply, err := a.Resolve(t.Context(), overlay.ResolveRequest{Name: tc.name, Network: tc.network})
		if tc.kind != "" {
			if err == nil || overlay.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%q in %q: %v", tc.name, tc.network, err)
			}
			continue
		}
		if got := fmt.Sprint(reply.Addrs); err != nil || got != tc.want {
			t.Errorf("%q in %q: %s, %v; want %s", tc.name, tc.network, got, err, tc.want)
		}
	}
	if err := detach(t.Context(), a, "web", ""); err != nil { // the network lingers, then there is a lease alone
		t.Fatal(err)
	}
	if err := a.do(t.Context(), func(context.Context) { a.networks[blue].linger = a.networks[blue].linger.Add(-lingerTime); a.replan() }); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Resolve(t.Context(), overlay.ResolveRequest{Name: "web", Network: "blue"}); overlay.KindOf(err) != overlay.NotFound {
		t.Errorf("without a workload: %v", err)
	}
}
