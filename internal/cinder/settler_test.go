package cinder

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/internal/oslo"
	"github.com/cinderlift/cinderlift/worker"
)

// world is a cloud with one volume that is `uploading` and one image that is `queued`, and a job for them.
type world struct {
	t      testing.TB
	job    worker.Job
	bus    *fakeBus
	cinder *fakeCinder
	glance *fakeGlance
	logs   io.Writer
	tries  int // of all steps of the last run
}

func newWorld(t testing.TB, file string) *world {
	j := goldenJob(t, file)
	w := &world{
		t: t, job: j, bus: &fakeBus{}, logs: io.Discard,
		cinder: &fakeCinder{volume: worker.Volume{
			ID: j.VolumeID, Status: worker.VolumeUploading, ProjectID: j.ProjectID, Host: "lab@rbd#pool",
		}},
		glance: &fakeGlance{image: worker.Image{
			ID: j.ImageID, Status: worker.ImageQueued, Owner: j.ProjectID, DiskFormat: j.DiskFormat, ContainerFormat: j.ContainerFormat,
		}},
	}
	w.bus.arrived = w.finish

	return w
}

// finish is what the receiver of a result does, at once: image_upload_done, or Cinder's manager after the reply to its
// driver. It makes a declined image itself, which takes its time.
func (w *world) finish(s sent) {
	declined := strings.Contains(string(must(jsonOf(s.message))), `"declined":true`)
	if !declined && s.message["method"] != methodCopy && w.cinder.volume.Status == worker.VolumeUploading {
		w.cinder.becomes(w.cinder.after())
	}
}

func (w *world) settler() *Settler {
	return NewSettler(w.bus, w.cinder, w.glance, SettlerOptions{
		Host: "h1", Logger: slog.New(slog.NewTextHandler(w.logs, nil)),
	})
}

// run settles as the runner does: each step again, a while later, until it succeeds.
func (w *world) run(o worker.Outcome) []string {
	w.t.Helper()
	w.tries = 0
	var names []string
	for _, s := range w.settler().Settle(w.job, o) {
		names = append(names, s.Name)
		w.untilDone(s)
	}

	return names
}

func (w *world) untilDone(s worker.Step) {
	w.t.Helper()
	for range 100 {
		w.tries++
		err := s.Do(context.Background(), nil)
		if err == nil {
			return
		}
		var e *worker.Error
		if !errors.As(err, &e) || e.Advice != worker.Retry || e.Reason == worker.ReasonInternal {
			w.t.Errorf("step %s: the runner can't do with %v", s.Name, err)
		}
		time.Sleep(time.Minute) // of the synctest bubble
	}
	w.t.Fatalf("step %s does not end", s.Name)
}

func (w *world) kinds() (out []string) {
	for _, s := range w.bus.sent {
		out = append(out, s.kind+" "+s.key)
	}

	return out
}

var (
	made      = worker.Outcome{Result: worker.Done, Reason: worker.ReasonNone, Strategy: "clone-flatten"}
	failed    = worker.Outcome{Result: worker.Failed, Reason: worker.ReasonPoolFull, Message: "pool images is full", Strategy: "copy"}
	cancelled = worker.Outcome{Result: worker.Cancelled, Reason: worker.ReasonImageMissing, Message: "the image is gone"}
	declined  = worker.Outcome{Result: worker.Declined, Reason: worker.ReasonNotApplicable, Message: "no strategy makes vdi"}
)

