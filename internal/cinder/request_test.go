package cinder

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/oslo"
	"github.com/cinderlift/cinderlift/worker"
)

// canary is the token in every golden request.
const canary = "TOKEN-CANARY-6f1ed002ab5595859014ebf0951522d9"

// golden reads a request that real Cinder sent (Zed; 2025.1 where the name says so), with another token: stock, or
// through one of the hooks in deployments/cinder.
func golden(t testing.TB, name string) map[string]any {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}

	return m
}

// wire puts a message into its envelope and decodes it, as the bus does.
func wire(t testing.TB, m map[string]any) *fakeMessage {
	t.Helper()
	inner, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]string{"oslo.version": "2.0", "oslo.message": string(inner)})
	if err != nil {
		t.Fatal(err)
	}
	r, err := oslo.Decode(oslo.JSONContentType, body, oslo.Limits{})

	return &fakeMessage{request: r, err: err}
}

// taken is the delivery that a Source makes of m.
func taken(t testing.TB, bus *fakeBus, m *fakeMessage) worker.Delivery {
	t.Helper()
	bus.inbox = make(chan Message, 1)
	bus.inbox <- m
	d, err := NewSource(bus, SourceOptions{}).Receive(context.Background())
	if err != nil {
		t.Fatal(err)
	}

	return d
}

func goldenJob(t testing.TB, name string) worker.Job {
	t.Helper()
	j, err := taken(t, &fakeBus{}, wire(t, golden(t, name))).Job()
	if err != nil {
		t.Fatal(err)
	}

	return j
}

func args(m map[string]any) map[string]any { return m["args"].(map[string]any) }
func meta(m map[string]any) map[string]any { return args(m)["image_meta"].(map[string]any) }

// goldens are all of them.
func goldens(t testing.TB) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/c*.json")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no golden requests: %v", err)
	}
	var names []string
	for _, p := range paths {
		names = append(names, filepath.Base(p))
	}

	return names
}

func TestJobOfGoldenRequests(t *testing.T) {
	for _, file := range goldens(t) {
		t.Run(file, func(t *testing.T) {
			m, j := golden(t, file), goldenJob(t, file)
			if j.VolumeID != args(m)["volume_id"] || j.ImageID != meta(m)["id"] || j.ProjectID != m["_context_project_id"] {
				t.Errorf("job is for volume %s, image %s, project %s", j.VolumeID, j.ImageID, j.ProjectID)
			}
			disk := "raw"
			if strings.Contains(file, "qcow2") {
				disk = "qcow2"
			}
			if j.DiskFormat != disk || j.ContainerFormat != "bare" {
				t.Errorf("formats %s in %s", j.DiskFormat, j.ContainerFormat)
			}
			if !strings.HasPrefix(j.RequestID, "req-") || len(j.Digest) != 64 {
				t.Errorf("request id %q, digest %q", j.RequestID, j.Digest)
			}
			o, err := originOf(j, DefaultExchange)
			if err != nil {
				t.Fatal(err)
			}
			if (o.Call != nil) != strings.HasPrefix(file, "call-") || (o.Done != nil) != strings.HasPrefix(file, "cast-manager") {
				t.Errorf("origin call %+v, done %+v", o.Call, o.Done)
			}
		})
	}
}

func TestCallKeepsWhoWaits(t *testing.T) {
	sent := golden(t, "call-driver.json")
	m := wire(t, sent)
	m.expiration = time.Minute
	j, err := taken(t, &fakeBus{}, m).Job()
	if err != nil {
		t.Fatal(err)
	}
	o, err := originOf(j, DefaultExchange)
	if err != nil {
		t.Fatal(err)
	}
	want := call{MsgID: sent["_msg_id"].(string), ReplyQueue: sent["_reply_q"].(string), MonitorSeconds: 8}
	got := *o.Call
	wait := got.Deadline.Sub(o.Received)
	got.Deadline = time.Time{}
	if got != want || wait != time.Minute {
		t.Errorf("call = %+v, waits %v; want %+v", got, wait, want)
	}
}

