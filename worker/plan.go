package worker

import (
	"context"
	"encoding/json"
	"fmt"
)

// Amount is how far a step has come. All figures are of this call alone, in bytes.
type Amount struct {
	Done, Total int64 // of the image's data; Total is 0 while unknown
	Cluster     int64 // moved inside Ceph, from one OSD to another
	Worker      int64 // moved through this process, in and out counted once
}

// Progress takes the amount so far. It is cheap, never blocks, and may be called from any goroutine of the step.
type Progress func(Amount)

// Lane is what a step takes much of.
type Lane int

// The lanes.
const (
	LaneNone   Lane = iota // nothing: metadata, which waits for others
	LaneCopy               // the cluster's disks; as many as Config.Data
	LaneExport             // the network and the CPU of this process; as many as Config.Exports
)

// Step is one action with a stable name.
type Step struct {
	// Name is the journal's, the logs' and the metrics' name of the step. Changing it breaks running jobs.
	Name string

	// Do brings the step about and returns when its effect is durable. It is idempotent: it may find the step not
	// begun, half done or done, by this or another process, and looks at reality to find out which. It returns soon
	// after ctx is done. It does not retry and does not log; it returns an *Error, or a *Replan.
	Do func(ctx context.Context, p Progress) error

	// Lane is what Do takes much of: few jobs of a worker are in the same lane at a time.
	Lane Lane

	// Undo removes what Do made, wholly or in part, and nothing else. It is idempotent. Nil: nothing to undo. The commit
	// step's is asked before all others: ErrCommitted sends the job forward, any other error leaves everything as it is.
	Undo func(ctx context.Context) error
}

// Plan is how a strategy serves one task.
type Plan struct {
	Strategy string
	Steps    []Step
	Commit   string // name of the step after which the job only goes forward

	// Keep is handed back in Task.Kept whenever the same job is planned again. A strategy keeps where things are, so
	// that a changed configuration can't make a later plan look elsewhere. It holds no secrets.
	Keep json.RawMessage
}

// Names lists the names of the steps in order.
func (p Plan) Names() []string {
	names := make([]string, len(p.Steps))
	for i, s := range p.Steps {
		names[i] = s.Name
	}

	return names
}

// step finds a step; the zero Step when the plan has none of this name.
func (p Plan) step(name string) Step {
	for _, s := range p.Steps {
		if s.Name == name {
			return s
		}
	}

	return Step{}
}

// validate finds a strategy's mistakes before anything is done. A plan under another name than its strategy's would be
// made again and again, because the journal would note the wrong one as tried.
func (p Plan) validate(strategy string) error {
	if p.Strategy != strategy {
		return internal("plan "+strategy, fmt.Errorf("the plan is named %q", p.Strategy))
	}
	seen := map[string]bool{}
	for _, s := range p.Steps {
		if s.Name == "" || s.Do == nil || seen[s.Name] {
			return internal("plan "+p.Strategy, fmt.Errorf("step %q is unnamed, empty or there twice", s.Name))
		}
		seen[s.Name] = true
	}
	if !seen[p.Commit] {
		return internal("plan "+p.Strategy, fmt.Errorf("commit point %q is not a step", p.Commit))
	}

	return nil
}

// Strategy is a way to make an image.
type Strategy interface {
	// Name is the stable name used in configuration, journal, logs and metric labels.
	Name() string

	// Plan looks at the facts and answers how it would serve t, without side effects. A no is NotApplicable. It is
	// asked again after an adoption and after a Replan: steps that the journal knows as done are then not run again,
	// so the same step name must mean the same effect in every plan of this strategy. With t.Kept set, everything that
	// it needs must come from there and from t.Job: t.Volume and t.Image may be empty, when all is to be undone
	// because they are gone.
	Plan(ctx context.Context, t Task) (Plan, error)
}

// Replan is returned by a step that found out that the plan has to be another one, such as registering after the
// flatten instead of before. The runner asks the same strategy again and goes on; it does so a few times at most.
type Replan struct {
	Redo []string // steps that the journal has as done but that have to be done again
	Err  error    // why
}

// Error says why.
func (r *Replan) Error() string { return "plan again: " + r.Err.Error() }

// Unwrap gives the cause.
func (r *Replan) Unwrap() error { return r.Err }

func internal(op string, err error) error {
	return &Error{Op: op, Reason: ReasonInternal, Advice: GiveUp, Err: err}
}
