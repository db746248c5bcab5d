package ceph

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

func TestFenceable(t *testing.T) {
	for _, c := range []struct {
		addrs string
		want  []string // nil: refused
	}{
		{"127.0.0.1:0/3710147553", []string{"127.0.0.1:0/3710147553"}},
		{"v2:10.0.0.7:0/12", []string{"v2:10.0.0.7:0/12"}},
		{"[2001:db8::7]:0/12", []string{"[2001:db8::7]:0/12"}},
		{"v1:[2001:db8::7]:0/12", []string{"v1:[2001:db8::7]:0/12"}},
		{"[v2:10.0.0.7:0/12,v1:10.0.0.7:0/12]", []string{"v2:10.0.0.7:0/12", "v1:10.0.0.7:0/12"}},
		{"", nil},
		{"127.0.0.1:6789/0", nil}, // a monitor
		{"10.0.0.7:6800/12", nil}, // an OSD
		{"[v2:10.0.0.7:0/12,v1:10.0.0.7:6801/3]", nil}, // one of them has a port
		{"10.0.0.7:0", nil},
		{"10.0.0.7:0/12 ", nil},
		{"10.0.0.7:0/12\nx", nil},
		{"-:/0", nil},
	} {
		got, err := fenceable(c.addrs)
		if !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) {
			t.Errorf("fenceable(%q) = %q, %v; want %q", c.addrs, got, err, c.want)
		}
	}
}

func FuzzFenceable(f *testing.F) {
	f.Add("127.0.0.1:0/1")
	f.Add("[v2:10.0.0.7:0/12,v1:10.0.0.7:0/12]")
	f.Fuzz(func(t *testing.T, addrs string) {
		list, err := fenceable(addrs)
		for _, addr := range list {
			if err == nil && !strings.Contains(addr, ":0/") {
				t.Errorf("%q of %q is no client", addr, addrs)
			}
		}
	})
}

func TestOutwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Cluster{
			opts:    Options{FenceWait: 40 * time.Second, Logger: slog.New(slog.DiscardHandler)},
			fencing: fencing{absent: map[string]time.Time{}},
		}
		for range 4 {
			if err := c.outwait("10.0.0.7:0/1", coded(-13)); !errors.Is(err, worker.ErrHeld) {
				t.Fatalf("error %v before the time is over, want ErrHeld", err)
			}
			<-time.After(10 * time.Second)
		}
		if err := c.outwait("10.0.0.7:0/1", coded(-13)); err != nil {
			t.Errorf("after the time: %v", err)
		}
		if err := c.outwait("10.0.0.7:0/2", coded(-13)); !errors.Is(err, worker.ErrHeld) {
			t.Errorf("another owner: %v, want ErrHeld", err)
		}
	})
}
