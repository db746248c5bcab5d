//go:build lab

package lab_test

import (
	"context"
	_ "embed"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

//go:embed testdata/plant.py
var plant string

// damage is one thing that can be wrong with a cloud, made by hand.
type damage struct {
	name  string
	plant string // in Python, with what testdata/plant.py offers; also its way back
	undo  string
	more  func(*lab.Manifest) // what the manifest says otherwise
	log   string              // a line of a worker's log

	codes []string // exactly these are to be reported
	where string   // part of where
}

const (
	auditedImage  = "7bdc6f53-7ec4-4d36-9d35-62c2f4ab9e5a" // only in the journal: no image of this id is made
	remove        = "journal.remove_object('job.' + IMAGE); index(False)"
	wholeJob      = "record(True); index()"
	sealedAndMade = "seal(images, IMAGE); register(); record(True); index()"
)

// TestAuditor plants each kind of damage, sees it reported with its code and nothing else, and takes it away: that one
// comes after the other also shows that what was taken away is not reported any more.
func TestAuditor(t *testing.T) {
	w := open(t)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute) // some fifty audits
	defer cancel()
	w.ctx = ctx
	volume := w.volume(lab.VolumeSpec{GiB: 1}, 1)
	digest := w.sum(rbdVolume(volume))
	a := &auditing{world: w, volume: volume, digest: digest}
	a.before = a.audit(t, damage{name: "before"}, auditedImage)
	if len(a.before) > 0 { // tests that ran before this one kill things half-way; chaos, which runs first, has to leave nothing
		t.Logf("left by others: %v", a.before)
	}
	seen := map[string]bool{}
	for _, d := range slices.Concat(journalDamages(), busDamages(), logDamages(), volumeDamages()) {
		t.Run(d.name, func(t *testing.T) { a.try(t, d, auditedImage) })
		mark(seen, d.codes)
	}
	for _, d := range imageDamages() {
		t.Run(d.name, func(t *testing.T) { a.image(t, d) })
		mark(seen, d.codes)
	}
	a.expect(t, damage{name: "afterwards"}, auditedImage)
	for code := range lab.Codes() {
		if !seen[code] {
			t.Errorf("no damage was planted for the code %s", code)
		}
	}
}

func mark(seen map[string]bool, codes []string) {
	for _, c := range codes {
		seen[c] = true
	}
}

type auditing struct {
	*world
	volume, digest string
	before         []lab.Violation // of others
}

// python plants with the rights of Ceph's and OpenStack's admin.
func (a *auditing) python(t *testing.T, image, code string) {
	t.Helper()
	if code == "" {
		return
	}
	if _, err := a.Exec(a.ctx, "python3", "-c", plant+code, image, a.volume, a.Env["LAB_TRANSPORT_URL"]); err != nil {
		t.Fatalf("plant %s: %s", code, err.Error()[strings.LastIndex(err.Error(), "\n")+1:])
	}
}

func (a *auditing) try(t *testing.T, d damage, image string) {
	t.Cleanup(func() { a.python(t, image, d.undo) })
	a.python(t, image, d.plant)
	a.expect(t, d, image)
}

// image damages one that is all right so far: made by hand as a worker makes it, registered, and in the journal.
func (a *auditing) image(t *testing.T, d damage) {
	id, err := a.CreateImage(a.ctx, t.Name())
	a.must(err)
	a.python(t, id, "volume_snap('base')\n"+
		"volume = rbd.Image(volumes, 'volume-' + VOLUME, snapshot='base')\nvolume.copy(images, IMAGE)\nvolume.close()\n"+
		"volume_unsnap('base')")
	t.Cleanup(func() {
		if err := a.DeleteImage(a.ctx, id); err != nil {
			t.Errorf("delete the image afterwards: %v", err)
		}
		a.python(t, id, remove)
	})
	a.try(t, d, id)
}

// audit audits with a manifest that has one request and its volume. What was there before is left out.
func (a *auditing) audit(t *testing.T, d damage, image string) []lab.Violation {
	t.Helper()
	m := lab.Manifest{Volumes: map[string]string{a.volume: a.digest}}
	if image != auditedImage {
		m.Requests = []lab.Asked{{Image: image, Volume: a.volume, Digest: a.digest}}
	}
	if d.more != nil {
		d.more(&m)
	}
	file := filepath.Join(t.TempDir(), "worker.log")
	a.must(os.WriteFile(file, []byte(d.log), 0o644))
	found, err := a.Audit(a.ctx, m, []string{file})
	a.must(err)

	return slices.DeleteFunc(found, func(v lab.Violation) bool { return slices.Contains(a.before, v) })
}

// expect audits and compares the codes.
func (a *auditing) expect(t *testing.T, d damage, image string) {
	t.Helper()
	found := a.audit(t, d, image)
	var codes []string
	for _, v := range found {
		codes = append(codes, v.Code)
		if !strings.Contains(v.Where, d.where) {
			t.Errorf("reported at %q, want it to name %q", v.Where, d.where)
		}
	}
	slices.Sort(codes)
	codes, want := slices.Compact(codes), slices.Sorted(slices.Values(d.codes))
	if !slices.Equal(codes, want) {
		t.Errorf("codes = %v, want %v; found %v", codes, want, found)
	}
}