func TestDigestIsOfWhatIsAsked(t *testing.T) {
	first := goldenJob(t, "cast-manager.json").Digest
	for name, tc := range map[string]struct {
		change func(m map[string]any)
		same   bool
	}{
		"sent again": {func(m map[string]any) {
			m["_unique_id"], m["_context_auth_token"], m["_context_timestamp"] = "0", "another", "2027-01-01T00:00:00"
		}, true},
		"through another hook": {func(m map[string]any) { delete(args(m), "done"); delete(args(m), "volume") }, true},
		"image renamed":        {func(m map[string]any) { meta(m)["name"] = "other" }, true},
		"other volume":         {func(m map[string]any) { args(m)["volume_id"] = "00000000-0000-4000-8000-000000000000" }, false},
		"other image":          {func(m map[string]any) { meta(m)["id"] = "00000000-0000-4000-8000-000000000000" }, false},
		"other format":         {func(m map[string]any) { meta(m)["disk_format"] = "qcow2" }, false},
		"other container":      {func(m map[string]any) { meta(m)["container_format"] = "ovf" }, false},
		"other project":        {func(m map[string]any) { m["_context_project_id"] = "p2" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := golden(t, "cast-manager.json")
			tc.change(m)
			j, err := taken(t, &fakeBus{}, wire(t, m)).Job()
			if err != nil {
				t.Fatal(err)
			}
			if (j.Digest == first) != tc.same {
				t.Errorf("digest equal: %v, want %v", j.Digest == first, tc.same)
			}
		})
	}
}

// evil is put where it could do harm if it came out again.
const evil = "../../etc/EVIL\n\x1b[31m"

func TestBadRequests(t *testing.T) {
	set := func(at func(map[string]any) map[string]any, key string, value any) func(map[string]any) {
		return func(m map[string]any) { at(m)[key] = value }
	}
	drop := func(at func(map[string]any) map[string]any, key string) func(map[string]any) {
		return func(m map[string]any) { delete(at(m), key) }
	}
	whole := func(m map[string]any) map[string]any { return m }
	doneOf := func(m map[string]any) map[string]any { return args(m)["done"].(map[string]any) }
	for name, change := range map[string]func(map[string]any){
		"unknown method":          set(whole, "method", "delete_volume"),
		"private method":          set(whole, "method", "__init__"),
		"method of a wrong type":  set(whole, "method", 1),
		"no method":               drop(whole, "method"),
		"version 2":               set(whole, "version", "2.0"),
		"version 4":               set(whole, "version", "4.0"),
		"version of nothing":      set(whole, "version", "x"),
		"version null":            set(whole, "version", nil),
		"no version means 1.0":    drop(whole, "version"),
		"a namespace":             set(whole, "namespace", "baseapi"),
		"no args":                 drop(whole, "args"),
		"args a list":             set(whole, "args", []any{}),
		"no volume":               drop(args, "volume_id"),
		"volume null":             set(args, "volume_id", nil),
		"volume a number":         set(args, "volume_id", 7),
		"volume a path":           set(args, "volume_id", evil),
		"volume upper case":       set(args, "volume_id", "D5B6CDC6-1D75-4AFF-9FD1-32BA6A9AAD2A"),
		"volume with a newline":   set(args, "volume_id", "d5b6cdc6-1d75-4aff-9fd1-32ba6a9aad2a\n"),
		"volume with a snapshot":  set(args, "volume_id", "d5b6cdc6-1d75-4aff-9fd1-32ba6a9aad2a@x"),
		"no image meta":           drop(args, "image_meta"),
		"image meta null":         set(args, "image_meta", nil),
		"image meta a string":     set(args, "image_meta", "x"),
		"image meta too long":     set(meta, "name", strings.Repeat("x", maxImageMeta)),
		"no image id":             drop(meta, "id"),
		"image id a list":         set(meta, "id", []any{"x"}),
		"image id a path":         set(meta, "id", evil),
		"disk format null":        set(meta, "disk_format", nil),
		"disk format upper case":  set(meta, "disk_format", "RAW"),
		"disk format an option":   set(meta, "disk_format", "-O"),
		"disk format too long":    set(meta, "disk_format", strings.Repeat("r", 33)),
		"container format empty":  set(meta, "container_format", ""),
		"no project":              func(m map[string]any) { delete(m, "_context_project_id"); delete(m, "_context_project") },
		"project a path":          func(m map[string]any) { m["_context_project_id"], m["_context_project"] = evil, evil },
		"done a string":           set(args, "done", "x"),
		"done empty":              set(args, "done", map[string]any{}),
		"done on another cloud":   set(doneOf, "exchange", "nova"),
		"done on the default one": set(doneOf, "exchange", ""),
		"done to nova":            set(doneOf, "routing_key", "compute.host"),
		"done to any volume":      set(doneOf, "routing_key", "cinder-volume"),
		"done to a pattern":       set(doneOf, "routing_key", "cinder-volume.#@x.y"),
		"done with a newline":     set(doneOf, "routing_key", "cinder-volume.lab@rbd.lab\n"),
		"done private":            set(doneOf, "method", "__del__"),
		"done of a wrong type":    set(doneOf, "method", 5),
	} {
		t.Run(name, func(t *testing.T) {
			m := golden(t, "cast-manager.json")
			change(m)
			_, err := taken(t, &fakeBus{}, wire(t, m)).Job()
			if worker.ReasonOf(err) != worker.ReasonBadRequest || worker.AdviceOf(err) != worker.GiveUp {
				t.Fatalf("error = %v", err)
			}
			if strings.Contains(err.Error(), "EVIL") || strings.Contains(err.Error(), canary) {
				t.Errorf("the error repeats the message: %v", err)
			}
		})
	}
}

