package glance

import (
	"strings"
	"testing"

	"github.com/cinderlift/cinderlift/strategies"
)

// FuzzLocation: whatever the pool and the image are called, the URL that is made of them leads back to the same cluster
// and pool, has the four parts that Glance expects, and no name reaches into another part.
func FuzzLocation(f *testing.F) {
	f.Add("9d257340-7291-4b71-89ed-027b8fd153b8", "images", "00000000-0000-4000-8000-000000000001")
	f.Add("f", "a/b", "c%2Fd")
	f.Add("f", "p?q#r", "i@s;t")
	f.Add("f", "..", ".")
	f.Add("f", "Grüße ☃", " ")
	f.Fuzz(func(t *testing.T, fsid, pool, image string) {
		location := strategies.Location(fsid, strategies.Ref{Pool: pool, Image: image})
		gotFSID, gotPool, ok := cutLocation(location)
		if named := fsid != "" && pool != "" && image != ""; ok != named {
			t.Fatalf("%q %q %q made %s, which is understood: %v", fsid, pool, image, location, ok)
		}
		if ok && (gotFSID != fsid || gotPool != pool) {
			t.Fatalf("%q in %q became %q in %q by way of %s", pool, fsid, gotPool, gotFSID, location)
		}
		if strings.Count(location, "/") != 5 || strings.ContainsAny(location, " ?#\n") {
			t.Fatalf("location %s", location)
		}
	})
}

// FuzzForeignLocation: Glance shows locations of all kinds; reading one never fails worse than not being understood.
func FuzzForeignLocation(f *testing.F) {
	for _, s := range []string{
		"rbd://9d257340-7291-4b71-89ed-027b8fd153b8/images/1/snap", "file:///var/lib/glance/images/1", "cinder://a/b", "",
		"rbd://", "rbd://a/b/c/d/e", "rbd://%zz/b/c/d", "RBD://a/b/c/d", "rbd://a/%2e%2e/c/d",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, location string) {
		fsid, pool, ok := cutLocation(location)
		if !ok && (fsid != "" || pool != "") || ok && (fsid == "" || pool == "" || !strings.HasPrefix(location, "rbd://")) {
			t.Fatalf("%q is understood as %q in %q (%v)", location, pool, fsid, ok)
		}
	})
}
