package reap_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/internal/reap"
	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/strategies/strategiestest"
	"github.com/cinderlift/cinderlift/worker"
)

// bubble runs a test in fake time.
func bubble(t *testing.T, fn func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { fn(newWorld(t)) })
}

func (w *world) round(r *reap.Reaper) []reap.Finding {
	w.t.Helper()
	found, err := r.Round(w.t.Context())
	if err != nil {
		w.t.Fatalf("round: %v", err)
	}

	return found
}

// TestOrphansGo: each kind is found by a dry run, which changes nothing, and removed by a round. What is left is clean.
func TestOrphansGo(t *testing.T) {
	for _, tt := range []struct {
		name  string
		plant func(w *world)
		want  []string // kinds
	}{
		{"a snapshot of a job that failed", func(w *world) {
			w.leave(1, snapshotted)
			w.record(ended(1, worker.Failed))
		}, []string{"snapshot"}},
		{"a snapshot of a job that is done", func(w *world) {
			w.leave(1, snapshotted)
			w.record(ended(1, worker.Done))
			w.image(1, worker.ImageActive)
		}, []string{"snapshot"}},
		{"a snapshot without a record", func(w *world) { w.leave(1, snapshotted) }, []string{"snapshot"}},
		{"a snapshot without a record, the image is active", func(w *world) {
			w.leave(1, snapshotted)
			w.image(1, worker.ImageActive)
		}, []string{"snapshot"}},
		{"half a clone", func(w *world) {
			w.leave(1, cloned)
			w.record(ended(1, worker.Failed))
		}, []string{"image", "snapshot"}},
		{"half a clone without a record", func(w *world) { w.leave(1, cloned) }, []string{"image", "snapshot"}},
		{"a clone without a mark", func(w *world) {
			w.leave(1, unmarked)
			w.record(ended(1, worker.Failed))
		}, []string{"image", "snapshot"}},
		{"a clone without a mark and a record", func(w *world) { w.leave(1, unmarked) }, []string{"image", "snapshot"}},
		{"an empty image where a job was to make one", func(w *world) {
			w.cluster.Put(w.t, dst(1), strategiestest.Blueprint{Size: 8192})
			w.record(ended(1, worker.Failed))
		}, []string{"image"}},
		{"a copy", func(w *world) {
			w.leave(1, copied)
			w.record(ended(1, worker.Failed))
		}, []string{"image", "snapshot"}},
		{"a sealed copy without a record", func(w *world) { w.leave(1, sealed) }, []string{"image", "snapshot"}},
		{"the image was deleted while it was registered", func(w *world) {
			w.leave(1, sealed)
			w.record(ended(1, worker.Done))
		}, []string{"image", "snapshot"}},
		{"the image is still queued", func(w *world) {
			w.leave(1, copied)
			w.record(ended(1, worker.Failed))
			w.image(1, worker.ImageQueued)
		}, []string{"glance-image", "image", "snapshot"}},
		{"only the image is left, queued", func(w *world) {
			w.record(ended(1, worker.Failed))
			w.image(1, worker.ImageQueued)
		}, []string{"glance-image"}},
		{"only the image is left, saving", func(w *world) {
			w.record(ended(1, worker.Cancelled))
			w.image(1, worker.ImageSaving)
		}, []string{"glance-image"}},
		{"a record of a reaper that died", func(w *world) {
			w.leave(1, copied)
			w.record(ended(1, worker.Cancelled), func(r *worker.Record) { r.Job.Digest, r.Kept = "reap", nil })
		}, []string{"image", "snapshot"}},
		{"a record of the release before", func(w *world) {
			w.leave(1, snapshotted)
			w.record(ended(1, worker.Failed), func(r *worker.Record) { r.Version = 0 })
		}, []string{"snapshot"}},
		{"a key without a record", func(w *world) { w.bare = []string{id(4)} }, []string{"index-key"}},
		{"a lock without a holder", func(w *world) {
			w.locks[volume(1)] = false
			w.record(ended(1, worker.Failed))
		}, []string{"volume-lock"}},
		{"many", func(w *world) {
			for n := range 4 {
				w.leave(n+1, copied)
			}
			w.record(ended(2, worker.Failed))
		}, []string{"image", "image", "image", "image", "snapshot", "snapshot", "snapshot", "snapshot"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(w *world) {
				tt.plant(w)
				before, r := w.state(), w.reaper(nil)
				r.DryRun = true
				w.wantSummary("dry run", w.round(r), "remove", tt.want)
				if after := w.state(); !slices.Equal(before, after) {
					t.Errorf("a dry run changed something:\n%q\nbefore\n%q", after, before)
				}
				w.wantSummary("round", w.round(w.reaper(nil)), "removed", tt.want)
				w.wantSummary("second round", w.round(w.reaper(nil)), "", nil)
				w.wantClean()
			})
		})
	}
}

