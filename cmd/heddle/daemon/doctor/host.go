package doctor

import (
	"fmt"
	"strings"

	"github.com/heddle-net/heddle/overlay"
)

func features(h Host) (out []overlay.Finding) {
	var names []string
	for _, f := range h.Features {
		names = append(names, f.Name)
		if f.Err != "" {
			out = append(out, one("kernel", overlay.Problem, "", "%s: %s", f.Name, f.Err)...)
		}
	}
	return orGood(out, "kernel", "it has %s", strings.Join(names, ", "))
}

func encryption(h Host) []overlay.Finding {
	const name = "encryption"
	switch h.Encryption {
	case "":
		return one(name, overlay.Warning, "modprobe wireguard || modprobe tun", "no encrypted network can be had: %s", h.Sealing)
	case "kernel":
		return one(name, overlay.Good, "", "by the kernel's WireGuard")
	}
	return one(name, overlay.Good, "", "by %s, since the kernel has no WireGuard: slower", h.Encryption)
}

const (
	diskProblem = 64 << 20
	diskWarning = 512 << 20
)

func disk(h Host) []overlay.Finding {
	mib := h.Free >> 20
	switch {
	case h.Size == 0:
		return one("disk", overlay.Warning, "", "the disk of %s can't be read", h.DataDir)
	case h.Free < diskProblem:
		return one("disk", overlay.Problem, "df -h "+h.DataDir, "%d MiB are free for %s: attaches and the managers' log need it", mib, h.DataDir)
	case h.Free < diskWarning:
		return one("disk", overlay.Warning, "df -h "+h.DataDir, "%d MiB are free for %s", mib, h.DataDir)
	}
	return one("disk", overlay.Good, "", "%d MiB are free for %s", mib, h.DataDir)
}

func inotify(h Host) []overlay.Finding {
	if h.Inotify != "" {
		return one("inotify", overlay.Problem, "sysctl -w fs.inotify.max_user_instances=1024", "no more directories can be watched (%s): a daemon that starts now can't keep namespaces", h.Inotify)
	}
	return one("inotify", overlay.Good, "", "directories can be watched")
}

func notifications(h Host) []overlay.Finding {
	if h.Buffer < h.BufferWant {
		return one("netlink buffer", overlay.Warning, fmt.Sprintf("sysctl -w net.core.rmem_max=%d", h.BufferWant),
			"%d KiB for the kernel's notifications, of %d: some are lost when much changes, and repairs are late by up to 30 s", h.Buffer>>10, h.BufferWant>>10)
	}
	return one("netlink buffer", overlay.Good, "", "%d KiB for the kernel's notifications", h.Buffer>>10)
}

func legacyTables(h Host) []overlay.Finding {
	if len(h.Legacy) == 0 {
		return nil
	}
	return one("iptables-legacy", overlay.Warning, "iptables-legacy-save; ip6tables-legacy-save",
		"rules of before nf_tables may be loaded (%s), which heddle does not read: look there if a port does not answer", strings.Join(h.Legacy, ", "))
}