func TestSettle(t *testing.T) {
	reply := "reply " + golden(t, "call-driver.json")["_reply_q"].(string)
	const (
		cast = "cast cinder-volume.lab@rbd.lab"
		end  = "notify " + eventEnd
		bad  = "notify " + eventError
	)
	for _, tc := range []struct {
		name, file string
		outcome    worker.Outcome
		steps      []string
		sent       []string
		freed      bool // by us
		discarded  bool
	}{
		{"call made", "call-driver.json", made, []string{"reply", "notify", "see-volume-freed"}, []string{reply, end}, false, false},
		{"call failed", "call-driver.json", failed, []string{"discard-image", "reply", "notify", "see-volume-freed"}, []string{reply, bad}, false, true},
		{"call cancelled", "call-driver.json", cancelled, []string{"discard-image", "reply", "notify", "see-volume-freed"}, []string{reply, end}, false, true},
		{"call declined", "call-driver.json", declined, []string{"reply"}, []string{reply}, false, false},
		{"manager made", "cast-manager.json", made, []string{"cast-done", "notify", "see-volume-freed"}, []string{cast, end}, false, false},
		{"manager failed", "cast-manager.json", failed, []string{"discard-image", "cast-done", "notify", "see-volume-freed"}, []string{cast, bad}, false, true},
		{"manager cancelled", "cast-manager.json", cancelled, []string{"discard-image", "cast-done", "notify", "see-volume-freed"}, []string{cast, end}, false, true},
		{"manager declined", "cast-manager.json", declined, []string{"cast-done"}, []string{cast}, false, false},
		{"api made", "cast-api.json", made, []string{"free-volume", "notify"}, []string{end}, true, false},
		{"api failed", "cast-api.json", failed, []string{"discard-image", "free-volume", "notify"}, []string{bad}, true, true},
		{"api cancelled", "cast-api.json", cancelled, []string{"discard-image", "free-volume", "notify"}, []string{end}, true, true},
		{"api declined", "cast-api.json", declined, []string{"hand-back"}, []string{cast}, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, tc.file)
			if tc.outcome.Result == worker.Done {
				w.glance.image.Status = worker.ImageActive
			}
			if got := w.run(tc.outcome); !slices.Equal(got, tc.steps) {
				t.Errorf("steps = %v, want %v", got, tc.steps)
			}
			if got := w.kinds(); !slices.Equal(got, tc.sent) {
				t.Errorf("sent %v, want %v", got, tc.sent)
			}
			if (w.cinder.frees == 1) != tc.freed || (w.glance.discards == 1) != tc.discarded {
				t.Errorf("freed %d, discarded %d", w.cinder.frees, w.glance.discards)
			}
		})
	}
}

// TestFaultMatrix makes every write of every kind of telling fail once and twice, before and after it took effect. In the
// end the volume must be free or in Cinder's hands, the image gone or active, and whoever waits told.
func TestFaultMatrix(t *testing.T) {
	files := []string{"call-driver.json", "cast-manager.json", "cast-api.json"}
	for _, file := range files {
		for _, o := range []worker.Outcome{made, failed, cancelled, declined} {
			for _, target := range []string{"bus", "cinder", "glance"} {
				for _, applied := range []bool{false, true} {
					for times := 1; times <= 2; times++ {
						name := strings.Join([]string{file, string(o.Result), target, map[bool]string{true: "applied", false: "not-applied"}[applied]}, "/")
						t.Run(name, func(t *testing.T) {
							synctest.Test(t, func(t *testing.T) { faulty(t, file, o, target, applied, times) })
						})
					}
				}
			}
		}
	}
}

func faulty(t *testing.T, file string, o worker.Outcome, target string, applied bool, times int) {
	w := newWorld(t, file)
	if o.Result == worker.Done {
		w.glance.image.Status = worker.ImageActive
	}
	where := map[string]*faults{"bus": &w.bus.faults, "cinder": &w.cinder.faults, "glance": &w.glance.faults}[target]
	err := map[string]error{
		"bus": errAway, "cinder": away(worker.ReasonCinderUnavailable), "glance": away(worker.ReasonGlanceUnavailable),
	}[target]
	for range times {
		where.queue = append(where.queue, fault{err: err, applied: applied})
	}
	w.run(o)
	told(t, w, o)
}

// told checks the end that every telling must come to.
func told(t *testing.T, w *world, o worker.Outcome) {
	t.Helper()
	inHands := slices.ContainsFunc(w.bus.sent, func(s sent) bool { return s.kind == "cast" || s.kind == "reply" })
	if w.cinder.volume.Status == worker.VolumeUploading && !inHands {
		t.Error("the volume is left in `uploading`, and nobody was told")
	}
	lost := o.Result == worker.Failed || o.Result == worker.Cancelled
	if lost != w.glance.gone {
		t.Errorf("result %s, image gone: %v", o.Result, w.glance.gone)
	}
	ids := map[any]bool{}
	for _, s := range w.bus.sent {
		if s.kind == "notify" {
			ids[s.message["message_id"]] = true
		}
	}
	if want := 1; o.Result != worker.Declined && len(ids) != want {
		t.Errorf("notifications have %d message ids, want %d", len(ids), want)
	}
}

