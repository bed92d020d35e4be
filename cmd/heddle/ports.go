package main

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/heddle-net/heddle/overlay"
)

// How ports are written, for help and messages.
const (
	servicePortForm = "[NAME:]PORT[:TARGET][/tcp|udp]"
	publishForm     = "[IP:]PORT[-PORT]:TARGET[-TARGET][/tcp|udp]"
	protoPortForm   = "PORT[-PORT][/tcp|udp]"
)

// portRange is one port or several in a row, both ends included.
type portRange struct{ first, last uint16 }

func (r portRange) size() int { return int(r.last) - int(r.first) + 1 }

// spec is the value of a flag about ports, with what a message about it needs.
type spec struct{ option, text, form string }

func (s spec) errorf(format string, args ...any) error {
	return overlay.Errorf(overlay.Invalid, "%s %q: "+format, append([]any{s.option, s.text}, args...)...)
}

func (s spec) port(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	switch {
	case err == nil && n > 0:
		return uint16(n), nil
	case text != "" && strings.Trim(text, "0123456789") == "":
		return 0, s.errorf("port %s is out of range; use 1 to 65535", text)
	}
	return 0, s.errorf("%q is no port; write it as %s", text, s.form)
}

func (s spec) ports(text string) (r portRange, err error) {
	first, last, several := strings.Cut(text, "-")
	if r.first, err = s.port(first); err != nil {
		return r, err
	}
	if r.last = r.first; several {
		if r.last, err = s.port(last); err != nil {
			return r, err
		}
	}
	if r.last < r.first {
		return r, s.errorf("range %s runs backwards; write %d-%d", text, r.last, r.first)
	}
	return r, nil
}

// proto cuts the protocol off the end.
func (s spec) proto(text string) (rest, proto string, err error) {
	rest, proto, given := strings.Cut(text, "/")
	if !given {
		return rest, "tcp", nil
	}
	proto, err = s.protocol(proto)
	return rest, proto, err
}

func (s spec) protocol(text string) (string, error) {
	if p := strings.ToLower(text); p == "tcp" || p == "udp" {
		return p, nil
	}
	return "", s.errorf("protocol %q is none of heddle's; use tcp or udp", text)
}

// parseServicePort reads a --port. What has no letter in front is a port and no name.
func parseServicePort(option, text string) (p overlay.ServicePort, err error) {
	s := spec{option, text, servicePortForm}
	rest, proto, err := s.proto(text)
	if err != nil {
		return p, err
	}
	p.Proto = proto
	parts := strings.Split(rest, ":")
	if len(parts) == 3 || len(parts) == 2 && hasLetter(parts[0]) {
		if p.Name, parts = parts[0], parts[1:]; !hasLetter(p.Name) {
			return p, s.errorf("the name %q has no letter; write it as web:80:8080", p.Name)
		}
		if err := overlay.ValidateName("port", p.Name); err != nil {
			return p, err
		}
	}
	if len(parts) > 2 {
		return p, s.errorf("there is too much in it; write it as %s", s.form)
	}
	if p.Port, err = s.port(parts[0]); err != nil {
		return p, err
	}
	p.Target, err = s.port(parts[len(parts)-1])
	return p, err
}

func hasLetter(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' })
}

// parseProtoPorts reads ports by which something is taken away.
func parseProtoPorts(option, text string) (all []overlay.ProtoPort, err error) {
	s := spec{option, text, protoPortForm}
	rest, proto, err := s.proto(text)
	if err != nil {
		return nil, err
	}
	r, err := s.ports(rest)
	if err != nil {
		return nil, err
	}
	for i := range r.size() {
		all = append(all, overlay.ProtoPort{Proto: proto, Port: r.first + uint16(i)})
	}
	return all, nil
}

// parseWorkloadPublish reads a -p of a workload: Docker's short form.
func parseWorkloadPublish(option, text string) ([]overlay.Publish, error) {
	return spec{option, text, publishForm}.publish("")
}

// parseServicePublish reads a --publish of a service: Docker's short form, which is ingress, or
// its long one.
func parseServicePublish(option, text string) ([]overlay.Publish, error) {
	if strings.Contains(text, "=") {
		return spec{option, text, "published=8080,target=80,protocol=tcp,mode=ingress|local,host_ip=192.0.2.1"}.publishLong()
	}
	return spec{option, text, publishForm}.publish(overlay.PublishIngress)
}