func TestAllowedRequests(t *testing.T) {
	for name, change := range map[string]func(map[string]any){
		"newer minor version":   func(m map[string]any) { m["version"] = "3.20" },
		"format of an operator": func(m map[string]any) { meta(m)["disk_format"] = "gpt-raw" },
		"hint is nonsense":      func(m map[string]any) { args(m)["volume"] = []any{1, "x"} },
		"hint of another":       func(m map[string]any) { args(m)["volume"] = map[string]any{"id": evil} },
		"unknown argument":      func(m map[string]any) { args(m)["later"] = true },
		"done null":             func(m map[string]any) { args(m)["done"] = nil },
		"clustered service": func(m map[string]any) {
			args(m)["done"].(map[string]any)["routing_key"] = "cinder-volume.ceph-1@rbd.ceph-1"
		},
		"host with a domain": func(m map[string]any) {
			args(m)["done"].(map[string]any)["routing_key"] = "cinder-volume.a.b.example@rbd.a.b.example"
		},
		"unicode name":        func(m map[string]any) { meta(m)["name"] = "Prüfung 🜂" },
		"old name of project": func(m map[string]any) { delete(m, "_context_project_id") },
	} {
		t.Run(name, func(t *testing.T) {
			m := golden(t, "cast-manager.json")
			change(m)
			if _, err := taken(t, &fakeBus{}, wire(t, m)).Job(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNoTokenLeaves looks for the token in everything that a job can leave behind.
func TestNoTokenLeaves(t *testing.T) {
	var seen bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&seen, nil))
	for _, file := range goldens(t) {
		bus := &fakeBus{}
		m := wire(t, golden(t, file))
		d := taken(t, bus, m)
		j, err := d.Job()
		if err != nil {
			t.Fatal(err)
		}
		if c, ok := private(j); !ok || c.AuthToken().Reveal() != canary {
			t.Fatalf("%s: the token is not where it may be", file)
		}
		fmt.Fprintf(&seen, "%s %v %+v %#v %s\n", j.Origin, j, j, j, must(json.Marshal(j)))
		log.Info("job", "job", j, "private", j.Private)
		if err := d.Reject(context.Background(), badRequest(fmt.Errorf("of job %v", j))); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&seen, m.ends, bus.sent)
		for _, o := range []worker.Outcome{{Result: worker.Done}, {Result: worker.Failed, Message: "m"}, {Result: worker.Cancelled}} {
			world := newWorld(t, file)
			world.logs = &seen
			world.run(o)
			fmt.Fprintf(&seen, "%+v %s\n", world.bus.sent, must(json.Marshal(messages(world.bus.sent))))
		}
	}
	if strings.Contains(seen.String(), canary) {
		t.Error("the token has leaked")
	}
	if strings.Contains(seen.String(), "service_catalog\":[{") {
		t.Error("the service catalogue has leaked")
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}

	return b
}

func messages(all []sent) []map[string]any {
	var out []map[string]any
	for _, s := range all {
		out = append(out, s.message)
	}

	return out
}