func (w *world) wantSummary(what string, found []reap.Finding, action string, kinds []string) {
	w.t.Helper()
	var want []string
	for _, k := range kinds {
		want = append(want, action+" "+k)
	}
	if got := summary(found); !slices.Equal(got, want) {
		w.t.Errorf("%s found%s\nwant %q", what, say(found), want)
	}
}

// wantClean checks that nothing of ours is left: no trace, no lease, no open record; and that the volumes are whole.
func (w *world) wantClean() {
	w.t.Helper()
	for _, left := range w.cluster.Audit() {
		w.t.Errorf("left: %s", left)
	}
	if w.store.Held() {
		w.t.Error("a lease is still held")
	}
	keys, err := w.journal.Keys(w.t.Context())
	w.must(err)
	for _, key := range keys {
		if rec, err := w.journal.Load(w.t.Context(), key); err != nil || !rec.Closed {
			w.t.Errorf("record %s is open: %+v, %v", key, rec, err)
		}
	}
	for n := range 4 {
		if w.cluster.View(w.t, src(n+1)).Exists && string(w.cluster.Read(w.t, src(n+1), "")[:8]) != "a volume" {
			w.t.Errorf("volume %d was changed", n+1)
		}
	}
}

// TestNothingElseGoes: whatever is not certainly an orphan is left as it is.
func TestNothingElseGoes(t *testing.T) {
	young := func(w *world, names ...string) {
		for _, name := range names {
			w.finder.Made[name] = time.Now().Add(-59 * time.Minute)
		}
	}
	onVolume := func(n int) string { return src(n).String() + "@" + strategies.SourceSnapshot(id(n)) }
	for _, tt := range []struct {
		name   string
		plant  func(w *world)
		want   []string
		leased bool // what stays only because of somebody's lease, which a dry run does not ask for
	}{
		{"an open job, however old", func(w *world) {
			w.leave(1, copied)
			w.record(ended(1, worker.Failed), open)
		}, nil, false},
		{"an open job that is being settled", func(w *world) {
			w.leave(1, copied)
			w.record(ended(1, worker.Failed), func(r *worker.Record) { r.Closed = false })
		}, nil, false},
		{"a record of a later version", func(w *world) {
			w.leave(1, copied)
			w.record(ended(1, worker.Failed), func(r *worker.Record) { r.Version = worker.RecordVersion + 1 })
		}, []string{"wait image", "wait snapshot"}, false},
		{"younger than the grace", func(w *world) {
			w.leave(1, copied)
			young(w, onVolume(1), dst(1).String())
		}, []string{"wait image", "wait snapshot"}, false},
		{"a part is younger than the grace", func(w *world) {
			w.leave(1, copied)
			w.record(ended(1, worker.Failed))
			young(w, dst(1).String())
		}, []string{"wait image", "wait snapshot"}, false},
		{"nobody knows when it was made", func(w *world) {
			w.leave(1, snapshotted)
			w.finder.Made[onVolume(1)] = time.Time{}
		}, []string{"look snapshot"}, false},
		{"the image is active with it", func(w *world) {
			w.leave(1, sealed)
			w.record(ended(1, worker.Done))
			w.must(w.cluster.Release(w.t.Context(), src(1), strategies.SourceSnapshot(id(1))))
			w.image(1, worker.ImageActive, dst(1))
		}, nil, false},
		{"the image is active with it, and both are young", func(w *world) {
			w.leave(1, sealed)
			w.record(ended(1, worker.Done))
			w.must(w.cluster.Release(w.t.Context(), src(1), strategies.SourceSnapshot(id(1))))
			w.image(1, worker.ImageActive, dst(1))
			young(w, dst(1).String())
		}, nil, false},
		{"the image is active, its record is gone", func(w *world) {
			w.leave(1, sealed)
			w.must(w.cluster.Release(w.t.Context(), src(1), strategies.SourceSnapshot(id(1))))
			w.image(1, worker.ImageActive, dst(1))
		}, nil, false},
		{"the image is active and Glance hides where", func(w *world) {
			w.leave(1, sealed)
			w.must(w.cluster.Release(w.t.Context(), src(1), strategies.SourceSnapshot(id(1))))
			w.record(ended(1, worker.Failed))
			w.image(1, worker.ImageActive)
		}, nil, false},
		{"the image is deactivated", func(w *world) {
			w.leave(1, sealed)
			w.must(w.cluster.Release(w.t.Context(), src(1), strategies.SourceSnapshot(id(1))))
			w.image(1, worker.ImageDeactivated, dst(1))
		}, nil, false},
		{"the image is active with other data", func(w *world) {
			w.leave(1, sealed)
			w.must(w.cluster.Release(w.t.Context(), src(1), strategies.SourceSnapshot(id(1))))
			w.record(ended(1, worker.Failed))
			w.image(1, worker.ImageActive, dst(2))
		}, []string{"look image"}, false},
		{"the image still depends on the snapshot", func(w *world) {
			w.leave(1, cloned)
			w.record(ended(1, worker.Done))
			w.image(1, worker.ImageActive, dst(1))
		}, []string{"look snapshot"}, false},
		{"the image is saving, by somebody else", func(w *world) {
			w.leave(1, copied)
			w.must(w.cluster.Release(w.t.Context(), src(1), strategies.SourceSnapshot(id(1))))
			w.record(ended(1, worker.Failed), func(r *worker.Record) { r.Outcome.Reason = worker.ReasonImageState })
			w.image(1, worker.ImageSaving)
		}, []string{"wait image"}, false},
		{"the image is importing", func(w *world) {
			w.leave(1, copied)
			w.must(w.cluster.Release(w.t.Context(), src(1), strategies.SourceSnapshot(id(1))))
			w.record(ended(1, worker.Done))
			w.image(1, worker.ImageImporting)
		}, []string{"wait image"}, false},
		{"the image is queued and its job is done", func(w *world) {
			w.leave(1, copied)
			w.must(w.cluster.Release(w.t.Context(), src(1), strategies.SourceSnapshot(id(1))))
			w.record(ended(1, worker.Done))
			w.image(1, worker.ImageQueued)
		}, []string{"look image"}, false},
		{"the image is queued and Cinder makes it", func(w *world) {
			w.record(ended(1, worker.Declined))
			w.image(1, worker.ImageQueued)
		}, nil, false},
		{"the image is queued and another project's", func(w *world) {
			w.record(ended(1, worker.Failed), func(r *worker.Record) { r.Job.ProjectID = "other" })
			w.image(1, worker.ImageQueued)
		}, nil, false},
		{"the image is queued and its job failed a moment ago", func(w *world) {
			w.record(ended(1, worker.Failed), func(r *worker.Record) { r.Updated = time.Now().Add(-time.Minute) })
			w.image(1, worker.ImageQueued)
		}, nil, false},
		{"the image is queued, its job failed a moment ago and has left data", func(w *world) {
			w.leave(1, copied)
			w.must(w.cluster.Release(w.t.Context(), src(1), strategies.SourceSnapshot(id(1))))
			w.record(ended(1, worker.Failed), func(r *worker.Record) { r.Updated = time.Now().Add(-time.Minute) })
			w.image(1, worker.ImageQueued)
		}, []string{"wait image"}, false},
		{"the job failed but the image is active", func(w *world) {
			w.record(ended(1, worker.Failed))
			w.image(1, worker.ImageActive)
		}, nil, false},
		{"Glance is away", func(w *world) {
			w.leave(1, copied)
			w.must(w.cluster.Release(w.t.Context(), src(1), strategies.SourceSnapshot(id(1))))
			w.record(ended(1, worker.Failed))
			w.glance.err = &worker.Error{Op: "show", Reason: worker.ReasonGlanceUnavailable, Advice: worker.Retry}
		}, []string{"wait image"}, false},
		{"no record and Glance is away", func(w *world) {
			w.leave(1, snapshotted)
			w.glance.err = &worker.Error{Op: "show", Reason: worker.ReasonGlanceUnavailable, Advice: worker.Retry}
		}, []string{"wait snapshot"}, false},
		{"no record and Cinder is away", func(w *world) {
			w.leave(1, copied)
			w.cinder = &worker.Error{Op: "list", Reason: worker.ReasonCinderUnavailable, Advice: worker.Retry}
		}, []string{"failed not-looked-at", "wait image", "wait snapshot"}, false},
		{"no record, the volume is uploading: another journal's job", func(w *world) {
			w.leave(1, copied)
			w.uploads = []reap.Upload{{VolumeID: volume(1), Image: src(1).Image, Since: time.Now()}}
		}, []string{"wait image", "wait snapshot"}, false},
		{"no record, the volume is uploading since a moment ago", func(w *world) {
			w.leave(1, copied)
			w.status = worker.VolumeUploading
		}, []string{"wait image", "wait snapshot"}, false},
		{"no record, and the volume is not Cinder's: another cloud's job", func(w *world) {
			w.leave(1, sealed)
			w.abroad = true
		}, []string{"look image", "look snapshot"}, false},
		{"no record, and only an image: another cloud's", func(w *world) {
			w.leave(1, sealed)
			w.must(w.cluster.Release(w.t.Context(), src(1), strategies.SourceSnapshot(id(1))))
		}, []string{"look image"}, false},
		{"no record, the image is queued: another journal's job", func(w *world) {
			w.leave(1, snapshotted)
			w.image(1, worker.ImageQueued)
		}, []string{"wait snapshot"}, false},
		{"a reaper's record, the volume is uploading", func(w *world) {
			w.leave(1, snapshotted)
			w.record(ended(1, worker.Cancelled), func(r *worker.Record) { r.Job.Digest = "reap" })
			w.uploads = []reap.Upload{{VolumeID: volume(1), Image: src(1).Image, Since: time.Now()}}
		}, []string{"wait snapshot"}, false},
		{"somebody has it open", func(w *world) {
			w.leave(1, copied)
			w.must(w.cluster.Release(w.t.Context(), src(1), strategies.SourceSnapshot(id(1))))
			w.finder.Users[dst(1).String()] = []string{"10.0.0.1:0/1"}
		}, []string{"look image"}, false},
		{"others made clones of the image", func(w *world) {
			w.leave(1, sealed)
			w.must(w.cluster.Release(w.t.Context(), src(1), strategies.SourceSnapshot(id(1))))
			w.clone("volume-foreign", dst(1), strategies.GlanceSnapshot)
		}, []string{"look image"}, false},
		{"others made clones of the snapshot", func(w *world) {
			w.leave(1, snapshotted)
			w.record(ended(1, worker.Failed))
			w.clone("volume-foreign", src(1), strategies.SourceSnapshot(id(1)))
		}, []string{"look snapshot"}, false},
		{"somebody holds the lease on the volume", func(w *world) {
			w.leave(1, snapshotted)
			w.record(ended(1, worker.Failed))
			w.record(ended(2, worker.Failed), open, func(r *worker.Record) { r.Job.VolumeID = volume(1) })
			claim, err := w.journal.Claim(w.t.Context(), id(2))
			w.must(err)
			w.t.Cleanup(func() { _ = claim.Release(context.Background()) })
		}, []string{"wait snapshot"}, true},
		{"names that only look like ours", func(w *world) {
			w.cluster.Put(w.t, src(1), strategiestest.Blueprint{Size: 8192})
			for _, name := range []string{"cinderlift.", "cinderlift.daily", strategies.SourceSnapshot(id(1)) + ".bak", "x" + strategies.SourceSnapshot(id(1))} {
				w.cluster.Freeze(w.t, src(1), name)
			}
		}, nil, false},
		{"somebody's image without our mark", func(w *world) {
			w.cluster.Put(w.t, dst(1), strategiestest.Blueprint{Size: 8192})
			w.cluster.Write(w.t, dst(1), 0, []byte("theirs"))
			w.record(ended(1, worker.Failed))
		}, nil, false},
		{"an empty image without our mark, of a job that is done", func(w *world) {
			w.cluster.Put(w.t, dst(1), strategiestest.Blueprint{Size: 8192})
			w.record(ended(1, worker.Done))
		}, nil, false},
		{"another job's mark", func(w *world) {
			w.leave(1, copied)
			w.record(ended(1, worker.Failed), open)
			w.cluster.Put(w.t, dst(2), strategiestest.Blueprint{Parent: src(1), Snapshot: strategies.SourceSnapshot(id(1)),
				Meta: w.cluster.View(w.t, dst(1)).Meta})
			w.record(ended(2, worker.Failed), func(r *worker.Record) { r.Kept = nil })
		}, nil, false},
		{"a lock that is held", func(w *world) {
			w.locks[volume(1)] = true
			w.record(ended(1, worker.Failed))
		}, nil, false},
		{"a volume that nobody uploads", func(w *world) {
			w.uploads = []reap.Upload{{VolumeID: volume(1), Image: src(1).Image, Since: strategiestest.LongAgo()}}
		}, []string{"look uploading"}, false},
		{"a volume with an open job, and one that began just now", func(w *world) {
			w.record(ended(1, worker.Failed), open)
			w.uploads = []reap.Upload{{VolumeID: volume(1), Since: strategiestest.LongAgo()}, {VolumeID: volume(2), Since: time.Now()}}
		}, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(w *world) {
				tt.plant(w)
				before := w.state()
				dry := w.reaper(nil)
				dry.DryRun = true
				if got := summary(w.round(dry)); !tt.leased && !slices.Equal(got, tt.want) {
					t.Errorf("a dry run found %q, want %q", got, tt.want)
				}
				found := w.round(w.reaper(nil))
				if got := summary(found); !slices.Equal(got, tt.want) {
					t.Errorf("found%s\nwant %q", say(found), tt.want)
				}
				if after := w.state(); !slices.Equal(before, after) {
					t.Errorf("something was changed:\n%q\nbefore\n%q", after, before)
				}
			})
		})
	}
}

