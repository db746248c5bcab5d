package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/internal/reap"
)

func TestReapUsage(t *testing.T) {
	environment(t, complete())
	for _, args := range [][]string{
		{"reap", "no-id"}, {"reap", "6F1B1D3E-0000-4000-8000-000000000001"}, {"reap", "-o", "xml"}, {"reap", "--age", "soon"},
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), args, &out, &errs); code != exitUsage || strings.Count(errs.String(), "\n") != 1 {
			t.Errorf("%q: exit code %d, said %q", args, code, errs.String())
		}
	}
}

func TestReapVerdict(t *testing.T) {
	for _, tt := range []struct {
		actions []reap.Action
		want    error
	}{
		{nil, nil},
		{[]reap.Action{reap.Removed, reap.Wait}, nil},
		{[]reap.Action{reap.Removed, reap.Remove}, errFound},
		{[]reap.Action{reap.Look}, errFound},
		{[]reap.Action{reap.Look, reap.Failed, reap.Removed}, errReap},
	} {
		var found []reap.Finding
		for _, a := range tt.actions {
			found = append(found, reap.Finding{Action: a})
		}
		if got := verdict(found); !errors.Is(got, tt.want) {
			t.Errorf("verdict of %q is %v, want %v", tt.actions, got, tt.want)
		}
	}
}

func TestVolumeIn(t *testing.T) {
	const id = "aaaaaaaa-0000-4000-8000-000000000001"
	for _, tt := range []struct{ template, image, want string }{
		{"volume-%s", "volume-" + id, id},
		{"%s", id, id},
		{"v-%s.x", "v-" + id + ".x", id},
		{"volume-%s", "volume-test", ""},
		{"volume-%s", "other", ""},
	} {
		if got := volumeIn(tt.template)(tt.image); got != tt.want {
			t.Errorf("volume in %q by %q is %q, want %q", tt.image, tt.template, got, tt.want)
		}
	}
}

// TestProgress: silence for a second, and then a line a second.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := &progress{w: &out}
		for i := range 36 {
			p.tell("looking", i, 36)
			<-time.After(100 * time.Millisecond)
		}
		if want := "looking: 10 of 36\nlooking: 20 of 36\nlooking: 30 of 36\n"; out.String() != want {
			t.Errorf("said %q, want %q", out.String(), want)
		}
	})
}

func TestFindingsTable(t *testing.T) {
	var out bytes.Buffer
	err := writeFindings(&out, []reap.Finding{{Kind: reap.Snapshot, Where: "volumes/v@s", Action: reap.Wait, Why: "younger than 1h0m0s",
		Made: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)}})
	const want = "ACTION  KIND      WHERE        MADE                  WHY\n" +
		"wait    snapshot  volumes/v@s  2026-03-04T05:06:07Z  younger than 1h0m0s\n"
	if err != nil || out.String() != want {
		t.Errorf("table is\n%s%v, want\n%s", out.String(), err, want)
	}
}
