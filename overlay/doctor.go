package overlay

// Diagnosis is what `heddle doctor` shows of a node.
type Diagnosis struct {
	Name     string
	Version  string
	Member   bool              // of a cluster
	Drift    []DriftRow        // what is not as wanted in the kernel at this moment
	Repaired map[string]uint64 // objects that others had changed, by kind, since the daemon's start
	Findings []Finding
}

// DriftRow is one difference between the kernel and what is wanted.
type DriftRow struct {
	What  string // the kind of object
	Where string // namespace and link
	Found string // "missing", "not wanted", or how it is
	Do    string // what heddle does about it
}

// Verdict is how bad a finding is.
type Verdict string

const (
	Good    Verdict = "ok"
	Warning Verdict = "warning" // works, but worse than it could, or not for long
	Problem Verdict = "problem" // something does not work
)

// Finding is what was found of one thing that doctor looks at.
type Finding struct {
	Name    string
	Verdict Verdict
	Found   string
	Mend    string `json:",omitempty"` // what to type, and where that is not this node
}

// Count is the number of findings with a verdict.
func (d Diagnosis) Count(v Verdict) (n int) {
	for _, f := range d.Findings {
		if f.Verdict == v {
			n++
		}
	}
	return n
}