// TestOnly: a round that was told to is about nothing else.
func TestOnly(t *testing.T) {
	bubble(t, func(w *world) {
		w.leave(1, copied)
		w.leave(2, copied)
		w.bare = []string{id(4)}
		w.locks[volume(5)] = false
		r := w.reaper(nil)
		r.Only, r.Thorough = []string{id(2)}, true
		w.wantSummary("round", w.round(r), "removed", []string{"image", "snapshot"})
		if !w.cluster.View(t, dst(1)).Exists || len(w.bare) != 1 || len(w.locks) != 1 {
			t.Error("something else was removed")
		}
	})
}

// TestNamed: who names an image vouches that it is no other cloud's.
func TestNamed(t *testing.T) {
	bubble(t, func(w *world) {
		w.leave(1, sealed)
		w.abroad = true
		r := w.reaper(nil)
		r.Only = []string{id(1)}
		w.wantSummary("round", w.round(r), "removed", []string{"image", "snapshot"})
		w.wantClean()
	})
}

// TestThorough: locks of volumes that no record names show in a listing of the whole namespace alone.
func TestThorough(t *testing.T) {
	bubble(t, func(w *world) {
		w.locks[volume(5)] = false
		w.wantSummary("round", w.round(w.reaper(nil)), "", nil)
		r := w.reaper(nil)
		r.Thorough = true
		w.wantSummary("thorough round", w.round(r), "removed", []string{"volume-lock"})
	})
}

