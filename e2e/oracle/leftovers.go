//go:build linux

package oracle

import (
	"context"
	"strings"

	"github.com/heddle-net/heddle/e2e/lab"
)

// inventory prints, a line each, what a host has that heddle could leave behind: links, addresses,
// routes and rules of routing, neighbours that somebody wrote, tables of nft, settings, names of
// namespaces and those that a process holds, processes, sockets and files. What only time makes is
// left out: neighbours that the kernel found, counters, the age of addresses, the contents of
// files, and the link-local addresses of eth0, which come a second after it; so is the directory of
// wireguard-go's sockets, which others share. Programs that ask are no
// processes of the host, and its daemon may be of another build by then.
const inventory = `
ip -o link | sed 's/^[0-9]*: /link /'
ip -o addr | sed '/ fe80:.*scope link/d; s/^[0-9]*: /address /; s/valid_lft.*//'
ip -4 route show table all | sed 's/^/route /'
ip -6 route show table all | sed '/f[ef][80]0::.* dev eth0/d; s/^/route /; s/expires [^ ]*//'
ip rule | sed 's/^/rule /'; ip -6 rule | sed 's/^/rule /'
ip neigh show nud permanent | sed 's/^/neighbour /'
nft list ruleset | sed 's/^/nft /; s/packets [0-9]* bytes [0-9]*//'
grep -rs . /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf /proc/sys/net/ipv4/ip_forward /proc/sys/net/bridge /proc/sys/net/netfilter/nf_conntrack_acct | sed 's/^/setting /'
find /run /etc /var/lib/heddle -xdev ! -path '/run/lab*' ! -path /run/wireguard | sed 's/^/file /'
sed -n 's/^nsfs \([^ ]*\).*/mount \1/p' /proc/mounts
find /proc/[0-9]*/fd -lname 'net:*' -printf 'a namespace held open\n' 2>/dev/null
ss -Hlntu | awk '{print "socket", $1, $5}'
for p in /proc/[0-9]*; do printf 'process %s\n' "$(tr '\0\n' '  ' < $p/cmdline)"; done 2>/dev/null | grep -av ' sh -c\| sed \|lab-init\|/heddle daemon' || true
`

// Inventory is what a host has, each thing with how often.
func Inventory(ctx context.Context, h *lab.Host) (map[string]int, error) {
	out, err := h.Output(ctx, "sh", "-c", inventory)
	have := map[string]int{}
	for line := range strings.Lines(out) {
		have[strings.TrimSpace(line)]++
	}
	return have, err
}

// Leftovers are what a host has that it did not have, and what it lacks since.
func Leftovers(before, after map[string]int) (lines []string) {
	for line, n := range after {
		if n > before[line] {
			lines = append(lines, "left: "+line)
		}
	}
	for line, n := range before {
		if n > after[line] && !strings.HasPrefix(line, "process ") {
			lines = append(lines, "gone: "+line)
		}
	}
	return lines
}

// Marked says whether a line of an inventory has a name that only heddle gives.
func Marked(line string) bool {
	return strings.Contains(line, "heddle") || strings.Contains(line, "hd-") || strings.Contains(line, "a namespace held open")
}