// TestForgedRequestTouchesNothing: whoever can write to the bus can name any image and any volume.
func TestForgedRequestTouchesNothing(t *testing.T) {
	stranger := worker.Outcome{Result: worker.Failed, Reason: worker.ReasonNotOwner, Message: "not yours"}
	for name, tc := range map[string]struct {
		change  func(w *world)
		outcome worker.Outcome
	}{
		"found out by the facts":   {func(*world) {}, stranger},
		"another project's things": {func(w *world) { w.cinder.volume.ProjectID, w.glance.image.Owner = "p2", "p2" }, failed},
		"they are, and no token": {func(w *world) {
			w.cinder.volume.ProjectID, w.glance.image.Owner = "p2", "p2"
			w.job.Private = nil
		}, declined},
	} {
		for _, file := range []string{"cast-api.json", "cast-manager.json", "call-driver.json"} {
			t.Run(name+"/"+file, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, file)
					tc.change(w)
					w.bus.queue = slices.Repeat([]fault{{err: errors.Join(oslo.ErrReplyQueueGone, oslo.ErrUnroutable)}}, 60)
					for _, s := range w.settler().Settle(w.job, tc.outcome) {
						if s.Name != stepNotify {
							w.untilDone(s)
						}
					}
					if w.glance.discards != 0 || w.cinder.frees != 0 {
						t.Errorf("discarded %d, freed %d", w.glance.discards, w.cinder.frees)
					}
				})
			})
		}
	}
}

// TestForeignDataIsKept: somebody else gave the image its data, so the job failed, but the image is not ours to delete.
func TestForeignDataIsKept(t *testing.T) {
	w := newWorld(t, "cast-api.json")
	w.glance.image.Status = worker.ImageSaving
	w.run(worker.Outcome{Result: worker.Failed, Reason: worker.ReasonImageState, Message: "the image is saving"})
	if w.glance.discards != 0 || w.cinder.frees != 1 {
		t.Errorf("discarded %d, freed %d", w.glance.discards, w.cinder.frees)
	}
}

// TestUnroutableIsSettledOverREST: the requester is gone for good.
func TestUnroutableIsSettledOverREST(t *testing.T) {
	for _, file := range []string{"call-driver.json", "cast-manager.json", "cast-api.json"} {
		for _, o := range []worker.Outcome{made, failed, cancelled, declined} {
			t.Run(file+"/"+string(o.Result), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, file)
					if o.Result == worker.Done {
						w.glance.image.Status = worker.ImageActive
					}
					steps := w.settler().Settle(w.job, o)
					for _, s := range steps {
						if s.Name == stepNotify {
							continue
						}
						w.bus.queue = slices.Repeat([]fault{{err: errors.Join(oslo.ErrReplyQueueGone, oslo.ErrUnroutable)}}, 60)
						w.untilDone(s)
					}
					if w.cinder.frees != 1 {
						t.Errorf("the volume is %q", w.cinder.volume.Status)
					}
					if w.glance.gone != (o.Result != worker.Done) {
						t.Errorf("image gone: %v", w.glance.gone)
					}
				})
			})
		}
	}
}

// TestUnroutableIsPatient: cinder-volume's queue comes back after a restart of the broker.
func TestUnroutableIsPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "cast-manager.json")
		w.bus.queue = slices.Repeat([]fault{{err: oslo.ErrUnroutable}}, 9)
		w.run(failed)
		if w.cinder.frees != 0 || len(w.bus.sent) != 2 {
			t.Errorf("freed %d times, sent %v", w.cinder.frees, w.kinds())
		}
	})
}

