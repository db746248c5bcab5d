package cinder

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/cinderlift/cinderlift/internal/oslo"
	"github.com/cinderlift/cinderlift/worker"
)

// FuzzJob: whatever arrives, the request is refused without repeating what it says, or every name in the job is of its
// form, its origin can be read back, and the user's token is in Private alone.
func FuzzJob(f *testing.F) {
	for _, file := range goldens(f) {
		f.Add(must(json.Marshal(golden(f, file))))
	}
	f.Add([]byte(`{"method":"copy_volume_to_image","version":"3.0","args":{"volume_id":null,"image_meta":[],"done":{}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := oslo.Decode(oslo.JSONContentType, body, oslo.Limits{})
		d := &delivery{Message: &fakeMessage{request: r, err: err}, exchange: DefaultExchange}
		var j worker.Job
		cost := allocated(func() { j, err = d.Job() })
		if cost > uint64(20*len(body)+256<<10) {
			t.Errorf("%d bytes cost %d", len(body), cost)
		}
		if err != nil {
			if worker.ReasonOf(err) != worker.ReasonBadRequest || worker.AdviceOf(err) != worker.GiveUp || len(err.Error()) > 4096 {
				t.Fatalf("error without its reason: %v", err)
			}

			return
		}
		wellFormed(t, j)
		keptAsItIs(t, j)
		withoutToken(t, r, j)
	})
}

func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)

	return after.TotalAlloc - before.TotalAlloc
}

func wellFormed(t *testing.T, j worker.Job) {
	t.Helper()
	if !uuidForm.MatchString(j.ImageID) || !uuidForm.MatchString(j.VolumeID) || !formatForm.MatchString(j.DiskFormat) ||
		!formatForm.MatchString(j.ContainerFormat) || !projectForm.MatchString(j.ProjectID) || len(j.Digest) != 64 ||
		len(j.RequestID) > 255 || len(j.GlobalRequestID) > 255 {
		t.Fatalf("job with a bad name: %+v", j)
	}
}

// keptAsItIs: the journal's form of a job comes back as it was, and answers to the same place.
func keptAsItIs(t *testing.T, j worker.Job) {
	t.Helper()
	var back worker.Job
	if err := json.Unmarshal(must(json.Marshal(j)), &back); err != nil {
		t.Fatal(err)
	}
	kept := j
	kept.Private = nil
	if !bytes.Equal(compact(t, back.Origin), compact(t, kept.Origin)) {
		t.Fatalf("origin %s came back as %s", kept.Origin, back.Origin)
	}
	back.Origin, kept.Origin = nil, nil
	if !reflect.DeepEqual(back, kept) {
		t.Fatalf("%+v came back as %+v", kept, back)
	}
	o, err := originOf(j, DefaultExchange)
	if err != nil {
		t.Fatal(err)
	}
	if o.Done != nil && o.Done.check(DefaultExchange) != nil || o.Call != nil && (o.Call.ReplyQueue == "" || o.Done != nil) {
		t.Fatalf("answers to %+v, %+v", o.Done, o.Call)
	}
}

func compact(t *testing.T, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		t.Fatal(err)
	}

	return b.Bytes()
}

// withoutToken looks for the token in the job, in log lines about it, and in what is told of it. A short one, or one that
// the request holds elsewhere too, proves nothing.
func withoutToken(t *testing.T, r oslo.Request, j worker.Job) {
	t.Helper()
	token := r.Context.AuthToken().Reveal()
	if len(token) < 16 || strings.Contains(fmt.Sprintf("%s", r.Args), token) || strings.ContainsAny(token, "\\\"%&<>{}[]") {
		return
	}
	var seen bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&seen, nil))
	log.Info("job", "job", j, "private", j.Private)
	fmt.Fprintf(&seen, "%s %v %+v %#v %s", j.Origin, j, j, j, must(json.Marshal(j)))
	dead := &fakeMessage{request: r}
	d := &delivery{Message: dead, bus: &fakeBus{}, exchange: DefaultExchange}
	if err := d.Reject(context.Background(), badRequest(fmt.Errorf("of job %v", j))); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(&seen, dead.ends)
	redacted := must(json.Marshal(r.Context))
	if strings.Contains(seen.String(), token) && !bytes.Contains(redacted, []byte(token)) {
		t.Fatalf("the token has leaked: %s", seen.String())
	}
}
