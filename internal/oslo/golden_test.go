package oslo

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// frame is one publish of a real oslo.messaging 14.0.3, as it was on the wire.
type frame struct {
	Exchange   string
	RoutingKey string `json:"routing_key"`
	Mandatory  bool
	Properties struct {
		ContentType string `json:"content_type"`
	}
	Body string
}

func readFrame(t testing.TB, name string) frame {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "frames", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var f frame
	if err := json.Unmarshal(data, &f); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return f
}

func frameNames(t testing.TB) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/frames/*.json")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no frames: %v", err)
	}
	names := make([]string, len(paths))
	for i, p := range paths {
		names[i] = filepath.Base(p[:len(p)-len(".json")])
	}
	return names
}

// messageOf unwraps a body without the code under test.
func messageOf(t testing.TB, body []byte) map[string]any {
	t.Helper()
	var top map[string]any
	if err := json.Unmarshal(body, &top); err != nil {
		t.Fatalf("body: %v", err)
	}
	inner, ok := top["oslo.message"].(string)
	if !ok {
		return top
	}
	if len(top) != 2 || top["oslo.version"] != "2.0" {
		t.Fatalf("envelope = %v", top)
	}
	var message map[string]any
	if err := json.Unmarshal([]byte(inner), &message); err != nil {
		t.Fatalf("message: %v", err)
	}
	return message
}

func TestGoldenRequestsDecode(t *testing.T) {
	type want struct {
		method, namespace, version string
		args                       []string
		call                       bool
		monitor                    time.Duration
		token                      string
	}
	for name, w := range map[string]want{
		"cast":                             {method: "add", namespace: "ns1", version: "1.0", args: []string{"a", "b"}},
		"cast-fanout":                      {method: "publish_service_capabilities", version: "3.0", token: "dummy-token"},
		"cast-cinder-copy_volume_to_image": {method: "copy_volume_to_image", version: "3.0", args: []string{"image_meta", "volume_id"}, token: "dummy-token"},
		"cast-cinder-extend_volume-ovo":    {method: "extend_volume", version: "3.0", args: []string{"new_size", "reservations", "volume"}, token: "dummy-token"},
		"call-cinder-initialize_connection": {method: "initialize_connection", version: "3.0",
			args: []string{"connector", "volume"}, call: true, token: "dummy-token"},
		"call-with-call-monitor": {method: "get_capabilities", version: "3.0", args: []string{"discover"}, call: true, monitor: 4 * time.Second, token: "dummy-token"},
		"hookA-cast-available":   {method: "copy_volume_to_image", version: "3.0", args: []string{"image_meta", "volume", "volume_id"}, token: "dummy-token"},
		"hookB-call":             {method: "copy_volume_to_image", version: "3.0", args: []string{"image_meta", "volume", "volume_id"}, call: true, monitor: 8 * time.Second, token: "dummy-token"},
	} {
		t.Run(name, func(t *testing.T) {
			f := readFrame(t, name)
			r, err := Decode(f.Properties.ContentType, []byte(f.Body), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if r.Method != w.method || r.Namespace != w.namespace || r.Version != w.version {
				t.Errorf("method, namespace, version = %q %q %q", r.Method, r.Namespace, r.Version)
			}
			for _, a := range w.args {
				if _, ok := r.Args[a]; !ok {
					t.Errorf("no argument %q in %d arguments", a, len(r.Args))
				}
			}
			if w.call != r.IsCall() || w.call == (r.MsgID == "") || w.call == (r.ReplyQueue == "") {
				t.Errorf("call = %v, msg id %q, reply queue %q", r.IsCall(), r.MsgID, r.ReplyQueue)
			}
			if r.MonitorTimeout != w.monitor {
				t.Errorf("monitor timeout = %v", r.MonitorTimeout)
			}
			if len(r.UniqueID) != 32 {
				t.Errorf("unique id = %q", r.UniqueID)
			}
			if r.Context.RequestID() == "" || r.Context.AuthToken().Reveal() != w.token {
				t.Errorf("context = %v, token %q", r.Context, r.Context.AuthToken().Reveal())
			}
		})
	}
}

// Re-encoding what Python sent gives the same message.
func TestGoldenCastsReencode(t *testing.T) {
	for _, name := range []string{"cast", "cast-cinder-copy_volume_to_image", "cast-cinder-extend_volume-ovo", "cast-fanout", "hookA-cast-available"} {
		t.Run(name, func(t *testing.T) {
			f := readFrame(t, name)
			r, err := Decode(JSONContentType, []byte(f.Body), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			want := messageOf(t, []byte(f.Body))
			c := Cast{Method: r.Method, Namespace: r.Namespace, Args: r.Args, Context: r.Context, WithSecret: true}
			if _, sent := want["version"]; sent {
				c.Version = r.Version
			}
			m, err := EncodeCast(c)
			if err != nil {
				t.Fatal(err)
			}
			sameMessage(t, messageOf(t, m.Body), want)
		})
	}
}

func TestGoldenReplies(t *testing.T) {
	for name, reply := range map[string]Reply{
		"reply-success":      {Result: map[string]any{"driver_volume_type": "rbd", "data": map[string]any{"name": "volumes/volume-0d5f9c5a-6a3a-4a6e-9a8a-0a1b2c3d4e5f", "hosts": []string{"10.0.0.1"}, "ports": []string{"6789"}, "auth_enabled": true, "discard": true}}},
		"reply-success-none": {},
		"reply-heartbeat":    {Heartbeat: true},
		"reply-failure-cinder-exception": {Failure: CinderException("VolumeBackendAPIException",
			"Bad or unexpected response from the storage volume backend API: pool is full",
			map[string]any{"data": "pool is full", "code": 500})},
		"reply-failure-no-such-method":      {Failure: NoSuchMethod("nope")},
		"reply-failure-unsupported-version": {Failure: UnsupportedVersion("4.0", "copy_volume_to_image")},
	} {
		t.Run(name, func(t *testing.T) {
			want := messageOf(t, []byte(readFrame(t, name).Body))
			m, err := EncodeReply(want["_msg_id"].(string), reply)
			if err != nil {
				t.Fatal(err)
			}
			got := messageOf(t, m.Body)
			gotFailure, wantFailure := failureOf(t, got), failureOf(t, want)
			sameMessage(t, got, want)
			// The traceback is Python's, and the args repeat the text where kwargs
			// build it: both are free.
			for _, f := range []map[string]any{gotFailure, wantFailure} {
				delete(f, "tb")
				if f["module"] == "cinder.exception" {
					delete(f, "args")
				}
			}
			if !reflect.DeepEqual(gotFailure, wantFailure) {
				t.Errorf("failure = %v\nwant %v", gotFailure, wantFailure)
			}
		})
	}
}

func failureOf(t testing.TB, message map[string]any) map[string]any {
	t.Helper()
	text, ok := message["failure"].(string)
	if !ok {
		return nil
	}
	message["failure"] = "compared apart"
	var f map[string]any
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		t.Fatalf("failure: %v", err)
	}
	return f
}

func TestGoldenNotifications(t *testing.T) {
	for name, bare := range map[string]bool{"notification-messagingv2": false, "notification-messagingv2-error": false, "notification-messaging-v1": true} {
		t.Run(name, func(t *testing.T) {
			f := readFrame(t, name)
			want := messageOf(t, []byte(f.Body))
			at, err := time.Parse("2006-01-02 15:04:05.999999", want["timestamp"].(string))
			if err != nil {
				t.Fatal(err)
			}
			r, err := unwrap([]byte(f.Body), Limits{}.withDefaults())
			if err != nil {
				t.Fatal(err)
			}
			m, err := EncodeNotification(Notification{
				MessageID: want["message_id"].(string), PublisherID: want["publisher_id"].(string),
				EventType: want["event_type"].(string), Priority: Priority(want["priority"].(string)),
				Payload: want["payload"], Timestamp: at, Context: contextOf(r), Bare: bare,
			})
			if err != nil {
				t.Fatal(err)
			}
			for key := range want {
				switch key {
				case "_context_request_id", "_context_global_request_id", "_context_project_id", "_context_user_id":
				default:
					if len(key) > len(contextPrefix) && key[:len(contextPrefix)] == contextPrefix {
						delete(want, key) // oslo >= 14.7 sends none of them
					}
				}
			}
			sameMessage(t, messageOf(t, m.Body), want)
		})
	}
}

// sameMessage compares keys and values; the random id only by its form.
func sameMessage(t *testing.T, got, want map[string]any) {
	t.Helper()
	for key := range want {
		if _, ok := got[key]; !ok {
			t.Errorf("key %q is missing", key)
		}
	}
	for key, value := range got {
		w, ok := want[key]
		switch {
		case !ok:
			t.Errorf("key %q is not sent by Python", key)
		case key == "_unique_id":
			if len(value.(string)) != 32 || value == w {
				t.Errorf("_unique_id = %q", value)
			}
		case !reflect.DeepEqual(value, w):
			t.Errorf("%s = %v\nwant %v", key, value, w)
		}
	}
}