// TestRefusalsEnd: a refusal is tried for a while, so that an operator can put it right, and does not hold a slot for ever.
func TestRefusalsEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		refuse func(w *world)
		file   string
		status string
		log    string
	}{
		"glance": {func(w *world) {
			w.glance.queue = slices.Repeat([]fault{{err: refusal(worker.ReasonGlanceRefused)}}, 60)
		},
			"cast-api.json", "available", "left out"},
		"cinder": {func(w *world) {
			w.cinder.queue = slices.Repeat([]fault{{err: refusal(worker.ReasonCinderRefused)}}, 60)
		},
			"cast-api.json", worker.VolumeUploading, "openstack volume set --state available"},
		"nobody and cinder": {func(w *world) {
			w.bus.queue = slices.Repeat([]fault{{err: oslo.ErrUnroutable}}, 60)
			w.cinder.queue = slices.Repeat([]fault{{err: refusal(worker.ReasonCinderRefused)}}, 60)
		}, "cast-manager.json", worker.VolumeUploading, "openstack volume set --state available"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, tc.file)
				var seen strings.Builder
				w.logs = &seen
				tc.refuse(w)
				w.run(failed)
				if w.cinder.volume.Status != tc.status || !strings.Contains(seen.String(), tc.log) {
					t.Errorf("the volume is %q, the log says %s", w.cinder.volume.Status, seen.String())
				}
			})
		})
	}
}

func TestRefusalThatIsPutRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "cast-api.json")
		w.cinder.queue = slices.Repeat([]fault{{err: refusal(worker.ReasonCinderRefused)}}, 5)
		w.run(made)
		if w.cinder.frees != 1 {
			t.Errorf("the volume is %q", w.cinder.volume.Status)
		}
	})
}

func TestFreeKeepsAnAttachedVolumeInUse(t *testing.T) {
	w := newWorld(t, "cast-api.json")
	w.cinder.volume.Attached = true
	w.run(made)
	if w.cinder.volume.Status != "in-use" {
		t.Errorf("the volume is %q", w.cinder.volume.Status)
	}
}

func TestSettleWhatIsGone(t *testing.T) {
	for _, o := range []worker.Outcome{made, failed, cancelled, declined} {
		w := newWorld(t, "cast-api.json")
		w.cinder.gone, w.glance.gone = true, true
		w.run(o)
		if len(w.bus.sent) > 1 {
			t.Errorf("%s: sent %v", o.Result, w.kinds())
		}
	}
}

func TestReplies(t *testing.T) {
	for _, tc := range []struct {
		outcome worker.Outcome
		result  string
		failure string
	}{
		{made, `{"declined":false,"strategy":"clone-flatten"}`, ""},
		{declined, `{"declined":true,"reason":"no strategy makes vdi"}`, ""},
		{failed, "null", `"class":"ImageCopyFailure","module":"cinder.exception","message":"pool images is full","tb":[],"args":[],"kwargs":{"reason":"pool images is full"}`},
		{cancelled, `{"cancelled":true,"declined":false,"reason":"the image is gone"}`, ""},
		{worker.Outcome{Result: worker.Failed, Reason: worker.ReasonImageMissing}, "null", `"class":"ImageNotFound","module":"cinder.exception"`},
		{worker.Outcome{Result: worker.Failed, Reason: worker.ReasonVolumeMissing}, "null", `"class":"VolumeNotFound","module":"cinder.exception","message":"volume-missing","tb":[],"args":[],"kwargs":{"volume_id":"`},
		{worker.Outcome{Result: worker.Failed, Reason: worker.ReasonGlanceUnavailable}, "null", `"class":"GlanceConnectionFailed"`},
	} {
		w := newWorld(t, "call-driver.json")
		w.run(tc.outcome)
		m := w.bus.sent[0].message
		if got := string(must(jsonOf(m["result"]))); got != tc.result {
			t.Errorf("%s: result %s, want %s", tc.outcome.Result, got, tc.result)
		}
		failure, _ := m["failure"].(string)
		if !strings.Contains(failure, tc.failure) || (failure == "") != (tc.failure == "") {
			t.Errorf("%s: failure %s, want %s", tc.outcome.Result, failure, tc.failure)
		}
		if m["_msg_id"] != golden(t, "call-driver.json")["_msg_id"] || m["ending"] != true {
			t.Errorf("reply = %v", m)
		}
	}
}

