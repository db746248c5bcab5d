package ceph

import (
	"encoding/json"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

const fuzzKey = "00000000-0000-4000-8000-000000000001"

// fullRecord has something in every field, so that a field which gets lost on the way shows.
func fullRecord() worker.Record {
	at := time.Date(2026, 3, 4, 5, 6, 7, 8000, time.UTC)
	activity := worker.Activity{Name: "flatten", Owner: "a", Since: at}
	outcome := &worker.Outcome{Result: worker.Failed, Reason: worker.ReasonMismatch, Message: "m", Strategy: "copy"}

	return worker.Record{
		Version: worker.RecordVersion,
		Job: worker.Job{ImageID: fuzzKey, VolumeID: "v", ProjectID: "p", DiskFormat: "raw", ContainerFormat: "bare",
			RequestID: "req-1", GlobalRequestID: "req-2", Digest: "d", Origin: json.RawMessage(`{"reply":"q"}`), Private: "a token"},
		Strategy: "copy", Steps: []string{"snapshot"}, Begun: []string{"snapshot", "seal"}, Kept: json.RawMessage(`{"pool":"x"}`),
		Committed: true, Tried: []string{"clone-flatten"}, LastError: "e", LastReason: worker.ReasonPoolFull,
		Doing: &activity, Deaths: []worker.Activity{activity}, Aside: &worker.Aside{Activity: "flatten", Since: at, Until: at},
		Verdict: outcome, Left: []string{"undo-seal"}, Outcome: outcome, Settled: []string{"reply"}, PutOff: 2, Again: at, Closed: true,
		Owner: "a", Epoch: 7, Accepted: at, Updated: at, Stamp: 9, Unreleased: true,
	}
}

// TestRecordRoundTrip keeps every field, and fails when a new one is not in fullRecord.
func TestRecordRoundTrip(t *testing.T) {
	rec := fullRecord()
	for v, i := reflect.ValueOf(rec), 0; i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Errorf("fullRecord has nothing in %s", v.Type().Field(i).Name)
		}
	}
	raw, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	e, err := decode(fuzzKey, 7, map[string]string{keyRecord: string(raw), keyOwner: "a", keyAddr: "1.2.3.4:0/5"})
	if err != nil {
		t.Fatal(err)
	}
	rec.Job.Private, rec.Stamp, rec.Unreleased = nil, 0, false // never written
	if !reflect.DeepEqual(e.record, rec) || e.addr != "1.2.3.4:0/5" {
		t.Errorf("%+v came back as %+v at %s", rec, e.record, e.addr)
	}
}

// FuzzRecord: whatever lies in RADOS, it is refused, or is a record of this very key, with the object's epoch and owner, that
// is written and read again without a change. A field that only a later release knows is no reason to refuse it.
func FuzzRecord(f *testing.F) {
	for _, rec := range []worker.Record{fullRecord(), {Job: worker.Job{ImageID: fuzzKey}}, {Job: worker.Job{ImageID: "another"}}} {
		raw, err := json.Marshal(rec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(fuzzKey, uint64(3), raw, "a", "1.2.3.4:0/5")
	}
	f.Add(fuzzKey, uint64(1), []byte(`{"version":99,"job":{"image_id":"`+fuzzKey+`","later":{}},"epoch":-1,"new":[[]]}`), "", "")
	f.Add(fuzzKey, uint64(1), []byte(`{"version":99,"job":{"image_id":"`+fuzzKey+`","later":{}},"new":[[]],"again":"0001-01-01T00:00:00Z"}`), "", "")
	f.Add("", uint64(0), []byte(`{}`), "", "")
	f.Add(fuzzKey, uint64(0), []byte(``), "", "")
	f.Fuzz(func(t *testing.T, key string, epoch uint64, raw []byte, owner, addr string) {
		var e entry
		var err error
		if used := allocated(func() {
			e, err = decode(key, epoch, map[string]string{keyRecord: string(raw), keyOwner: owner, keyAddr: addr})
		}); used > uint64(20*len(raw)+256<<10) {
			t.Errorf("%d bytes cost %d", len(raw), used)
		}
		if err != nil {
			if worker.ReasonOf(err) != worker.ReasonInternal || worker.AdviceOf(err) != worker.GiveUp || len(err.Error()) > 4096+8*len(raw) { // it quotes another key
				t.Fatalf("refused with %v", err)
			}

			return
		}
		if e.record.Job.Key() != key || e.record.Epoch != epoch || e.record.Owner != owner || e.addr != addr || e.record.Job.Private != nil {
			t.Fatalf("of job %q, epoch %d, owner %q: %+v", key, epoch, owner, e)
		}
		_ = known(e.record)
		written, err := json.Marshal(e.record)
		if err != nil {
			t.Fatalf("what was read can't be written: %v", err)
		}
		again, err := decode(key, epoch, map[string]string{keyRecord: string(written), keyOwner: owner, keyAddr: addr})
		if err != nil {
			t.Fatalf("what was written can't be read: %v", err)
		}
		rewritten, err := json.Marshal(again.record)
		if err != nil || string(rewritten) != string(written) {
			t.Fatalf("%s came back as %s (%v)", written, rewritten, err)
		}
	})
}

func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)

	return after.TotalAlloc - before.TotalAlloc
}
