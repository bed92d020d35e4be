package state

import "github.com/heddle-net/heddle/overlay"

// remembered is how many requests are recognised when they come again.
const remembered = 4096

// ref names the rows that a command's answer is read from, so that a request's answer can be
// kept without them.
type ref struct {
	Node    overlay.NodeID    `json:"node,omitempty"`
	Network overlay.NetworkID `json:"network,omitempty"`
	Service overlay.ServiceID `json:"service,omitempty"`
	Token   string            `json:"token,omitempty"`
}

// outcome is how a request ended.
type outcome struct {
	Req  string `json:"req"`
	Kind Kind   `json:"kind"`
	ref
	Error *overlay.Error `json:"error,omitempty"`
}

// outcomes are those of the newest requests, oldest first from next on, once the list is full.
type outcomes struct {
	list  []outcome
	next  int
	byReq map[string]int
}

func (o *outcomes) find(req string) (outcome, bool) {
	i, ok := o.byReq[req]
	if !ok {
		return outcome{}, false
	}
	return o.list[i], true
}

func (o *outcomes) add(n outcome) {
	if n.Req == "" {
		return
	}
	if len(o.list) < remembered {
		o.byReq[n.Req] = len(o.list)
		o.list = append(o.list, n)
		return
	}
	delete(o.byReq, o.list[o.next].Req)
	o.byReq[n.Req] = o.next
	o.list[o.next] = n
	o.next = (o.next + 1) % remembered
}

// ordered is the list, oldest first.
func (o *outcomes) ordered() []outcome {
	return append(append(make([]outcome, 0, len(o.list)), o.list[o.next:]...), o.list[:o.next]...)
}

// answer is a command's result, read from the rows as they are.
func (t *tables) answer(o outcome) (any, error) {
	if o.Error != nil {
		return nil, o.Error
	}
	switch o.Kind {
	case KindRemoveNode, KindUnfence:
		return RemovalResult{t.removals.m[o.Node], t.revision}, nil
	case KindCreateToken, KindRevokeToken, KindRotateTokens:
		tok, ok := t.tokens.m[o.Token]
		if !ok {
			return nil, noToken(o.Token)
		}
		return TokenResult{tok, t.revision}, nil
	case KindUpdateParams:
		return ParamsResult{t.Params, t.revision}, nil
	case KindSetLevel:
		return LevelResult{t.level, t.revision}, nil
	case KindCreateNetwork, KindUpdateNetwork:
		n, ok := t.networks.m[o.Network]
		if !ok {
			return nil, noNetwork(o.Network)
		}
		return NetworkResult{n.def, t.revision}, nil
	case KindRemoveNetwork:
		return NetworkResult{overlay.Network{ID: o.Network}, t.revision}, nil
	case KindCreateService, KindUpdateService:
		s, ok := t.services.m[o.Service]
		if !ok {
			return nil, noService(o.Service)
		}
		return ServiceResult{*s, t.revision}, nil
	case KindRemoveService:
		return ServiceResult{overlay.Service{ID: o.Service}, t.revision}, nil
	case KindGrant, KindRelease:
		n, ok := t.networks.m[o.Network]
		if !ok {
			return nil, noNetwork(o.Network)
		}
		lease, ok := n.leases[o.Node]
		if !ok {
			return nil, overlay.Errorf(overlay.NotFound, "node %s has no lease in network %s any more", o.Node.Short(), n.def.Name)
		}
		return GrantResult{n.def, lease, n.leases, t.revision}, nil
	}
	n, ok := t.nodes.m[o.Node]
	if !ok {
		return nil, noNode(o.Node)
	}
	return NodeResult{n, t.revision}, nil
}

func noNode(id overlay.NodeID) error {
	return overlay.Errorf(overlay.NotFound, "there is no node %s; `heddle node ls` lists what there is", id.Short())
}

func noNetwork(id overlay.NetworkID) error {
	return overlay.Errorf(overlay.NotFound, "there is no network %s; `heddle network ls` lists what there is", id.Short())
}

func noService(id overlay.ServiceID) error {
	return overlay.Errorf(overlay.NotFound, "there is no service %s; `heddle service ls` lists what there is", id.Short())
}

func noToken(id string) error {
	return overlay.Errorf(overlay.NotFound, "there is no join token %.32q; `heddle token ls` lists what there is", id)
}