// TestJournalAway: without the journal nothing is touched.
func TestJournalAway(t *testing.T) {
	for _, op := range []string{"keys", "load"} {
		bubble(t, func(w *world) {
			w.leave(1, copied)
			w.record(ended(1, worker.Failed))
			before := w.state()
			away := &worker.Error{Op: op, Reason: worker.ReasonCephUnavailable, Advice: worker.Retry}
			r := w.reaper(func(o string) (error, error) {
				if o == op {
					return away, nil
				}

				return nil, nil
			})
			if _, err := r.Round(w.t.Context()); !errors.Is(err, away) {
				t.Errorf("error %v, want that of the journal", err)
			}
			w.cluster.Fail, w.glance.begin = nil, nil
			if after := w.state(); !slices.Equal(before, after) {
				t.Errorf("something was changed:\n%q\nbefore\n%q", after, before)
			}
		})
	}
}

// TestUnreadableRecord: what it is about stays.
func TestUnreadableRecord(t *testing.T) {
	bubble(t, func(w *world) {
		w.leave(1, copied)
		w.record(ended(1, worker.Failed))
		r := w.reaper(func(op string) (error, error) {
			if op == "load" {
				return &worker.Error{Op: "decode", Reason: worker.ReasonInternal, Advice: worker.GiveUp}, nil
			}

			return nil, nil
		})
		for _, r.DryRun = range []bool{true, false} {
			found := w.round(r)
			if got := summary(found); !slices.Equal(got, []string{"look record", "wait image", "wait snapshot"}) {
				t.Errorf("found%s", say(found))
			}
		}
	})
}

