package datapathtest

import (
	"testing"

	"github.com/heddle-net/heddle/datapath"
)

// memory is the in-memory kernel as the cases see it.
type memory struct {
	*Kernel
	inode uint64
}

func (m *memory) Workload(t *testing.T, name string) datapath.NS {
	m.inode++
	ns := datapath.NS{Path: "/proc/" + name + "/ns/net", Inode: m.inode}
	m.AddWorkload(ns)
	return ns
}

func (m *memory) EndWorkload(t *testing.T, ns datapath.NS) { m.DelWorkload(ns) }
func (m *memory) Foreign(t *testing.T, l datapath.LinkKey) { m.AddForeign(l) }

func TestKernel(t *testing.T) {
	Run(t, func(t *testing.T) Env { return &memory{Kernel: NewKernel()} })
}
