package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/oslo"
)

func deadLetter(t *testing.T, index int, body string) oslo.Dead {
	t.Helper()
	r, err := oslo.Decode(oslo.JSONContentType, []byte(body), oslo.Limits{})

	return oslo.Dead{Index: index, ID: strings.Repeat("ab", 15) + "0" + string(rune('0'+index)), Reason: "conflict: two\tof\nthem",
		Time: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC), Deliveries: index, Request: r, DecodeError: err, Body: []byte(body)}
}

const deadBody = `{"method":"copy_volume_to_image","args":{"volume_id":"v-1","image_meta":{"id":"i-1"}},"_context_request_id":"req-1"}`

func TestDeadViews(t *testing.T) {
	list := []oslo.Dead{deadLetter(t, 1, deadBody), deadLetter(t, 2, `{"method":"m","args":{"volume_id":["x"],"image_meta":"\n"}}`), deadLetter(t, 3, `garbage`)}
	var table bytes.Buffer
	if err := writeDead(&table, list); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(table.String()), "\n")
	if len(lines) != 4 || !strings.Contains(lines[1], "i-1") || !strings.Contains(lines[1], "v-1") || !strings.Contains(lines[1], "conflict: two of them") {
		t.Errorf("table\n%s", table.String())
	}
	var bodies bytes.Buffer
	if err := writeBodies(&bodies, list); err != nil || strings.Count(bodies.String(), "body") < 3 {
		t.Errorf("%v\n%s", err, bodies.String())
	}
	raw, err := json.Marshal(deadViews(list, true))
	if err != nil || !strings.Contains(string(raw), `"image_id":"i-1"`) || !strings.Contains(string(raw), `"request_id":"req-1"`) {
		t.Errorf("%v: %s", err, raw)
	}
	if none, err := json.Marshal(deadViews(nil, false)); err != nil || string(none) != "[]" {
		t.Errorf("no dead letters are %s (%v)", none, err)
	}
}

func TestDeadNames(t *testing.T) {
	one, two := deadLetter(t, 1, deadBody), deadLetter(t, 2, deadBody)
	for _, tc := range []struct {
		args []string
		want [2]bool
	}{
		{[]string{"1"}, [2]bool{true, false}}, {[]string{two.ID}, [2]bool{false, true}}, {[]string{"2", one.ID}, [2]bool{true, true}},
		{[]string{"0"}, [2]bool{}}, {[]string{"x"}, [2]bool{}}, {[]string{one.ID[:8]}, [2]bool{}}, {[]string{"00000001"}, [2]bool{}},
	} {
		if got := [2]bool{named(one, tc.args), named(two, tc.args)}; got != tc.want {
			t.Errorf("%v names %v, want %v", tc.args, got, tc.want)
		}
	}
	if err := missing([]oslo.Dead{one}, []string{"1", "7", "x"}); err == nil || !strings.Contains(err.Error(), "7, x") {
		t.Errorf("error = %v", err)
	}
}

func TestDeadExitCodes(t *testing.T) {
	for name, tc := range map[string]struct {
		url  string
		args []string
		code int
		says string
	}{
		"no transport":     {"", []string{"dead"}, exitUsage, "CINDERLIFT_TRANSPORT_URL"},
		"bad transport":    {"amqp://x", []string{"dead", "list"}, exitUsage, "CINDERLIFT_TRANSPORT_URL"},
		"nobody there":     {"rabbit://u:hunter2@127.0.0.1:1/", []string{"dead"}, exitFailed, "127.0.0.1:1"},
		"argument":         {"rabbit://", []string{"dead", "x"}, exitUsage, "x"},
		"no name":          {"rabbit://", []string{"dead", "replay"}, exitUsage, "name the messages"},
		"all and a name":   {"rabbit://", []string{"dead", "drop", "1", "--all"}, exitUsage, "--all"},
		"show without one": {"rabbit://", []string{"dead", "show"}, exitUsage, "name the messages"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("CINDERLIFT_TRANSPORT_URL", tc.url)
			var out, errs bytes.Buffer
			if code := run(t.Context(), tc.args, &out, &errs); code != tc.code || !strings.Contains(errs.String(), tc.says) || strings.Contains(errs.String(), "hunter2") {
				t.Errorf("exit %d: %s", code, errs.String())
			}
		})
	}
}