// TestGlanceIsSpared: images that are as they should be are asked for once a day.
func TestGlanceIsSpared(t *testing.T) {
	bubble(t, func(w *world) {
		w.leave(1, sealed)
		w.record(ended(1, worker.Done))
		w.must(w.cluster.Release(w.t.Context(), src(1), strategies.SourceSnapshot(id(1))))
		w.image(1, worker.ImageActive, dst(1))
		r := w.reaper(nil)
		for range 5 {
			w.wantSummary("round", w.round(r), "", nil)
		}
		if w.glance.asked != 1 {
			t.Errorf("asked %d times", w.glance.asked)
		}
		<-time.After(25 * time.Hour)
		delete(w.glance.images, id(1))
		w.wantSummary("a day later", w.round(r), "removed", []string{"image"})
	})
}

// TestLateRequest: a request that comes while a reaper works, or after it, meets the reaper's record.
func TestLateRequest(t *testing.T) {
	bubble(t, func(w *world) {
		w.leave(1, copied)
		w.round(w.reaper(nil))
		err := w.journal.Create(w.t.Context(), ended(1, worker.Failed))
		if !errors.Is(err, worker.ErrExists) {
			t.Errorf("create: %v, want ErrExists", err)
		}
		rec, err := w.journal.Load(w.t.Context(), id(1))
		w.must(err)
		if !rec.Closed || rec.Job.VolumeID != volume(1) || rec.Outcome == nil || rec.Version != worker.RecordVersion {
			t.Errorf("record is %+v", rec)
		}
	})
}

