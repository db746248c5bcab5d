package metrics

// OrphanFound counts something that a job left behind and that no open job owns.
func (m *Recorder) OrphanFound(kind string) { m.orphansFound.WithLabelValues(kind).Inc() }

// OrphanRemoved counts something that a job left behind and that was removed.
func (m *Recorder) OrphanRemoved(kind string) { m.orphansRemoved.WithLabelValues(kind).Inc() }

// Reaped counts a look for what jobs left behind.
func (m *Recorder) Reaped(result string) { m.reaps.WithLabelValues(result).Inc() }
