package strategies_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// TestExtended: the volume is extended while its image is made. The image is what the snapshot is, by each strategy.
func TestExtended(t *testing.T) {
	late := func(c *cloud) { c.options.Register = strategies.RegisterLate }
	for name, set := range map[string]func(c *cloud){
		"early": func(c *cloud) { c.glance.ReadsParents = true }, "late": late, "copy": order("copy"),
		"upload": order("export-upload"),
	} {
		for _, when := range []struct {
			op   string
			size int
		}{{"ceph snapshot", 8 * object}, {"ceph release.unprotect", 6 * object}, {"glance register", 6 * object}, {"ceph open", 6 * object}} {
			t.Run(name+" at "+when.op, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { extended(t, set, when.op, when.size) })
			})
		}
	}
}

func extended(t *testing.T, set func(c *cloud), op string, size int) {
	c := newCloud(t)
	set(c)
	once := false
	c.on = func(got string) error {
		if got == op && !once {
			once = true
			c.ceph.Resize(t, source, 8*object)
		}

		return nil
	}
	c.begin(request())
	c.run("alone", nil, 10*time.Minute)
	rec, err := c.record()
	if err != nil || rec.Outcome == nil || rec.Outcome.Result != worker.Done || rec.Outcome.Reason != worker.ReasonNone {
		t.Fatalf("%v, the outcome is %+v", err, rec.Outcome)
	}
	data, err := c.glance.Data(imageID)
	if err != nil || len(data) != size {
		t.Errorf("the image has %d bytes, want %d: %v", len(data), size, err)
	}
}