// TestTwoReapers: at any point of one's round another does a whole one.
func TestTwoReapers(t *testing.T) {
	for n := range 60 {
		bubble(t, func(w *world) {
			w.leave(1, sealed)
			w.leave(2, cloned)
			w.record(ended(2, worker.Failed))
			count, within := 0, false
			w.round(w.reaper(func(string) (error, error) {
				if within {
					return nil, nil
				}
				if count++; count == n+1 {
					within = true
					other := w.store.Journal("other")
					r := w.reaper(w.cluster.Fail)
					r.Journal = other
					if _, err := r.Round(w.t.Context()); err != nil {
						t.Errorf("the other's round: %v", err)
					}
					within = false
				}

				return nil, nil
			}))
			w.round(w.reaper(nil))
			w.wantClean()
		})
	}
}

// TestRun: one round in every for all workers, and metrics that tell of it.
func TestRun(t *testing.T) {
	bubble(t, func(w *world) {
		w.leave(1, copied)
		ctx, cancel := context.WithCancel(w.t.Context())
		m := &counts{results: map[string]int{}}
		for _, r := range []*reap.Reaper{w.reaper(nil), w.reaper(nil), w.reaper(nil)} {
			go r.Run(ctx, time.Hour, m)
		}
		<-time.After(10*time.Hour + 30*time.Minute)
		cancel()
		synctest.Wait()
		if m.rounds < 9 || m.rounds > 11 {
			t.Errorf("%d rounds in ten hours", m.rounds)
		}
		if m.found != 2 || m.removed != 2 || m.results["clean"] != m.rounds {
			t.Errorf("counted %d found, %d removed, %v", m.found, m.removed, m.results)
		}
		w.wantClean()
	})
}

