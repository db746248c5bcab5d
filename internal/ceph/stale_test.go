package ceph

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestHistory(t *testing.T) {
	h := history("", "")
	if h != "" || len(fencedBefore(h)) != 0 {
		t.Errorf("nobody was fenced: %q", h)
	}
	h = history(h, "10.0.0.1:0/1")
	h = history(h, "[v2:10.0.0.2:0/2,v1:10.0.0.2:0/3]")
	h = history(h, "10.0.0.1:0/1")
	if got, want := fencedBefore(h), []string{"10.0.0.1:0/1", "10.0.0.2:0/2", "10.0.0.2:0/3"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for n := range 100 {
		h = history(h, fmt.Sprintf("10.0.0.9:0/%d", n))
	}
	if got := fencedBefore(h); len(got) != fencedMost || got[fencedMost-1] != "10.0.0.9:0/99" {
		t.Errorf("%q", got)
	}
	if got := fencedBefore("10.0.0.1:6789/5\nrubbish\n"); len(got) != 0 {
		t.Errorf("%q are no clients", got)
	}
	if strings.Contains(h, " ") {
		t.Error("a blank in a history")
	}
}
