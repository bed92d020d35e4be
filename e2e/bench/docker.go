//go:build linux

package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/e2e/cluster"
	"github.com/heddle-net/heddle/e2e/lab"
	"github.com/heddle-net/heddle/e2e/probe"
)

const (
	image       = "bench"
	cgroup      = "heddle-bench-swarm" // above those of all containers
	dockerStart = 30 * time.Second
)

// swarmLab is hosts that run dockerd, and after them two that do not.
type swarmLab struct {
	*lab.Lab
	managers, workers int
	daemons           map[*lab.Host]*lab.Process
}

// newSwarmLab makes the hosts, starts a dockerd on each and gives it the image.
func newSwarmLab(ctx context.Context, managers, workers int) (*swarmLab, error) {
	if err := removeCgroups(); err != nil { // of a run that was killed
		return nil, err
	}
	l, err := lab.New(ctx, "swarm", lab.Config{Hosts: managers + workers + 2})
	if err != nil {
		return nil, err
	}
	s := &swarmLab{l, managers, workers, map[*lab.Host]*lab.Process{}}
	if err := s.begin(ctx); err != nil {
		return nil, errors.Join(err, s.close(ctx))
	}
	return s, nil
}

func (s *swarmLab) begin(ctx context.Context) error {
	file := filepath.Join(s.Dir(), "image.tar")
	if err := writeImage(file); err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	for _, h := range s.nodes() {
		if err := s.startDaemon(h); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, h := range s.nodes() {
		g.Go(func() error {
			if err := s.serves(ctx, h); err != nil {
				return err
			}
			return importImage(ctx, h, file)
		})
	}
	return g.Wait()
}

// close ends everything on the hosts, and with it what the containers have. Cgroups alone are
// the machine's.
func (s *swarmLab) close(ctx context.Context) error {
	err := s.Close()
	return errors.Join(err, cluster.Eventually(context.WithoutCancel(ctx), 5*time.Second, func(context.Context) error { return removeCgroups() }))
}

// nodes are the hosts that run dockerd, managers first.
func (s *swarmLab) nodes() []*lab.Host { return s.Hosts()[:s.managers+s.workers] }

// startDaemon starts dockerd with its state on the lab's disk and its containers in a cgroup
// of their own. What Docker has in /run and /etc is the host's own.
func (s *swarmLab) startDaemon(h *lab.Host) error {
	log, err := os.OpenFile(s.log(h), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s.daemons[h], err = h.Start(lab.Command{Stdout: log, Stderr: log, Args: []string{
		"dockerd", "--data-root=/var/lib/heddle/docker", "--storage-driver=overlay2", "--bridge=none", "--userland-proxy=false",
		"--cgroup-parent=/" + cgroup + "/" + h.Name(),
	}})
	return err
}

func (s *swarmLab) log(h *lab.Host) string { return filepath.Join(s.Dir(), h.Name(), "docker.log") }

func (s *swarmLab) serves(ctx context.Context, h *lab.Host) error {
	var v struct{}
	err := cluster.Eventually(ctx, dockerStart, func(ctx context.Context) error { return docker(h).get(ctx, "/version", &v) })
	if err != nil {
		said, _ := os.ReadFile(s.log(h))
		return fmt.Errorf("dockerd on %s does not answer: %w; its log ends:\n%s", h.Name(), err, said[max(0, len(said)-2000):])
	}
	return nil
}

// kill ends a dockerd as a crash does: containerd and the containers stay.
func (s *swarmLab) kill(h *lab.Host) error {
	p := s.daemons[h]
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	<-p.Done()
	return nil
}

// docker speaks to a host's dockerd.
func docker(h *lab.Host) *api { return clientAt(h.Path("/run/docker.sock")) }

// writeImage makes an image of one file: this program, which is static.
func writeImage(file string) error {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	st, err := self.Stat()
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	if err := w.WriteHeader(&tar.Header{Name: image, Mode: 0o755, Size: st.Size()}); err != nil {
		return err
	}
	if _, err := io.Copy(w, self); err != nil {
		return err
	}
	return w.Close()
}

func importImage(ctx context.Context, h *lab.Host, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	resp, err := docker(h).http.Post("http://docker/images/create?fromSrc=-&repo="+image, "application/x-tar", f)
	if err != nil {
		return fmt.Errorf("%s: import the image: %w", h.Name(), err)
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != 200 || strings.Contains(string(said), `"error"`)) {
		err = fmt.Errorf("%s: %s", resp.Status, said)
	}
	if err != nil {
		return fmt.Errorf("%s: import the image: %w", h.Name(), err)
	}
	return nil
}

// container is what is asked of one that runs.
type container struct {
	NetworkSettings struct {
		SandboxKey string
		Networks   map[string]struct {
			IPAddress  netip.Addr
			MacAddress string
		}
	}
}

// netns is the path of the container's network namespace.
func (c container) netns(h *lab.Host) string {
	return h.Path("/run/docker/netns/" + filepath.Base(c.NetworkSettings.SandboxKey))
}

// create makes a container in a network, with a program that only waits.
func (a *api) create(ctx context.Context, name, network string) error {
	_, err := a.call(ctx, "POST", "/containers/create?name="+name, map[string]any{
		"Image": image, "Cmd": append([]string{"/" + image}, probe.Args("serve")[1:]...),
		"HostConfig": map[string]any{"NetworkMode": network, "LogConfig": map[string]string{"Type": "none"}},
	})
	return err
}

func (a *api) start(ctx context.Context, name string) error {
	_, err := a.call(ctx, "POST", "/containers/"+name+"/start", nil)
	return err
}

func (a *api) remove(ctx context.Context, name string) error {
	_, err := a.call(ctx, "DELETE", "/containers/"+name+"?force=1", nil)
	return err
}

// run is create and start.
func (a *api) run(ctx context.Context, name, network string) (c container, err error) {
	if err = a.create(ctx, name, network); err != nil {
		return c, err
	}
	if err = a.start(ctx, name); err != nil {
		return c, err
	}
	err = a.get(ctx, "/containers/"+name+"/json", &c)
	return c, err
}

// createOverlay makes an attachable overlay network and returns its ID.
func (a *api) createOverlay(ctx context.Context, name string) (string, error) {
	b, err := a.call(ctx, "POST", "/networks/create", map[string]any{"Name": name, "Driver": "overlay", "Attachable": true, "CheckDuplicate": true})
	if err != nil {
		return "", err
	}
	var made struct{ ID string }
	err = json.Unmarshal(b, &made)
	return made.ID, err
}

// removeOverlay repeats while the managers still have the attachments of containers that went.
func (a *api) removeOverlay(ctx context.Context, id string) error {
	return cluster.Eventually(ctx, 20*time.Second, func(ctx context.Context) error {
		_, err := a.call(ctx, "DELETE", "/networks/"+id, nil)
		return err
	})
}

// memory is the resident memory of dockerd and its containerd in MiB.
func memory(h *lab.Host) (dockerd, containerd float64, err error) {
	comms, err := filepath.Glob(h.Path("/proc/[0-9]*/comm"))
	if err != nil {
		return 0, 0, err
	}
	for _, file := range comms {
		comm, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		into := map[string]*float64{"dockerd\n": &dockerd, "containerd\n": &containerd}[string(comm)]
		if into == nil {
			continue
		}
		status, err := os.ReadFile(filepath.Join(filepath.Dir(file), "status"))
		if err != nil {
			return 0, 0, err
		}
		_, rss, _ := strings.Cut(string(status), "VmRSS:")
		kb, err := strconv.ParseFloat(strings.Fields(rss + " ")[0], 64)
		if err != nil {
			return 0, 0, err
		}
		*into += kb / 1024
	}
	return dockerd, containerd, nil
}

// removeCgroups removes the containers' cgroups, which must be empty.
func removeCgroups() error {
	tops, err := filepath.Glob("/sys/fs/cgroup/*/" + cgroup)
	if err != nil {
		return err
	}
	var dirs []string
	for _, top := range append(tops, "/sys/fs/cgroup/"+cgroup) {
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
	}
	slices.Reverse(dirs)
	for _, d := range dirs {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the containers' cgroup: %w", err)
		}
	}
	return nil
}
