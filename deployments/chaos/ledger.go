package main

import (
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// ledger knows what was asked for, and what workers say of it in their logs.
type ledger struct {
	mu        sync.Mutex
	jobs      map[string]*job // by image
	order     []string
	takeovers []takeover
	troubled  []span          // when anything was out of order
	early     []lab.Violation // found before the end
	counts    map[string]int
}

type job struct {
	lab.Asked
	via    string
	since  time.Time
	worker string    // that has it in hand, by its last words
	orphan time.Time // when that one was killed; zero: it was not, or somebody took over
	record lab.Standing
	ended  chan struct{} // closed when the journal says so
	going  bool          // its user has begun to delete it, after it was verified
}

// takeover is how long a job was without a worker.
type takeover struct {
	took  time.Duration
	image string
	at    time.Time // of the kill
}

// span is a time between two moments.
type span struct{ from, to time.Time }

// disturbed books a disturbance.
func (l *ledger) disturbed(from, to time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.troubled = append(l.troubled, span{from, to})
}

// calm reports whether nothing but the kill itself happened while a job had no worker.
func (l *ledger) calm(t takeover) bool {
	return !slices.ContainsFunc(l.troubled, func(s span) bool {
		return s.from.Before(t.at.Add(t.took)) && s.to.After(t.at) && !s.from.Equal(t.at)
	})
}

func newLedger() *ledger { return &ledger{jobs: map[string]*job{}, counts: map[string]int{}} }

// ask books an accepted request.
func (l *ledger) ask(a lab.Asked, via string) *job {
	l.mu.Lock()
	defer l.mu.Unlock()
	j := l.jobs[a.Image]
	if j == nil { // a worker may have been faster
		j = &job{ended: make(chan struct{})}
		l.jobs[a.Image] = j
	}
	j.Asked, j.via, j.since = a, via, time.Now()
	l.order = append(l.order, a.Image)

	return j
}

// change changes what is asked of the audit.
func (l *ledger) change(j *job, f func(*lab.Asked)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&j.Asked)
}

func (l *ledger) count(what string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[what] += n
}

func (l *ledger) counted(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()

	return l.counts[what]
}

func (l *ledger) violate(v ...lab.Violation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.early = append(l.early, v...)
}

// listener follows the log of one worker.
type listener struct {
	ledger *ledger
	worker string
}

// Write takes one line of a log.
func (w listener) Write(p []byte) (int, error) {
	var line struct {
		Time       time.Time
		Msg, Image string
	}
	if json.Unmarshal(p, &line) == nil && line.Image != "" {
		w.ledger.heard(w.worker, line.Msg, line.Image, line.Time)
	}

	return len(p), nil
}

func (l *ledger) heard(worker, msg, image string, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	j := l.jobs[image]
	if j == nil {
		j = &job{ended: make(chan struct{})}
		l.jobs[image] = j
	}
	switch msg {
	case "job accepted":
		j.worker = worker
	case "job adopted":
		j.worker = worker
		l.counts["adoptions"]++
		if !j.orphan.IsZero() && at.After(j.orphan) {
			l.takeovers = append(l.takeovers, takeover{at.Sub(j.orphan), image, j.orphan})
			j.orphan = time.Time{}
		}
	case "job closed", "job left; it goes on from the journal":
		if j.worker == worker {
			j.worker = ""
		}
	}
}

// killed says when a worker died.
func (l *ledger) killed(worker string, at time.Time) (hands int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, j := range l.jobs {
		if j.worker == worker {
			hands++
			j.worker = ""
			j.orphan = at
		}
	}

	return hands
}

// waiting lists the jobs that were not seen to have ended, if they are older than some time.
func (l *ledger) waiting(age time.Duration) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var images []string
	for _, image := range l.order {
		if j := l.jobs[image]; !closed(j.ended) && time.Since(j.since) >= age {
			images = append(images, image)
		}
	}

	return images
}

// end books what the journal says of closed jobs.
func (l *ledger) end(found map[string]lab.Standing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for image, s := range found {
		if j := l.jobs[image]; j != nil && s.Closed && !closed(j.ended) {
			j.record = s
			j.orphan = time.Time{}
			close(j.ended)
		}
	}
}

// manifest is what the audit is to hold the cloud against.
func (l *ledger) manifest(volumes map[string]string) lab.Manifest {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := lab.Manifest{Volumes: volumes}
	for _, image := range l.order {
		m.Requests = append(m.Requests, l.jobs[image].Asked)
	}

	return m
}

// deletedByUser reports whether the image was deleted while its job ran.
func (l *ledger) deletedByUser(image string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	j := l.jobs[image]

	return j != nil && j.Cancelled
}

// passedOver reports whether the image's job failed because its workers died, again and again.
func (l *ledger) passedOver(image string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	j := l.jobs[image]

	return j != nil && j.record.Result == "failed" && j.record.Reason == "attempts"
}

// failedUploads lists the images that were uploaded and did not become active.
func (l *ledger) failedUploads() (images []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, image := range l.order {
		if r := l.jobs[image].record; r.Strategy == "export-upload" && r.Result != "done" {
			images = append(images, image)
		}
	}

	return images
}

// results counts the jobs by result, and the failures by reason.
func (l *ledger) results() (results, reasons map[string]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	results, reasons = map[string]int{}, map[string]int{}
	for _, image := range l.order {
		j := l.jobs[image]
		results[j.record.Result]++
		results["by "+j.record.Strategy]++
		results["via "+j.via]++
		if j.record.Result == "failed" {
			reasons[j.record.Reason]++
		}
	}

	return results, reasons
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// quantile of sorted durations, 0 when there are none.
func quantile(list []time.Duration, q float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)

	return list[min(len(list)-1, int(q*float64(len(list))))]
}