// publish reads the short form.
func (s spec) publish(mode overlay.PublishMode) ([]overlay.Publish, error) {
	rest, proto, err := s.proto(s.text)
	if err != nil {
		return nil, err
	}
	like := overlay.Publish{Proto: proto, Mode: mode}
	host, rest, addressed := s.host(rest)
	published, target, both := strings.Cut(rest, ":")
	switch {
	case strings.Contains(target, ":"):
		return nil, s.errorf("it has too many colons; write it as %s, an IPv6 address in brackets", s.form)
	case addressed:
		if like.Addr, err = s.addr(host); err != nil {
			return nil, err
		}
		if !both {
			return nil, s.errorf("there is no port of the workload behind the address; write it as %s", s.form)
		}
	case !both:
		published, target = "", published
	case published == "":
		return nil, s.errorf("%q is no port; write it as %s", published, s.form)
	}
	return s.spread(like, published, target)
}

// host cuts an address off the front: what is in brackets, or the first of three parts.
func (s spec) host(text string) (host, rest string, some bool) {
	if inner, open := strings.CutPrefix(text, "["); open {
		if host, rest, some = strings.Cut(inner, "]:"); some {
			return host, rest, true
		}
	}
	if strings.Count(text, ":") == 2 {
		host, rest, _ = strings.Cut(text, ":")
		return host, rest, true
	}
	return "", text, false
}

func (s spec) addr(text string) (netip.Addr, error) {
	a, err := overlay.ParseAddr(s.option, text)
	switch {
	case err != nil:
		return a, s.errorf("%q is no IP address; write it as %s", text, s.form)
	case a.IsUnspecified():
		return a, s.errorf("%s stands for every address; leave it out", text)
	}
	return a, nil
}

// publishLong reads the long form.
func (s spec) publishLong() ([]overlay.Publish, error) {
	values := map[string]string{}
	for field := range strings.SplitSeq(s.text, ",") {
		k, v, _ := strings.Cut(field, "=")
		switch k = strings.ToLower(strings.TrimSpace(k)); k {
		case "published", "target", "protocol", "mode", "host_ip":
		default:
			return nil, s.errorf("%q is unknown; write it as %s", k, s.form)
		}
		if _, twice := values[k]; twice {
			return nil, s.errorf("%s is there twice; drop one", k)
		}
		if values[k] = strings.TrimSpace(v); values[k] == "" {
			return nil, s.errorf("%s has no value; write it as %s", k, s.form)
		}
	}
	like, err := s.longLike(values)
	if err != nil {
		return nil, err
	}
	if values["target"] == "" {
		return nil, s.errorf("there is no target; add target=80, where the workloads listen")
	}
	return s.spread(like, values["published"], values["target"])
}

// longLike is what the ports of a long form have in common.
func (s spec) longLike(values map[string]string) (like overlay.Publish, err error) {
	like = overlay.Publish{Proto: "tcp", Mode: overlay.PublishIngress}
	if v := values["protocol"]; v != "" {
		if like.Proto, err = s.protocol(v); err != nil {
			return like, err
		}
	}
	switch v := values["mode"]; v {
	case "", "ingress":
	case "local", "host": // Docker's word
		like.Mode = overlay.PublishLocal
	default:
		return like, s.errorf("mode %q is unknown; use mode=ingress or mode=local", v)
	}
	if v := values["host_ip"]; v != "" {
		like.Addr, err = s.addr(v)
	}
	return like, err
}

// spread makes each port of the ranges one like like. No published ports are chosen ones.
func (s spec) spread(like overlay.Publish, published, target string) ([]overlay.Publish, error) {
	to, err := s.ports(target)
	if err != nil {
		return nil, err
	}
	var from portRange
	switch published {
	case "":
	case "0":
		return nil, s.errorf("port 0 is none; leave it out for a free one")
	default:
		if from, err = s.ports(published); err != nil {
			return nil, err
		}
		if from.size() != to.size() {
			return nil, s.errorf("%s and %s differ in size, which is %d and %d; write ranges of one size", published, target, from.size(), to.size())
		}
	}
	all := make([]overlay.Publish, to.size())
	for i := range all {
		all[i] = like
		all[i].Target = to.first + uint16(i)
		if published != "" {
			all[i].Port = from.first + uint16(i)
		}
	}
	return all, nil
}
