package kernel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/datapath"
)

// Rules of others, in nft's own words, and whether they drop what comes to 4789/udp on eth0. What is
// typed then mends it.
func TestRulesThatDrop(t *testing.T) {
	h := underlay(t, 1)[0]
	path := hostPath(h)
	base := func(rules string) string {
		return "table inet other {\nchain blocked { counter drop\n}\nchain allowed { ip saddr 10.0.0.0/8 accept\n}\n" +
			"chain input { type filter hook input priority 0; policy accept;\n" + rules + "\n}\n}\n"
	}
	for _, tt := range []struct {
		name  string
		rules string
		words string // of the line, or "" where there is none
	}{
		{"by port", base("udp dport 4789 drop"), "`inet other input` drops what other nodes send to 4789/udp"},
		{"by a set of ports", base("udp dport { 53, 4789 } counter reject"), "inet other input"},
		{"by a range", base("udp dport 4000-5000 drop"), "inet other input"},
		{"by any port of its link", base(`iifname "eth0" meta l4proto udp log drop`), "inet other input"},
		{"in a chain that is called", base("udp dport 4789 jump blocked"), "`inet other blocked`"},
		{"after what is established", base("ct state established,related accept\nudp dport 4789 drop"), "inet other input"},
		{"after another link's", base("iifname lo accept\ntcp dport 22 accept\nudp dport 4789 drop"), "inet other input"},
		{"in a raw chain", "table ip other {\nchain pre { type filter hook prerouting priority raw;\nip protocol udp drop\n}\n}\n", "`ip other pre` drops what other nodes send"},
		{"on its way out", "table ip other {\nchain out { type filter hook output priority 0;\nudp dport 4789 drop\n}\n}\n", "`ip other out` drops what this node sends to others at 4789/udp"},
		{"at the device", "table netdev other {\nchain in { type filter hook ingress device eth0 priority 0;\nmeta protocol ip udp dport 4789 drop\n}\n}\n", "`netdev other in`"},
		{"by iptables' rules", "table ip filter {\nchain INPUT { type filter hook input priority 0;\nmeta l4proto udp udp dport 4789 counter drop\n}\n}\n", "`ip filter INPUT`"},

		{"by a policy", "table inet other {\nchain in { type filter hook input priority 0; policy drop;\niifname lo accept\nct state { established, related } accept\nct status dnat accept\ntcp dport 22 ct state { new, untracked } accept\nip protocol icmp accept\n}\n}\n", "the chain `inet other in` drops what other nodes send to 4789/udp"},
		{"by the policy for what goes out", "table inet other {\nchain out { type filter hook output priority 0; policy drop;\nudp dport 53 accept\n}\n}\n", "drops what this node sends to others at 4789/udp"},

		{"by a policy, but for some hosts", "table inet other {\nchain in { type filter hook input priority 0; policy drop;\nip saddr 10.99.0.0/24 accept\n}\n}\n", ""},
		{"by a policy, but for its link", "table inet other {\nchain in { type filter hook input priority 0; policy drop;\niifname eth0 accept\n}\n}\n", ""},
		{"of another port", base("udp dport 4790 drop\ntcp dport 4789 drop"), ""},
		{"on another link", base(`iifname "eth1" udp dport 4789 drop`), ""},
		{"of another family", base("meta nfproto ipv6 udp dport 4789 drop") + "table ip6 other {\nchain in { type filter hook input priority 0; policy drop;\n}\n}\n", ""},
		{"after an accept", base("udp dport 4789 accept\nudp dport 4789 drop"), ""},
		{"after an accept for some", base("ip saddr 10.0.0.0/8 accept\nudp dport 4789 drop"), ""},
		{"after a chain that accepts some", base("jump allowed\nudp dport 4789 drop"), ""},
		{"from one host", base("ip saddr 192.0.2.77 udp dport 4789 drop"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "rules")
			must(t, os.WriteFile(file, []byte(tt.rules), 0o600))
			run(t, path, "nft", "-f", file)
			defer run(t, path, "nft", "flush", "ruleset")
			lines := func() string {
				out, err := h.Obstacles(datapath.Egress{}, datapath.Port{Proto: "udp", Port: 4789, At: vtep(0), Link: "eth0"})
				must(t, err)
				return strings.Join(out, "\n")
			}
			got := lines()
			if tt.words == "" && got != "" || !strings.Contains(got, tt.words) || strings.Contains(got, "\n") {
				t.Fatalf("got %q, want %q", got, tt.words)
			}
			if got == "" {
				return
			}
			_, mend, _ := strings.Cut(got, "; type `")
			run(t, path, append([]string{"nft"}, strings.Fields(strings.TrimPrefix(strings.TrimSuffix(mend, "`"), "nft "))...)...)
			if left := lines(); left != "" {
				t.Errorf("after %s there is %q", mend, left)
			}
		})
	}
}

// iptables has conditions of its own; what is said to type is in its words where the table is its.
func TestIptablesRulesThatDrop(t *testing.T) {
	h := underlay(t, 1)[0]
	path := hostPath(h)
	iptables := func(rule string) { run(t, path, append([]string{"iptables-nft"}, strings.Fields(rule)...)...) }
	lines := func() string {
		out, err := h.Obstacles(datapath.Egress{}, datapath.Port{Proto: "udp", Port: 4789, At: vtep(0), Link: "eth0"})
		must(t, err)
		return strings.Join(out, "\n")
	}
	for _, rule := range []string{"-P INPUT DROP", "-A INPUT -i lo -j ACCEPT", "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", "-A INPUT -p tcp --dport 22 -j ACCEPT", "-A INPUT -p udp --dport 53:500 -m comment --comment x -j ACCEPT"} {
		iptables(rule)
	}
	const open = "iptables -I INPUT -p udp --dport 4789 -j ACCEPT"
	if got := lines(); got != "the chain `ip filter INPUT` drops what other nodes send to 4789/udp; type `"+open+"`" {
		t.Fatalf("got %q", got)
	}
	iptables(strings.TrimPrefix(open, "iptables "))
	if got := lines(); got != "" {
		t.Errorf("after that there is %q", got)
	}
	iptables("-I INPUT -m conntrack --ctstate NEW -p udp --dport 4789 -j DROP")
	if got := lines(); got != "" {
		t.Errorf("of a rule that is not understood it says %q", got)
	}
	iptables("-I INPUT -p udp -m udp --dport 4000:5000 -j REJECT")
	if got := lines(); !strings.Contains(got, "a rule in the chain `ip filter INPUT` drops") {
		t.Errorf("got %q", got)
	}
}
