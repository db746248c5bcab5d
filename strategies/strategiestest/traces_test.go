package strategiestest_test

import (
	"crypto/rand"
	"fmt"
	"testing"

	"github.com/cinderlift/cinderlift/strategies/strategiestest"
)

// TestTracesConform runs on the fake; internal/ceph runs the same on a real cluster.
func TestTracesConform(t *testing.T) {
	c := strategiestest.New(t)
	strategiestest.RunTraces(t, strategiestest.Rig{
		Source: c, Destination: c, Backdoor: c, Volumes: "volumes", Images: "images", ObjectSize: 4096,
		ID: func() string {
			var b [16]byte
			_, _ = rand.Read(b[:])

			return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
		},
	}, &strategiestest.Finder{Cluster: c})
}