type counts struct {
	mu                     sync.Mutex
	found, removed, rounds int
	results                map[string]int
}

func (c *counts) OrphanFound(string) { c.count(func() { c.found++ }) }

func (c *counts) OrphanRemoved(string) { c.count(func() { c.removed++ }) }

func (c *counts) Reaped(result string) {
	c.count(func() {
		c.rounds++
		c.results[result]++
	})
}

func (c *counts) count(fn func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fn()
}

// mode is what happens to one operation.
type mode int

const (
	failBefore mode = iota
	failAfter
	dieBefore
	dieAfter
)

func (m mode) String() string {
	return []string{"fail-before", "fail-after", "die-before", "die-after"}[m]
}

// TestFaultMatrix: each operation of a round fails, is done but reported as failed, or is the reaper's last. The rounds
// after that, of whoever comes next, leave nothing of ours and nothing else changed.
func TestFaultMatrix(t *testing.T) {
	cells := 0
	for _, m := range []mode{failBefore, failAfter, dieBefore, dieAfter} {
		for n := 1; ; n++ {
			reached := false
			t.Run(fmt.Sprintf("%s %d", m, n), func(t *testing.T) {
				bubble(t, func(w *world) { reached = w.disturb(m, n) })
			})
			if !reached {
				break
			}
			cells++
		}
	}
	if cells < 100 {
		t.Errorf("only %d cells", cells)
	}
}

// disturb does a round whose n-th operation is disturbed, and false when it had fewer.
func (w *world) disturb(m mode, n int) bool {
	w.leave(1, sealed) // without a record
	w.leave(2, cloned)
	w.record(ended(2, worker.Failed))
	w.image(2, worker.ImageQueued)
	w.leave(3, copied) // an open job's
	w.record(ended(3, worker.Failed), open)
	w.bare = []string{id(4)}
	w.leave(5, sealed) // an image in use
	w.must(w.cluster.Release(w.t.Context(), src(5), strategies.SourceSnapshot(id(5))))
	w.image(5, worker.ImageActive, dst(5))
	kept := w.keep(3, 5)
	count, dead := 0, false
	broken := &worker.Error{Op: "be disturbed", Reason: worker.ReasonCephUnavailable, Advice: worker.Retry}
	r := w.reaper(func(string) (before, after error) {
		count++
		switch {
		case dead:
			return broken, nil
		case count != n:
			return nil, nil
		case m == dieBefore || m == dieAfter:
			dead = true
		}
		if m == failBefore || m == dieBefore {
			return broken, nil
		}

		return nil, broken
	})
	_, _ = r.Round(w.t.Context()) // it may fail, in many ways
	if count < n {
		return false
	}
	<-time.After(ttl + time.Second)
	for range 2 { // what the first finds still in use, such as the parent of what it has just removed, goes in the second
		w.round(w.reaper(nil))
	}
	if now := w.keep(3, 5); !slices.Equal(now, kept) {
		w.t.Errorf("what is not an orphan was changed:\n%q\nbefore\n%q", now, kept)
	}
	w.must(w.cluster.Release(w.t.Context(), strategies.Ref{Pool: "volumes", Image: "none"}, "none"))
	for _, n := range []int{1, 2} {
		if w.cluster.View(w.t, dst(n)).Exists || len(w.cluster.View(w.t, src(n)).Snapshots) > 0 {
			w.t.Errorf("job %d has left something", n)
		}
	}
	if len(w.bare) > 0 || w.store.Held() || w.glance.images[id(2)].Status != "" {
		w.t.Errorf("left: keys %v, leases %v, images %v", w.bare, w.store.Held(), w.glance.images)
	}

	return true
}

// keep is the state of jobs whose things must stay.
func (w *world) keep(jobs ...int) []string {
	var list []string
	for _, n := range jobs {
		for _, at := range []strategies.Ref{src(n), dst(n)} {
			v := w.cluster.View(w.t, at)
			list = append(list, fmt.Sprintf("%s %v %v %v %q", at, v.Exists, v.Snapshots, v.Meta, w.cluster.Read(w.t, at, "")))
		}
		list = append(list, w.glance.images[id(n)].Status)
	}

	return list
}
