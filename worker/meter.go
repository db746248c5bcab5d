package worker

import (
	"log/slog"
	"sync"
	"time"
)

// meter turns the running totals of one call of a step into increments.
type meter struct {
	strategy, step string
	recorder       Recorder
	log            *slog.Logger

	moved chan struct{} // closed once data has moved inside the cluster
	once  sync.Once

	mu     sync.Mutex
	last   Amount
	logged time.Time
	went   time.Time // when it went on for the last time
}

const (
	progressEvery = 10 * time.Second // a long step says how far it is
	stillEvery    = time.Minute      // one that moves nothing says that it waits
)

// still says now and then that the step runs, such as one that waits for Glance: whoever looks at a job that seems to
// hang finds out where. When nothing has moved for longer than most, it calls stalled. Call stop at its end.
func (m *meter) still(most time.Duration, stalled func()) (stop func()) {
	begin, end, ended := time.Now(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(stillEvery)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
				if m.waits(time.Since(begin)) > most {
					stalled()
				}
			}
		}
	}()

	return func() { close(end); <-ended }
}

// waits answers how long nothing has moved.
func (m *meter) waits(since time.Duration) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.logged) >= stillEvery {
		m.log.Info("step waits", "strategy", m.strategy, "step", m.step, "seconds", since.Seconds())
	}

	return time.Since(m.went)
}

func (m *meter) report(a Amount) {
	m.mu.Lock()
	defer m.mu.Unlock()
	cluster, worker := a.Cluster-m.last.Cluster, a.Worker-m.last.Worker
	if a != m.last {
		m.went = time.Now()
	}
	m.last = a
	if a.Cluster > 0 {
		m.once.Do(func() { close(m.moved) })
	}
	if cluster > 0 || worker > 0 {
		m.recorder.Moved(m.strategy, max(cluster, 0), max(worker, 0))
	}
	if time.Since(m.logged) < progressEvery {
		return
	}
	m.logged = time.Now()
	m.log.Info("step under way", "strategy", m.strategy, "step", m.step, "done_bytes", a.Done, "total_bytes", a.Total)
}
