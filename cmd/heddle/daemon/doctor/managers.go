package doctor

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/overlay"
)

// patterns are those of heddle's links, with a link that a workload has given another name.
func patterns(link string) []string {
	p := []string{"hd-*", "heddle*"}
	if !slices.ContainsFunc(p, func(g string) bool { return glob(g, link) }) {
		p = append(p, link)
	}
	return p
}

// ours are names of heddle's links among the host's: those that are there, and one of each kind.
func (h Host) ours() []string { return append([]string{"hd-0", "heddle0"}, h.Links...) }

func networkd(h Host) []overlay.Finding {
	const name = "systemd-networkd"
	if !h.Networkd.Running {
		return one(name, overlay.Good, "", "does not run")
	}
	var left []string
	for _, link := range h.ours() {
		for _, f := range h.Networkd.Files {
			s := parse(f.Text)
			if !s.takes(link) {
				continue
			}
			if on(s.last("Link", "Unmanaged")) {
				left = append(left, path.Base(f.Path))
			} else {
				return one(name, overlay.Problem,
					fmt.Sprintf(`printf '[Match]\nName=%s\n\n[Link]\nUnmanaged=yes\n' > /etc/systemd/network/00-heddle.network && networkctl reload`, strings.Join(patterns(link), " ")),
					"%s is for heddle's links too, such as %s: networkd would set their addresses and routes", f.Path, link)
			}
			break // the first that matches counts
		}
	}
	if len(left) == 0 {
		return one(name, overlay.Good, "", "no .network file matches heddle's links, so that it leaves them alone")
	}
	return one(name, overlay.Good, "", "leaves heddle's links alone by %s", several(slices.Compact(left)))
}

// takes says whether the [Match] section of a .network file is seen to match a veth of that name
// (systemd.network(5)). A key that is not known here matches none, and no key either.
func (s settings) takes(link string) bool {
	found := false
	for _, e := range s {
		if e.section != "Match" {
			continue
		}
		found = true
		words := strings.Fields(e.value)
		negated := len(words) > 0 && strings.HasPrefix(words[0], "!")
		if negated {
			words[0] = words[0][1:]
		}
		of, known := map[string]string{"Name": link, "OriginalName": link, "Type": "ether", "Kind": "veth", "Driver": "veth"}[e.key]
		if !known || len(words) > 0 && slices.ContainsFunc(words, func(w string) bool { return glob(w, of) }) == negated {
			return false
		}
	}
	return found
}

func networkManager(h Host) []overlay.Finding {
	const name = "NetworkManager"
	if !h.NetMan.Running {
		return one(name, overlay.Good, "", "does not run")
	}
	var unmanaged []string
	var all settings
	for _, f := range h.NetMan.Files {
		s := parse(f.Text)
		all = append(all, s...)
		for _, e := range s {
			items := strings.FieldsFunc(e.value, func(r rune) bool { return r == ';' || r == ',' })
			switch {
			case e.section != "keyfile" && e.section != "main":
			case e.key == "unmanaged-devices":
				unmanaged = items
			case e.key == "unmanaged-devices+":
				unmanaged = append(unmanaged, items...)
			}
		}
	}
	for _, link := range h.ours() {
		if !specMatches(unmanaged, link) && !all.unmanages(link) {
			return one(name, overlay.Warning,
				fmt.Sprintf(`printf '[keyfile]\nunmanaged-devices+=interface-name:%s\n' > /etc/NetworkManager/conf.d/heddle.conf && nmcli general reload`, strings.Join(patterns(link), ";interface-name:")),
				"it runs and is not told to leave heddle's links alone, such as %s: it may set addresses on them", link)
		}
	}
	return one(name, overlay.Good, "", "leaves heddle's links alone")
}

// unmanages says whether a [device…] section leaves a link alone.
func (s settings) unmanages(link string) bool {
	for _, e := range s {
		if strings.HasPrefix(e.section, "device") && e.key == "managed" && !on(e.value) {
			specs := strings.FieldsFunc(s.last(e.section, "match-device"), func(r rune) bool { return r == ';' || r == ',' })
			if specMatches(specs, link) {
				return true
			}
		}
	}
	return false
}

// specMatches says whether a list of devices (NetworkManager.conf(5)) has a veth of that name.
func specMatches(specs []string, link string) (matches bool) {
	for _, spec := range specs {
		spec = strings.TrimSpace(spec)
		except := strings.HasPrefix(spec, "except:")
		kind, of, _ := strings.Cut(strings.TrimPrefix(spec, "except:"), ":")
		hit := false
		switch kind {
		case "*":
			hit = true
		case "interface-name":
			hit = glob(strings.TrimPrefix(of, "~"), link)
			if exact, is := strings.CutPrefix(of, "="); is {
				hit = exact == link
			}
		case "type", "driver":
			hit = of == "veth"
		}
		if hit && except {
			return false
		}
		matches = matches || hit
	}
	return matches
}

func glob(pattern, s string) bool {
	ok, err := path.Match(pattern, s)
	return ok && err == nil
}

func on(value string) bool {
	return slices.Contains([]string{"1", "yes", "true", "on", "y", "t"}, strings.ToLower(value))
}

// settings are the lines of an ini file.
type settings []setting

type setting struct{ section, key, value string }

func parse(text string) (s settings) {
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[':
			section = strings.Trim(line, "[]")
		default:
			k, v, _ := strings.Cut(line, "=")
			s = append(s, setting{section, strings.TrimSpace(k), strings.Trim(strings.TrimSpace(v), `"`)})
		}
	}
	return s
}

// last is the last value of a key in a section.
func (s settings) last(section, key string) (value string) {
	for _, e := range s {
		if e.section == section && e.key == key {
			value = e.value
		}
	}
	return value
}