func TestCastDone(t *testing.T) {
	for _, tc := range []struct {
		outcome  worker.Outcome
		error    any
		declined bool
		token    any
	}{
		{made, nil, false, nil},
		{failed, "pool images is full", false, nil},
		{cancelled, nil, false, nil},
		{worker.Outcome{Result: worker.Failed, Reason: worker.ReasonInternal}, "internal", false, nil},
		{declined, nil, true, canary},
	} {
		w := newWorld(t, "cast-manager.json")
		w.run(tc.outcome)
		s := w.bus.sent[0]
		a := args(s.message)
		if s.exchange != "openstack" || s.message["method"] != "image_upload_done" || s.message["version"] != "3.0" {
			t.Errorf("cast %+v", s)
		}
		if a["error"] != tc.error || a["declined"] != tc.declined || a["volume_id"] != w.job.VolumeID || meta(s.message)["id"] != w.job.ImageID {
			t.Errorf("%s: arguments %v", tc.outcome.Result, a)
		}
		if got := s.message["_context_auth_token"]; got != tc.token {
			t.Errorf("%s: token %v", tc.outcome.Result, got)
		}
		if s.message["_context_request_id"] != w.job.RequestID || s.message["_context_user_id"] == nil {
			t.Errorf("%s: the context is not the request's", tc.outcome.Result)
		}
	}
}

func TestHandBack(t *testing.T) {
	w := newWorld(t, "cast-api.json")
	w.run(declined)
	s := w.bus.sent[0]
	if s.key != "cinder-volume.lab@rbd.lab" || s.message["method"] != "copy_volume_to_image" || s.message["_context_auth_token"] != canary {
		t.Errorf("handed back %+v", s)
	}
	if got := slices.Sorted(maps.Keys(args(s.message))); !slices.Equal(got, []string{"image_meta", "volume_id"}) {
		t.Errorf("cinder-volume would refuse the arguments %v", got)
	}
	if s.message["_context_service_catalog"] == nil {
		t.Error("without the service catalogue Cinder does not find Glance")
	}
}

func TestHandBackToACluster(t *testing.T) {
	w := newWorld(t, "cast-api.json")
	w.cinder.volume.Cluster = "ceph@rbd#pool"
	w.run(declined)
	if got := w.bus.sent[0].key; got != "cinder-volume.ceph@rbd.ceph" {
		t.Errorf("handed back to %s", got)
	}
}

// TestHandBackOnceOnly: the confirm of the cast is lost, and Cinder is at it when the step runs again.
func TestHandBackOnceOnly(t *testing.T) {
	for name, begin := range map[string]func(w *world){
		"cinder uploads":  func(w *world) { w.glance.image.Status = worker.ImageSaving },
		"cinder finished": func(w *world) { w.cinder.volume.Status = "available" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "cast-api.json")
				w.bus.queue = []fault{{err: errAway, applied: true}}
				looks := 0
				w.cinder.look = func() {
					if looks++; looks == 2 {
						begin(w)
					}
				}
				w.run(declined)
				if len(w.bus.sent) != 1 || w.glance.gone || w.cinder.frees != 0 {
					t.Errorf("sent %v, freed %d", w.kinds(), w.cinder.frees)
				}
			})
		})
	}
}

// TestDeclineAfterAdoption: the token went with the worker that took the request.
func TestDeclineAfterAdoption(t *testing.T) {
	w := newWorld(t, "cast-api.json")
	w.job.Private = nil
	w.run(declined)
	if len(w.bus.sent) != 0 || w.cinder.frees != 1 || !w.glance.gone {
		t.Errorf("sent %v, freed %d, image gone %v", w.kinds(), w.cinder.frees, w.glance.gone)
	}
	w = newWorld(t, "cast-manager.json")
	w.job.Private = nil
	w.run(declined)
	if len(w.bus.sent) != 1 || w.bus.sent[0].message["_context_auth_token"] != nil {
		t.Errorf("sent %v", w.bus.sent)
	}
}

func TestHandBackToNowhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "cast-api.json")
		w.cinder.volume.Host = "nohost"
		w.run(declined)
		if len(w.bus.sent) != 0 || w.cinder.frees != 1 || !w.glance.gone {
			t.Errorf("sent %v, freed %d, image gone %v", w.kinds(), w.cinder.frees, w.glance.gone)
		}
	})
}

// TestForeignOrigin: the journal is not trusted either.
func TestForeignOrigin(t *testing.T) {
	for name, raw := range map[string]string{
		"not there":       ``,
		"not JSON":        `{`,
		"another service": `{"done":{"exchange":"openstack","routing_key":"compute.host","method":"delete"}}`,
		"another cloud":   `{"done":{"exchange":"nova","routing_key":"cinder-volume.lab@rbd.lab","method":"image_upload_done"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "cast-manager.json")
			w.job.Origin = []byte(raw)
			w.run(failed)
			if got := w.kinds(); !slices.Equal(got, []string{"notify " + eventError}) || w.cinder.frees != 1 {
				t.Errorf("sent %v, freed %d", got, w.cinder.frees)
			}
		})
	}
}

func TestNotification(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "cast-api.json")
		time.Sleep(90 * time.Second)
		w.run(failed)
		first := w.bus.sent[0].message
		w.run(failed)
		if again := w.bus.sent[1].message; again["message_id"] != first["message_id"] {
			t.Error("the same event has two message ids")
		}
		want := map[string]any{
			"tenant_id": w.job.ProjectID, "user_id": golden(t, "cast-api.json")["_context_user_id"],
			"volume_id": w.job.VolumeID, "image_id": w.job.ImageID, "result": "failed", "reason": "pool-full",
			"message": "pool images is full", "strategy": "copy", "duration": 90.0,
		}
		if got := first["payload"].(map[string]any); !maps.Equal(got, want) {
			t.Errorf("payload = %v, want %v", got, want)
		}
		if first["priority"] != "ERROR" || first["publisher_id"] != "cinderlift.h1" || first["event_type"] != eventError {
			t.Errorf("notification = %v", first)
		}
	})
}

func TestQuiet(t *testing.T) {
	w := newWorld(t, "cast-api.json")
	for _, s := range NewSettler(w.bus, w.cinder, w.glance, SettlerOptions{Quiet: true}).Settle(w.job, made) {
		if s.Name == stepNotify {
			t.Error("a notification although they are off")
		}
	}
}

func TestAttend(t *testing.T) {
	for name, tc := range map[string]struct {
		file  string
		until time.Duration // when the caller has given up; 0: not known
		fault []fault
		beats int // one at once and one series
		on    int // series after an hour
	}{
		"a caller that asks":       {"call-driver.json", 0, nil, 2, 1},
		"the broker is away":       {"call-driver.json", 0, []fault{{err: errAway}}, 1, 1},
		"a caller that gives up":   {"call-driver.json", time.Minute, nil, 2, 0},
		"a caller that is gone":    {"call-driver.json", -time.Minute, nil, 2, 0},
		"nobody":                   {"cast-manager.json", 0, nil, 0, 0},
		"nobody to be told at all": {"cast-api.json", 0, nil, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, tc.file)
				w.bus.queue = tc.fault
				if tc.until != 0 {
					w.setDeadline(time.Now().Add(tc.until))
				}
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() {
					w.settler().Attend(ctx, w.job)
					close(ended)
				}()
				time.Sleep(time.Hour)
				synctest.Wait()
				select {
				case <-ended:
					t.Error("Attend ended by itself")
				default:
				}
				if len(w.bus.beats) != tc.beats || w.bus.on != tc.on {
					t.Errorf("%d heartbeats, %d series running", len(w.bus.beats), w.bus.on)
				}
				stop()
				<-ended
				if w.bus.on != 0 {
					t.Error("heartbeats go on after Attend")
				}
			})
		})
	}
}

func (w *world) setDeadline(at time.Time) {
	o, err := originOf(w.job, DefaultExchange)
	if err != nil {
		w.t.Fatal(err)
	}
	o.Call.Deadline = at
	w.job.Origin = must(jsonOf(o))
}
