package kernel

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/nftables"

	"github.com/heddle-net/heddle/datapath/netns"
)

// settleTime is how long the firewall must be quiet before it is looked at again.
const settleTime = 100 * time.Millisecond

// WatchChains calls changed when others have made or removed chains of the host's firewall, as
// a container engine does at its start, until ctx ends. Any goroutine may call it.
func (k *Kernel) WatchChains(ctx context.Context, changed func()) error {
	f, err := netns.Open(k.hostPath(), 0)
	if err != nil {
		return err
	}
	defer f.Close()
	m := nftables.NewMonitor() // of everything: the library's choice by object lets nothing through
	var events chan *nftables.MonitorEvent
	err = netns.Do(f, func() error {
		c, err := nftables.New()
		if err == nil {
			events, err = c.AddMonitor(m)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("watch nf_tables: %w", err)
	}
	defer m.Close()
	quiet := time.NewTimer(settleTime)
	quiet.Stop()
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-quiet.C:
			changed()
		case e, ok := <-events:
			if !ok || e.Error != nil || e.Type == nftables.MonitorEventTypeOOB {
				return fmt.Errorf("watch nf_tables: %w", errorOf(e))
			}
			if ch, is := e.Data.(*nftables.Chain); is && ch.Table != nil && !strings.HasPrefix(ch.Table.Name, tableName) {
				quiet.Reset(settleTime)
			}
		}
	}
}

func errorOf(e *nftables.MonitorEvent) error {
	if e != nil && e.Error != nil {
		return e.Error
	}
	return fmt.Errorf("the stream of events ended")
}
