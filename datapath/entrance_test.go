package datapath_test

import (
	"testing"

	"github.com/heddle-net/heddle/datapath"
)

// What is not wholly known of services' ports stays as it is; workloads' ports are changed all the same.
func TestPartialEntrance(t *testing.T) {
	port := func(n uint16) datapath.Passages {
		return datapath.Passages{Ports: []datapath.Passage{{Proto: "tcp", Port: n}}}
	}
	was := datapath.Entrance{Workloads: port(1), Services: port(2)}
	have := datapath.NewState()
	have.Entrances[datapath.NS{}] = was.State()
	now := datapath.Entrance{Workloads: port(3), Partial: true}
	ops := datapath.Diff(have, &datapath.Config{Entrances: []datapath.Entrance{now}})
	if len(ops) != 1 || !ops[0].(datapath.SetEntrance).Workload || ops[0].(datapath.SetEntrance).Service {
		t.Errorf("got %v", ops)
	}
	now.Services = port(4)
	have.Entrances[datapath.NS{}] = datapath.EntranceState{Workloads: now.State().Workloads, Services: datapath.Altered}
	if ops := datapath.Diff(have, &datapath.Config{Entrances: []datapath.Entrance{now}}); len(ops) != 1 || !ops[0].(datapath.SetEntrance).Service {
		t.Errorf("what others altered is written all the same: %v", ops)
	}
	now.Partial, have.Entrances[datapath.NS{}] = false, was.State()
	if ops := datapath.Diff(have, &datapath.Config{Entrances: []datapath.Entrance{now}}); len(ops) != 1 || !ops[0].(datapath.SetEntrance).Service || !ops[0].(datapath.SetEntrance).Workload {
		t.Errorf("when all is known: %v", ops)
	}
}
